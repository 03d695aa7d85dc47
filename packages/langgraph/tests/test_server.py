"""Identities in LangGraph Server: the real development server, and requests over its HTTP API."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from langgraph.graph import START, MessagesState, StateGraph

from lattice_langgraph import server_agent, server_graph, server_lifespan
from lattice_sdk import IdentityClosed
from lattice_sdk.testing import World
from lattice_server.ports import free_port
from support.waiting import process_alive, wait_for

START_TIMEOUT = 60.0  # seconds; 3 on an idle machine
AGENT = """
from contextlib import asynccontextmanager

from langgraph.graph import START, MessagesState, StateGraph
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from lattice_langgraph import current_agent, server_agent, server_graph, server_lifespan


async def work(state: MessagesState):
    agent = current_agent()
    async with agent.async_http_client() as http:
        seen = (await http.get("http://search.lattice/")).raise_for_status().json()
    return {"messages": [("ai", f"{agent.peer_id} {seen['client']}")]}


builder = StateGraph(MessagesState)
builder.add_node("work", work)
builder.add_edge(START, "work")
research, write = server_graph(builder, "research"), server_graph(builder, "write")


async def who(request):
    agents = {name: server_agent(name) for name in ("research", "write")}
    return JSONResponse({n: [a.peer_id, a.overlay_ip, a.engine_pid] for n, a in agents.items()})


identities = server_lifespan({"research": {"policy_preset": "sandboxed"}, "write": {"ttl": "20s"}})


@asynccontextmanager
async def lifespan(app):
    async with identities(app):
        yield


app = Starlette(routes=[Route("/who", who)], lifespan=lifespan)
"""
CONFIG = {
    "dependencies": ["."],
    "graphs": {"research": "./agent.py:research", "write": "./agent.py:write"},
    "http": {"app": "./agent.py:app"},
}


class Server:
    """A running `langgraph dev`."""

    def __init__(self, world: World, project: Path, *options: str, token: str | None = None):
        (project / "agent.py").write_text(AGENT)
        (project / "langgraph.json").write_text(json.dumps(CONFIG))
        port = free_port()
        self.project, self.world = project, world
        self.log = (project.parent / "log").open("w+")
        self.temporary = project.parent / "tmp"
        self.temporary.mkdir()
        command = [str(Path(sys.executable).parent / "langgraph"), "dev", "--no-browser"]
        self.process = subprocess.Popen(
            [*command, "--port", str(port), *options],
            cwd=project,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(project.parent),
                "TMPDIR": str(self.temporary),
                "LATTICE_SERVER": world.server,
                "LATTICE_TOKEN": token or world.token,
                "LANGGRAPH_NO_VERSION_CHECK": "true",
                "LANGGRAPH_CLI_NO_ANALYTICS": "1",
                "LANGSMITH_TRACING": "false",
            },
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)

    def told(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def who(self) -> dict[str, tuple[str, str, int]]:
        """Peer, address and engine of each identity, once it serves."""

        def answers() -> Any:
            assert self.process.poll() is None, self.told()
            try:
                return self.http.get("/who").raise_for_status().json()
            except httpx.HTTPError:
                return None

        return {
            name: tuple(found) for name, found in wait_for("/who", answers, START_TIMEOUT).items()
        }

    def run(self, graph: str, thread: str | None = None) -> str:
        """What the graph said last."""
        path = f"/threads/{thread}/runs/wait" if thread else "/runs/wait"
        question = {"messages": [{"role": "user", "content": "who are you?"}]}
        answer = self.http.post(path, json={"assistant_id": graph, "input": question})
        return str(answer.raise_for_status().json()["messages"][-1]["content"])

    def gone(self, who: dict[str, tuple[str, str, int]]) -> None:
        """Wait until nothing is left of these identities."""
        for peer, _, engine in who.values():
            wait_for(f"{peer} to be gone", lambda peer=peer: not self.world.knows(peer))
            wait_for("the engine to end", lambda engine=engine: not process_alive(engine))


@pytest.fixture
def start(lattice_world: World) -> Iterator[Callable[..., Server]]:
    with tempfile.TemporaryDirectory(prefix="lgs-") as name:
        servers = []

        def start(*options: str, **more: Any) -> Server:
            project = Path(name) / "project"
            project.mkdir()
            servers.append(Server(lattice_world, project, *options, **more))
            return servers[-1]

        yield start
        for server in servers:
            if server.process.poll() is None:
                os.killpg(server.process.pid, signal.SIGKILL)
            server.process.wait()
            server.http.close()
            server.log.close()


pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def test_runs_use_the_identity_of_their_graph_until_the_server_ends(
    start: Callable[..., Server],
) -> None:
    server = start("--no-reload")
    who = server.who()
    assert who["research"][0] != who["write"][0]
    assert who["research"][2] == who["write"][2], "one engine serves all identities"
    thread = server.http.post("/threads", json={}).json()["thread_id"]
    for name in ("research", "write", "research"):
        peer, address, _ = who[name]
        assert server.run(name, thread) == f"{peer} {address}"
    state = server.http.get(f"/threads/{thread}/state").raise_for_status().json()
    assert len(state["values"]["messages"]) == 6
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(30)
    assert not [peer for peer, _, _ in who.values() if server.world.knows(peer)]
    server.gone(who)
    assert list(server.temporary.iterdir()) == []


def test_nothing_of_the_agent_is_in_what_the_server_streams(start: Callable[..., Server]) -> None:
    server = start("--no-reload")
    (peer, _, _) = server.who()["research"]
    thread = server.http.post("/threads", json={}).json()["thread_id"]
    answer = server.http.post(
        f"/threads/{thread}/runs/stream",
        json={
            "assistant_id": "research",
            "input": {"messages": []},
            "stream_mode": ["values", "debug", "checkpoints", "tasks", "events", "messages"],
        },
    )
    assert peer in answer.text
    assert "event: error" not in answer.text
    history = server.http.get(f"/threads/{thread}/history").text
    assert not [text for text in (answer.text, history) if "lattice_agent" in text]
    schemas = server.http.get("/assistants/" + assistant(server, "research") + "/schemas")
    assert schemas.raise_for_status().json()["graph_id"] == "research"


def assistant(server: Server, graph: str) -> str:
    found = server.http.post("/assistants/search", json={"graph_id": graph}).json()
    return str(found[0]["assistant_id"])


def test_killed_server_leaves_no_identity(start: Callable[..., Server]) -> None:
    server = start("--no-reload")
    who = server.who()
    server.process.kill()
    server.gone(who)


def test_reload_gives_the_identities_back_and_takes_new_ones(start: Callable[..., Server]) -> None:
    """The server's default: a supervisor, and a process that it replaces when a file changes."""
    server = start()
    who = server.who()
    (server.project / "agent.py").write_text(AGENT + "\n# changed\n")
    server.gone(who)
    again = server.who()
    assert {peer for peer, _, _ in again.values()}.isdisjoint(peer for peer, _, _ in who.values())
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(30)
    server.gone(again)


