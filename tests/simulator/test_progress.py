"""The bars: what they say on a terminal, that they are silent elsewhere, and that they never stop a run."""

from __future__ import annotations

import gc
import io
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from tqdm import notebook, tqdm

from wardround.simulator.progress import Progress, SweepProgress, counting, memory_text


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


# ---- notebooks -------------------------------------------------------------------------------------------------------


class Cell(io.StringIO):
    """The stream that a Jupyter kernel puts in the place of stderr."""

    __module__ = "ipykernel.iostream"


def bar_style(bar: object) -> str:
    """``success``, ``danger`` (red) or nothing."""
    assert isinstance(bar, notebook.tqdm)
    return str(bar.container.children[1].bar_style)


def test_a_notebook_has_bars_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    stream = Cell()
    with Progress(rounds=2, stream=stream) as progress:
        for number in (1, 2):
            progress.round(number, hospitals=2)
            for name in ("north", "south"):
                progress.hospital(name)
        progress.score(0.25, "dice")
        progress.message("a line")
        rounds, hospitals = progress._round_bar, progress._hospital_bar
    assert (rounds.n, rounds.total, bar_style(rounds)) == (2, 2, "success")  # type: ignore[union-attr]  # drawn above
    assert hospitals.container.layout.visibility == "hidden"  # type: ignore[union-attr]
    assert bar_style(hospitals) != "danger"
    assert stream.getvalue() == ""  # stderr is shown as if it were an error
    assert "a line" in capsys.readouterr().out


def test_a_notebook_shows_what_was_interrupted() -> None:
    progress = Progress(rounds=2, stream=Cell())
    progress.__enter__()
    progress.round(1, hospitals=2)
    progress.__exit__(KeyboardInterrupt, None, None)
    assert bar_style(progress._round_bar) == "danger"


def test_a_sweep_and_a_count_have_them_too(capsys: pytest.CaptureFixture[str]) -> None:
    stream, lines = Cell(), io.StringIO()
    with SweepProgress(cells=1, stream=stream, lines=lines) as progress:
        with progress.bars(rounds=1) as bars:
            bars.round(1, hospitals=1)
        progress.over("north: Dice 0.250, 1.0 s")
    assert bar_style(progress._bar) == "success"
    assert bars._round_bar.container.layout.visibility == "hidden"  # type: ignore[union-attr]  # it makes way
    capsys.readouterr()
    with counting("reading", stream=stream) as announce:
        announce(2, 2)
    assert "reading: " in capsys.readouterr().out  # where there is no front end, a widget is shown as text
    assert (stream.getvalue(), lines.getvalue()) == ("", "")


def test_a_quiet_notebook_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    whole_run(Cell(), quiet=True)
    with counting("reading", quiet=True, stream=Cell()) as announce:
        announce(1, 2)
    assert capsys.readouterr() == ("", "")


def test_without_ipywidgets_the_bars_are_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebook, "IProgress", None)  # what tqdm has where the import fails
    stream = Cell()
    whole_run(stream)
    assert "3/3" in stream.getvalue()
    with Progress(rounds=1, stream=Cell()) as progress:
        assert type(progress._round_bar) is tqdm


@pytest.mark.slow
def test_in_a_real_kernel(tmp_path: Path) -> None:
    """A run, its plot and its experiment in a notebook: widgets, a picture, a table, and nothing on stderr."""
    sources = [f"import wardround\nrun = wardround.run('tiny', out={str(tmp_path)!r})\nrun", "run.plot()"]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    NotebookClient(book, kernel_name="python3", timeout=300).execute()
    first, second = (cell.outputs for cell in book.cells)
    kinds = [set(output.get("data", {})) for output in first]
    assert all(output.output_type != "stream" for output in first)
    assert sum("application/vnd.jupyter.widget-view+json" in kind for kind in kinds) >= 2  # rounds and hospitals
    assert "text/html" in kinds[-1]
    assert [set(output.data) for output in second] == [{"text/plain", "image/png"}]


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
