"""For all tests of the workspace."""

import signal

# A shell starts background jobs with SIGINT ignored, which children inherit and Python then leaves
# so. What is tested here is what happens when nobody has done that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["lattice_sdk.testing.plugin"]
