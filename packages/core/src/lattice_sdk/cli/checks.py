"""What ``lattice doctor`` looks at: each check tries the thing itself."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lattice_sdk.cli.session import Session
    from lattice_sdk.client import ControlPlane

CAP_NET_ADMIN = 12  # linux/capability.h
SKEW = 5.0  # seconds; more than a network's delay, and confusing when logs are compared


class Verdict(StrEnum):
    """How a check came out. ``missing`` is no fault: something else serves instead."""

    ok = "ok"
    missing = "missing"
    failed = "failed"
    skipped = "skipped"


@dataclass(frozen=True)
class Check:
    """One finding."""

    name: str
    verdict: Verdict
    detail: str
    change: str = ""

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "check": self.name,
            "verdict": self.verdict.value,
            "detail": self.detail,
            "change": self.change or None,
        }


def machine() -> Iterator[Check]:
    """What this machine can do, one finding after the other."""
    engine = _engine()
    yield engine
    kernel = _kernel() if sys.platform == "linux" else {}
    yield _possible(
        "user namespaces",
        kernel.get("userNamespace"),
        "an ordinary user can have network namespaces",
        "sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone and "
        "kernel.apparmor_restrict_unprivileged_userns decide this; root does without",
    )
    yield _possible(
        "/dev/net/tun",
        kernel.get("tun"),
        "it can be opened",
        "not needed: the engine has a way without. For speed: chmod 0666 /dev/net/tun",
    )
    yield _possible(
        "CAP_NET_ADMIN",
        _net_admin(),
        "this process may configure the network",
        "needed for `lattice gateway --namespace host` alone; run that as root",
    )
    yield _possible(
        "kernel WireGuard",
        kernel.get("kernelWireGuard"),
        "the kernel makes WireGuard interfaces",
        "not needed: the engine has its own. For speed: modprobe wireguard",
    )
    if engine.verdict is not Verdict.ok:
        for name in ("sandbox", "interface", "gateway"):
            yield _skipped(name, "no engine")
        return
    yield from _networks()
    yield _gateway()


def control_plane(session: Session, *, tunnel: bool) -> Iterator[Check]:
    """Whether the control plane, its token and the way to the gateway work."""
    if session.settings.server is None:
        reason = "no control plane is named: set LATTICE_SERVER"
        for name in ("control plane", "clock", "token", "tunnel"):
            yield _skipped(name, reason)
        return
    from lattice_sdk.errors import LatticeError

    started = time.monotonic()
    try:
        skew = session.run(_reach)
    except LatticeError as error:
        yield Check("control plane", Verdict.failed, error.message, error.hint or "")
        for name in ("clock", "token", "tunnel"):
            yield _skipped(name, "the control plane does not answer")
        return
    took = (time.monotonic() - started) * 1000
    yield Check("control plane", Verdict.ok, f"{session.server} is ready ({took:.0f} ms)")
    yield _clock(skew)
    kind, token = _token(session)
    yield token
    if not tunnel:
        yield _skipped("tunnel", "not asked for")
    elif kind == "workspace":
        yield _tunnel(session)
    else:
        yield _skipped("tunnel", "needs a workspace token")


def _engine() -> Check:
    from lattice_engine import EngineError, engine_path

    try:
        path = engine_path()
        done = subprocess.run(
            [path, "version"], capture_output=True, text=True, timeout=10, check=True
        )
    except EngineError as error:
        return Check("engine", Verdict.failed, error.detail, "Install lattice-engine's wheel")
    except (OSError, subprocess.SubprocessError) as error:
        change = "The binary is for another machine: install the wheel of this platform"
        return Check("engine", Verdict.failed, f"{path} does not run: {error}", change)
    return Check("engine", Verdict.ok, f"{done.stdout.strip()}, {path}")


def _kernel() -> dict[str, Any]:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "lattice_sdk.cli.kernelprobe"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        found = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return dict.fromkeys(("userNamespace", "tun", "kernelWireGuard"), f"not tried: {error}")
    return found if isinstance(found, dict) else {}


def _net_admin() -> bool | str:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return "this is no Linux"
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            held = bool(int(value, 16) >> CAP_NET_ADMIN & 1)
            return held or "this process does not have it"
    return "unknown"


def _networks() -> Iterator[Check]:
    """What a tunnel can end in here, and whether programs can be put into it, for real."""
    from lattice_engine import EngineError, EngineProcess
    from lattice_sdk.sandbox import machine as sandboxes

    try:
        with EngineProcess.start_netstack() as engine:
            networks = engine.client.networks()
    except EngineError as error:
        for name in ("sandbox", "interface"):
            yield Check(name, Verdict.failed, error.detail)
        return
    namespace, interface = networks["namespace"], networks["interface"]
    why = sandboxes.forbids() or (None if namespace["able"] else namespace["detail"])
    why = why or sandboxes.attempt()
    if why is None:
        device = _DEVICES.get(namespace.get("device", ""), "its device")
        detail = f"programs can have a network of nothing but the tunnel, {device}"
        yield Check("sandbox", Verdict.ok, detail)
    else:
        change = "as it says. Until then programs get a proxy, and could use this machine's network"
        yield Check("sandbox", Verdict.missing, why, change)
    if interface["able"]:
        yield Check("interface", Verdict.ok, "the backend interface works here")
    else:
        change = "needed for backend='interface' alone: run it with CAP_NET_ADMIN"
        yield Check("interface", Verdict.missing, interface["detail"], change)


_DEVICES = {"tun": "a TUN", "packet": "a veth pair", "kernel": "the kernel's WireGuard"}


def _gateway() -> Check:
    """A gateway's data plane in a namespace of its own: TUN, nftables, conntrack, for real."""
    from lattice_engine import EngineError, EngineProcess
    from lattice_sdk import keys

    change = "Run the gateway as root with --namespace host, or on a machine with user namespaces"
    with tempfile.TemporaryDirectory(prefix="lattice-doctor-") as directory:
        key = Path(directory) / "key"
        key.touch(mode=0o600)
        key.write_text(keys.generate().private.get_secret_value() + "\n")
        try:
            with EngineProcess.start_gateway(
                private_key_file=key,
                listen_port=0,
                address="10.96.0.1/16",
                namespace="own",
                runtime_dir=Path(directory) / "engine",
            ) as engine:
                status = engine.client.status()
                engine.client.put_state({"revision": 1, "upsert": [], "remove": []})
        except EngineError as error:
            return Check("gateway", Verdict.missing, error.detail, change)
    device = _DEVICES.get(status.get("device", ""), "its device")
    detail = f"runs here without touching the host's network: {device}, nftables with timeouts"
    return Check("gateway", Verdict.ok, detail)


