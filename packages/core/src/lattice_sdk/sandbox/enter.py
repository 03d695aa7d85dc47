"""Run a program inside a sandbox: ``python -I -S enter.py [OPTIONS] SPEC -- PROGRAM ARGUMENTS…``.

Run by its path, so that no environment and no ``site`` has a say in what is loaded. What it
imports is found beside it, past ``lattice_sdk/__init__.py``, which would cost time.
"""

import os
import sys


def _load() -> None:
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    package = type(sys)("lattice_sdk")
    package.__path__ = [home]
    sys.modules["lattice_sdk"] = package


if __name__ == "__main__":
    _load()
    from lattice_sdk.sandbox.launcher import main

    main(sys.argv[1:])
