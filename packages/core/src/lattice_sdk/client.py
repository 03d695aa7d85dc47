"""The control plane's API as a client sees it: one class, every failure a :class:`LatticeError`."""

from __future__ import annotations

import asyncio
import contextlib
import json as jsonlib
import logging
import ssl
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import httpx
from pydantic import BaseModel, SecretStr, ValidationError

from lattice_sdk import dialect, wgconfig
from lattice_sdk.clock import ServerClock, now
from lattice_sdk.errors import ConfigurationError, LatticeError, ServerUnreachable, UnexpectedAnswer
from lattice_sdk.keys import KeyPair
from lattice_sdk.network import environment_proxy, ssl_context
from lattice_sdk.problems import Answer, problem, read_answer
from lattice_sdk.wire import (
    DelegateRequest,
    DelegateResponse,
    EnrollRequest,
    EnrollResponse,
    Peer,
    PeerPage,
    RenewRequest,
)

log = logging.getLogger("lattice.client")

MAX_ANSWER = 8 * 1024 * 1024  # bytes; a page of 1000 peers has about half a megabyte
USER_AGENT = "lattice-sdk"
# Of httpcore and h11, which know no error of its own for a connection that ends too early.
_BROKEN_OFF = ("disconnected without", "closed connection without")
T = TypeVar("T", bound=BaseModel)


