"""Both enrollments of ``lattice exec``, the engine's and the SDK's, are one: the same requests,
errors and attempts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from conftest import World
from lattice_sdk.durations import parse_duration
from support.answering import answering, send

TOKEN = "lt-a-secret-that-nobody-prints"
# A setting that is out of the ordinary, and means what is meant without it.
WAYS: dict[str, dict[str, str]] = {"engine": {}, "sdk": {"LATTICE_TIMEOUT": "30"}}
HEADERS = ("Authorization", "Accept", "Content-Type", "User-Agent")
PROBLEM = "application/problem+json"


class Asked:
    """What came, in the order in which it came."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        self.encodings: list[str] = []

    def add(self, handler: Any) -> None:
        headers = {name: handler.headers.get(name, "") for name in HEADERS}
        body = json.loads(handler.body or b"{}")
        self.requests.append((handler.command, handler.path, headers, body))
        self.encodings.append(handler.headers.get("Accept-Encoding", ""))

    def keys(self) -> list[str]:
        """The public keys, of which each enrollment has one of its own."""
        return [body.pop("publicKey") for _, _, _, body in self.requests if "publicKey" in body]


def lattice_exec(
    url: str, way: str, home: Path, *options: str, token: str = TOKEN
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lattice_sdk", "exec", *options, "--", "echo", "ran"],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "TMPDIR": str(home),
            "LATTICE_SERVER": url,
            "LATTICE_TOKEN": token,
            **WAYS[way],
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def both(
    respond: Callable[[Any], None], home: Path, *options: str, token: str = TOKEN
) -> dict[str, tuple[Asked, subprocess.CompletedProcess[str]]]:
    """What each way asks of a server, and how it ends."""
    asked = Asked()

    def note(handler: Any) -> None:
        asked.add(handler)
        respond(handler)

    found = {}
    with answering(note) as url:
        for way in WAYS:
            asked = Asked()
            done = lattice_exec(url, way, home, *options, token=token)
            found[way] = asked, done
    # Else this would compare one of them with itself.
    assert found["engine"][0].encodings[0] == "gzip"
    assert "deflate" in found["sdk"][0].encodings[0]
    return found


def problem(status: int, code: str) -> tuple[int, str, bytes]:
    return status, PROBLEM, json.dumps({"code": code, "detail": "so it is"}).encode()


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--name", "coder", "--type", "code-executor", "--ttl", "90s", "--preset", "coordinator"),
        ("--allow", "10.0.7.5:443", "--allow", "a.example:53/udp", "--workspace", "ws-x"),
    ],
)
def test_requests_are_the_same(options: tuple[str, ...], tmp_path: Path) -> None:
    refusal = problem(403, "preset_not_permitted")
    found = both(lambda handler: send(handler, *refusal), tmp_path, *options)
    requests = []
    for asked, _ in found.values():
        assert len(asked.keys()) == 1
        [(_, _, _, body)] = asked.requests
        # The SDK always says it, and its own way: 1m30s.
        body["ttl"] = parse_duration(body.get("ttl", "1h"))
        body.setdefault("agentType", body["agentName"])
        requests.append(asked.requests)
    assert requests[0] == requests[1]


@pytest.mark.parametrize(
    "options",
    [("--ttl", "soon"), ("--ttl", "0s"), ("--name", "two words"), ("--preset", "../x")],
)
def test_what_is_wrong_is_not_sent(options: tuple[str, ...], tmp_path: Path) -> None:
    asked = Asked()
    with answering(asked.add) as url:
        ends = [lattice_exec(url, way, tmp_path, *options) for way in WAYS]
    assert not asked.requests
    assert [done.returncode for done in ends] == [125, 125]
    assert ends[0].stderr == ends[1].stderr
    assert "Traceback" not in ends[0].stderr


ANSWERS: Mapping[str, tuple[int, str, bytes]] = {
    "wrong token": problem(401, "invalid_token"),
    "not permitted": problem(403, "destination_not_permitted"),
    "invalid": problem(422, "invalid_ttl"),
    "no gateway": problem(503, "gateway_unavailable"),
    "too many": problem(429, "too_many_requests"),
    "moved": (307, "text/html", b""),
    "a page": (200, "text/html", b"<html>Welcome</html>"),
    "no page": (404, "text/html", b"<html>Not here</html>"),
    "granted in part": (201, "application/json", b'{"peerId": "peer-1"}'),
    "not JSON": (201, "application/json", b"{"),
    "the second dialect": (200, "application/json", b'{"code": 401, "data": null, "msg": "no"}'),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_mean_the_same_and_are_asked_for_as_often(name: str, tmp_path: Path) -> None:
    status, kind, body = ANSWERS[name]

    def respond(handler: Any) -> None:
        handler.send_response(status)
        for header, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Location", "http://elsewhere.example/"),
            ("Retry-After", "0"),
        ):
            handler.send_header(header, value)
        handler.end_headers()
        handler.wfile.write(body)

    found = both(respond, tmp_path)
    (engine, by_engine), (sdk, by_sdk) = found["engine"], found["sdk"]
    assert (by_engine.returncode, by_engine.stdout) == (125, "")
    assert by_engine.stderr == by_sdk.stderr
    assert "what to do" in by_engine.stderr
    assert TOKEN not in by_engine.stderr
    asked = [[what[:2] for what in one.requests if what[0] == "POST"] for one in (engine, sdk)]
    assert asked[0] == asked[1]
    for one in (engine, sdk):  # one key, however often
        assert len(set(one.keys())) == 1


def test_lost_answer_makes_no_second_identity(world: World, tmp_path: Path) -> None:
    """The control plane has granted it; the key that was sent finds it again."""
    path = f"/api/v1/peers?workspaceId={world.fabric.workspace}"
    granted: list[str] = []

    def respond(handler: Any) -> None:
        headers = {name: handler.headers[name] or "" for name in HEADERS}
        answer = httpx.request(
            handler.command, world.fabric.url + handler.path, content=handler.body, headers=headers
        )
        if handler.command == "POST":
            granted.append(answer.json()["peerId"])
            if len(granted) % 2 == 1:
                handler.close_connection = True
                return
        handler.send_response_only(answer.status_code)
        for name in ("Content-Type", "Lattice-Time", "Date"):
            if name in answer.headers:
                handler.send_header(name, answer.headers[name])
        handler.send_header("Content-Length", str(len(answer.content)))
        handler.end_headers()
        handler.wfile.write(answer.content)

    token = world.fabric.workspace_token
    for _, done in both(respond, tmp_path, token=token).values():
        assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr
    first, again, other, other_again = granted
    assert (first, other) == (again, other_again)
    assert first != other
    assert not {first, other} & {
        peer["peerId"] for peer in world.fabric.request("GET", path)["items"]
    }
