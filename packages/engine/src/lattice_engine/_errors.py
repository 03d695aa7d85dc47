"""What can go wrong between Python and the engine."""

from __future__ import annotations


class EngineError(Exception):
    """The engine refused, failed or is not there.

    Attributes:
        code: stable word, the engine's own (``handshake_timeout``, ``tunnel_exists``, …) or one of
            ``engine_missing``, ``engine_unreachable``, ``engine_start_failed``,
            ``engine_start_timeout``, ``engine_closed``, ``engine_timeout``, ``unexpected_answer``.
        detail: what happened, why, and what to do.
        status: HTTP status of the engine's answer, ``None`` when there was none.
    """

    def __init__(self, code: str, detail: str, status: int | None = None) -> None:
        super().__init__(f"{detail} ({code})")
        self.code = code
        self.detail = detail
        self.status = status

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.code, self.detail, self.status)


class EngineMissing(EngineError):  # noqa: N818 - a kind of EngineError, and named so
    """There is no engine binary that this machine can run."""
