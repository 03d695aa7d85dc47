"""Programs that agents run in tests."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

from lattice_sdk import LatticeAgent
from lattice_sdk.testing import World

# Prints as JSON: whom the granted service sees, what became of a request to an ungranted one and of
# a connection past the agent, and the environment. urllib takes the proxies of the environment.
_REACH = """
import json, os, socket, urllib.request
from urllib.error import HTTPError, URLError
answer = json.load(urllib.request.urlopen("http://github-tools.lattice/", timeout=20))
try:
    urllib.request.urlopen("http://{denied}/", timeout=20)
    denied = "reached"
except HTTPError as error:
    denied = error.code
except URLError as error:
    denied = type(error.reason).__name__
try:
    socket.create_connection(("{host}", {port}), 20).close()
    past = "reached"
except OSError as error:
    past = type(error).__name__
print(json.dumps([answer["client"], denied, past, dict(os.environ)]))
"""
# Prints the overlay address of the sandbox that it is in.
WHERE = "import json, os; print(json.load(open(os.environ['LATTICE_SANDBOX']))['overlayIP'])"


def reach(world: World) -> str:
    """A program that tells what it reaches; for :func:`check_reach`."""
    server = urlsplit(world.server)
    return _REACH.format(denied=world.addresses["payroll"], host=server.hostname, port=server.port)


def check_reach(told: str, agent: LatticeAgent, *withheld: str) -> None:
    """Assert that a program had the agent's network, and nothing of the host's that it may not.

    Args:
        told: what it printed.
        agent: whose program it is.
        withheld: values that are not for it.
    """
    client, denied, past, environment = json.loads(told)
    assert client == agent.overlay_ip
    assert not set(withheld) & set(environment.values())
    if agent.isolation == "namespace":
        assert (denied, past) == ("ConnectionRefusedError", "ConnectionRefusedError")
        assert not [name for name in environment if name.upper().endswith("_PROXY")]
    else:
        assert (denied, past) == (403, "reached")
        assert environment["HTTP_PROXY"] == agent.proxy_env()["HTTP_PROXY"]


def wanting(isolation: str) -> dict[str, Any]:
    """Settings of an agent for which ``isolation`` was said, or nothing where it is ``usual``."""
    return {} if isolation == "usual" else {"isolation": isolation}


def key() -> str:
    """A function whose source executors copy to where programs import it."""
    import os

    return os.environ.get("OPENAI_API_KEY", "none")
