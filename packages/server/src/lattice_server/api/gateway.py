"""The gateway's stream: synchronise, send changes, take acknowledgements and reports."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from functools import partial
from ipaddress import IPv4Network
from typing import Annotated, Any, Literal

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import Field, TypeAdapter, ValidationError
from sqlalchemy import insert, update

from lattice_sdk.wire import Name, PublicKey, WireModel
from lattice_server import endings
from lattice_server.access import authenticate
from lattice_server.api.common import caller_of
from lattice_server.clock import now_ms
from lattice_server.control import ControlPlane
from lattice_server.denials import Flow
from lattice_server.hub import MAX_PEERS, GatewayInfo, Stream
from lattice_server.problems import ApiProblem, printable
from lattice_server.store import schema
from lattice_server.store.queries import whole_state

log = logging.getLogger("lattice.gateway")
router = APIRouter()

HELLO_SECONDS = 10.0
ACK_SECONDS = 15.0
SYNC_ACK_SECONDS = 120.0
# https://www.rfc-editor.org/rfc/rfc6455#section-7.4.1 and the private range 4000 to 4999
GOING_AWAY, INTERNAL_ERROR, TRY_LATER = 1001, 1011, 1013
BAD_MESSAGE, REPLACED, SILENT = 4400, 4409, 4408


class Hello(WireModel):
    """The gateway's first message."""

    type: Literal["hello"]
    gateway: Name
    public_key: PublicKey
    endpoint: Annotated[str, Field(min_length=3, max_length=300, pattern=r"^[!-~]+:[0-9]{1,5}$")]
    address: str
    overlay: str
    version: Annotated[str, Field(max_length=64)] = ""
    max_peers: Annotated[int, Field(ge=1)] = MAX_PEERS


class Ack(WireModel):
    """The engine has applied everything up to a revision."""

    type: Literal["ack"]
    revision: int


class Nack(WireModel):
    """The engine could not apply a revision."""

    type: Literal["nack"]
    revision: int
    error: str = ""


class ExpiredPeer(WireModel):
    """A peer that the gateway cut off at its deadline; ``late_by`` in seconds."""

    id: Annotated[str, Field(max_length=64)]
    late_by: float = 0.0


class Expired(WireModel):
    """Peers that were cut off."""

    type: Literal["expired"]
    peers: Annotated[list[ExpiredPeer], Field(max_length=100_000)]


class DeniedFlow(WireModel):
    """A flow that was refused."""

    id: Annotated[str, Field(max_length=64)] | None = None
    source: Annotated[str, Field(max_length=64)]
    destination: Annotated[str, Field(max_length=64)]
    protocol: Annotated[str, Field(max_length=16)]
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    packets: Annotated[int, Field(ge=0)] = 1


class Denied(WireModel):
    """Flows that were refused."""

    type: Literal["denied"]
    flows: Annotated[list[DeniedFlow], Field(max_length=100_000)]


Message = Annotated[Ack | Nack | Expired | Denied, Field(discriminator="type")]
_MESSAGE: TypeAdapter[Ack | Nack | Expired | Denied] = TypeAdapter(Message)


class _Close(Exception):  # noqa: N818 - no error, an end
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


@router.websocket("/api/v1/gateway/stream")
async def gateway_stream(socket: WebSocket) -> None:
    """One gateway's connection, from its hello to its end."""
    control: ControlPlane = socket.app.state.control
    try:
        await authenticate(control, await caller_of(socket), "gateway", "admin")
    except ApiProblem as problem:
        control.metrics.refusals.labels(problem.code).inc()
        await socket.send_denial_response(problem.response())
        return
    await socket.accept()
    try:
        await _serve(control, socket)
    except _Close as close:
        log.warning("gateway stream closed: %s", close.reason)
        with contextlib.suppress(RuntimeError):
            await socket.close(close.code, close.reason[:120])
    except WebSocketDisconnect as gone:
        log.info("the gateway went away (%s)", gone.code)


async def _serve(control: ControlPlane, socket: WebSocket) -> None:
    info = _check_hello(control, await _hello(socket))
    stream: Stream | None = None
    try:
        async with control.database.write() as tx:
            await _remember(tx.connection, info)
            stream = Stream(info, await whole_state(tx.connection, now_ms()))
            # In the order of the commits: what is written before is in the state, and what is
            # written after it comes as a change.
            tx.after_commit.append(partial(control.hub.attach, stream))
        log.info("gateway %s %s connected, endpoint %s", info.name, info.version, info.endpoint)
        await _talk(control, socket, stream)
    finally:
        if stream is not None:
            control.hub.detach(stream)