class ControlPlane:
    """Speaks to one control plane. An async context manager; belongs to one event loop.

    Args:
        server: its URL, ``https://lattice.company.com``.
        token: bearer of the calls that need one: workspace, admin or service token.
        verify: ``True``, or a file of certificate authorities (PEM).
        timeout: seconds that one call may take in all.

    Attributes:
        clock: the server's time, from its answers.
        second_dialect: whether the server speaks :mod:`lattice_sdk.dialect`; ``None`` until the
            first enrollment.

    Raises:
        ConfigurationError: the URL is none, or the file of authorities cannot be read.
    """

    def __init__(
        self,
        server: str,
        token: SecretStr | str | None = None,
        *,
        verify: bool | Path | str = True,
        timeout: float = 10.0,
    ) -> None:
        self.server = check_server(server)
        self.timeout = timeout
        self.clock = ServerClock()
        self.second_dialect: bool | None = None
        self._expected: dict[str, tuple[Answer, float]] = {}
        self._token = SecretStr(token) if isinstance(token, str) else token
        self._http = httpx.AsyncClient(
            base_url=self.server,
            verify=_verify(self.server, verify),
            proxy=environment_proxy(self.server),
            trust_env=False,
            timeout=timeout,
            follow_redirects=False,
            headers={"User-Agent": USER_AGENT, "Accept": "application/json"},
        )

    def __repr__(self) -> str:
        return f"ControlPlane({self.server!r})"

    async def __aenter__(self) -> ControlPlane:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    def expect(self, path: str, answer: Answer, received: float) -> None:
        """Take this answer for the next call of a path, instead of making it.

        Args:
            path: of the call.
            answer: what came back from it.
            received: when, on the monotonic clock.
        """
        self._expected[path] = answer, received

    async def enroll(self, request: EnrollRequest, key: KeyPair | None = None) -> EnrollResponse:
        """``POST /api/v1/agent-enroll``.

        Args:
            request: what to ask for.
            key: the client's own pair; its private half completes the answer's config and goes
                nowhere else. Without it the server makes the pair.

        Raises:
            LatticeError: as the server refuses.
        """
        if key is not None:
            request = request.model_copy(update={"public_key": key.public})
        if not self.second_dialect:
            body = await self._first_enrollment(request)
            if body is None:
                return await self._enroll_second(request, request.agent_name, key)
            if not dialect.is_wrapped(body):
                self.second_dialect = False
                return _complete(_model(EnrollResponse, body), key)
            self.second_dialect = True
            if dialect.names_identity(body):
                return self._read_second(body, request, key, now())
        return await self._enroll_second(request, dialect.successor_name(request.agent_name), key)

    async def connect_service(
        self, name: str, key: KeyPair, *, workspace_id: str | None = None, ttl: str | None = None
    ) -> EnrollResponse:
        """``POST /api/v1/services/{name}/connect``: take a tool service's overlay address."""
        body = {"publicKey": key.public, "workspaceId": workspace_id, "ttl": ttl}
        answer = await self.request(
            "POST",
            f"/api/v1/services/{quote(name, safe='')}/connect",
            {field: value for field, value in body.items() if value is not None},
        )
        return _complete(_model(EnrollResponse, answer), key)

    async def renew(
        self,
        peer_id: str,
        token: SecretStr,
        request: RenewRequest | None = None,
        key: KeyPair | None = None,
    ) -> EnrollResponse:
        """``POST /api/v1/peers/{id}/renew``.

        Args:
            peer_id: the identity.
            token: its enrollment token.
            request: ``ttl`` and a new key; all may be left out.
            key: the client's pair, for the config of the answer.
        """
        body = (request or RenewRequest()).model_dump(mode="json", by_alias=True, exclude_none=True)
        path = f"/api/v1/peers/{quote(peer_id, safe='')}/renew"
        answer = await self.request("POST", path, body, token=token)
        return _complete(_model(EnrollResponse, answer), key)

    async def delegate(
        self, peer_id: str, token: SecretStr, request: DelegateRequest
    ) -> DelegateResponse:
        """``POST /api/v1/agents/{id}/delegate``, with the agent's enrollment token."""
        body = request.model_dump(mode="json", by_alias=True, exclude_none=True)
        path = f"/api/v1/agents/{quote(peer_id, safe='')}/delegate"
        return _model(DelegateResponse, await self.request("POST", path, body, token=token))

    async def delete_peer(
        self, peer_id: str, token: SecretStr | None = None, *, workspace_id: str | None = None
    ) -> None:
        """Delete an identity; also when it is gone already."""
        if self.second_dialect:
            params = {"workspaceId": workspace_id or ""}
            await self.request("DELETE", dialect.delete_path(peer_id), params=params)
            return
        await self.request("DELETE", f"/api/v1/peers/{quote(peer_id, safe='')}", token=token)

    def revoke_call(
        self, peer_id: str, token: SecretStr, workspace_id: str | None
    ) -> tuple[str, SecretStr]:
        """URL and bearer of the ``DELETE`` that ends an identity, for who outlives this process."""
        if not self.second_dialect:
            return f"{self.server}/api/v1/peers/{quote(peer_id, safe='')}", token
        query = f"?workspaceId={quote(workspace_id or '', safe='')}"
        return f"{self.server}{dialect.delete_path(peer_id)}{query}", self._token or token

    async def get_peer(self, peer_id: str, token: SecretStr | None = None) -> Peer:
        """``GET /api/v1/peers/{id}``."""
        path = f"/api/v1/peers/{quote(peer_id, safe='')}"
        return _model(Peer, await self.request("GET", path, token=token))

    async def list_peers(
        self, workspace_id: str | None = None, limit: int | None = None, cursor: str | None = None
    ) -> PeerPage:
        """``GET /api/v1/peers``: a page of living identities; ``cursor`` is ``next`` of a page."""
        params = {"workspaceId": workspace_id, "limit": limit, "cursor": cursor}
        return _model(PeerPage, await self.request("GET", "/api/v1/peers", params=params))

    async def request(
        self,
        method: str,
        path: str,
        json: Any = None,
        params: Mapping[str, Any] | None = None,
        *,
        token: SecretStr | None = None,
    ) -> Any:
        """Any call of the API.

        Args:
            method: HTTP method.
            path: from ``/``.
            json: body, if any.
            params: query; those that are ``None`` are left out.
            token: bearer instead of the client's own.

        Returns:
            The decoded answer, ``None`` for an empty one.
        """
        answer = await self._send(method, path, json, params, token)
        return read_answer(answer, f"{method} {self.server}{path}")

    async def stream_events(
        self,
        after: int | None = None,
        follow: bool = False,
        *,
        event_type: str | None = None,
        peer_id: str | None = None,
    ) -> AsyncIterator[dict[str, Any]]:
        """The event log, oldest first; with ``follow`` without end.

        Args:
            after: sequence number to begin behind.
            follow: wait for what happens.
            event_type: only these, ``denied``.
            peer_id: only those of this peer.
        """
        path, last = "/api/v1/events", after
        wanted = {"type": event_type, "peerId": peer_id}
        while not follow:
            page = await self.request("GET", path, params={"after": last, **wanted})
            items = page.get("items", []) if isinstance(page, dict) else []
            for item in items:
                yield item
            following = page.get("next") if isinstance(page, dict) else None
            if following is None or not items:
                return
            last = int(following)
        params = {"after": last, "follow": "true", **wanted}
        with self._transport_errors("GET", path):
            async with self._http.stream(
                "GET",
                path,
                params={key: value for key, value in params.items() if value is not None},
                headers=self._headers(None),
                timeout=httpx.Timeout(self.timeout, read=None),
            ) as answer:
                if answer.status_code != httpx.codes.OK:
                    body = Answer(answer.status_code, answer.headers, await answer.aread())
                    read_answer(body, f"GET {self.server}{path}")
                async for line in answer.aiter_lines():
                    if line.strip():
                        yield jsonlib.loads(line)

    async def _first_enrollment(self, request: EnrollRequest) -> Any:
        """The answer in either dialect, ``None`` when the second refused the first's words."""
        body = request.model_dump(mode="json", by_alias=True, exclude_none=True)
        if not body.get("allow"):
            body.pop("allow", None)
        answer = await self._send("POST", dialect.PATH, body, None, None)
        with contextlib.suppress(ValueError, RecursionError):
            document = answer.json()
            if dialect.is_wrapped(document):
                self.second_dialect = True
                # Its refusal of our words may be for the words alone; of the token, it is not.
                if dialect.wrapped_status(document) in (400, 422):
                    return None
        return read_answer(answer, f"POST {self.server}{dialect.PATH}")

    async def _enroll_second(
        self, request: EnrollRequest, name: str, key: KeyPair | None
    ) -> EnrollResponse:
        sent = now()
        body = await self.request("POST", dialect.PATH, dialect.request_body(request, name))
        if not dialect.is_wrapped(body):
            raise problem(
                502, "unexpected_answer", "the control plane changed its dialect", "POST", {}
            )
        return self._read_second(body, request, key, sent)

    def _read_second(
        self, body: dict[str, Any], request: EnrollRequest, key: KeyPair | None, sent: float
    ) -> EnrollResponse:
        token = self._token or SecretStr("")
        return _complete(dialect.read_response(body, request, token, self.clock, sent), key)

    def _headers(self, token: SecretStr | None) -> dict[str, str]:
        bearer = token or self._token
        return {"Authorization": f"Bearer {bearer.get_secret_value()}"} if bearer else {}

    async def _send(
        self,
        method: str,
        path: str,
        json: Any,
        params: Mapping[str, Any] | None,
        token: SecretStr | None,
    ) -> Answer:
        if path in self._expected:
            expected, came = self._expected.pop(path)
            self.clock.observe(expected.headers, came)
            return expected
        query = {key: value for key, value in (params or {}).items() if value is not None}
        with self._transport_errors(method, path):
            # httpx bounds each read; a server that trickles would never hit such a bound.
            async with (
                asyncio.timeout(self.timeout),
                self._http.stream(
                    method, path, json=json, params=query or None, headers=self._headers(token)
                ) as answer,
            ):
                received = now()
                body = bytearray()
                async for chunk in answer.aiter_bytes():
                    body += chunk
                    if len(body) > MAX_ANSWER:
                        raise UnexpectedAnswer(
                            f"{method} {self.server}{path} was answered with more than "
                            f"{MAX_ANSWER} bytes",
                            code="answer_too_large",
                            hint="Check that LATTICE_SERVER is the control plane",
                            status=answer.status_code,
                        )
        self.clock.observe(answer.headers, received)
        log.debug("%s %s: %s", method, path, answer.status_code)
        return Answer(answer.status_code, answer.headers, bytes(body))

    @contextlib.contextmanager
    def _transport_errors(self, method: str, path: str) -> Any:
        what = f"{method} {self.server}{path}"
        try:
            yield
        except LatticeError:
            raise
        except (TimeoutError, httpx.TimeoutException):
            raise ServerUnreachable(
                f"{what} was not answered within {self.timeout:g} s",
                code="server_timeout",
                hint="Check the control plane's load and the network in between",
            ) from None
        except httpx.RemoteProtocolError as error:
            if any(phrase in str(error) for phrase in _BROKEN_OFF):
                raise ServerUnreachable(
                    f"{what} broke off before the answer's end ({error})",
                    code="connection_lost",
                    hint="Try again, and check that LATTICE_SERVER has the right scheme and port",
                ) from None
            raise UnexpectedAnswer(
                f"{what} was not answered in HTTP ({error})",
                hint="Check that LATTICE_SERVER has the right scheme and port",
            ) from None
        except httpx.ConnectError as error:
            raise _unreachable(what, error) from None
        except (httpx.TransportError, httpx.DecodingError, OSError) as error:
            raise ServerUnreachable(
                f"{what} broke off ({error or type(error).__name__})",
                code="connection_lost",
                hint="Try again",
            ) from None


