"""The one plugin manager: entry points of the group ``lattice``, and the SDK's own backends."""

from __future__ import annotations

import functools
import logging
import os
from importlib.metadata import entry_points
from typing import Any

import pluggy

from lattice_sdk import hookspecs

log = logging.getLogger("lattice.plugins")
DISABLE = "LATTICE_DISABLE_PLUGINS"


@functools.cache
def manager() -> pluggy.PluginManager:
    """The plugin manager, with all plugins loaded.

    ``LATTICE_DISABLE_PLUGINS=1`` leaves entry points out. A plugin that cannot be imported is
    logged and left out.
    """
    plugins = pluggy.PluginManager(hookspecs.PROJECT)
    plugins.add_hookspecs(hookspecs)
    from lattice_sdk.backends import builtin

    plugins.register(builtin, "lattice-sdk")
    if os.environ.get(DISABLE, "") in ("", "0"):
        _load_entry_points(plugins)
    return plugins


def _load_entry_points(plugins: pluggy.PluginManager) -> None:
    # One by one instead of load_setuptools_entrypoints: a broken plugin must not break the others.
    for entry in entry_points(group=hookspecs.PROJECT):
        try:
            plugins.register(entry.load(), entry.name)
        except Exception:
            log.exception("the plugin %s (%s) was left out: it cannot be loaded", entry.name, entry)


def notify(hook: str, **arguments: Any) -> None:
    """Call a hook of every plugin; what one raises is logged, and the others are still called."""
    for implementation in getattr(manager().hook, hook).get_hookimpls():
        wanted = {name: arguments[name] for name in implementation.argnames}
        try:
            implementation.function(**wanted)
        except Exception:
            log.exception("the hook %s of plugin %s raised", hook, implementation.plugin_name)
