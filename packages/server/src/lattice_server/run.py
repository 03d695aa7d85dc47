"""Runs a control plane as a process: checks, listening socket, TLS, signals."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError

from lattice_server.app import create_app
from lattice_server.bootstrap import StartError, only_server_of, prepare_directory
from lattice_server.collector import spare_what_stays
from lattice_server.connections import (
    MAX_HEADER_BYTES,
    Gate,
    ServingLoop,
    allow_files,
    guarded,
)
from lattice_server.control import ControlPlane
from lattice_server.settings import ServerSettings

log = logging.getLogger("lattice.server")

# With the stop of streams before it, this keeps a SIGTERM below two seconds.
GRACE_SECONDS = 1
OTHER_FILES = 256  # descriptors beside those of connections: database, listener, threads


class ControlPlaneServer(uvicorn.Server):
    """uvicorn that says when it serves, ends open streams on a signal, and then exits with 0."""

    def __init__(
        self, config: uvicorn.Config, control: ControlPlane, on_ready: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._control, self._on_ready = control, on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then report."""
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End what would not end by itself, then the rest."""
        self._control.close_streams()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take SIGTERM and SIGINT as a request to stop, which is no failure."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        kept = {s: signal.signal(s, self.stop_on) for s in (signal.SIGTERM, signal.SIGINT)}
        if self.config.is_ssl:
            kept[signal.SIGHUP] = signal.signal(signal.SIGHUP, self.reload_tls)
        try:
            yield
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)

    def reload_tls(self, _number: int, _frame: FrameType | None) -> None:
        """Read the certificate files anew, for connections from now on."""
        config = self.config
        assert config.ssl is not None  # noqa: S101 - else the signal is not taken
        assert config.ssl_certfile is not None  # noqa: S101 - likewise
        try:
            # First where it does no harm: a certificate without its key would be half loaded.
            for context in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), config.ssl):
                context.load_cert_chain(config.ssl_certfile, config.ssl_keyfile)
        except (OSError, ValueError) as error:
            log.warning("the TLS files cannot be used, the former ones stay: %s", error)
        else:
            log.info("read the TLS files anew")

    def stop_on(self, _number: int, _frame: FrameType | None) -> None:
        """Stop at the next tick (a tenth of a second)."""
        self.should_exit = True


def run_server(settings: ServerSettings, *, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: how.
        ready: called once with the URL when requests are served.

    Raises:
        SystemExit: with status 1 when the server cannot start; standard error says what, why and
            what to do.
    """
    try:
        _run(settings, ready)
    except StartError as error:
        print(f"lattice server: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def _run(settings: ServerSettings, ready: Callable[[str], None]) -> None:
    logging.basicConfig(
        level=settings.log_level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    # Of no use in this format, and looked up for each line: the "Optimization" of Python's logging.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    for noisy in ("alembic", "aiosqlite", "uvicorn.error", "uvicorn.asgi", "websockets"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))
    _check_exposure(settings)
    # The database and its journal are nobody else's business, whatever the directory's mode.
    os.umask(0o077)
    prepare_directory(settings.data_dir)
    with (
        only_server_of(settings.data_dir),
        _listen(settings) as listener,
        asyncio.Runner(loop_factory=ServingLoop) as runner,
    ):
        runner.run(_serve(settings, listener, ready))


def web_config(app: FastAPI, settings: ServerSettings, **options: Any) -> uvicorn.Config:
    """How HTTP is served.

    Args:
        app: what is served.
        settings: of the control plane.
        options: of :class:`uvicorn.Config`, instead of what is chosen here.
    """
    control: ControlPlane = app.state.control
    proxies = [str(network) for network in settings.trusted_proxies]
    files = allow_files(settings.connections + OTHER_FILES)
    gate = Gate(
        min(settings.connections, max(16, files - OTHER_FILES)),
        settings.connections_per_source,
        proxies,
    )
    chosen: dict[str, Any] = {
        "lifespan": "off",
        "ws": "websockets-sansio",
        "ws_max_size": 16 * 1024 * 1024,
        "ws_ping_interval": 5,
        "ws_ping_timeout": 10,
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "timeout_graceful_shutdown": GRACE_SECONDS,
        # Longer than clients keep idle connections, so that they do not meet a closing one.
        "timeout_keep_alive": 75,
        "ssl_certfile": settings.tls_cert,
        "ssl_keyfile": settings.tls_key,
        # Forward secrecy and authenticated encryption alone; TLS 1.3 has nothing else.
        "ssl_ciphers": "ECDHE+AESGCM:ECDHE+CHACHA20",
        "http": guarded(gate, control.metrics.connections_refused.inc),
        "h11_max_incomplete_event_size": MAX_HEADER_BYTES,
        "backlog": 2048,
        # uvicorn believes the loopback address unless told otherwise, and a source is evidence.
        "proxy_headers": bool(proxies),
        "forwarded_allow_ips": proxies,
    }
    return uvicorn.Config(app, **(chosen | options))


async def _serve(
    settings: ServerSettings, listener: socket.socket, ready: Callable[[str], None]
) -> None:
    app = create_app(settings)
    control: ControlPlane = app.state.control
    url = _url(settings, listener)
    try:
        await control.start()
    except (SQLAlchemyError, OSError) as error:
        await control.stop()
        reason = str(getattr(error, "orig", None) or error)
        raise StartError(
            f"the database cannot be used ({reason}); check that the disk has room and the file "
            "can be written, then start again"
        ) from error
    except BaseException:
        await control.stop()
        raise
    config = web_config(app, settings)
    spare_what_stays()
    try:
        await ControlPlaneServer(config, control, lambda: ready(url)).serve(sockets=[listener])
    finally:
        await control.stop()


def _check_exposure(settings: ServerSettings) -> None:
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise StartError("TLS needs both --tls-cert and --tls-key")
    for file in filter(None, (settings.tls_cert, settings.tls_key)):
        if not os.access(file, os.R_OK):
            raise StartError(f"the TLS file {file} cannot be read; check the path and its mode")
    if not settings.tls_cert and not settings.insecure_http and not _loopback(settings.host):
        raise StartError(
            f"tokens would travel in the clear: {settings.host} is no loopback address, and there "
            "is no TLS. Give --tls-cert and --tls-key, listen on 127.0.0.1 behind a TLS proxy, "
            "or set LATTICE_SERVER_INSECURE_HTTP=true on a network you trust"
        )


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(settings: ServerSettings) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise StartError(
            f"cannot listen on {settings.host} port {settings.port} ({error.strerror}); "
            "stop what uses it, or choose another --host or --port (0 takes any free port)"
        ) from error
    return listener


def _url(settings: ServerSettings, listener: socket.socket) -> str:
    scheme = "https" if settings.tls_cert else "http"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{scheme}://{host}:{listener.getsockname()[1]}"
