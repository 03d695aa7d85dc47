"""``python -m lattice_sdk`` is the ``lattice`` command."""

from lattice_sdk.cli import main

if __name__ == "__main__":
    main()
