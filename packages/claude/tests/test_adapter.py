"""The real claude command under an identity: what it reaches, what it hands on, what is left."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from claude_agent_sdk import (
    AssistantMessage,
    ClaudeAgentOptions,
    ClaudeSDKClient,
    HookMatcher,
    Message,
    PermissionResultAllow,
    ResultMessage,
    create_sdk_mcp_server,
    query,
    tool,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from lattice_claude import claude_options, current_agent, lattice_claude_client, lattice_query
from lattice_claude.settings import read_settings
from lattice_sdk import ConfigurationError, IdentityClosed, LatticeAgent
from lattice_sdk.testing import World
from support.model import ScriptedModel, call, echo, results, say
from support.waiting import processes_mentioning, wait_for

Options = Any
pytestmark = pytest.mark.anyio
GRANTED = "http://github-tools.lattice/"
FETCH = "curl --silent --show-error --max-time 10 '{url}'"
# As the proxy says it, or as the kernel does in a namespace.
REFUSED = re.compile(r"sandboxed|403|Couldn't connect|[Rr]efused")
# A server of the Model Context Protocol with one tool, over its standard streams.
MCP_SERVER = """
import json, os, sys, urllib.request

def answer(method, params):
    if method == "initialize":
        return {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}},
                "serverInfo": {"name": "fetcher", "version": "1"}}
    if method == "tools/list":
        schema = {"type": "object", "properties": {"url": {"type": "string"}}}
        return {"tools": [{"name": "fetch", "description": "Fetch.", "inputSchema": schema}]}
    try:
        text = urllib.request.urlopen(params["arguments"]["url"], timeout=10).read().decode()
    except OSError as error:
        text = str(error)
    return {"content": [{"type": "text", "text": text}]}

for line in sys.stdin:
    message = json.loads(line)
    if "id" in message and "method" in message:
        result = answer(message["method"], message.get("params"))
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""


BOTH_WAYS = pytest.mark.parametrize("agent", ["required", "proxy"], indirect=True)


@pytest.fixture(scope="module")
def agents(
    lattice_world: World, served_model: ScriptedModel
) -> Iterator[Callable[[str], LatticeAgent]]:
    """Open agents, one for each isolation; the model is granted to them."""
    del served_model
    with ExitStack() as stack:
        yield cache(
            lambda isolation: stack.enter_context(
                LatticeAgent(**lattice_world.settings(isolation=isolation))
            )
        )


@pytest.fixture
def agent(agents: Callable[[str], LatticeAgent], request: pytest.FixtureRequest) -> LatticeAgent:
    """An agent for a test that needs no life of its own."""
    return agents(getattr(request, "param", "preferred"))


@pytest.fixture
def proxied(agents: Callable[[str], LatticeAgent]) -> LatticeAgent:
    """An agent whose programs are not isolated."""
    return agents("proxy")


async def ask(client: ClaudeSDKClient, prompt: str = "Go on.") -> str:
    """The text with which the command ends its turn."""
    await client.query(prompt)
    async for message in client.receive_response():
        if isinstance(message, ResultMessage):
            return message.result or ""
    raise AssertionError("the conversation has no result")


@BOTH_WAYS
async def test_bash_reaches_what_is_granted_from_the_agents_address_and_nothing_else(
    agent: LatticeAgent, lattice_world: World, model: ScriptedModel, options: Options
) -> None:
    payroll = f"http://{lattice_world.addresses['payroll']}/"
    model.script = [
        [call("Bash", command=FETCH.format(url=GRANTED))],
        [call("Bash", command=FETCH.format(url=payroll))],
        [say("done")],
    ]
    async with ClaudeSDKClient(claude_options(agent, options())) as client:
        assert await ask(client) == "done"
    granted, ungranted = results(model.requests[-1]["messages"])
    assert json.loads(granted) == {"service": "github-tools", "client": agent.overlay_ip}
    assert REFUSED.search(ungranted)
    assert "payroll" not in ungranted


async def test_the_models_real_name_leads_to_its_connector_and_tls_is_end_to_end(
    lattice_world: World, options: Options, tmp_path: Path
) -> None:
    name = "api.anthropic.com"
    authority, tls = certified(name, tmp_path)
    with (
        ScriptedModel([say("privately")], tls=tls) as model,
        lattice_world.service("claude-api", model.target, port=443, hostname=name),
    ):
        given = options(url=f"https://{name}", env={"NODE_EXTRA_CA_CERTS": str(authority)})
        async with lattice_claude_client(given, **lattice_world.settings()) as client:
            assert await ask(client) == "privately"


