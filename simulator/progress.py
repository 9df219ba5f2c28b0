"""Bars for people who wait: rounds and hospitals of a run; in a sweep its runs, and the rounds of the current one.

A bar is decoration: nothing it does can stop a run. It is silent when asked to be, and when stderr is neither a
terminal nor the output of a notebook, where tqdm's bars for notebooks are drawn.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TextIO

from tqdm import tqdm

from .headline import word_of
from .reports.page import bytes_text

REFRESH_S = 0.2
"""Seconds between two drawings of the loss: a terminal must not slow down a step."""


class Progress:
    """Two bars, on stderr or in a notebook: the current score, the loss, the memory in use and the time that is left.

    Args:
        rounds: Rounds of the run.
        start: Rounds already done when it starts (a resumed run).
        quiet: Show nothing, also on a terminal.
        stream: Where to draw; None: stderr.
        line: The line of the terminal that the first bar is on, from 0.
        bars: 2: rounds and hospitals; 1: rounds.

    Example:
        >>> with Progress(rounds=2, quiet=True) as progress:
        ...     progress.round(1, hospitals=1)
        ...     progress.hospital("hospital-1")
        ...     progress.step(loss=0.4)
        ...     progress.score(0.71, "dice")
    """

    def __init__(
        self,
        *,
        rounds: int,
        start: int = 0,
        quiet: bool = False,
        stream: TextIO | None = None,
        line: int = 0,
        bars: Literal[1, 2] = 2,
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._make = None if quiet else _bar_class(self._stream)
        self._quiet = self._make is None
        self._rounds, self._start, self._current = rounds, start, start
        self._line, self._bars = line, bars
        self._begun = 0  # hospitals of this round
        self._drawn = 0.0  # when the numbers were last drawn
        self._loss: float | None = None
        self._score: tuple[str, float | None] = ("", None)
        self._round_bar: tqdm[Any] | None = None
        self._hospital_bar: tqdm[Any] | None = None

    def __enter__(self) -> Self:
        self._draw(self._open)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._draw(lambda: self._move(self._round_bar, self._current))
        self._draw(self._close)

    def round(self, number: int, *, hospitals: int | None = None) -> None:
        """Round ``number`` (from 1) begins with so many hospitals; those before it are done."""
        self._current = number
        self._draw(lambda: self._begin_round(number, hospitals))

    def hospital(self, name: str) -> None:
        """A hospital begins to train or is evaluated; the one before it is done."""
        self._draw(lambda: self._begin_hospital(name))

    def step(self, loss: float | None = None) -> None:
        """A local step was taken."""
        self._loss = loss if loss is not None else self._loss
        if time.monotonic() - self._drawn > REFRESH_S:
            self._draw(self._postfix)

    def score(self, value: float | None, metric: str) -> None:
        """The mean over the hospitals at the last evaluation.

        Args:
            value: The mean, None where it is undefined.
            metric: Of what: ``dice`` or ``accuracy``.
        """
        self._score = (word_of(metric), value)
        self._draw(self._postfix)

    def message(self, text: str) -> None:
        """A line above the bars."""
        self._draw(lambda: _write(text, self._stream))

    def _draw(self, action: Callable[[], object]) -> None:
        """Does one thing to the terminal; falls silent for good when the terminal is gone."""
        if self._quiet:
            return
        try:
            action()
        except (OSError, ValueError):  # a broken pipe, a closed file, a character the terminal cannot show
            self._quiet = True
            for bar in (self._hospital_bar, self._round_bar):
                if bar is not None:
                    bar.disable = True

    def _open(self) -> None:
        rounds = {"total": self._rounds, "initial": self._start, "desc": "rounds", "unit": "round"}
        self._round_bar = self._bar(**rounds, position=self._line, leave=self._line == 0)
        if self._bars == 2:
            hospitals = {"total": 0, "desc": "hospitals", "unit": "hospital"}
            self._hospital_bar = self._bar(**hospitals, position=self._line + 1, leave=False)

    def _bar(self, **settings: Any) -> tqdm[Any]:
        return (self._make or tqdm)(file=self._stream, dynamic_ncols=True, **settings)

    def _close(self) -> None:
        if self._hospital_bar is not None:
            self._hospital_bar.total = self._hospital_bar.n  # a notebook's bar that is not full would turn red and stay
        for bar in (self._hospital_bar, self._round_bar):
            if bar is not None:
                bar.close()

    def _begin_round(self, number: int, hospitals: int | None) -> None:
        self._move(self._round_bar, number - 1)
        self._begun = 0
        if self._hospital_bar is not None:
            self._hospital_bar.reset(total=hospitals)
            self._hospital_bar.set_description("hospitals")

    def _begin_hospital(self, name: str) -> None:
        bar = self._hospital_bar
        if bar is not None:
            bar.set_description(name, refresh=False)
            self._move(bar, self._begun)
            self._begun += 1

    @staticmethod
    def _move(bar: tqdm[Any] | None, done: int) -> None:
        if bar is not None:
            bar.update(done - bar.n)
            bar.refresh()

    def _postfix(self) -> None:
        shown = dict([self._score, ("loss", self._loss)])
        values = {name: f"{value:.3f}" for name, value in shown.items() if value is not None}
        values["memory"] = memory_text()
        if self._round_bar is not None:
            self._round_bar.set_postfix(values)
        self._drawn = time.monotonic()


class SweepProgress:
    """How far a sweep is: a bar for its runs above one for the rounds of the run that is going on.

    Where stderr is no terminal, as in a log of a cluster, a line on stdout for every run that is over.

    Args:
        cells: Runs there are.
        quiet: Show nothing, also on a terminal.
        stream: Where to draw; None: stderr.
        lines: Where to write lines; None: stdout.

    Example:
        >>> with SweepProgress(cells=3) as progress:
        ...     progress.skip(1)
        ...     progress.begin("flap_sam, seed 0")
        ...     progress.over("flap_sam, seed 0: Dice 0.712, 12 s")
        [2/3] flap_sam, seed 0: Dice 0.712, 12 s
    """

    def __init__(
        self,
        *,
        cells: int,
        quiet: bool = False,
        stream: TextIO | None = None,
        lines: TextIO | None = None,
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._lines = lines
        self._quiet = quiet
        self._make = None if quiet else _bar_class(self._stream)
        self._draws = self._make is not None
        self._cells, self._done = cells, 0
        self._bar: tqdm[Any] | None = None

    def __enter__(self) -> Self:
        self._draw(self._open)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._draw(self._close)

    def skip(self, count: int) -> None:
        """So many runs were over before: they count, but say nothing about the time that the others will take."""
        self._done += count
        self._draw(lambda: self._leap(count))

    def begin(self, name: str) -> None:
        """A run begins."""
        self._draw(lambda: self._show(name))

    def over(self, text: str) -> None:
        """A run is over, with what there is to say about it."""
        self._done += 1
        self._draw(self._move)
        self._say(self._numbered(text))

    def failed(self, text: str) -> None:
        """A run failed, with the reason: said on a terminal too."""
        self._done += 1
        self._draw(self._move)
        self.message(self._numbered(text))

    def message(self, text: str) -> None:
        """A line above the bars; on stdout where there are none."""
        if self._draws:
            self._draw(lambda: _write(text, self._stream))
        else:
            self._say(text)

    def bars(self, **settings: Any) -> Progress:
        """The bar of one run."""
        return Progress(stream=self._stream, line=1, bars=1, **settings)

    def _numbered(self, text: str) -> str:
        return f"[{self._done}/{self._cells}] {text}"

    def _say(self, text: str) -> None:
        if not (self._quiet or self._draws):
            print(text, file=self._lines, flush=True)

    def _draw(self, action: Callable[[], object]) -> None:
        """Does one thing to the terminal; falls silent for good when the terminal is gone."""
        if not self._draws:
            return
        try:
            action()
        except (OSError, ValueError):
            self._draws, self._quiet = False, True
            if self._bar is not None:
                self._bar.disable = True

    def _open(self) -> None:
        bar: dict[str, Any] = {"total": self._cells, "desc": "runs", "unit": "run", "position": 0}
        self._bar = (self._make or tqdm)(file=self._stream, dynamic_ncols=True, **bar)

    def _leap(self, count: int) -> None:
        if self._bar is not None:
            self._bar.initial += count
            self._bar.n += count
            self._bar.refresh()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _show(self, name: str) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(name)

    def _move(self) -> None:
        if self._bar is not None:
            self._bar.update(self._done - self._bar.n)


def memory_text() -> str:
    """The most memory that tensors took of a CUDA device so far, else what the process takes of the machine now."""
    torch = sys.modules.get("torch")  # not imported for a bar
    if torch is not None and torch.cuda.is_initialized():
        return bytes_text(torch.cuda.max_memory_allocated())
    return bytes_text(_resident_bytes())


def _resident_bytes() -> int:
    """Bytes of memory of this process; where the system does not say, the most it ever had."""
    pages = Path("/proc/self/statm")
    if pages.exists():
        return int(pages.read_text().split()[1]) * resource.getpagesize()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


@contextmanager
def counting(what: str, *, quiet: bool = False, stream: TextIO | None = None) -> Iterator[Callable[[int, int], None]]:
    """A bar for work on cases: gives ``announce(done, total)``, which the work calls as it goes.

    Args:
        what: What is counted, before the bar.
        quiet: Show nothing, also on a terminal.
        stream: Where to draw; None: stderr.
    """
    stream = sys.stderr if stream is None else stream
    make = None if quiet else _bar_class(stream)
    if make is None:
        yield lambda done, total: None
        return
    with make(desc=what, unit="case", file=stream, dynamic_ncols=True) as bar:

        def announce(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        try:
            yield announce
        finally:
            bar.refresh()


def _bar_class(stream: TextIO | None) -> type[tqdm[Any]] | None:
    """What draws there: bars of text on a terminal, widgets in a notebook (text without ipywidgets), else nothing."""
    if _is_terminal(stream):
        return tqdm
    if not _is_notebook(stream):
        return None
    from tqdm import notebook

    return tqdm if getattr(notebook, "IProgress", None) is None else notebook.tqdm


def _is_notebook(stream: TextIO | None) -> bool:
    """Whether what is written there goes to a Jupyter front end."""
    return type(stream).__module__.partition(".")[0] == "ipykernel"


def _write(text: str, stream: TextIO) -> None:
    """Writes a line above the bars; in a notebook to stdout, as stderr is shown as if it were an error."""
    tqdm.write(text, file=sys.stdout if _is_notebook(stream) else stream)


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False
