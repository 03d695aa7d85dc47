"""The gateway daemon: keeps the engine at the desired state and reports the engine's events."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import ssl
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from typing import Any

from websockets.exceptions import WebSocketException

from lattice_engine import EngineError
from lattice_sdk.clock import now
from lattice_server.collector import spare_what_stays
from lattice_server.gateway.dataplane import DataPlane
from lattice_server.gateway.desired import Assembler, BadMessageError, Change, Desired
from lattice_server.gateway.settings import GatewayError, GatewaySettings
from lattice_server.gateway.state import StateDirectory
from lattice_server.gateway.stream import (
    Backoff,
    ControlStream,
    RefusedError,
    ReplacedError,
    open_stream,
    tls_context,
)

log = logging.getLogger(__name__)
REPORTS_KEPT = 10_000  # events that wait while the control plane is away; the oldest are dropped
REPORT_BATCH = 500


def run_gateway(
    settings: GatewaySettings, *, ready: Callable[[dict[str, Any]], None] | None = None
) -> None:
    """Run the daemon until SIGTERM or SIGINT.

    Args:
        settings: what to run.
        ready: called once, when the first full state is applied, with what there is to know:
            ``pid``, ``enginePid``, ``endpoint`` and ``control``.

    Raises:
        GatewayError: it cannot start.
    """
    # Until the loop handles it, SIGTERM unwinds like Ctrl-C, so that no half-started engine stays.
    signal.signal(signal.SIGTERM, _exit)
    settings.token()
    tls = tls_context(settings)
    state = StateDirectory(settings.state_dir)
    try:
        plane = DataPlane(settings, state)
        keep = settings.keep_engine
        try:
            plane.bring_up()
            spare_what_stays()
            asyncio.run(_Daemon(settings, plane, tls, ready).run())
        except GatewayError:
            # An engine that was serving before us is not ours to end because we cannot connect.
            keep = plane.adopted
            raise
        finally:
            if keep:
                plane.leave()
            else:
                plane.stop()
    finally:
        state.close()


def _exit(*_: object) -> None:
    raise SystemExit(0)


class _Daemon:
    def __init__(
        self,
        settings: GatewaySettings,
        plane: DataPlane,
        tls: ssl.SSLContext | None,
        ready: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.settings = settings
        self.plane = plane
        self.tls = tls
        self.ready = ready
        self.desired = Desired()
        self.stopping = asyncio.Event()
        self.was_ready = False
        self._engine_up = asyncio.Event()
        self._engine_up.set()
        self._resync = asyncio.Event()
        self._reports: deque[dict[str, Any]] = deque(maxlen=REPORTS_KEPT)
        self._have_reports = asyncio.Event()
        self._bad: dict[str, str] = {}
        # One thread: changes reach the engine in their order, whatever becomes of a connection.
        self._applier = ThreadPoolExecutor(1, "lattice-apply")

    async def run(self) -> None:
        """Until a signal; raises what makes going on impossible."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stopping.set)
        try:
            await _first_of(self.stopping.wait(), self._watch_engine(), self._stay_connected())
        finally:
            # Wakes the thread that reads the engine's events, so that the loop can end.
            self.stopping.set()
            with contextlib.suppress(EngineError):
                self.plane.process.client.close()
            self._applier.shutdown()

    # The engine: its events, its death, its successor.

    async def _watch_engine(self) -> None:
        loop = asyncio.get_running_loop()
        backoff = Backoff()
        while True:
            try:
                await asyncio.to_thread(self._pump_events, loop)
            except EngineError as error:
                log.warning("the engine's events broke off: %s", error.detail)
            if self.stopping.is_set():
                return
            if await asyncio.to_thread(self._engine_is_fine):
                await asyncio.sleep(0.2)
                continue
            self._engine_up.clear()
            log.error("engine gone, starting another; see %s", self.plane.state.engine_log)
            while True:
                try:
                    await loop.run_in_executor(self._applier, self._replace_engine)
                    break
                except (GatewayError, EngineError) as error:
                    log.error("%s", error)  # noqa: TRY400 - a sentence, not a traceback
                    await asyncio.sleep(backoff.next())
            backoff.reset()
            self._engine_up.set()
            self._resync.set()

    def _pump_events(self, loop: asyncio.AbstractEventLoop) -> None:
        for event in self.plane.process.client.events():
            loop.call_soon_threadsafe(self._take_event, event)

    def _take_event(self, event: dict[str, Any]) -> None:
        kind = event.get("type")
        if kind == "dropped":
            log.warning("the engine dropped %s events", event.get("events"))
            return
        if kind == "expired":
            self.desired.drop_expired(event["id"], now())
        self._reports.append(event)
        self._have_reports.set()

    def _engine_is_fine(self) -> bool:
        try:
            self.plane.process.client.status()
        except EngineError:
            return False
        return True

    def _replace_engine(self) -> None:
        self.plane.discard()
        self.plane.bring_up()
        if self.desired.synced:
            # Before the control plane is asked: it may be away, and agents wait.
            for name, reason in self.plane.apply(self.desired.whole(), now()).items():
                log.error("the new engine refused %s: %s", name, reason)

    # The control plane: connections, messages, acknowledgements, reports.

    async def _stay_connected(self) -> None:
        backoff, told = Backoff(), ""
        while True:
            try:
                await self._engine_up.wait()
                self._resync.clear()
                async with open_stream(
                    self.settings, self.tls, self.plane.public_key, self.plane.listen_port
                ) as stream:
                    log.info("connected to %s", self.settings.server)
                    told = ""
                    await self._session(stream, backoff)
                continue  # a resync is wanted at once
            except RefusedError as error:
                if not self.was_ready:
                    raise
                reason = str(error)
            except ReplacedError as error:
                backoff.be_patient()
                reason = str(error)
            except GatewayError as error:
                reason = str(error)
            except ssl.SSLCertVerificationError as error:
                reason = (
                    f"the certificate of {self.settings.server} is not trusted "
                    f"({error.verify_message}): give the authority that signed it with --ca-file"
                )
            except (
                OSError,
                TimeoutError,
                WebSocketException,
                BadMessageError,
                EngineError,
            ) as error:
                reason = f"no stream from {self.settings.server}: {error or type(error).__name__}"
            if reason != told:
                log.warning("%s; the engine goes on enforcing, trying again", reason)
                told = reason
            await asyncio.sleep(backoff.next())

    async def _session(self, stream: ControlStream, backoff: Backoff) -> None:
        """One connection; returns when a resync is wanted."""
        inbox: asyncio.Queue[Change] = asyncio.Queue()
        await _first_of(
            self._resync.wait(),
            self._receive(stream, inbox),
            self._apply(stream, inbox, backoff),
            self._report(stream),
        )

    async def _receive(self, stream: ControlStream, inbox: asyncio.Queue[Change]) -> None:
        assembler = Assembler()
        while True:
            message = await stream.receive()
            if message.get("type") in {"sync", "update"}:
                change = assembler.feed(message, now())
                if change is not None:
                    inbox.put_nowait(change)
            else:
                log.debug("ignored a message of type %r", message.get("type"))

    async def _apply(
        self, stream: ControlStream, inbox: asyncio.Queue[Change], backoff: Backoff
    ) -> None:
        while True:
            changes = [await inbox.get()]
            while not inbox.empty():
                changes.append(inbox.get_nowait())
            await self._engine_up.wait()
            merged = reduce(Change.then, changes)
            refused = await self._apply_one(merged)
            if merged.full:
                # A full state is sent again after a refusal. What is refused again must not keep
                # everybody else from being acknowledged.
                again = refused.keys() <= self._bad.keys()
                self._bad = refused
                await self._answer(stream, changes, {} if again else refused)
                if again:
                    backoff.reset()
                    self._tell_ready()
            elif refused and len(changes) > 1:
                # One of several: find out which, so that the others are acknowledged.
                for change in changes:
                    await self._answer(stream, [change], await self._apply_one(change))
            else:
                await self._answer(stream, changes, refused)

    async def _apply_one(self, change: Change) -> dict[str, str]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._applier, self._apply_blocking, change)

    def _apply_blocking(self, change: Change) -> dict[str, str]:
        try:
            refused = self.plane.apply(change, now())
        except EngineError as error:
            if error.code == "engine_timeout":
                # It hangs. Its end is noticed like any other, and another takes its place.
                self.plane.process.close(timeout=3)
            raise
        for name, reason in refused.items():
            log.error("revision %d: the engine refuses %s: %s", change.revision, name, reason)
            change.upsert.pop(name, None)
        self.desired.commit(change)
        return refused

    async def _answer(
        self, stream: ControlStream, changes: Iterable[Change], refused: dict[str, str]
    ) -> None:
        error = "; ".join(f"{name}: {reason}" for name, reason in refused.items())[:2000]
        for change in changes:
            if refused:
                await stream.send({"type": "nack", "revision": change.revision, "error": error})
            else:
                await stream.send({"type": "ack", "revision": change.revision})

    async def _report(self, stream: ControlStream) -> None:
        while True:
            await self._have_reports.wait()
            count = min(len(self._reports), REPORT_BATCH)
            batch = [self._reports.popleft() for _ in range(count)]
            try:
                for message in _reports(batch):
                    await stream.send(message)
            except BaseException:
                # What a broken connection did not take is sent by the next one.
                self._reports.extendleft(reversed(batch))
                raise
            if not self._reports:
                self._have_reports.clear()

    def _tell_ready(self) -> None:
        if self.was_ready:
            return
        self.was_ready = True
        process = self.plane.process
        line = {
            "ready": True,
            "pid": os.getpid(),
            "enginePid": process.pid,
            "endpoint": self.settings.endpoint_at(self.plane.listen_port),
            "control": str(process.control),
        }
        log.info("ready: %s", line["endpoint"])
        if self.ready is not None:
            with contextlib.suppress(OSError):
                self.ready(line)


def _reports(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The engine's events as messages to the control plane."""
    expired = [{"id": e["id"], "lateBy": e["lateBy"]} for e in events if e["type"] == "expired"]
    names = ("id", "source", "destination", "protocol", "port", "packets")
    denied = [{n: e.get(n) for n in names} for e in events if e["type"] == "denied"]
    messages: list[dict[str, Any]] = []
    if expired:
        messages.append({"type": "expired", "peers": expired})
    if denied:
        messages.append({"type": "denied", "flows": denied})
    return messages


async def _first_of(*parts: Coroutine[Any, Any, object]) -> None:
    """Run all until the first ends or raises; the others are cancelled."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
