"""The bars: what they say on a terminal, that they are silent elsewhere, and that they never stop a run."""

from __future__ import annotations

import gc
import io
import re
import sys

import pytest

from wardround.simulator.progress import Progress, SweepProgress, memory_text


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
            progress.score(0.2 * number, "dice")
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
        progress.score(0.5, "dice")
        progress.message("still going")


def test_calls_outside_the_block_do_nothing() -> None:
    progress = Progress(rounds=1, stream=Terminal())
    progress.round(1, hospitals=1)
    progress.hospital("north")
    with progress:
        progress.round(1)
    progress.step(loss=0.1)
    progress.score(None, "dice")


# ---- sweeps ----------------------------------------------------------------------------------------------------------


def whole_sweep(stream: io.StringIO, lines: io.StringIO, *, quiet: bool = False) -> None:
    with SweepProgress(cells=4, quiet=quiet, stream=stream, lines=lines) as progress:
        progress.message("4 runs")
        progress.skip(1)
        for name in ("north", "south"):
            progress.begin(name)
            with progress.bars(rounds=2, quiet=quiet) as bars:
                bars.round(1, hospitals=3)
                bars.hospital("hospital-1")
                bars.round(2, hospitals=3)
                bars.score(0.25, "dice")
            progress.over(f"{name}: Dice 0.250, 1.0 s")
        progress.begin("east")
        progress.failed("east: failed: why")


def test_a_sweep_on_a_terminal_has_a_bar_for_runs_and_one_for_rounds() -> None:
    stream, lines = Terminal(), io.StringIO()
    whole_sweep(stream, lines)
    text = stream.getvalue()
    for part in (
        "runs",
        "1/4",
        "4/4",
        "north",
        "rounds",
        "2/2",
        "Dice=0.250",
        "memory=",
        "B]",
        "[4/4] east: failed: why",
    ):
        assert part in text
    assert "hospital" not in text  # no third bar
    assert "Dice 0.250, 1.0 s" not in text
    assert lines.getvalue() == ""


def test_a_sweep_elsewhere_has_a_line_per_run() -> None:
    stream, lines = io.StringIO(), io.StringIO()
    whole_sweep(stream, lines)
    assert stream.getvalue() == ""
    assert lines.getvalue() == (
        "4 runs\n[2/4] north: Dice 0.250, 1.0 s\n[3/4] south: Dice 0.250, 1.0 s\n[4/4] east: failed: why\n"
    )


def test_a_quiet_sweep_says_nothing() -> None:
    for stream in (Terminal(), io.StringIO()):
        lines = io.StringIO()
        whole_sweep(stream, lines, quiet=True)
        assert (stream.getvalue(), lines.getvalue()) == ("", "")


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("writes", [0, 1, 2, 3, 5, 8, 13])
def test_a_terminal_that_goes_away_does_not_stop_a_sweep(writes: int) -> None:
    whole_sweep(BrokenPipe(writes), io.StringIO())
    gc.collect()


def test_skipped_runs_do_not_count_as_fast_ones() -> None:
    """The rate, from which the time that is left is told, is of those that were worked on."""
    with SweepProgress(cells=10, stream=Terminal()) as progress:
        progress.skip(8)
        bar = progress._bar
        assert bar is not None
        assert (bar.n, bar.initial) == (8, 8)


def test_memory_is_a_size() -> None:
    assert re.fullmatch(r"\d+(\.\d+)? [MG]B", memory_text())
