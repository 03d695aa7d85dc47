"""A download that never ends by itself: what a cut-off is measured with."""

from __future__ import annotations

import threading
import time

import httpx

__all__ = ["Download"]

START_TIMEOUT = 10.0  # seconds
# Seconds without a byte after which the download counts as stopped; a chunk is sent each 5 ms.
SILENCE = 0.6


class Download(threading.Thread):
    """Reads ``url`` through a proxy until that is cut off.

    Args:
        url: of a body that never ends.
        proxy_env: as :meth:`lattice_sdk.LatticeAgent.proxy_env` gives it.

    Attributes:
        last_byte: when the last byte came, in monotonic seconds.

    Raises:
        TimeoutError: no byte came in time.
    """

    def __init__(self, url: str, proxy_env: dict[str, str]) -> None:
        super().__init__(daemon=True)
        self.last_byte = 0.0
        self._url, self._proxy = url, proxy_env["HTTP_PROXY"]
        self._first_byte = threading.Event()
        self._ended = threading.Event()
        self.start()
        if not self._first_byte.wait(START_TIMEOUT):
            raise TimeoutError(f"the download of {url} did not start within {START_TIMEOUT:.0f} s")

    def run(self) -> None:
        """What the thread does."""
        try:
            with (
                httpx.Client(proxy=self._proxy, timeout=10) as client,
                client.stream("GET", self._url) as answer,
            ):
                for _ in answer.iter_raw():
                    self.last_byte = time.monotonic()
                    self._first_byte.set()
        except httpx.HTTPError:
            pass  # being cut off is what is measured
        finally:
            self._ended.set()

    @property
    def stopped(self) -> bool:
        """Whether it has ended, or no byte has come for so long that it must have."""
        return self._ended.is_set() or time.monotonic() - self.last_byte > SILENCE
