"""Bars for people who wait: one for the rounds, one for the hospitals of the current round.

A bar is decoration: nothing it does can stop a run. It is silent when asked to be, and when stderr is not a terminal.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TextIO

from tqdm import tqdm

REFRESH_S = 0.2
"""Seconds between two drawings of the loss: a terminal must not slow down a step."""


class Progress:
    """Two bars on stderr with the current mean Dice, the loss and the time that is left.

    Args:
        rounds: Rounds of the run.
        start: Rounds already done when it starts (a resumed run).
        quiet: Show nothing, also on a terminal.
        stream: Where to draw; None: stderr.

    Example:
        >>> with Progress(rounds=2, quiet=True) as progress:
        ...     progress.round(1, hospitals=1)
        ...     progress.hospital("hospital-1")
        ...     progress.step(loss=0.4)
        ...     progress.dice(0.71)
    """

    def __init__(self, *, rounds: int, start: int = 0, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._quiet = quiet or not _is_terminal(self._stream)
        self._rounds, self._start, self._current = rounds, start, start
        self._begun = 0  # hospitals of this round
        self._drawn = 0.0  # when the numbers were last drawn
        self._loss: float | None = None
        self._dice: float | None = None
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

    def dice(self, value: float | None) -> None:
        """The mean Dice over the hospitals at the last evaluation."""
        self._dice = value
        self._draw(self._postfix)

    def message(self, text: str) -> None:
        """A line above the bars."""
        self._draw(lambda: tqdm.write(text, file=self._stream))

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
        self._round_bar = self._bar(total=self._rounds, initial=self._start, desc="rounds", unit="round", position=0)
        self._hospital_bar = self._bar(total=0, desc="hospitals", unit="hospital", position=1, leave=False)

    def _bar(self, **settings: Any) -> tqdm[Any]:
        return tqdm(file=self._stream, dynamic_ncols=True, **settings)

    def _close(self) -> None:
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
        shown = {"Dice": self._dice, "loss": self._loss}
        values = {name: f"{value:.3f}" for name, value in shown.items() if value is not None}
        if self._round_bar is not None:
            self._round_bar.set_postfix(values)
        self._drawn = time.monotonic()


class SweepProgress:
    """A bar for the runs of a sweep, above the bars of the run that is going on.

    Args:
        cells: Runs there are.
        quiet: Show nothing, also on a terminal.
        stream: Where to draw; None: stderr.
    """

    def __init__(self, *, cells: int, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._quiet = quiet or not _is_terminal(self._stream)
        self._cells, self._begun = cells, 0
        self._bar: tqdm[Any] | None = None

    def __enter__(self) -> Self:
        if not self._quiet:
            self._bar = tqdm(total=self._cells, desc="cells", unit="cell", file=self._stream, dynamic_ncols=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def cell(self, name: str) -> None:
        """A run begins; the one before it is over."""
        if self._bar is not None:
            self._bar.update(self._begun - self._bar.n)
            self._bar.set_postfix_str(name)
        self._begun += 1

    def bars(self, **settings: Any) -> Progress:
        """The bars of one run."""
        return Progress(stream=self._stream, **settings)

    def message(self, text: str) -> None:
        """A line above the bars."""
        tqdm.write(text, file=self._stream)


@contextmanager
def counting(what: str, *, quiet: bool = False, stream: TextIO | None = None) -> Iterator[Callable[[int, int], None]]:
    """A bar for work on cases: gives ``announce(done, total)``, which the work calls as it goes.

    Args:
        what: What is counted, before the bar.
        quiet: Show nothing, also on a terminal.
        stream: Where to draw; None: stderr.
    """
    stream = sys.stderr if stream is None else stream
    if quiet or not _is_terminal(stream):
        yield lambda done, total: None
        return
    with tqdm(desc=what, unit="case", file=stream, dynamic_ncols=True) as bar:

        def announce(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        try:
            yield announce
        finally:
            bar.refresh()


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False
