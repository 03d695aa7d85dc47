"""``lattice version`` and ``lattice plugins``."""

from __future__ import annotations

import platform
from importlib import metadata

from lattice_sdk.cli.output import Format, show_list, show_one
from lattice_sdk.cli.session import Output

DISTRIBUTIONS = ("lattice-sdk", "lattice-engine", "lattice-server")


def version(output: Output = Format.table) -> None:
    """Show the versions of the parts that are installed.

    For example:

      lattice version --output json
    """
    found: dict[str, str | None] = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    show_one({**found, "python": platform.python_version()}, output)


def plugins(output: Output = Format.table) -> None:
    """List the plugins that are loaded, and the hooks that each implements.

    LATTICE_DISABLE_PLUGINS=1 leaves out all that are not the SDK's own.

    For example:

      lattice plugins
    """
    from lattice_sdk.plugins import manager

    found = manager()
    rows = []
    for name, plugin in sorted(found.list_name_plugin()):
        if plugin is None:
            continue
        hooks = sorted(caller.name for caller in found.get_hookcallers(plugin) or [])
        module = getattr(plugin, "__name__", type(plugin).__name__)
        rows.append({"name": name, "module": module, "hooks": hooks})
    show_list(rows, {"name": "PLUGIN", "module": "MODULE", "hooks": "HOOKS"}, output)
