"""The bars: what they say on a terminal, that they are silent elsewhere, and that they never stop a run."""

from __future__ import annotations

import gc
import io
import re
import sys

import pytest

from wardround.simulator.progress import Progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Always."""
        return True


class BrokenPipe(Terminal):
    """A terminal that goes away after some writes."""

    def __init__(self, writes: int) -> None:
        super().__init__()
        self.left = writes

    def write(self, text: str) -> int:
        """Works so many times."""
        self.left -= 1
        if self.left < 0:
            raise BrokenPipeError(32, "Broken pipe")
        return super().write(text)


def whole_run(stream: io.StringIO | None, *, quiet: bool = False, start: int = 0) -> None:
    with Progress(rounds=3, start=start, quiet=quiet, stream=stream) as progress:
        for number in range(start + 1, 4):
            progress.round(number, hospitals=2)
            for name in ("north", "south"):
                progress.hospital(name)
                progress.step(loss=0.5 / number)
            progress.dice(0.2 * number)
            progress.message(f"round {number} is over")


def test_a_terminal_shows_rounds_hospitals_dice_and_loss() -> None:
    stream = Terminal()
    whole_run(stream)
    text = stream.getvalue()
    for part in ("rounds", "north", "south", "Dice=0.600", "loss=", "round 2 is over", "3/3", "1/2"):
        assert part in text


def test_the_bar_of_the_hospitals_does_not_stay() -> None:
    stream = Terminal()
    whole_run(stream)
    after = stream.getvalue().rpartition("south")[2]
    assert re.search(r"\r {10,}", after)  # painted over with blanks
    assert "3/3" in after


def test_a_resumed_run_starts_where_it_stopped() -> None:
    stream = Terminal()
    whole_run(stream, start=2)
    assert "2/3" in stream.getvalue()
    assert "0/3" not in stream.getvalue()
    assert "3/3" in stream.getvalue()


def break_in_round_two(stream: io.StringIO) -> None:
    with Progress(rounds=3, stream=stream) as progress:
        progress.round(1, hospitals=1)
        progress.round(2, hospitals=1)
        raise RuntimeError("broke")


def test_an_interrupted_run_does_not_claim_its_last_round() -> None:
    stream = Terminal()
    with pytest.raises(RuntimeError, match="broke"):
        break_in_round_two(stream)
    assert "1/3" in stream.getvalue()
    assert "2/3" not in stream.getvalue()


def test_nothing_is_written_when_quiet_or_not_on_a_terminal() -> None:
    for stream, quiet in ((Terminal(), True), (io.StringIO(), False)):
        whole_run(stream, quiet=quiet)
        assert stream.getvalue() == ""


def test_a_missing_or_closed_stderr_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    whole_run(None)
    closed = Terminal()
    closed.close()
    whole_run(closed)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("writes", [0, 1, 2, 3, 5, 8, 13])
def test_a_terminal_that_goes_away_does_not_stop_the_run(writes: int) -> None:
    whole_run(BrokenPipe(writes))
    gc.collect()  # nor do its bars complain when they are deleted


def test_a_terminal_closed_half_way_does_not_stop_the_run() -> None:
    stream = Terminal()
    with Progress(rounds=2, stream=stream) as progress:
        progress.round(1, hospitals=1)
        stream.close()
        progress.hospital("north")
        progress.dice(0.5)
        progress.message("still going")


def test_calls_outside_the_block_do_nothing() -> None:
    progress = Progress(rounds=1, stream=Terminal())
    progress.round(1, hospitals=1)
    progress.hospital("north")
    with progress:
        progress.round(1)
    progress.step(loss=0.1)
    progress.dice(None)