def certified(name: str, directory: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate that is its own authority, and a context that has it and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(who, who, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    chain, private = directory / "chain.pem", directory / "key.pem"
    chain.write_bytes(certificate.public_bytes(Encoding.PEM))
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, private)
    return chain, context


@BOTH_WAYS
async def test_mcp_servers_that_the_command_starts_have_the_agents_network(
    agent: LatticeAgent,
    lattice_world: World,
    model: ScriptedModel,
    options: Options,
    tmp_path: Path,
) -> None:
    server = tmp_path / "server.py"
    server.write_text(MCP_SERVER)
    payroll = f"http://{lattice_world.addresses['payroll']}/"
    model.script = [
        [call("mcp__fetcher__fetch", url=GRANTED)],
        [call("mcp__fetcher__fetch", url=payroll)],
        [say("done")],
    ]
    servers = {"fetcher": {"command": sys.executable, "args": ["-S", str(server)]}}
    given = options(mcp_servers=servers, extra_args={"strict-mcp-config": None})
    # The command offers tools of servers that are slow to start later only.
    given.env["MCP_CONNECTION_NONBLOCKING"] = "0"
    async with ClaudeSDKClient(claude_options(agent, given)) as client:
        await ask(client)
    granted, ungranted = results(model.requests[-1]["messages"])
    assert json.loads(granted)["client"] == agent.overlay_ip
    assert REFUSED.search(ungranted)


async def test_tools_hooks_and_permissions_find_their_agent(
    lattice_world: World, model: ScriptedModel, options: Options
) -> None:
    found: dict[str, str] = {}

    @tool("whoami", "Tell the peer.", {})
    async def whoami(_: Any) -> dict[str, Any]:
        found["tool"] = current_agent().peer_id
        return {"content": [{"type": "text", "text": current_agent().peer_id}]}

    async def hook(*_: Any) -> Any:
        found["hook"] = current_agent().peer_id
        return {}

    async def permit(*_: Any) -> Any:
        found["can_use_tool"] = current_agent().peer_id
        return PermissionResultAllow()

    model.script = [[call("mcp__who__whoami")], [call("Bash", command="touch it")], echo]
    given = options(
        mcp_servers={"who": create_sdk_mcp_server("who", tools=[whoami])},
        hooks={"PreToolUse": [HookMatcher(hooks=[hook])]},
        can_use_tool=permit,
        permission_mode="default",
    )
    async with lattice_claude_client(given, **lattice_world.settings()) as client:
        assert client.lattice_agent.isolation == "namespace"
        await ask(client)
        assert set(found) == {"tool", "hook", "can_use_tool"}
        assert set(found.values()) == {client.lattice_agent.peer_id}
    found.clear()

    async def prompt() -> Any:
        yield {"type": "user", "message": {"role": "user", "content": "Go on."}}

    settings = lattice_world.settings(agent_name=None)
    async for _ in lattice_query(prompt=prompt(), options=given, **settings):
        with pytest.raises(IdentityClosed, match="lattice_query"):
            current_agent()
    assert len(found) == 3
    assert len(set(found.values())) == 1


async def test_query_is_an_identity_from_first_to_last_message(
    lattice_world: World, model: ScriptedModel, options: Options
) -> None:
    before = lattice_world.peers()
    model.script = [[call("Bash", command=FETCH.format(url=GRANTED))], echo]
    during: set[str] = set()
    seen: list[Message] = []
    settings = lattice_world.settings(agent_name=None)
    async for message in lattice_query(prompt="Go on.", options=options(), **settings):
        during |= lattice_world.peers() - before
        seen.append(message)
    (peer,) = during
    assert not lattice_world.knows(peer)
    assert isinstance(seen[-1], ResultMessage)
    assert json.loads(seen[-1].result or "")["service"] == "github-tools"


async def test_query_left_early_leaves_nothing(
    lattice_world: World, model: ScriptedModel, options: Options
) -> None:
    before = lattice_world.peers()
    model.script = [[say("one")]]
    messages = lattice_query(prompt="Go on.", options=options(), **lattice_world.settings())
    async for message in messages:
        if isinstance(message, AssistantMessage):
            break
    (peer,) = lattice_world.peers() - before
    await messages.aclose()  # type: ignore[attr-defined]
    assert not lattice_world.knows(peer)


async def test_command_that_does_not_start_leaves_nothing(
    lattice_world: World, options: Options, tmp_path: Path
) -> None:
    before = lattice_world.peers()
    with pytest.raises(Exception, match="not found"):
        async with lattice_claude_client(
            options(cli_path=tmp_path / "absent"), **lattice_world.settings()
        ):
            pass
    assert lattice_world.peers() <= before


async def test_neither_arguments_nor_environment_of_the_command_hold_a_secret(
    proxied: LatticeAgent, model: ScriptedModel, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATTICE_TOKEN", "lt-workspace-token")
    monkeypatch.setenv("LATTICE_TOKEN_FILE", "/somewhere/token")
    look = "cat /proc/$PPID/cmdline /proc/$PPID/environ | tr '\\0' '\\n'; echo ---; env"
    model.script = [[call("Bash", command=look)], echo]
    # Without care the SDK puts settings into the arguments when there are these.
    given = options(sandbox={"enabled": False}, settings='{"env": {"OF_THE_CALLER": "yes"}}')
    bound = claude_options(proxied, given)
    assert read_settings(bound.settings, None)["sandbox"] == {"enabled": False}
    async with ClaudeSDKClient(bound) as client:
        command, _, started = (await ask(client)).partition("---")
    password = proxied.proxy_env()["HTTP_PROXY"].rpartition("@")[0].rpartition(":")[2]
    assert "ANTHROPIC_BASE_URL" in command
    for secret in (password, "lt-workspace-token", "/somewhere/token"):
        assert secret not in command
    assert "lt-workspace-token" not in started
    assert "OF_THE_CALLER=yes" in started
    # What it starts takes a proxy from its environment or not at all; docs/adapters.md says so.
    assert password in started


async def test_command_that_ignores_its_settings_is_refused_by_the_proxy(
    proxied: LatticeAgent, model: ScriptedModel, options: Options
) -> None:
    model.script = [[say("reached")]]
    bound = claude_options(proxied, options())
    unset = replace(bound, settings=None)
    with pytest.raises(Exception, match="407"):
        async for _ in query(prompt="Go on.", options=unset):
            pass
    assert not model.requests


def test_options_keep_the_agent_and_all_that_the_caller_set(
    lattice_world: World, options: Options, tmp_path: Path
) -> None:
    given = options(model="claude-x", env={"MINE": "1"}, extra_args={"debug": None})
    agent = LatticeAgent(**lattice_world.settings(isolation="proxy")).open()
    peer = agent.peer_id
    bound = claude_options(agent, given)
    assert isinstance(bound, ClaudeAgentOptions)
    assert (bound.model, bound.env["MINE"], bound.extra_args) == ("claude-x", "1", {"debug": None})
    assert given.settings is None
    assert "HTTP_PROXY" not in given.env
    copy = replace(bound, model="claude-y")
    del agent, bound
    gc.collect()
    assert copy.lattice_agent is not None
    assert copy.lattice_agent.state == "active"
    assert lattice_world.knows(peer)
    proxy = read_settings(copy.settings, None)["env"]["HTTP_PROXY"]
    assert proxy.startswith(f"http://{peer}:")
    del copy
    gc.collect()
    wait_for("the identity to end", lambda: not lattice_world.knows(peer))


def test_other_user_is_refused(agent: LatticeAgent) -> None:
    with pytest.raises(ConfigurationError, match="nobody"):
        claude_options(agent, ClaudeAgentOptions(user="nobody"))


def test_options_with_an_identity_take_no_second_one(agent: LatticeAgent) -> None:
    with pytest.raises(ConfigurationError, match="already"):
        claude_options(agent, claude_options(agent))


def test_closed_agent_has_no_options(lattice_world: World) -> None:
    with LatticeAgent(**lattice_world.settings()) as agent:
        pass
    with pytest.raises(IdentityClosed):
        claude_options(agent)


PROGRAM = """
import asyncio, json, sys
from claude_agent_sdk import ClaudeAgentOptions
from lattice_claude import lattice_claude_client

async def main():
    options = ClaudeAgentOptions(**json.loads(sys.argv[1]))
    async with lattice_claude_client(options) as client:
        await client.query("Go on.")
        async for message in client.receive_response():
            pass

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("number", "isolation"),
    [(signal.SIGKILL, "required"), (signal.SIGKILL, "proxy"), (signal.SIGTERM, "proxy")],
)
def test_command_and_what_it_runs_end_with_a_killed_agent(
    lattice_world: World,
    model: ScriptedModel,
    options: Options,
    number: signal.Signals,
    isolation: str,
) -> None:
    marker = f"lattice-test-{uuid4().hex}"
    model.script = [[call("Bash", command=f"tail -f /dev/null; : {marker}")]]
    before = lattice_world.peers()
    given = options(extra_args={"add-dir": f"/tmp/{marker}"})
    names = ("cwd", "setting_sources", "permission_mode", "env", "extra_args")
    arguments = {name: getattr(given, name) for name in names} | {"cwd": str(given.cwd)}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps(arguments)],
        env={
            "PATH": os.environ["PATH"],
            "LATTICE_SERVER": lattice_world.server,
            "LATTICE_TOKEN": lattice_world.token,
            "LATTICE_ISOLATION": isolation,
        },
    )
    try:
        wait_for("the command's shell", lambda: processes_mentioning(f"; : {marker}"), 90)
        (peer,) = lattice_world.peers() - before
        process.send_signal(number)
        assert process.wait(20) == -number
        wait_for("the identity to end", lambda: not lattice_world.knows(peer))
        wait_for("its processes to end", lambda: not processes_mentioning(marker), 20)
    finally:
        process.kill()
        process.wait()
