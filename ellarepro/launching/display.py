"""What runs side by side are doing: one live line a run on a terminal, plain lines in a log."""

import sys
import time
from collections.abc import Sequence
from itertools import zip_longest
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table

from ellarepro.training.progress import Moment

Event = str | Moment | None
"""What a run tells: a line, an epoch that is over, or None when it begins."""
LEGEND = """\
A line a run: training accuracy, -log marginal likelihood (nats a datum), and what
of the relative effective number of parameters the path has that breaks symmetry."""


class ProgressDisplay:
    """Shows runs while the context lasts; what is printed meanwhile stands above the live lines.

    Args:
        names: of the runs.
        stream: standard output if not given.
        every: in a log, seconds between the lines of a run; its first and last epoch are always shown.
    """

    def __init__(self, names: Sequence[str], stream: TextIO | None = None, every: float = 10.0):
        self.names, self.every = names, every
        self.stream = stream or sys.stdout
        self.running: dict[int, Moment | None] = {}
        self.begun = 0
        self.shown: dict[int, float] = {}
        self.live: Live | None = None
        if self.stream.isatty():
            self.live = Live(console=Console(file=self.stream), get_renderable=self._lines, transient=True)

    def __enter__(self) -> "ProgressDisplay":
        self._print(LEGEND)
        if self.live:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self.live:
            self.live.stop()

    def show(self, index: int, event: Event) -> None:
        """Show what run `index` tells."""
        if isinstance(event, str):
            self._print(event)
            return
        self.begun += index not in self.running
        self.running[index] = event
        if event is not None and not self.live and self._is_due(index, event):
            self._print(f"{self.names[index]}  {event}")

    def end(self, index: int) -> None:
        """Run `index` is over."""
        self.running.pop(index, None)

    def _print(self, text: str) -> None:
        if self.live:
            self.live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self.stream, flush=True)

    def _is_due(self, index: int, moment: Moment) -> bool:
        now = time.monotonic()
        if index in self.shown and moment.epoch < moment.epochs and now - self.shown[index] < self.every:
            return False
        self.shown[index] = now
        return True

    def _lines(self) -> Table:
        rows = [[self.names[i], *(moment.parts() if moment else ["starts"])] for i, moment in self.running.items()]
        if left := len(self.names) - self.begun:
            rows.append([f"{left} more to come"])
        table = Table.grid(padding=(0, 2))
        for number, column in enumerate(zip_longest(*rows, fillvalue="")):
            # On a narrow screen it is the name that gives way.
            width = max(map(len, column)) if number else None
            table.add_column(no_wrap=True, overflow="ellipsis", min_width=width)
        for row in rows:
            table.add_row(*row)
        return table