def check_server(server: str) -> str:
    """The URL of a control plane in one form: no slash at its end.

    Raises:
        ConfigurationError: it is no http or https URL, or has parts that do not belong there.
    """
    text = server.strip().rstrip("/")
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
        good = good and parts.port != 0 and "@" not in parts.netloc
        good = good and not parts.query and not parts.fragment
        httpx.URL(text)
    except (ValueError, httpx.InvalidURL):
        good = False
    if not good:
        # What was passed may hold a password: it is not repeated.
        raise ConfigurationError(
            "the control plane's URL is not of the form https://HOST[:PORT][/PATH]",
            hint="Correct server=… or LATTICE_SERVER",
        )
    return text


def _unreachable(what: str, error: httpx.ConnectError) -> ServerUnreachable:
    reason = str(error) or "no connection"
    if isinstance(error.__cause__ and error.__cause__.__cause__, ssl.SSLError) or "SSL" in reason:
        return ServerUnreachable(
            f"{what}: the TLS connection failed ({reason})",
            code="tls_failed",
            hint="If the control plane has a certificate of your own authority, name that in "
            "LATTICE_CA_FILE (or verify=…)",
        )
    return ServerUnreachable(
        f"{what}: the control plane cannot be reached ({reason})",
        hint="Check LATTICE_SERVER, and that the control plane runs there",
    )


