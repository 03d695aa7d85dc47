"""The toy framework of the documentation, and its adapter: the page's own text, executed."""

from __future__ import annotations

import re
from pathlib import Path

from lattice_sdk.testing import Adapter

PAGE = Path(__file__).parent.parent.parent / "docs" / "adapters.md"
(_TEXT,) = [
    block
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    if "AdapterContract" in block
]
# As if it stood here: other processes look the adapter up in this module.
exec(compile(_TEXT, str(PAGE), "exec"))
Toy: type[Adapter] = globals()["PipelineAdapter"]
TestPipeline: type = globals()["TestPipeline"]
