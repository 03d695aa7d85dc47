"""Getting an identity: enrolling with retries, taking one up again, having it renewed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec

from pydantic import SecretStr

from lattice_sdk import dialect, keys, plugins, runtime
from lattice_sdk.backends.choice import Wanted
from lattice_sdk.client import ControlPlane
from lattice_sdk.clock import now
from lattice_sdk.errors import (
    AuthenticationFailed,
    ConfigurationError,
    GatewayUnavailable,
    IdentityExpired,
    InvalidRequest,
    LatticeError,
    NotFound,
    ServerError,
    ServerUnreachable,
)
from lattice_sdk.handed import Enrolled
from lattice_sdk.identity import Identity
from lattice_sdk.statedir import Saved, StateDir
from lattice_sdk.wire import EnrollRequest, EnrollResponse, RenewRequest

log = logging.getLogger("lattice.enrollment")
P = ParamSpec("P")

ATTEMPTS = 4
FIRST_PAUSE = 0.2  # seconds
# The control plane says that the identity is no more: nothing to wait for.
ENDED = (NotFound, IdentityExpired, AuthenticationFailed)
_TRANSIENT = (ServerUnreachable, GatewayUnavailable, ServerError)
_NOT_SENT = "server_unreachable"


@dataclass(frozen=True)
class Terms:
    """What an identity is enrolled with.

    Attributes:
        server: URL of the control plane.
        token: what was set; ``None`` lets plugins be asked.
        request: the body of the enrollment. For a service connector only its name and workspace.
        service: whether a tool service's address is taken instead of enrolling an agent.
        backend: name of the tunnel backend, ``None`` for the first that can serve.
        isolation: how the network of programs is to be bounded.
        state_dir: where the identity survives the process.
        ca_file: certificate authorities of the control plane.
        rotate_keys: whether each renewal brings a new key, where the tunnel can take it up.
        timeout: seconds until the enrollment is given up.
        secret_files: where these settings keep credentials.
    """

    server: str
    token: SecretStr | None
    request: EnrollRequest
    service: bool = False
    backend: str | None = None
    isolation: Wanted = "preferred"
    state_dir: Path | None = None
    ca_file: Path | None = None
    rotate_keys: bool = False
    timeout: float = 30.0
    secret_files: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What the caller calls the identity."""
        return self.request.agent_name

    def fingerprint(self, server: str) -> dict[str, str]:
        """What a saved identity must have been enrolled with to be taken up."""
        told = self.request.model_dump(
            mode="json", by_alias=True, exclude_none=True, exclude={"ttl", "public_key"}
        )
        return {"server": server, **{key: str(value) for key, value in told.items()}}


