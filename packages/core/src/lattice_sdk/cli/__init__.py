"""The ``lattice`` command.

Exit status: 0 done; 1 an expectation failed (``demo``, ``doctor``) or a part failed by itself;
2 wrong usage; 3 to 20 the ``exit_code`` of each error in :mod:`lattice_sdk.errors`; 70 a defect of
this program; 130 interrupted by Ctrl-C; 141 whoever read the output has left. None changes its
meaning. ``lattice exec`` alone has those of the program that it runs, and 125 for its own failures,
126 for a program that cannot be executed, 127 for one that is not there.
"""

TYPE_CHECKING = False  # as typing has it, without the time that importing that takes
if TYPE_CHECKING:
    import typer

__all__ = ["build", "main"]


def build() -> "typer.Typer":
    """The command line, with the commands of all plugins."""
    from lattice_sdk.cli import app

    return app.build()


def main() -> None:
    """The ``lattice`` command."""
    import sys

    if sys.argv[1:2] == ["exec"]:
        from lattice_sdk.execution.main import main as execute

        execute(sys.argv[2:])  # comes back where help is wanted
    from lattice_sdk.cli import app

    app.main()