async def _talk(control: ControlPlane, socket: WebSocket, stream: Stream) -> None:
    parts = [
        asyncio.create_task(_send(control, socket, stream)),
        asyncio.create_task(_receive(control, socket, stream)),
        asyncio.create_task(_until_closed(control, stream)),
    ]
    try:
        done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for part in parts:
            part.cancel()
        await asyncio.gather(*parts, return_exceptions=True)
    for part in done:
        part.result()


async def _hello(socket: WebSocket) -> Hello:
    try:
        async with asyncio.timeout(HELLO_SECONDS):
            return Hello.model_validate_json(await socket.receive_text())
    except TimeoutError:
        raise _Close(SILENT, "no hello came in time") from None
    except (ValidationError, KeyError) as error:
        raise _Close(BAD_MESSAGE, f"the hello is not valid: {_reason(error)}") from None


def _check_hello(control: ControlPlane, hello: Hello) -> GatewayInfo:
    settings = control.settings
    try:
        same = IPv4Network(hello.overlay) == settings.overlay
    except ValueError:
        same = False
    if not same or hello.address != settings.gateway_address:
        raise _Close(
            BAD_MESSAGE,
            f"this control plane's overlay is {settings.overlay}, "
            f"gateway {settings.gateway_address}",
        )
    current = control.hub.stream
    if current is not None and current.info.name != hello.gateway:
        raise _Close(TRY_LATER, f"the gateway {current.info.name} is connected; there is one")
    return GatewayInfo(
        hello.gateway, hello.public_key, hello.endpoint, hello.version, hello.max_peers
    )


async def _remember(connection: Any, info: GatewayInfo) -> None:
    gateways = schema.gateways
    now = now_ms()
    values = {
        "public_key": info.public_key,
        "endpoint": info.endpoint,
        "version": info.version,
        "last_seen": now,
    }
    known = await connection.execute(
        update(gateways).where(gateways.c.name == info.name).values(**values)
    )
    if known.rowcount == 0:
        await connection.execute(insert(gateways).values(name=info.name, first_seen=now, **values))


async def _send(control: ControlPlane, socket: WebSocket, stream: Stream) -> None:
    first = True
    while True:
        revision, messages = await stream.batch()
        for message in messages:
            await socket.send_text(message)
        # One batch at a time: what comes up meanwhile is gathered, so a slow gateway gets fewer,
        # larger batches instead of a growing queue.
        timeout = SYNC_ACK_SECONDS if first or len(messages) > 1 else ACK_SECONDS
        if not await stream.wait_for_ack(revision, timeout):
            raise _Close(INTERNAL_ERROR, f"revision {revision} was not acknowledged in time")
        first = False


async def _receive(control: ControlPlane, socket: WebSocket, stream: Stream) -> None:
    while True:
        try:
            message = _MESSAGE.validate_json(await socket.receive_text())
        except (ValidationError, KeyError) as error:
            raise _Close(BAD_MESSAGE, f"a message is not valid: {_reason(error)}") from None
        match message:
            case Ack():
                control.hub.acknowledge(stream, message.revision)
            case Nack():
                log.error(
                    "the gateway could not apply revision %s: %s",
                    message.revision,
                    printable(message.error),
                )
                control.hub.refuse(stream, message.revision)
                # The gateway comes back and gets everything anew.
                raise _Close(INTERNAL_ERROR, "a change was not applied: synchronise anew")
            case Expired():
                ids = [peer.id for peer in message.peers]
                for start in range(0, len(ids), 500):
                    await endings.expire_reported(control, ids[start : start + 500])
            case Denied():
                flows = [
                    Flow(f.id, f.source, f.destination, f.protocol, f.port, f.packets)
                    for f in message.flows
                ]
                control.metrics.denied_flows.inc(sum(flow.packets for flow in flows))
                control.denials.report(flows)
                control.quarantine.report(flows)


async def _until_closed(control: ControlPlane, stream: Stream) -> None:
    closing = asyncio.create_task(control.closing.wait())
    replaced = asyncio.create_task(stream.closed.wait())
    try:
        await asyncio.wait({closing, replaced}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        closing.cancel()
        replaced.cancel()
    if control.closing.is_set():
        raise _Close(GOING_AWAY, "the control plane stops")
    raise _Close(REPLACED, "the same gateway has connected again")


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False, include_url=False)[0]
        return printable(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", 90)
    return "text messages only"
