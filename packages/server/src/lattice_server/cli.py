"""The server's commands of ``lattice``: ``server``, ``gateway``, ``dev`` and ``demo``.

Everything but typer is imported when a command runs, so that ``lattice --help`` stays fast.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import sys
import threading
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import pluggy
import typer

hookimpl = pluggy.HookimplMarker("lattice")

ReadyFd = Annotated[
    int | None,
    typer.Option(metavar="N", help="Write one JSON line to this descriptor once it serves."),
]
# For a parent that must not leave children behind when it is killed; see lattice_server.fabric.
ParentFd = Annotated[int | None, typer.Option(hidden=True)]


class Namespace(StrEnum):
    """Where the gateway's data plane lives."""

    own = "own"
    host = "host"


class LogLevel(StrEnum):
    """How much is logged."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


def server(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port; 0 takes any free one.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Directory of the database and the first admin token.")
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="SQLAlchemy URL instead of SQLite in the data directory. One with a password "
            "belongs into LATTICE_SERVER_DATABASE: arguments are visible to everybody.",
        ),
    ] = None,
    overlay: Annotated[
        str | None, typer.Option(metavar="CIDR", help="Network of the identities.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Private key of the certificate.")] = None,
    insecure_http: Annotated[
        bool, typer.Option(help="Listen on a network address without TLS (behind a proxy).")
    ] = False,
    log_level: Annotated[LogLevel | None, typer.Option(help="How much is logged.")] = None,
    ready_fd: ReadyFd = None,
    parent_fd: ParentFd = None,
) -> None:
    """Run the control plane: Enrollment API, peers, policy, reconciler.

    What is left out comes from LATTICE_SERVER_PORT, LATTICE_SERVER_DATA_DIR
    and so on, then from the defaults (127.0.0.1:8420).
    The first start writes an admin token into DATA_DIR/admin.token.

    For example:

      lattice server --host 0.0.0.0 --tls-cert chain.pem --tls-key key.pem
    """
    from pydantic import ValidationError

    from lattice_server.run import run_server
    from lattice_server.settings import ServerSettings

    given = {
        "host": host,
        "port": port,
        "data_dir": data_dir,
        "database": database,
        "overlay": overlay,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "insecure_http": insecure_http or None,
        "log_level": log_level.value if log_level else None,
    }
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    try:
        settings = ServerSettings(**chosen)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        _fail(f"the settings of the server are wrong: {wrong}", status=2)
    _follow_parent(parent_fd)

    def ready(url: str) -> None:
        _write_ready(ready_fd, {"ready": True, "url": url, "pid": os.getpid()})

    run_server(settings, ready=ready)


def gateway(
    server: Annotated[
        str, typer.Option(metavar="URL", envvar="LATTICE_SERVER", help="The control plane.")
    ],
    token_file: Annotated[
        Path, typer.Option(envvar="LATTICE_TOKEN_FILE", help="File with a token of kind gateway.")
    ],
    state_dir: Annotated[
        Path, typer.Option(help="Directory of the key and the engine; one gateway each.")
    ],
    name: Annotated[str, typer.Option(help="The gateway's name.")] = "default",
    listen_port: Annotated[
        int, typer.Option(min=0, max=65535, help="UDP port of WireGuard; 0 takes any free one.")
    ] = 51820,
    endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="HOST[:PORT]",
            help="Where agents reach this gateway. May be left out when the control plane is on "
            "this machine.",
        ),
    ] = None,
    address: Annotated[
        str, typer.Option(metavar="IP/PREFIX", help="Overlay address with the overlay's prefix.")
    ] = "10.96.0.1/16",
    namespace: Annotated[
        Namespace | None,
        typer.Option(
            help="own: a user and network namespace of its own, no root needed. host: this network "
            "namespace, needs CAP_NET_ADMIN. The default is own without root."
        ),
    ] = None,
    ca_file: Annotated[
        Path | None, typer.Option(help="Certificate authorities of the control plane, PEM.")
    ] = None,
    keep_engine: Annotated[
        bool,
        typer.Option(
            help="Let the data plane go on after SIGTERM, for an upgrade of the daemon: the next "
            "one takes it up. After a crash or SIGKILL it goes on in any case."
        ),
    ] = False,
    log_level: Annotated[LogLevel, typer.Option(help="How much is logged.")] = LogLevel.info,
    ready_fd: ReadyFd = None,
    parent_fd: ParentFd = None,
) -> None:
    r"""Run a gateway: the WireGuard device and firewall that hold every agent to its policy.

    It keeps enforcing, deadlines included, while the control plane is away.
    SIGTERM ends it with its data plane (see --keep-engine).

    For example:

      lattice gateway --server https://lattice.example.com \
        --token-file gateway.token --state-dir /var/lib/lattice-gateway \
        --endpoint gw.example.com
    """
    from lattice_engine import EngineError
    from lattice_server.gateway import GatewayError, GatewaySettings, run_gateway

    logging.basicConfig(
        level=log_level.value.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("websockets").setLevel(logging.WARNING)
    _follow_parent(parent_fd)
    try:
        settings = GatewaySettings(
            server=server,
            token_file=token_file,
            state_dir=state_dir,
            name=name,
            listen_port=listen_port,
            endpoint=endpoint,
            address=address,
            namespace=namespace.value if namespace else None,
            ca_file=ca_file,
            keep_engine=keep_engine,
        )
        run_gateway(settings, ready=lambda line: _write_ready(ready_fd, line))
    except (GatewayError, EngineError) as error:
        _fail(str(error))


def egress(
    server: Annotated[str, typer.Option()],
    token_file: Annotated[Path, typer.Option()],
    ready_fd: ReadyFd = None,
    parent_fd: ParentFd = None,
) -> None:
    """Run the egress connector of a fabric. For people there is ``lattice egress`` of the SDK."""
    from lattice_sdk.cli.connect import until_ended
    from lattice_sdk.egress import NAME, EgressConnector
    from lattice_sdk.errors import LatticeError

    _follow_parent(parent_fd)
    connector = EgressConnector(server, token_file.read_text().strip())
    try:
        until_ended(
            connector, NAME, lambda: _write_ready(ready_fd, {"ready": True, "pid": os.getpid()})
        )
    except LatticeError as error:
        _fail(str(error))


def dev(
    directory: Annotated[
        Path | None,
        typer.Option(
            "--dir",
            help="Keep the fabric's state here. Left out: a temporary one, removed at the end.",
        ),
    ] = None,
    port: Annotated[int, typer.Option(help="TCP port of the control plane; 0: any.")] = 0,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Of this machine, for containers and pods on it: tokens travel in the clear.",
        ),
    ] = "127.0.0.1",
    workspace: Annotated[str, typer.Option(help="Workspace to make.")] = "dev",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line instead.")] = False,
) -> None:
    """Run control plane, gateway and egress connector for development, without root.

    Runs in the foreground; agents of its workspace may name any host in allow.
    Prints what to export in another terminal. Ctrl-C ends it and leaves
    nothing behind.

    For example:

      lattice dev
    """
    from lattice_engine import private_directory
    from lattice_server.fabric import Fabric, FabricError

    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: ended.set())
    with ExitStack() as stack:
        if directory is None:
            directory = Path(stack.enter_context(private_directory("dev-")))
        try:
            fabric = stack.enter_context(
                Fabric(
                    directory,
                    server_options={"port": port},
                    workspace=workspace,
                    egress=True,
                    host=host,
                )
            )
        except (FabricError, OSError) as error:
            stack.close()
            _fail(f"the fabric does not start: {error}")
        values = {
            "LATTICE_SERVER": fabric.url,
            "LATTICE_TOKEN": fabric.workspace_token,
            "LATTICE_WORKSPACE": fabric.workspace,
        }
        if as_json:
            more = {
                "directory": str(directory),
                "gatewayControl": str(fabric.gateway_control),
                "pid": os.getpid(),
            }
            typer.echo(json.dumps({**values, **more}))
        else:
            for name, value in values.items():
                typer.echo(f"export {name}={shlex.quote(value)}")
            typer.echo(
                f"admin token: {directory / 'server' / 'admin.token'}. Ctrl-C ends it.", err=True
            )
        sys.stdout.flush()
        failure = None
        while not ended.wait(0.5) and failure is None:
            failure = fabric.failed_part()
    if failure is not None:
        _fail(failure)


@hookimpl
def lattice_cli(app: typer.Typer) -> None:
    """Add the commands."""
    from lattice_server.demo.command import demo

    app.command()(server)
    app.command()(gateway)
    app.command()(dev)
    app.command()(demo)


def _fail(message: str, *, status: int = 1) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(status)


def _follow_parent(descriptor: int | None) -> None:
    if descriptor is not None:
        from lattice_server.children import end_with_parent

        end_with_parent(descriptor)


def _write_ready(descriptor: int | None, line: dict[str, Any]) -> None:
    if descriptor is not None:
        with open(descriptor, "w") as file:
            file.write(json.dumps(line) + "\n")


def main() -> None:
    """Only these commands: how a fabric starts its parts, plugins or not."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(server)
    app.command()(gateway)
    app.command()(egress)
    app()


if __name__ == "__main__":
    main()
