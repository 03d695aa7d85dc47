"""The ordinary start: the engine enrolls and opens the tunnel, while the launcher gets ready.

Nothing of the SDK is loaded that takes time. An identity that was got so is taken over by the SDK
before it is to be renewed; what does not go as it ordinarily does, at once.
"""

from __future__ import annotations

import base64
import json
import os

from lattice_engine import EngineError, EngineProcess
from lattice_sdk import enginebody
from lattice_sdk.clock import ServerClock, now
from lattice_sdk.execution.child import Child
from lattice_sdk.execution.options import Options
from lattice_sdk.execution.settings import Settings
from lattice_sdk.sandbox import facts as factsheet
from lattice_sdk.sandbox import machine
from lattice_sdk.sandbox.home import Home, namespace_spec
from lattice_sdk.sandbox.spec import NAMESPACE

TYPE_CHECKING = False  # as typing has it, without the time that importing that takes
if TYPE_CHECKING:
    from typing import Any

PATH = "/api/v1/agent-enroll"
CALL_TIMEOUT = 10.0  # seconds for the enrollment, as the SDK has it
PROOF = 5.0  # seconds for a tunnel's handshake
LEAVE = 6.0  # seconds for the engine to give the identity back
_CREATED = 201


class Unordinary(Exception):  # noqa: N818 - no error: the SDK goes on from there
    """Something is not as it ordinarily is."""


class Found:
    """What there is of an identity, for the SDK to go on with.

    Attributes:
        engine: that runs, if it does.
        private_key: of the identity; whoever asks again asks with it, and gets no second one.
        answer: the control plane's to the enrollment, if one came: status, headers, body.
        received: when it came, on the monotonic clock.
        tunnel: the engine's answer about the tunnel.
        proxy_password: of the tunnel's proxy.
        home: of the tunnel's programs.
        renewal: seconds until it is to be renewed.
    """

    engine: EngineProcess | None = None
    answer: tuple[int, dict[str, str], bytes] | None = None
    received = 0.0
    tunnel: dict[str, Any] | None = None
    proxy_password = ""
    home: Home | None = None
    renewal = 0.0

    def __init__(self) -> None:
        self.private_key = base64.b64encode(os.urandom(32)).decode()  # RFC 7748, 6.1


class Quick:
    """One ordinary start.

    Args:
        options: of the command line.
        settings: that are complete.

    Attributes:
        found: what there is so far.
        child: the program, which has not started.
    """

    def __init__(self, options: Options, settings: Settings) -> None:
        self._options, self._settings = options, settings
        self.found = Found()
        launched = EngineProcess.launch_netstack()
        child = None
        try:
            child = self.child = Child(options.command, unix_sockets=options.unix_sockets)
            self.found.engine = EngineProcess.of(launched)
        except BaseException:
            launched.abandon()
            if child is not None:
                child.abandon()
            raise

    def leave(self) -> None:
        """Give back what there is, the program included. Again without effect."""
        self.child.abandon()
        if self.found.engine is not None:
            self.found.engine.close(LEAVE)

    def spec(self) -> bytes:
        """Get an identity and its tunnel; what the launcher is to be told.

        Raises:
            Unordinary: the SDK must go on with what was found.
        """
        if machine.forbids() is not None or machine.is_doubtful():
            raise Unordinary("this machine may forbid sandboxes")
        try:
            body, answer = self._enroll()
            return self._open(body, answer)
        except (EngineError, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise Unordinary(f"{type(error).__name__}: {error}") from None

    def _enroll(self) -> tuple[dict[str, Any], dict[str, Any]]:
        options, settings = self._options, self._settings
        body = {
            "agentName": options.agent_name,
            "agentType": options.agent_type,
            "workspaceId": settings.workspace,
            "ttl": options.ttl,
            "policyPreset": options.policy_preset,
            "allow": options.allow,
        }
        body = {name: value for name, value in body.items() if value}
        assert self.found.engine is not None  # noqa: S101 - set by the constructor
        told = self.found.engine.client.enroll(
            {
                "url": settings.server + PATH,
                "peersUrl": f"{settings.server}/api/v1/peers/",
                "headers": {
                    "Authorization": f"Bearer {settings.token}",
                    "Accept": "application/json",
                    "User-Agent": "lattice-sdk",
                },
                "caFile": settings.ca_file,
                "timeout": CALL_TIMEOUT,
                "privateKey": self.found.private_key,
                "body": body,
                "network": NAMESPACE,
            },
            timeout=CALL_TIMEOUT + 5,
        )
        self.found.received = now() - told["age"]
        self.found.answer = int(told["status"]), told["headers"], told["body"].encode()
        if told["status"] != _CREATED:
            raise Unordinary("the enrollment was refused")
        return body, json.loads(told["body"])

    def _open(self, asked: dict[str, Any], answer: dict[str, Any]) -> bytes:
        found, settings = self.found, self._settings
        assert found.engine is not None  # noqa: S101 - set by the constructor
        assert found.answer is not None  # noqa: S101 - set by _enroll()
        deadline, renewal = _times(answer, found.answer[1], found.received)
        facts = factsheet.facts_of_answer(
            answer, asked=asked, server=settings.server, deadline=deadline
        )
        peer = facts["peerId"]
        found.proxy_password = os.urandom(32).hex()
        revoke = enginebody.revocation(
            f"{settings.server}/api/v1/peers/{peer}", answer["enrollmentToken"], settings.ca_file
        )
        body = enginebody.changes(facts, deadline - now(), revoke)
        body |= enginebody.wireguard(answer["wireguardConfig"], found.private_key)
        body |= enginebody.probe(facts, PROOF)
        body["proxy"] = {"username": peer, "password": found.proxy_password}
        body["network"] = {"kind": NAMESPACE}
        patience = enginebody.patience(PROOF, namespace=True)
        found.tunnel = found.engine.client.put_tunnel(peer, body, timeout=patience)
        directory = str(found.engine.control.parent)
        spec = namespace_spec(found.tunnel, directory, settings.secret_files)
        found.home = Home(os.path.join(directory, "programs"), spec, facts)
        found.renewal = renewal
        return bytes(spec)


def _times(answer: dict[str, Any], headers: dict[str, str], received: float) -> tuple[float, float]:
    """The deadline on the monotonic clock, and the seconds until a renewal.

    Raises:
        Unordinary: the control plane does not tell its time exactly, or no deadline.
    """
    from datetime import datetime

    clock = ServerClock()
    if "Lattice-Time" not in headers or "expiresAt" not in answer:
        raise Unordinary("times are missing")
    clock.observe(headers, received)
    deadline = clock.deadline(datetime.fromisoformat(answer["expiresAt"]))
    if deadline is None:
        raise Unordinary("the control plane's time cannot be read")
    renewal = (deadline - now()) / 2
    if answer.get("renewAfter"):
        after = clock.deadline(datetime.fromisoformat(answer["renewAfter"]))
        renewal = min(renewal, (after or deadline) - now())
    return deadline, max(0.0, renewal)
