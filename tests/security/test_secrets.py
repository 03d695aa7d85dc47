"""Where secrets are over a whole life: on the wire, in the database, in files and processes."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lattice_sdk import LatticeAgent, LatticeError
from lattice_server.fabric import Fabric
from support.issuer import AUDIENCE, Issuer
from support.tenants import Api, make_tenant, new_key
from support.wire import Tap

# Any of ours, also those that this test does not know: a letter and 32 bytes (credentials.py).
TOKEN = re.compile(rb"lt-[a-z][A-Za-z0-9_-]{43}")
PRIVATE = re.compile(r"PrivateKey = (\S+)")


@dataclass
class Life:
    """What went by while identities began, renewed, delegated and ended."""

    directory: Path
    sent: bytes = b""
    received: bytes = b""
    tokens: dict[str, str] = field(default_factory=dict)  # by what they are
    agent_keys: list[str] = field(default_factory=list)  # made by the SDK
    server_keys: list[str] = field(default_factory=list)  # made by the server, answered once
    output: str = ""


def config_key(agent: LatticeAgent) -> str:
    config = agent.wireguard_config
    assert config is not None
    found = PRIVATE.search(config.get_secret_value())
    assert found is not None
    return found[1]


def use(life: Life, fabric: Fabric, tap: Tap) -> None:
    """Every call that there is, by SDK, command and hand, through the tap."""
    api = Api(fabric)
    api.http.base_url = tap.url
    tenant = make_tenant(api, "ws")
    life.tokens |= {"admin": fabric.admin_token} | tenant.bearers()
    by_hand = api.enroll(tenant.token["token"], "by-hand").json()
    life.tokens["by hand"] = by_hand["enrollmentToken"]
    life.server_keys.append(PRIVATE.findall(by_hand["wireguardConfig"])[0])
    settings: dict[str, Any] = {"server": tap.url, "token": tenant.token["token"]}
    with LatticeAgent(**settings, agent_name="sdk", rotate_keys=True) as agent:
        life.agent_keys.append(config_key(agent))
        agent.renew()
        assert config_key(agent) not in life.agent_keys
        life.agent_keys.append(config_key(agent))
        helper = agent.delegate_sync("helper")
        life.tokens["sdk's delegation"] = helper.token.get_secret_value()
        with LatticeAgent(**helper.settings()) as child:
            life.agent_keys.append(config_key(child))
            life.output += repr(agent) + repr(child) + repr(helper)
    with Issuer() as issuer:
        trust = {"workspaceId": "ws", "issuer": issuer.url, "audience": AUDIENCE}
        api.manage("POST", "/api/v1/trusts", {**trust, "claims": {"sub": "*"}})
        life.tokens["jwt"] = issuer.token()
        one = api.enrolled(life.tokens["jwt"], "job")
        life.tokens["job"] = one["enrollmentToken"]
        with pytest.raises(LatticeError) as refused:
            LatticeAgent(
                server=tap.url, token=issuer.token(aud="x"), agent_name="job", timeout=5
            ).open()
        life.output += f"{refused.value!r} {refused.value}"
    life.tokens["rotated"] = api.manage("POST", f"/api/v1/tokens/{tenant.token['id']}/rotate")[
        "token"
    ]
    path = f"/api/v1/peers/{by_hand['peerId']}"
    for method, where, token in (
        ("POST", f"{path}/renew", by_hand["enrollmentToken"]),
        ("GET", path, by_hand["enrollmentToken"]),
        ("GET", "/api/v1/peers", life.tokens["rotated"]),
        *(("GET", f"/api/v1/{kind}", fabric.admin_token) for kind in ("tokens", "events")),
        *(("GET", f"/api/v1/{kind}", fabric.admin_token) for kind in ("services", "trusts")),
        ("GET", "/metrics", fabric.admin_token),
        ("GET", f"{path}/{by_hand['enrollmentToken']}", by_hand["enrollmentToken"]),
        ("GET", path, tenant.token["token"]),
        ("DELETE", path, by_hand["enrollmentToken"]),
    ):
        api.call(method, where, token)
    for words in (
        ("peers", "list"),
        ("tokens", "list"),
        ("events",),
        ("enroll", "x", "--ttl", "0s"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "lattice_sdk", *words],
            env={"LATTICE_SERVER": tap.url, "LATTICE_TOKEN": fabric.admin_token},
            capture_output=True,
            text=True,
            check=False,
        )
        life.output += done.stdout + done.stderr
    api.http.close()


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    """A fabric whose processes log all that they can, while it still runs."""
    directory = tmp_path_factory.mktemp("secrets")
    life = Life(directory)
    options = {"log_level": "debug", "gateway_wait": 20, "delete_wait": 20}
    with Fabric(directory, server_options=options) as fabric:
        with Tap(fabric.url) as tap:
            use(life, fabric, tap)
            life.sent, life.received = bytes(tap.sent), bytes(tap.received)
        life.tokens["gateway"] = (directory / "gateway.token").read_text().strip()
        life.output += processes()
        yield life


def processes() -> str:
    """Arguments and environments of all processes but this one's own and its ancestors'."""
    told = ""
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in (os.getpid(), os.getppid()):
            continue
        for what in ("cmdline", "environ"):
            try:
                told += (
                    Path(f"/proc/{name}/{what}").read_bytes().replace(b"\0", b" ").decode("latin-1")
                )
            except (OSError, ProcessLookupError):
                continue
    return told


def spellings(key: str) -> list[bytes]:
    """A key as bytes, in hexadecimal and in base64, whole or in the middle of something."""
    raw = base64.b64decode(key)
    return [raw, raw.hex().encode(), raw.hex().upper().encode(), key.encode(), key[:-1].encode()]


def requests(sent: bytes) -> list[tuple[bytes, bytes]]:
    """Heads and what follows each, of all requests that went by."""
    parts = re.split(rb"(?=(?:GET|POST|DELETE|PUT|PATCH) /\S* HTTP/1\.1\r\n)", sent)
    return [
        (head, body) for head, _, body in (part.partition(b"\r\n\r\n") for part in parts) if head
    ]


def test_private_key_of_an_agent_is_nowhere_on_the_wire(life: Life) -> None:
    assert len(life.agent_keys) == 3  # the agent had two
    for key in life.agent_keys:
        for spelling in spellings(key):
            assert spelling not in life.sent
            assert spelling not in life.received


def test_key_that_the_server_made_is_answered_once(life: Life) -> None:
    [key] = life.server_keys
    assert life.received.count(key.encode()) == 1
    assert key.encode() not in life.sent


def test_clients_say_tokens_in_one_header_and_nowhere_else(life: Life) -> None:
    seen: set[str] = set()
    for head, body in requests(life.sent):
        lines = head.split(b"\r\n")
        bearers = [line for line in lines if line.lower().startswith(b"authorization: bearer ")]
        assert len(bearers) <= 1
        rest = b"\r\n".join(line for line in lines if line not in bearers) + body
        for what, token in life.tokens.items():
            if bearers and token.encode() in bearers[0]:
                seen.add(what)
            # The one that the test itself has put into a path, to see what becomes of it.
            if b"GET /api/v1/peers" in lines[0] and what == "by hand":
                continue
            assert token.encode() not in rest, (what, lines[0])
        unknown = set(TOKEN.findall(rest)) - {life.tokens["by hand"].encode()}
        assert not unknown, lines[0]
    assert {"admin", "workspace", "enrollment", "jwt", "rotated", "by hand"} <= seen


def test_server_says_tokens_to_those_who_get_them_and_to_nobody_else(life: Life) -> None:
    """An enrollment token to its identity at enrollment and renewal, others when they are made."""
    expected = {
        "admin": 0,  # from a file
        "gateway": 0,  # made before the tap
        "jwt": 0,  # another's
        "workspace": 1,
        "service": 1,
        "delegation": 1,
        "sdk's delegation": 1,
        "rotated": 1,
        "enrollment": 1,
        "sub-agent": 1,
        "connector": 1,
        "job": 1,
        "by hand": 2,  # enrolled, and renewed once
    }
    assert {what: life.received.count(t.encode()) for what, t in life.tokens.items()} == expected
    # What is told in a list, an event, a metric or an error holds none.
    answers = re.split(rb"(?=HTTP/1\.1 \d{3})", life.received)
    for answer in answers:
        head = answer.partition(b"\r\n\r\n")[0]
        if TOKEN.search(answer) or any(t.encode() in answer for t in life.tokens.values()):
            assert b"cache-control: no-store" in head.lower(), answer[:300]
            assert head.startswith((b"HTTP/1.1 201", b"HTTP/1.1 200")), answer[:300]


def test_database_has_no_token_and_no_private_key(life: Life) -> None:
    files = sorted((life.directory / "server").glob("lattice.db*"))
    assert [file.name for file in files][:1] == ["lattice.db"]
    data = b"".join(file.read_bytes() for file in files)
    assert b"by-hand" in data  # it is the database, and read with its journal
    assert TOKEN.findall(data) == []
    for what, token in life.tokens.items():
        assert token.encode() not in data, what
        assert token[5:].encode() not in data, what
    for key in (*life.agent_keys, *life.server_keys):
        for spelling in spellings(key):
            assert spelling not in data


def test_files_and_logs_have_no_secret_but_the_files_that_are_for_it(life: Life) -> None:
    meant = {"admin.token", "gateway.token", "private.key", "egress.token"}
    looked_at = 0
    for path in life.directory.rglob("*"):
        if not path.is_file():
            continue
        assert path.stat().st_mode & 0o077 == 0, path
        if path.name in meant:
            continue
        data = path.read_bytes()
        looked_at += 1
        assert TOKEN.findall(data) == [], path
        for what, token in life.tokens.items():
            assert token.encode() not in data, (what, path)
        for key in (*life.agent_keys, *life.server_keys):
            assert all(spelling not in data for spelling in spellings(key)), path
    assert looked_at >= 4
    logs = "".join(path.read_text(errors="replace") for path in life.directory.glob("*.log"))
    assert "agent-enroll" in logs
    assert "eyJ" not in re.sub("eyJ…", "", logs)


def test_nothing_is_printed_or_handed_to_processes(life: Life) -> None:
    for what, token in life.tokens.items():
        assert token not in life.output, what
    for key in (*life.agent_keys, *life.server_keys):
        assert key not in life.output


def test_a_new_key_is_not_what_was_looked_for() -> None:
    """The search finds what is there, in each spelling."""
    key = new_key()
    raw = base64.b64decode(key)
    for hidden in (b"x" + raw + b"y", f"<{raw.hex()}>".encode(), f'"{key}"'.encode()):
        assert any(spelling in hidden for spelling in spellings(key))