def test_server_does_not_start_without_an_identity(
    start: Callable[..., Server], lattice_world: World
) -> None:
    before = lattice_world.peers()
    server = start("--no-reload", token="lt-somebody-elses")
    assert server.process.wait(START_TIMEOUT) != 0
    told = server.told()
    assert "AuthenticationFailed" in told
    assert "lt-somebody-elses" not in told
    assert lattice_world.peers() <= before
    assert list(server.temporary.iterdir()) == []


def graph_of(name: str) -> Any:
    builder = StateGraph(MessagesState)
    builder.add_node("nothing", lambda _: {})
    builder.add_edge(START, "nothing")
    return server_graph(builder, name)


@pytest.mark.anyio
async def test_run_that_comes_before_the_server_has_started_waits(lattice_world: World) -> None:
    lifespan = server_lifespan({"early": lattice_world.settings()})
    waiting = asyncio.create_task(graph_of("early")({}))
    await asyncio.sleep(0)
    with pytest.raises(IdentityClosed, match="not open"):
        server_agent("early")
    async with lifespan(None):
        graph = await waiting
        assert graph.lattice_agent is server_agent("early")
        assert graph.lattice_agent.state == "active"
    assert graph.lattice_agent.state == "closed"
    async with lifespan(None):  # an app may start again
        assert server_agent("early") is not graph.lattice_agent
        assert (await graph_of("early")({})).lattice_agent is server_agent("early")


@pytest.mark.anyio
async def test_name_that_no_lifespan_has_is_said_to_be_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(IdentityClosed, match="server_lifespan"):
        await graph_of("misspelt")({})
    server_lifespan({"never-started": {}})
    monkeypatch.setattr("lattice_langgraph.server.START_TIMEOUT", 0.05)
    with pytest.raises(IdentityClosed, match=r"langgraph\.json"):
        await graph_of("never-started")({})
