"""How long an identity still lives, and when to ask for more."""

from __future__ import annotations

import random

from lattice_sdk import schedule
from lattice_sdk.clock import ServerClock, now
from lattice_sdk.errors import UnexpectedAnswer
from lattice_sdk.wire import EnrollResponse


class Lease:
    """The deadline of one identity on the monotonic clock.

    Attributes:
        due: moment of the next attempt to renew; ``None`` when there will be none.
        attempts: renewals that have failed since the last good one.
    """

    def __init__(self) -> None:
        self.due: float | None = None
        self.attempts = 0
        self._deadline = 0.0

    def remaining(self) -> float:
        """Seconds of life left."""
        return max(0.0, self._deadline - now())

    def is_due(self) -> bool:
        """Whether to renew now."""
        return self.due is not None and self.due <= now()

    def granted(self, answer: EnrollResponse, clock: ServerClock) -> None:
        """Take over what the server granted, which may be less than what was asked.

        Raises:
            UnexpectedAnswer: the server's time is unknown.
        """
        deadline = clock.deadline(answer.expires_at)
        if deadline is None:
            raise UnexpectedAnswer(
                "the control plane's answer has neither a Lattice-Time nor a Date header, "
                "so the time left cannot be told",
                peer_id=answer.peer_id,
                hint="Check what is between here and the control plane",
            )
        self._deadline, self.attempts = deadline, 0
        most = clock.deadline(answer.max_expires_at) if answer.max_expires_at else None
        if not schedule.may_be_renewed(deadline, most):
            self.due = None
            return
        after = clock.deadline(answer.renew_after) if answer.renew_after else None
        moment = now()
        self.due = moment + schedule.renew_delay(
            max(0.0, deadline - moment),
            None if after is None else max(0.0, after - moment),
            _jitter(),
        )

    def failed(self, retry_after: float | None) -> float | None:
        """Plan the next attempt after a failed one; its delay in seconds."""
        self.attempts += 1
        delay = schedule.retry_delay(self.attempts, self.remaining(), _jitter(), retry_after)
        self.due = None if delay is None else now() + delay
        return delay


def _jitter() -> float:
    return random.uniform(-1, 1)  # noqa: S311 - spreads load, keeps no secret
