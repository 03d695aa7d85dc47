"""The gateway's engine as the daemon sees it: adopted or started, applied to, ended. Blocking."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from pathlib import Path
from typing import Any

import lattice_engine
from lattice_engine import EngineError, EngineProcess
from lattice_server.gateway.desired import Change
from lattice_server.gateway.settings import GatewayError, GatewaySettings
from lattice_server.gateway.state import StateDirectory

log = logging.getLogger(__name__)
LOG_BYTES = 10 << 20  # the engine's log is put aside at a start when it is longer
ENGINE_GONE = frozenset({"engine_unreachable", "engine_timeout", "engine_closed"})


class DataPlane:
    """One gateway engine over all its restarts; its key, address and port stay the same."""

    def __init__(self, settings: GatewaySettings, state: StateDirectory) -> None:
        self.settings = settings
        self.state = state
        self.public_key = state.public_key()
        self.listen_port = 0
        self.adopted = False
        self._process: EngineProcess | None = None

    @property
    def process(self) -> EngineProcess:
        """The engine.

        Raises:
            EngineError: there is none at the moment.
        """
        if self._process is None:
            raise EngineError("engine_closed", "the gateway's engine does not run at the moment")
        return self._process

    def bring_up(self) -> None:
        """Adopt the engine that runs for this state directory, or start one.

        Raises:
            GatewayError: none runs and none can be started.
        """
        self._process = self._adopt()
        self.adopted = self._process is not None
        if self._process is None:
            self._process = self._start()
        self.listen_port = int(self._process.client.status()["listenPort"])
        self.state.write(
            {
                "pid": self._process.pid,
                "control": str(self._process.control),
                "publicKey": self.public_key,
                "address": self.settings.address,
                "listenPort": self.listen_port,
                "endpoint": self.settings.endpoint_at(self.listen_port),
                "version": self._process.version,
            }
        )
        log.info(
            "%s engine %d, UDP port %d",
            "adopted the running" if self.adopted else "started",
            self._process.pid,
            self.listen_port,
        )

    def apply(self, change: Change, now: float) -> dict[str, str]:
        """Make the engine's state what the change says.

        A peer that the engine refuses does not keep the others from being programmed.

        Args:
            change: what is wanted.
            now: seconds since boot (:func:`lattice_sdk.clock.now`), for the deadlines.

        Returns:
            Reasons of refusals by peer id (``state`` for none in particular); empty when all was
            applied.

        Raises:
            EngineError: the engine does not answer.
        """
        client = self.process.client
        body = change.body(now)
        try:
            (client.put_state if change.full else client.patch_state)(body)
        except EngineError as error:
            if error.code in ENGINE_GONE:
                raise
            return self._apply_parts(change.full, body, error)
        return {}

    def _apply_parts(self, full: bool, body: dict[str, Any], error: EngineError) -> dict[str, str]:
        """Program what can be programmed of a refused state, halving it down to single peers."""
        client, upsert, remove = self.process.client, body["upsert"], set(body["remove"])
        if full:
            # As a difference, because a PUT of a part would cut the connections of the rest.
            wanted = {peer["id"] for peer in upsert}
            remove = {peer["id"] for peer in client.peers()} - wanted
            log.error("the engine refused a full state: %s", error.detail)
        if len(upsert) <= 1 and not remove:
            return {peer["id"]: error.detail for peer in upsert} or {"state": error.detail}
        middle = len(upsert) // 2
        reasons: dict[str, str] = {}
        for part, gone in (([], remove), (upsert[:middle], set()), (upsert[middle:], set())):
            if not part and not gone:
                continue
            step = {"revision": body["revision"], "upsert": part, "remove": sorted(gone)}
            try:
                client.patch_state(step)
            except EngineError as refused:
                if refused.code in ENGINE_GONE:
                    raise
                if not part:
                    reasons["state"] = refused.detail
                else:
                    reasons |= self._apply_parts(False, step, refused)
        return reasons

    def stop(self) -> None:
        """End the engine and forget it."""
        if self._process is not None:
            process, self._process = self._process, None
            process.close()
            self.state.write({**self.state.read(), "pid": None, "control": None})

    def leave(self) -> None:
        """Let go of the engine; it goes on."""
        if self._process is not None:
            self._process.client.close()

    def discard(self) -> None:
        """Make sure that an engine which failed us is gone before another takes its place."""
        if self._process is not None:
            process, self._process = self._process, None
            process.close(timeout=3)

    def _adopt(self) -> EngineProcess | None:
        known = self.state.read()
        directory = self.state.engine_dir
        candidates = {Path(known["control"])} if known.get("control") else set()
        if directory is not None:
            candidates.add(directory / "control.sock")
        for control in sorted(candidates):
            if not control.exists():
                continue
            try:
                running = EngineProcess.attach(control)
            except EngineError as error:
                log.warning("no engine to adopt at %s: %s", control, error.detail)
                _kill_silent_engine(known.get("pid"), control.parent)
                continue
            differences = self._differences(running.client.status())
            if not differences:
                return running
            log.warning("ending engine %d: it has another %s", running.pid, differences)
            running.close()
        return None

    def _differences(self, status: dict[str, Any]) -> str:
        """What of a running engine is not as the settings want it; empty when it can be kept."""
        wanted: dict[str, object] = {
            "mode": "gateway",
            "publicKey": self.public_key,
            "address": self.settings.address,
        }
        if self.settings.listen_port:
            wanted["listenPort"] = self.settings.listen_port
        if self.settings.namespace:
            wanted["namespace"] = self.settings.namespace
        return ", ".join(name for name, value in wanted.items() if status.get(name) != value)

    def _start(self) -> EngineProcess:
        self._put_log_aside()
        port = self.settings.listen_port
        # A port chosen once is kept: agents that are enrolled know it.
        kept = 0 if port else int(self.listen_port or self.state.read().get("listenPort") or 0)
        try:
            try:
                return self._start_at(port or kept)
            except EngineError as error:
                if not kept or isinstance(error, lattice_engine.EngineMissing):
                    raise
                log.warning("UDP port %d cannot be had again: %s", kept, error.detail)
                return self._start_at(0)
        except EngineError as error:
            raise GatewayError(
                f"the gateway's engine does not start: {error.detail} ({error.code})"
            ) from error

    def _start_at(self, port: int) -> EngineProcess:
        return EngineProcess.start_gateway(
            private_key_file=self.state.key_file,
            listen_port=port,
            address=self.settings.address,
            namespace=self.settings.namespace,
            runtime_dir=self.state.engine_dir,
            log=self.state.engine_log,
        )

    def _put_log_aside(self) -> None:
        with contextlib.suppress(OSError):
            if self.state.engine_log.stat().st_size > LOG_BYTES:
                self.state.engine_log.replace(self.state.engine_log.with_suffix(".log.1"))


def _kill_silent_engine(pid: object, directory: Path) -> None:
    """Kill an engine that hangs; only a process that was started with this very directory."""
    if not isinstance(pid, int):
        return
    with contextlib.suppress(OSError):
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"gateway" in arguments and os.fsencode(directory) in arguments:
            os.kill(pid, signal.SIGKILL)