def _verify(server: str, verify: bool | Path | str) -> ssl.SSLContext | bool:
    if server.startswith("http:"):
        # Loading the authorities takes tens of milliseconds, and no redirect is followed.
        return False
    if verify is False:
        raise ConfigurationError(
            "certificates are always verified",
            hint="Name the certificate's authority: verify=FILE, or LATTICE_CA_FILE",
        )
    return ssl_context(None if verify is True else str(verify))


def _complete(answer: EnrollResponse, key: KeyPair | None) -> EnrollResponse:
    """The answer with the client's private key in its config."""
    text = answer.wireguard_config.get_secret_value()
    if key is None or not text.strip():
        return answer
    try:
        config = wgconfig.parse(text).with_private_key(key.private)
    except wgconfig.WireGuardConfigError as error:
        raise UnexpectedAnswer(
            f"the answer's wireguardConfig is not usable: {error}", peer_id=answer.peer_id
        ) from None
    return answer.model_copy(update={"wireguard_config": config.render()})


def _model(kind: type[T], body: Any) -> T:
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        # Never the error itself: it quotes the input, and that holds secrets.
        fields = sorted({".".join(map(str, item["loc"])) or "body" for item in error.errors()})
        raise UnexpectedAnswer(
            f"the control plane's answer is not a {kind.__name__}: wrong {', '.join(fields)}",
            hint="Check that LATTICE_SERVER is a control plane, and the versions of both sides",
        ) from None
