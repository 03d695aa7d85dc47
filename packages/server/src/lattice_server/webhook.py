"""Events delivered to a URL: in order, signed, tried again until they are taken.

Reads the event log from where it left off, which is kept in the store: nothing waits for it, and
nothing is lost while it or its receiver is down, as long as the log is kept. Deliveries follow
https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import logging
import random
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from sqlalchemy import func, insert, select, update

from lattice_server.bootstrap import StartError
from lattice_server.clock import now_ms, rfc3339
from lattice_server.jwks import check_source, on_loopback
from lattice_server.store import schema
from lattice_server.store.events import EVENT_TYPES, EventFilter, read_events

if TYPE_CHECKING:
    from lattice_server.control import ControlPlane

log = logging.getLogger("lattice.webhook")

EVENTS_AT_ONCE = 100
TIMEOUT_SECONDS = 10.0
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0  # seconds
CURSOR = "webhook.seq"
SHORTEST_SECRET = 24  # bytes, as the specification says


class Webhook:
    """Delivers the events of one control plane.

    Args:
        control: whose.
        url: where to.
        secret: of the signature.

    Raises:
        StartError: the settings are wrong.
    """

    def __init__(self, control: ControlPlane, url: str, secret: bytes) -> None:
        self._control, self._url, self._secret = control, url, secret
        self._types = frozenset(control.settings.webhook_events)
        self._after = 0

    @classmethod
    def of(cls, control: ControlPlane) -> Webhook | None:
        """The webhook that the settings ask for, if they do."""
        settings = control.settings
        if settings.webhook_url is None:
            return None
        if unknown := set(settings.webhook_events) - set(EVENT_TYPES):
            raise StartError(
                f"the setting webhook_events names {', '.join(sorted(unknown))}, and there is "
                f"{', '.join(EVENT_TYPES)}"
            )
        try:
            url = check_source(settings.webhook_url)
            if url.startswith("file:"):
                raise ValueError("has to be https://…, or http:// on a loopback address")
        except ValueError as error:
            raise StartError(f"the setting webhook_url {error}") from None
        if settings.webhook_secret_file is None:
            raise StartError(
                "webhook_url needs webhook_secret_file, a file with the secret that deliveries are "
                "signed with: `openssl rand -base64 32` makes one"
            )
        return cls(control, url, read_secret(settings.webhook_secret_file))

    async def prepare(self) -> None:
        """Find out behind which event to begin; the very first time with what is to come."""
        facts = schema.facts
        async with self._control.database.write() as tx:
            known = await tx.connection.scalar(select(facts.c.value).where(facts.c.key == CURSOR))
            if known is None:
                known = str(await tx.connection.scalar(select(func.max(schema.events.c.seq))) or 0)
                await tx.connection.execute(insert(facts).values(key=CURSOR, value=known))
        self._after = int(known)

    async def run(self) -> None:
        """Deliver, until cancelled."""
        context = await asyncio.to_thread(ssl.create_default_context)
        client = httpx.AsyncClient(
            verify=context, trust_env=not on_loopback(self._url), timeout=TIMEOUT_SECONDS
        )
        attempt = 0
        async with client:
            while True:
                try:
                    await self._deliver_next(client)
                    attempt = 0
                except Exception as error:
                    # Also what a broken store raises: this task is to outlive everything.
                    attempt += 1
                    pause = pause_after(attempt, error)
                    self._control.metrics.webhook_deliveries.labels("failed").inc()
                    log.warning(
                        "events were not delivered (%s); again in %.1f s", _why(error), pause
                    )
                    await asyncio.sleep(pause)

    async def _deliver_next(self, client: httpx.AsyncClient) -> None:
        """Deliver the next batch, or wait until there is something new."""
        control = self._control
        news = control.events.news()
        after = self._after
        async with control.database.read() as connection:
            events = await read_events(connection, after, EVENTS_AT_ONCE, EventFilter())
            newest = await connection.scalar(select(func.max(schema.events.c.seq))) or 0
        control.metrics.webhook_backlog.set(max(0, newest - after))
        if not events:
            await news.wait()
            return
        wanted = [e for e in events if not self._types or e["type"] in self._types]
        if wanted:
            await self._post(client, wanted)
            control.metrics.webhook_deliveries.labels("delivered").inc()
        await self._keep(events[-1]["seq"])
        control.metrics.webhook_backlog.set(max(0, newest - events[-1]["seq"]))

    async def _post(self, client: httpx.AsyncClient, events: list[dict[str, Any]]) -> None:
        # The same events have the same id, however often they are tried: receivers tell by it.
        delivery = f"events-{events[0]['seq']}-{events[-1]['seq']}"
        body = json.dumps(
            {"type": "lattice.events", "timestamp": rfc3339(now_ms()), "data": {"events": events}},
            separators=(",", ":"),
        ).encode()
        sent = str(int(time.time()))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "lattice-server",
            "webhook-id": delivery,
            "webhook-timestamp": sent,
            "webhook-signature": f"v1,{signature(self._secret, delivery, sent, body)}",
        }
        async with (
            asyncio.timeout(TIMEOUT_SECONDS),
            client.stream("POST", self._url, content=body, headers=headers) as answer,
        ):
            # Anything but 2xx raises. What it says does not matter, and may be endless.
            answer.raise_for_status()

    async def _keep(self, seq: int) -> None:
        facts = schema.facts
        async with self._control.database.write() as tx:
            await tx.connection.execute(
                update(facts).where(facts.c.key == CURSOR).values(value=str(seq))
            )
        self._after = seq


def signature(secret: bytes, delivery: str, sent: str, body: bytes) -> str:
    """The signature of a delivery: HMAC-SHA256 over id, time and body, in base64."""
    signed = b".".join((delivery.encode(), sent.encode(), body))
    return base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()


def read_secret(path: Path) -> bytes:
    """The secret in a file: base64, with or without the prefix ``whsec_``.

    Raises:
        StartError: it cannot be read or is too short.
    """
    try:
        text = path.read_text("ascii").strip().removeprefix("whsec_")
        secret = base64.b64decode(text, validate=True)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise StartError(f"the webhook's secret {path} cannot be read: {reason}") from None
    except binascii.Error:
        raise StartError(
            f"the webhook's secret {path} is not base64; `openssl rand -base64 32` makes one"
        ) from None
    if len(secret) < SHORTEST_SECRET:
        raise StartError(f"the webhook's secret {path} is shorter than {SHORTEST_SECRET} bytes")
    return secret


def pause_after(attempt: int, error: Exception) -> float:
    """Seconds until the next attempt: exponential, jittered, and what the receiver asks for."""
    spread = FIRST_PAUSE * 2.0 ** min(attempt - 1, 10) * random.uniform(0.75, 1.25)  # noqa: S311
    asked = 0.0
    if isinstance(error, httpx.HTTPStatusError):
        text = error.response.headers.get("retry-after", "")
        asked = float(text) if text.isdecimal() else 0.0
    return min(max(spread, asked), LONGEST_PAUSE)


def _why(error: Exception) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return f"status {error.response.status_code}"
    return str(error) or type(error).__name__
