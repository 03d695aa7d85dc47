"""For all tests of the workspace."""

import signal
from importlib.util import find_spec

from lattice_autogen._compat import GENERATIONS

# A shell starts background jobs with SIGINT ignored, which children inherit and Python then leaves
# so. What is tested here is what happens when nobody has done that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["lattice_sdk.testing.plugin"]

# Each generation of AutoGen has an environment of its own, in which `make test` runs its tests.
collect_ignore_glob = [
    f"*/test_autogen_{generation}*.py"
    for generation, module in GENERATIONS.items()
    if find_spec(module) is None
]
