from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattice_sdk.durations import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("1h", 3600), ("1h30m", 5400), ("1.5h", 5400), ("250ms", 0.25), ("0s", 0)],
)
def test_go_style_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text).total_seconds() == seconds


@pytest.mark.parametrize("text", ["", "0", "1x", "-1s", "+1s", "1h ", "h", "1", "١s", "1e3s"])
def test_what_is_not_a_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


def test_an_endless_duration_is_refused() -> None:
    with pytest.raises(ValueError, match="longer than any"):
        parse_duration("9" * 30 + "h")


@given(st.integers(min_value=0, max_value=10**11))
def test_a_written_duration_reads_back(milliseconds: int) -> None:
    value = timedelta(milliseconds=milliseconds)
    assert parse_duration(format_duration(value)) == value
