"""The text of a WireGuard configuration (wg-quick(8)) as far as it is text: sections and lines."""

from __future__ import annotations

KNOWN = {
    "interface": {"privatekey", "address", "mtu", "dns", "listenport"},
    "peer": {"publickey", "presharedkey", "endpoint", "allowedips", "persistentkeepalive"},
}
NEEDED = {"interface": ("Address",), "peer": ("PublicKey", "Endpoint", "AllowedIPs")}
DEFAULT_MTU = 1420  # wg-quick's for an underlay of 1500 bytes

Section = dict[str, list[str]]


class WireGuardConfigError(ValueError):
    """The text is not a configuration that a tunnel can be made of. Never quotes its values."""


def sections(text: str) -> tuple[Section, Section]:
    """The settings of ``[Interface]`` and of ``[Peer]``, by their names in small letters.

    Raises:
        WireGuardConfigError: a section is there twice or lacks what is needed, or a line means
            something unknown.
    """
    found: dict[str, Section] = {}
    current: Section | None = None
    name = ""
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.partition("#")[0].strip()
        if not line:
            continue
        if line.startswith("[") and line.endswith("]"):
            name = line[1:-1].strip().lower()
            if name not in KNOWN or name in found:
                raise WireGuardConfigError(f"line {number}: a second or an unknown section")
            current = found[name] = {}
            continue
        key, separator, value = (part.strip() for part in line.partition("="))
        if current is None or not separator or key.lower() not in KNOWN[name]:
            # A command such as PostUp is not for a server to choose.
            raise WireGuardConfigError(f"line {number} is not a setting that is known here")
        current.setdefault(key.lower(), []).append(value)
    for section, needed in NEEDED.items():
        values = found.get(section, {})
        missing = [key for key in needed if not any(values.get(key.lower(), []))]
        if missing:
            raise WireGuardConfigError(f"[{section.title()}] lacks {', '.join(missing)}")
    return found["interface"], found["peer"]


def many(section: Section, key: str) -> tuple[str, ...]:
    """The values of a setting that may be there several times, or have several values."""
    parts = (part.strip() for value in section.get(key, []) for part in value.split(","))
    return tuple(part for part in parts if part)


def number(section: Section, key: str) -> int | None:
    """A number; ``off`` is as if it were not there.

    Raises:
        WireGuardConfigError: it is none.
    """
    values = section.get(key, [])
    if not values or values[-1].lower() == "off":
        return None
    if not values[-1].isdecimal():
        raise WireGuardConfigError(f"{key} is not a number")
    return int(values[-1])