class Enrollment:
    """Asks the control plane for one identity. Lives in the background loop.

    Args:
        terms: what to ask for.

    Attributes:
        client: of the control plane, from :meth:`begin` to :meth:`close`.
        key: the current pair.
        resumed: whether a saved identity was taken up.
        first: an enrollment that was asked for already.
    """

    key: keys.KeyPair
    resumed = False
    first: Enrolled | None = None
    CALL_TIMEOUT = 10.0

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.client: ControlPlane | None = None
        self._state: StateDir | None = None
        self._next: keys.KeyPair | None = None

    async def begin(self) -> EnrollResponse:
        """Take the saved identity up, or enroll.

        Raises:
            LatticeError: as the control plane refuses.
        """
        terms, saved = self.terms, None
        if terms.state_dir is not None:
            saved = await runtime.finish(self._take(terms.state_dir))
        # A saved identity is taken up with its own token.
        alive = saved is not None and saved.peer_id is not None
        token = await self._credentials(needed=not alive)
        self.client = ControlPlane(
            terms.server,
            token,
            verify=terms.ca_file or True,
            timeout=min(self.CALL_TIMEOUT, terms.timeout),
        )
        if self._state is None:
            self.key = keys.generate()
            if self.first is not None:
                self.key = keys.from_private(self.first.private_key)
                if self.first.answer is not None:
                    self.client.expect(dialect.PATH, self.first.answer, self.first.received)
            return await self._enroll(self.client, terms.timeout)
        return await self._resume(self.client, self._state, saved, may_enroll=token is not None)

    async def renew(
        self, identity: Identity, ttl: str | None = None, *, rotate: bool = False
    ) -> EnrollResponse:
        """Have the deadline moved.

        Args:
            identity: whose.
            ttl: its life from now; what it had when left out.
            rotate: whether it gets a new key, which is :attr:`key` from then on.

        Raises:
            LatticeError: as the control plane refuses; one of :data:`ENDED` when it is over.
        """
        assert self.client is not None  # noqa: S101 - begin() came first
        fields: dict[str, str] = {"ttl": ttl} if ttl else {}
        key = self.key
        if rotate or self._next is not None:
            # The same key again after an answer that did not come: the server may have it already.
            key = self._next = self._next or keys.generate()
            fields["publicKey"] = key.public
        request = RenewRequest.model_validate(fields)
        try:
            answer = await self.client.renew(
                identity.peer_id, identity.enrollment_token, request, key
            )
        except InvalidRequest:
            self._next = None
            raise
        self.key, self._next = key, None
        return await self._save(answer)

    async def enroll_successor(self) -> EnrollResponse:
        """Another identity on the same terms with a key of its own."""
        assert self.client is not None  # noqa: S101 - begin() came first
        former, self.key = self.key, keys.generate()
        try:
            return await self._enroll(self.client, self.CALL_TIMEOUT)
        except BaseException:
            self.key = former
            raise

    async def delete(self, identity: Identity, budget: float) -> None:
        """Give the identity back; what fails is tried again.

        Args:
            identity: whose end it is.
            budget: seconds for all attempts.

        Raises:
            LatticeError: it could not be deleted; it ends at its deadline.
        """
        assert self.client is not None  # noqa: S101 - an identity has come from it
        until, attempt = now() + budget, 0
        while True:
            attempt += 1
            try:
                await self.client.delete_peer(
                    identity.peer_id, identity.enrollment_token, workspace_id=identity.workspace_id
                )
            except ENDED as error:
                log.debug("%s is gone already: %s", identity.peer_id, error)
            except _TRANSIENT as error:
                pause = _pause(attempt, error)
                if now() + pause > until:
                    raise
                await asyncio.sleep(pause)
                continue
            break
        if self._state is not None:
            await _in_thread(self._state.clear)

    async def close(self) -> None:
        """Let go of connections and of the state directory."""
        client, self.client = self.client, None
        state, self._state = self._state, None
        if client is not None:
            await client.aclose()
        if state is not None:
            state.release()

    async def _take(self, path: Path) -> Saved | None:
        """Hold the state directory; what was saved there."""
        self._state = await runtime.current().call(StateDir, path)
        return await runtime.current().call(self._state.load)

    async def _credentials(self, *, needed: bool) -> SecretStr | None:
        if self.terms.token is not None:
            return self.terms.token
        request = self.terms.request

        def ask() -> str | SecretStr | None:
            return plugins.manager().hook.lattice_credentials(  # type: ignore[no-any-return]
                server=self.terms.server, workspace_id=request.workspace_id
            )

        found = await runtime.current().call(ask)
        if not found:
            if needed:
                raise _no_token()
            return None
        return found if isinstance(found, SecretStr) else SecretStr(str(found))

    async def _resume(
        self, client: ControlPlane, state: StateDir, saved: Saved | None, *, may_enroll: bool
    ) -> EnrollResponse:
        terms = self.terms.fingerprint(client.server)
        if saved is not None and saved.terms == terms:
            self.key = keys.from_private(saved.private_key)
            if saved.peer_id is None or saved.enrollment_token is None:
                # Died before the answer came: the same key again is the same identity.
                return await self._enroll_and_save(client)
            try:
                # With the key, where it died while that was exchanged.
                request = RenewRequest(ttl=self.terms.request.ttl, public_key=self.key.public)
                answer = await client.renew(
                    saved.peer_id, saved.enrollment_token, request, self.key
                )
            except ENDED as error:
                if not may_enroll:
                    raise IdentityExpired(
                        f"the saved identity {saved.peer_id} is over ({error.message})",
                        peer_id=saved.peer_id,
                        hint="Set a token to enroll anew",
                    ) from None
                log.info("the saved identity %s is over (%s); enrolling anew", saved.peer_id, error)
            else:
                log.info("took the identity %s up again from %s", saved.peer_id, state.path)
                self.resumed = True
                return await self._save(answer)
        if not may_enroll:
            raise _no_token()
        self.key = keys.generate()
        await _in_thread(state.save, Saved(terms, self.key.private))
        return await self._enroll_and_save(client)

    async def _enroll_and_save(self, client: ControlPlane) -> EnrollResponse:
        answer = await self._enroll(client, self.terms.timeout)
        try:
            return await self._save(answer)
        except BaseException:
            with contextlib.suppress(LatticeError):
                await runtime.finish(
                    client.delete_peer(
                        answer.peer_id, answer.enrollment_token, workspace_id=answer.workspace_id
                    )
                )
            raise

    async def _save(self, answer: EnrollResponse) -> EnrollResponse:
        if self._state is not None and self.client is not None:
            terms = self.terms.fingerprint(self.client.server)
            saved = Saved(terms, self.key.private, answer.peer_id, answer.enrollment_token)
            await _in_thread(self._state.save, saved)
        return answer

    async def _enroll(self, client: ControlPlane, budget: float) -> EnrollResponse:
        """Enroll; what may pass is tried again. The same key makes that safe: one identity."""
        until, attempt = now() + budget, 0
        while True:
            attempt += 1
            try:
                return await self._post(client)
            except _TRANSIENT as error:
                pause = _pause(attempt, error)
                safe = not client.second_dialect or error.code == _NOT_SENT
                if attempt >= ATTEMPTS or not safe or now() + pause > until:
                    raise
                log.info("enrollment of %s is tried again: %s", self.terms.name, error)
                await asyncio.sleep(pause)

    async def _post(self, client: ControlPlane) -> EnrollResponse:
        request = self.terms.request
        if not self.terms.service:
            return await client.enroll(request, self.key)
        ttl = request.model_dump(mode="json")["ttl"]
        return await client.connect_service(
            self.terms.name, self.key, workspace_id=request.workspace_id, ttl=ttl
        )


async def _in_thread(function: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
    """Run what waits for a disk, to its end also when cancelled: another comes after it.

    Not in the loop, in which all identities of the process live.
    """
    await runtime.finish(runtime.current().call(function, *args, **kwargs))


def _no_token() -> ConfigurationError:
    return ConfigurationError(
        "no token is set",
        code="missing_token",
        hint="Pass token=…, or set LATTICE_TOKEN or LATTICE_TOKEN_FILE",
    )


def _pause(attempt: int, error: LatticeError) -> float:
    """Seconds until the next attempt: exponential, jittered, at least what the server asks for."""
    spread = FIRST_PAUSE * 2.0 ** min(attempt - 1, 5) * random.uniform(0.75, 1.25)  # noqa: S311
    return max(spread, error.retry_after or 0.0)
