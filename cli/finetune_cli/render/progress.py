"""A run as it goes: a live display on a terminal, one line per change elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from finetune_api.job.status import FineTuneJobStatus
from finetune_api.stages import STAGES, Progress, Stage
from finetune_cli.render.stages import (
    duration,
    newest_attempt,
    progress_words,
    stage_facts,
    stage_position,
    stage_seconds,
)
from finetune_operator.decide.types import Event

BAR_WIDTH = 24
PROGRESS_EVERY_S = 10.0
"""Between two lines about the same stage, unless there is a new validation loss."""


class RunView(Protocol):
    """Shows a run while it goes. Used as a context manager."""

    def __enter__(self) -> Self:
        """Start showing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop showing."""

    def update(self, status: FineTuneJobStatus, progress: Progress | None) -> None:
        """Show the state after a step."""

    def event(self, event: Event) -> None:
        """Show what happened."""

    def note(self, text: str) -> None:
        """Show one line."""


class PlainView:
    """One line per change: for logs and pipes. `clock` gives seconds that only grow."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._told_at = float("-inf")
        self._shown: dict[Stage, str] = {}
        self._last: tuple[object, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def note(self, text: str) -> None:
        """Show one line."""
        self._console.print(Text(text), soft_wrap=True)

    def event(self, event: Event) -> None:
        """Warnings only: the stages' own lines tell the rest."""
        if event.type == "Warning":
            self.note(f"warning: {event.reason}: {event.message}")

    def update(self, status: FineTuneJobStatus, progress: Progress | None) -> None:
        """A line when a stage starts or ends, at every evaluation, and every few seconds in between."""
        for stage in STAGES:
            attempt = newest_attempt(status, stage)
            if attempt is None:
                continue
            key = f"{status.run}/{attempt.attempt}/{attempt.state}"
            if self._shown.get(stage) == key or attempt.state not in ("Running", "Succeeded", "Stopped"):
                continue
            self._shown[stage] = key
            seconds = stage_seconds(attempt)
            taken = f" ({duration(seconds)})" if seconds is not None else ""
            facts = stage_facts(stage, status.results)
            words = {"Running": "started", "Succeeded": "done", "Stopped": "stopped"}[attempt.state]
            again = f", attempt {attempt.attempt}" if attempt.attempt > 1 else ""
            self.note(f"{stage_position(stage)} {stage} {words}{again}{taken}" + (f": {facts}" if facts else ""))
        if progress is not None and progress.percent > 0:
            evaluated = (progress.stage, progress.attempt, progress.validation_loss)
            now = (*evaluated, progress.step, progress.phase)
            due = self._clock() - self._told_at >= PROGRESS_EVERY_S or evaluated != self._last[:3]
            if now != self._last and due:
                self._last, self._told_at = now, self._clock()
                where = f"{stage_position(progress.stage)} {progress.stage} {progress.percent:.0f}%"
                self.note(f"{where}  {progress_words(progress)}")


class LiveView:
    """Five lines that fill up while the run goes."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._spinner = Spinner("dots")
        self._live = Live(Text(title), console=console, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def note(self, text: str) -> None:
        """Show one line above the display."""
        self._live.console.print(Text(text))

    def event(self, event: Event) -> None:
        """Warnings stay above the display."""
        if event.type == "Warning":
            self._live.console.print(Text(f"{event.reason}: {event.message}", style="yellow"))

    def update(self, status: FineTuneJobStatus, progress: Progress | None) -> None:
        """Show the state after a step."""
        self._live.update(self._draw(status, progress))

    def _draw(self, status: FineTuneJobStatus, progress: Progress | None) -> RenderableType:
        grid = Table.grid(padding=(0, 1))
        for stage in STAGES:
            grid.add_row(*self._row(stage, status, progress))
        heading = Text.assemble(
            (self._title, "bold"), f"  run {status.run}  ", (status.phase, "cyan"), f"  {status.message}"
        )
        heading.no_wrap, heading.overflow = True, "ellipsis"
        return Group(heading, grid)

    def _row(self, stage: Stage, status: FineTuneJobStatus, progress: Progress | None) -> list[RenderableType]:
        attempt = newest_attempt(status, stage)
        if attempt is None:
            return ["", Text(stage, style="dim"), ""]
        if attempt.state == "Succeeded":
            seconds = stage_seconds(attempt)
            facts = stage_facts(stage, status.results)
            told = f"{facts}  [{duration(seconds)}]" if seconds is not None else facts
            return [Text("✓", style="green"), Text(stage), Text(told, style="dim")]
        if attempt.state in ("Failed", "Stopped"):
            mark = Text("✗", style="red") if attempt.state == "Failed" else Text("■", style="yellow")
            return [mark, Text(stage), Text(f"{attempt.cause} {attempt.message}".strip() or attempt.state.lower())]
        if progress is None or (progress.stage, progress.attempt) != (stage, attempt.attempt):
            return [self._spinner, Text(stage, style="bold"), Text(status.reason, style="dim")]
        line = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=100, completed=progress.percent, width=BAR_WIDTH)
        line.add_row(bar, f"{progress.percent:3.0f}%", Text(progress_words(progress)))
        return [self._spinner, Text(stage, style="bold"), line]


def run_view(console: Console, title: str) -> RunView:
    """The view that fits where the output goes."""
    return LiveView(console, title) if console.is_terminal else PlainView(console)
