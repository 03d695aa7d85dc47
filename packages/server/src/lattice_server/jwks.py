"""Public keys of issuers: fetched when they are needed, kept for a while, changed when theirs do.

A key set comes over HTTPS, from a file of this machine, or by OpenID discovery from the issuer
(https://openid.net/specs/openid-connect-discovery-1_0.html). Nothing that a bearer says decides
where keys are fetched from.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import time
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx

log = logging.getLogger("lattice.jwks")

FRESH_SECONDS = 300.0  # a key that its issuer withdraws is taken for so long
FRESH_FILE_SECONDS = 10.0
STALE_SECONDS = 3600.0  # while the issuer does not answer, its last keys hold for so long
PAUSE_SECONDS = 5.0  # between fetches, whatever key ids callers make up
FETCH_SECONDS = 5.0
MAX_DOCUMENT = 1024 * 1024
DISCOVERY = "/.well-known/openid-configuration"


class IssuerUnavailableError(Exception):
    """The keys of an issuer cannot be had now. The text names the reason and holds no content."""


@dataclass(slots=True)
class _Entry:
    keys: list[dict[str, Any]] = field(default_factory=list)
    fetched: float | None = None  # when these keys came
    tried: float | None = None
    failure: str = ""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class KeySets:
    """The key sets of all issuers that are trusted.

    Args:
        ca_file: certificate authorities of issuers, PEM; the system's when ``None``.
    """

    def __init__(self, ca_file: Path | None = None) -> None:
        self._ca_file = ca_file
        self._entries: dict[str, _Entry] = {}

    async def find(self, source: str, key_id: str | None) -> list[dict[str, Any]]:
        """The keys of an issuer that may have signed; those of this id, or all without one.

        Args:
            source: where the set is; see :func:`check_source`.
            key_id: ``kid`` of the token.

        Raises:
            IssuerUnavailableError: there are no keys and none can be had.
        """
        entry = self._entries.setdefault(source, _Entry())
        fresh = FRESH_FILE_SECONDS if source.startswith("file:") else FRESH_SECONDS
        if _older(entry.fetched, fresh):
            await self._refresh(entry, source, fresh)
        found = _of_id(entry.keys, key_id)
        if not found:
            # A new key of its own, or an id that somebody made up: one look in a while.
            await self._refresh(entry, source, PAUSE_SECONDS)
            found = _of_id(entry.keys, key_id)
        if _older(entry.fetched, STALE_SECONDS):
            raise IssuerUnavailableError(entry.failure or "its keys cannot be read")
        return found

    async def _refresh(self, entry: _Entry, source: str, age: float) -> None:
        """Fetch, unless somebody has or has tried just now; a failure leaves the keys there are."""
        async with entry.lock:
            if not _older(entry.fetched, age) or not _older(entry.tried, PAUSE_SECONDS):
                return
            entry.tried = time.monotonic()
            try:
                async with asyncio.timeout(FETCH_SECONDS):
                    entry.keys = await self._fetch(source)
            except (OSError, ValueError, httpx.HTTPError, TimeoutError) as error:
                entry.failure = str(error) or type(error).__name__
                log.warning("the keys at %s cannot be read: %s", source, entry.failure)
            else:
                entry.fetched, entry.failure = time.monotonic(), ""

    async def _fetch(self, source: str) -> list[dict[str, Any]]:
        if source.startswith("file:"):
            path = Path(unquote(urlsplit(source).path))
            return _keys(await asyncio.to_thread(_read, path))
        if source.endswith(DISCOVERY):
            document = _object(await self._get(source))
            issuer, uri = document.get("issuer"), document.get("jwks_uri")
            if issuer != source.removesuffix(DISCOVERY) or not isinstance(uri, str):
                raise ValueError("the discovery document is another issuer's")
            # An issuer elsewhere has no say over this machine's files and services.
            if not uri.startswith("https:") and not on_loopback(source):
                raise ValueError("the discovery document names keys that are not under https:")
            source = uri
        return _keys(await self._get(source))

    async def _get(self, url: str) -> bytes:
        context = await asyncio.to_thread(ssl.create_default_context, cafile=self._ca_file)
        client = httpx.AsyncClient(
            verify=context,
            trust_env=not on_loopback(url),
            timeout=FETCH_SECONDS,
            headers={"Accept": "application/json"},
        )
        body = bytearray()
        async with client, client.stream("GET", url) as answer:
            if answer.status_code != httpx.codes.OK:
                raise ValueError(f"status {answer.status_code}")
            async for chunk in answer.aiter_bytes():
                body += chunk
                if len(body) > MAX_DOCUMENT:
                    raise ValueError("the document is too large")
        return bytes(body)


def check_source(uri: str) -> str:
    """A place that keys may come from: ``https:``, ``file:`` with an absolute path, or loopback.

    Raises:
        ValueError: it is none.
    """
    parts = urlsplit(uri)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path[:1] == "/":
        return uri
    whole = bool(parts.hostname) and "@" not in parts.netloc and not parts.fragment
    if whole and (parts.scheme == "https" or (parts.scheme == "http" and on_loopback(uri))):
        return uri
    raise ValueError("has to be https://…, file:///… or http:// on a loopback address")


def on_loopback(url: str) -> bool:
    """Whether a URL leads to this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _older(moment: float | None, seconds: float) -> bool:
    return moment is None or time.monotonic() - moment > seconds


def _of_id(keys: list[dict[str, Any]], key_id: str | None) -> list[dict[str, Any]]:
    return [key for key in keys if key_id is None or key.get("kid") == key_id]


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_DOCUMENT + 1)
    if len(data) > MAX_DOCUMENT:
        raise ValueError("the file is too large")
    return data


def _object(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")
    return document


def _keys(data: bytes) -> list[dict[str, Any]]:
    keys = _object(data).get("keys")
    if not isinstance(keys, list):
        raise ValueError("it is no key set")
    # A set may hold keys that are for encryption.
    return [key for key in keys if isinstance(key, dict) and key.get("use", "sig") == "sig"]