async def _reach(api: Any) -> float | None:
    """Ask whether it is ready; how far this machine's clock is ahead, in seconds."""
    from lattice_sdk.clock import now

    await api.request("GET", "/readyz")
    date = api.clock.date(now())
    return None if date is None else time.time() - date.timestamp()


def _clock(skew: float | None) -> Check:
    if skew is None:
        return _skipped("clock", "the control plane does not tell its time")
    if abs(skew) <= SKEW:
        return Check("clock", Verdict.ok, f"{abs(skew):.1f} s apart from the control plane's")
    side = "ahead of" if skew > 0 else "behind"
    detail = f"{abs(skew):.0f} s {side} the control plane's; deadlines hold all the same"
    return Check("clock", Verdict.missing, detail, "Have one of the two set by NTP")


def _token(session: Session) -> tuple[str, Check]:
    """Which kind of token it is: what it opens tells, for no call says it."""
    from lattice_sdk.errors import LatticeError, NotPermitted

    try:
        if session.token() is None:
            return "", _skipped("token", "none is set: LATTICE_TOKEN or LATTICE_TOKEN_FILE")
        for kind, path in (("admin", "/api/v1/workspaces"), ("workspace", "/api/v1/peers")):

            async def ask(api: ControlPlane, path: str = path) -> None:
                await api.request("GET", path, params={"limit": 1})

            try:
                session.run(ask)
            except NotPermitted:
                continue
            return kind, Check("token", Verdict.ok, f"a token of kind {kind}")
    except LatticeError as error:
        return "", Check("token", Verdict.failed, error.message, error.hint or "")
    return "", Check("token", Verdict.ok, "valid, of kind service, gateway or enrollment")


def _tunnel(session: Session) -> Check:
    from lattice_sdk.agent import LatticeAgent
    from lattice_sdk.errors import LatticeError

    started = time.monotonic()
    try:
        with LatticeAgent(
            server=session.server,
            token=session.token(),
            agent_name="lattice-doctor",
            workspace_id=session.settings.workspace,
            ttl="1m",
            backend="userspace",
            isolation="preferred",
            verify=session.settings.ca_file,
            timeout=session.settings.timeout,
        ) as agent:
            took = (time.monotonic() - started) * 1000
            reach = len(agent.services)
            detail = f"UDP to the gateway works: enrolled and proven in {took:.0f} ms"
    except LatticeError as error:
        return Check("tunnel", Verdict.failed, error.message, error.hint or "")
    return Check("tunnel", Verdict.ok, f"{detail}; {reach} tool services to reach")


def _possible(name: str, found: bool | str | None, good: str, change: str) -> Check:
    if found is True:
        return Check(name, Verdict.ok, good)
    return Check(name, Verdict.missing, str(found or "this is no Linux"), change)


def _skipped(name: str, why: str) -> Check:
    return Check(name, Verdict.skipped, why)
