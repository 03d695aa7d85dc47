"""The ``lattice`` command.

Exit status: 0 done; 1 an expectation failed (``demo``, ``doctor``) or a part failed by itself;
2 wrong usage; 3 to 19 the ``exit_code`` of each error in :mod:`lattice_sdk.errors`; 70 a defect of
this program; 130 interrupted by Ctrl-C; 141 whoever read the output has left. None changes its
meaning.
"""

from lattice_sdk.cli.app import build, main

__all__ = ["build", "main"]
