"""Coordinators that listen: reached by coordinators of their workspace, at their own address."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from conftest import World
from lattice_sdk import ConfigurationError, LatticeAgent, LatticeError, NotPermitted, Refused
from lattice_sdk.testing.tools import ToolService
from support.waiting import wait_for

PORT = 7000


def coordinator(world: World, name: str = "coordinator", **settings: Any) -> LatticeAgent:
    return world.agent(agent_name=name, policy_preset="coordinator", **settings)


def answer_once(listener: socket.socket) -> threading.Thread:
    """Accept one connection, tell it who it is, and echo."""

    def serve() -> None:
        connection, (host, port) = listener.accept()
        with connection:
            assert connection.getpeername() == (host, port)
            connection.sendall(f"{host}\n".encode())
            while data := connection.recv(4096):
                connection.sendall(data)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return thread


def read(stream: socket.socket, size: int) -> bytes:
    stream.settimeout(30)
    data = b""
    while len(data) < size and (chunk := stream.recv(size - len(data))):
        data += chunk
    return data


def test_a_listener_is_reached_at_the_overlay_address_and_knows_who_calls(world: World) -> None:
    with coordinator(world, "server") as server, coordinator(world, "client") as client:
        with server.listen(PORT) as listener:
            assert listener.getsockname() == (server.overlay_ip, PORT)
            thread = answer_once(listener)
            with client.connect(server.overlay_ip, PORT) as stream:
                hello = f"{client.overlay_ip}\n".encode()
                assert read(stream, len(hello)) == hello
                stream.sendall(b"and back")
                assert read(stream, 8) == b"and back"
            thread.join(10)
        wait_for("the port to be closed", lambda: not connects(client, server.overlay_ip))
        with server.listen(PORT) as again:  # and may be listened on again
            answer_once(again)
            assert connects(client, server.overlay_ip)


def test_a_port_may_be_listened_on_again_at_once(world: World, monkeypatch: Any) -> None:
    """However long the engine takes to close it."""
    with coordinator(world, "server") as server, coordinator(world, "client") as client:
        tunnel = server._forwards._tunnel
        assert tunnel is not None
        request = tunnel.request

        async def slowly(what: str, *arguments: Any) -> Any:
            if what == "delete_forward":
                await asyncio.sleep(0.3)
            return await request(what, *arguments)

        monkeypatch.setattr(tunnel, "request", slowly)
        server.listen(PORT).close()
        with server.listen(PORT) as listener:
            answer_once(listener)
            assert connects(client, server.overlay_ip)


def connects(agent: LatticeAgent, address: str, port: int = PORT) -> bool:
    try:
        with agent.connect(address, port, timeout=30) as stream:
            return bool(read(stream, 1))
    except OSError:
        return False


def test_everybody_else_is_refused(world: World) -> None:
    fabric = world.fabric
    fabric.create_workspace("strangers")
    token = fabric.create_token(kind="workspace", workspaceId="strangers")
    with coordinator(world) as server, server.listen(PORT) as listener:
        address = server.overlay_ip
        listener.settimeout(0.2)
        with (
            world.agent(policy_preset="sandboxed") as sandboxed,
            coordinator(world, token=token) as stranger,
        ):
            for other in (sandboxed, stranger):
                with pytest.raises(Refused):
                    other.connect(address, PORT)
        with pytest.raises(TimeoutError):
            listener.accept()


def test_an_agent_that_accepts_nobody_cannot_listen(world: World) -> None:
    with world.agent(policy_preset="sandboxed") as agent:
        for attempt in (lambda: agent.listen(PORT), lambda: agent.forward(PORT, "127.0.0.1:9")):
            with pytest.raises(NotPermitted, match="coordinator") as failure:
                attempt()
            assert failure.value.code == "no_ingress"
    before = {peer["peerId"] for peer in agents(world)}
    with pytest.raises(NotPermitted):
        world.agent(policy_preset="sandboxed", forwards={PORT: "127.0.0.1:9000"}).open()
    assert {peer["peerId"] for peer in agents(world)} <= before


def agents(world: World) -> list[dict[str, Any]]:
    page = world.fabric.request("GET", "/api/v1/peers?limit=1000")
    return [peer for peer in page["items"] if peer["kind"] == "agent"]


def test_forwards_lead_to_what_listens_on_the_host_and_come_back_with_a_new_engine(
    world: World,
) -> None:
    with (
        ToolService("local") as tool,
        coordinator(world, "server", forwards={PORT: tool.target}) as server,
        coordinator(world, "client") as client,
    ):
        server.forward(PORT + 1, tool.target)
        with pytest.raises(ConfigurationError, match=str(PORT)):
            server.forward(PORT, tool.target)
        for port in (PORT, PORT + 1):
            assert serves(client, server.overlay_ip, port)
        assert server.engine_pid is not None
        os.kill(server.engine_pid, signal.SIGKILL)
        for port in (PORT, PORT + 1):
            wait_for(
                "the forward on the new tunnel",
                lambda port=port: serves(client, server.overlay_ip, port),
                timeout=90,
            )


def serves(agent: LatticeAgent, address: str, port: int) -> bool:
    # The tool expects the line that connectors send before the data.
    request = b"PROXY UNKNOWN\r\nGET / HTTP/1.0\r\n\r\n"
    try:
        with agent.connect(address, port, timeout=30) as stream:
            stream.sendall(request)
            return read(stream, 12).startswith(b"HTTP/1.1 200")
    except (OSError, LatticeError):
        return False


@pytest.mark.anyio
async def test_a_server_of_asyncio_takes_the_listener(world: World) -> None:
    async def hello(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _ = writer.get_extra_info("peername")
        writer.write(host.encode())
        await writer.drain()
        writer.close()

    async with coordinator(world, "server") as server, coordinator(world, "client") as client:
        listener = await server.alisten(PORT)
        async with await asyncio.start_server(hello, sock=listener):
            stream = await asyncio.to_thread(client.connect, server.overlay_ip, PORT)
            with stream:
                said = await asyncio.to_thread(read, stream, len(client.overlay_ip))
    assert said.decode() == client.overlay_ip


def test_a_listener_ends_with_its_agent_and_leaves_nothing(world: World) -> None:
    with coordinator(world) as server:
        listener = server.listen(PORT)
        place = Path(listener.target.removeprefix("unix:"))
        assert place.exists()
        assert place.parent.stat().st_mode & 0o777 == 0o700
        ended: list[BaseException] = []

        def wait() -> None:
            try:
                listener.accept()
            except OSError as error:
                ended.append(error)

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert ended
    assert not place.parent.exists()
