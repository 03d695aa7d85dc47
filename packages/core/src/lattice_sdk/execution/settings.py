"""The settings of ``lattice exec`` as far as they are ordinary, read without the SDK's model.

The same names mean the same here as in :mod:`lattice_sdk.config`. What is out of the ordinary is
left to that: then there are no settings here, and the SDK does all of it.
"""

from __future__ import annotations

import os
import re
import sys

from lattice_sdk.execution.options import Options

DISABLE_PLUGINS = "LATTICE_DISABLE_PLUGINS"
_KNOWN = ("server", "token", "token_file", "workspace", "backend", "isolation", "ca_file")
# Of other parts: they change nothing here.
_OTHERS = ("config", "debug", "disable_plugins", "engine")
_OTHERS_BEGIN = ("server_", "test_")
_SERVER = re.compile(
    r"https?://(?P<host>[A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(:[0-9]{1,5})?(/[^?#@\s]*)?"
)
_LOOPBACK = re.compile(r"localhost|127\.[0-9.]+|\[::1\]|.*\.localhost")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
# Plugins of these packages add commands, and take no part in an identity's life.
_OUR_PLUGINS = ("lattice_server.", "lattice_k8s_job.")
_TOKEN_BYTES = 64 * 1024
# Of what is asked for: other forms are wrong, or are the SDK's to read (lattice_sdk.wire).
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_DURATION = re.compile(r"([1-9][0-9]{0,6}[hms])+")


class Settings:
    """Complete settings.

    Attributes:
        secret_files: where these settings keep credentials.
    """

    def __init__(self, found: dict[str, str], token: str, secret_files: list[str]) -> None:
        self.server = found["server"].strip().rstrip("/")
        self.token = token
        self.workspace = found.get("workspace")
        self.isolation = found.get("isolation", "preferred")
        ca_file = found.get("ca_file")
        self.ca_file = os.path.abspath(os.path.expanduser(ca_file)) if ca_file else ""
        self.secret_files = secret_files


def ordinary(options: Options) -> Settings | None:
    """The settings, ``None`` where the SDK must see to them: unknown, wrong or unusual ones."""
    given = {name: value for name in _KNOWN if (value := getattr(options, name)) is not None}
    environment = _environment()
    file = _config_file()
    if environment is None or file is None or not _is_ordinary(options):
        return None
    found = file | environment | given
    if not _NAME.fullmatch(found.get("workspace", "x")):
        return None
    if "token_file" in given and "token" not in given:  # two ways to say one thing
        found.pop("token", None)
    server = _SERVER.fullmatch(found.get("server", "").strip().rstrip("/"))
    token = _token(found)
    if server is None or not token or found.get("backend", "netns") != "netns":
        return None
    if found.get("isolation", "preferred") not in ("preferred", "required"):
        return None
    if not _LOOPBACK.fullmatch(server["host"]) and _has_proxy():
        return None
    if os.environ.get(DISABLE_PLUGINS, "") in ("", "0") and _has_plugins():
        return None
    secret_files = [path for path in (found.get("token_file"), config_path()) if path]
    return Settings(found, token, secret_files)


def _is_ordinary(options: Options) -> bool:
    """Whether what is asked for needs nothing that the SDK alone has, and can be right."""
    patterns = any(rule["to"].startswith("*.") for rule in options.allow)
    names = (options.agent_name, options.agent_type, options.policy_preset)
    return (
        not options.forward
        and not patterns
        and all(_NAME.fullmatch(name) for name in names if name is not None)
        and (options.ttl is None or _DURATION.fullmatch(options.ttl) is not None)
    )


def config_path() -> str:
    """Where the config file is; as :func:`lattice_sdk.config.config_path`."""
    named = os.environ.get("LATTICE_CONFIG")
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return named or os.path.join(os.path.expanduser(home), "lattice", "config.toml")


def _environment() -> dict[str, str] | None:
    found = {}
    for variable, value in os.environ.items():
        if not variable.upper().startswith("LATTICE_") or not value:
            continue
        name = variable[len("LATTICE_") :].lower()
        if name in _KNOWN and variable.isupper():
            found[name] = value
        elif name not in _OTHERS and not name.startswith(_OTHERS_BEGIN):
            return None
    return found


def _config_file() -> dict[str, str] | None:
    path = config_path()
    if not os.path.exists(path):
        return {}
    import tomllib

    try:
        with open(path, "rb") as file:
            document = tomllib.load(file)
    except (OSError, ValueError):
        return None
    ordinary = all(
        name in _KNOWN and isinstance(value, str) and value for name, value in document.items()
    )
    return document if ordinary else None


def _token(found: dict[str, str]) -> str:
    if found.get("token"):
        return found["token"]
    try:
        with open(os.path.expanduser(found.get("token_file", "")), "rb") as file:
            return file.read(_TOKEN_BYTES).decode("ascii").strip()
    except (OSError, ValueError):
        return ""


def _has_proxy() -> bool:
    return any(os.environ.get(each) or os.environ.get(each.upper()) for each in _PROXIES)


def _has_plugins() -> bool:
    """Whether a distribution has a plugin that may want to take part."""
    for place in dict.fromkeys(sys.path):
        try:
            names = os.listdir(place or ".")
        except OSError:
            continue
        for name in names:
            if name.endswith((".dist-info", ".egg-info")) and _offers(f"{place}/{name}"):
                return True
    return False


def _offers(distribution: str) -> bool:
    try:
        with open(f"{distribution}/entry_points.txt", encoding="utf-8") as file:
            text = file.read()
    except (OSError, ValueError):
        return False
    section = ""
    for line in text.splitlines():
        if line.startswith("["):
            section = line.strip()
        elif section == "[lattice]" and "=" in line:
            module = line.partition("=")[2].strip()
            if not f"{module}.".startswith(_OUR_PLUGINS):
                return True
    return False
