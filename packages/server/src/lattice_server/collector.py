"""The garbage collector, told what a daemon is like: much that stays, little that is in cycles."""

from __future__ import annotations

import gc
from typing import Final

GARBAGE_AT: Final = 20_000  # objects more than there were, until it is looked for


def spare_what_stays() -> None:
    """Keep the collector from looking through all that is there again and again.

    A request or a peer is some dozen objects, none of them in a cycle: they go by their reference
    counts. With the thresholds that are usual, looking for cycles took a tenth of the control
    plane's processor time under load, and two fifths of what a full state costs the
    gateway daemon.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_AT, 20, 20)
