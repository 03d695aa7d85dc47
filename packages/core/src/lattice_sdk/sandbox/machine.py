"""Whether this machine lets sandboxes be made: what is known to forbid them, and a real attempt."""

from __future__ import annotations

import os
import sys

from lattice_sdk.sandbox import trouble
from lattice_sdk.sandbox.home import Home, command
from lattice_sdk.sandbox.spec import PROBE, Spec

MACHINES = ("x86_64", "aarch64")
_LIMITS = ("max_user_namespaces", "max_net_namespaces", "max_pid_namespaces", "max_mnt_namespaces")
# Mounts on these do not keep the kernel from mounting another /proc: they are empty for good.
_HARMLESS = ("/proc/sys/fs/binfmt_misc", "/proc/fs/nfsd", "/proc/openprom", "/proc/xen")
_PROBE_TIMEOUT = 10.0  # seconds


def forbids() -> str | None:
    """What is known to forbid sandboxes here, by a look at settings; ``None`` for nothing."""
    if sys.platform != "linux":
        return "only Linux has network namespaces"
    if os.uname().machine not in MACHINES:
        return f"the sandbox's filter is not written for {os.uname().machine}"
    if trouble.field("Seccomp") == "" or not sys.executable:
        return "/proc cannot be read, or this Python does not know where it is"
    for limit in _LIMITS:
        if trouble.setting(f"/proc/sys/user/{limit}") == "0":
            return f"user.{limit} is 0: sysctl -w user.{limit}=10000"
    if os.geteuid() != 0 and trouble.setting(trouble.USERNS_CLONE) == "0":
        return trouble.cause(0)
    return None


def is_doubtful() -> bool:
    """Whether something looks as in a container, where a part of ``/proc`` is hidden."""
    return any(
        target.startswith("/proc/") and not target.startswith(_HARMLESS)
        for _, target, _, _ in trouble.mounts()
    )


def doubts() -> str | None:
    """Where something looks as in a container, what an attempt says; ``None`` if all is well."""
    return attempt() if is_doubtful() else None


def attempt() -> str | None:
    """Make a sandbox for real, with no tunnel in it; why it does not work, ``None`` if it does."""
    import subprocess
    import tempfile

    with tempfile.TemporaryDirectory(prefix="lattice-probe-") as name:
        spec = Spec(PROBE)
        spec.keeper = os.getpid()
        home = Home(os.path.join(name, "home"), spec, {})
        try:
            done = subprocess.run(
                command(home.spec, ["true"]),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_PROBE_TIMEOUT,
                stdin=subprocess.DEVNULL,
                cwd="/",
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"an attempt failed: {error}"
        finally:
            home.close()
    if done.returncode == 0:
        return None
    return done.stderr.strip().removeprefix("lattice: ") or f"an attempt ended {done.returncode}"
