"""Live progress on stderr: training, scoring, downloading. A stream that is no terminal gets plain lines."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column
from rich.text import Text

from tformer.show.terminal import err, say
from tformer.show.words import duration, printable
from tformer.signals import undone_by_signal

if TYPE_CHECKING:  # it imports torch
    from tformer.training.fit import StepDone

PLAIN_LINE_EVERY = 2.0  # seconds between lines where there is no terminal
LINE_EVERY = 10.0  # the same, of other long work


class TrainingProgress:
    """A live line on a terminal (bar, step, losses, tokens a second, time left), plain lines elsewhere."""

    def __init__(self, steps: int, start: int):
        self.console = err()
        self.steps = steps
        self.val = ""
        self.before: StepDone | None = None
        self.window: list[tuple[float, int, int]] = []  # of late: when, step, tokens
        self.printed = 0.0
        self.progress = Progress(
            BarColumn(bar_width=None),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[numbers]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=self.console,
            expand=True,
            refresh_per_second=8,
        )
        self.task = self.progress.add_task("", total=steps, completed=start, numbers="")
        self.live = ExitStack()

    def __enter__(self) -> "TrainingProgress":
        if self.console.is_terminal:
            self.live.enter_context(_shown(self.progress))
        return self

    def __exit__(self, *exception: object) -> None:
        self.live.close()

    def update(self, done: "StepDone", steps: int) -> None:
        """Show a step, of so many as there are to be by now."""
        self.steps = steps
        state, now = done.state, time.perf_counter()
        self.window = [*self.window[-50:], (now, state.step, state.tokens)]
        then, step, tokens = self.window[0]
        passed = max(1e-9, now - then)
        evaluated = done.val_loss is not None
        if evaluated:
            self.val = f"  val {done.val_loss:.4f}"
            if (word := done.noted.get("next_word_loss")) is not None:
                self.val += f"  next word {word:.2f}"
        rate = f"  {(state.tokens - tokens) / passed:,.0f} tok/s" if state.step > step else ""
        if "sample" in done.noted:
            self.wrote(done.noted["sample"])
        known = done if done.numbers.known or not self.before else self.before  # waiting would cost time
        self.before = done
        numbers = f"loss {known.loss:.4f}{self.val}{rate}"
        if self.console.is_terminal:
            self.progress.update(self.task, total=steps, completed=state.step, numbers=numbers)
        elif evaluated or now - self.printed > PLAIN_LINE_EVERY or state.step == self.steps:
            self.printed = now
            left = (self.steps - state.step) * passed / max(1, state.step - step)
            rest = f"  left {duration(left)}" if state.step > step else ""
            self.console.print(Text(f"step {state.step}/{self.steps}  {numbers}  lr {done.lr:.2e}{rest}"))

    def wrote(self, text: str) -> None:
        """A line that the model wrote, above the live one."""
        one = " / ".join(part.strip() for part in text.splitlines() if part.strip())
        line = Text("  wrote: ") + Text(printable(one, terminal=True), style="dim italic")
        if self.console.is_terminal:  # a line there; elsewhere it may be long
            self.console.print(line, no_wrap=True, overflow="ellipsis")
        else:
            self.console.print(line)


@contextmanager
def _shown(progress: Progress) -> Iterator[Progress]:
    """A bar while the block runs. A signal that ends the process takes it away, and shows the cursor."""
    with progress, nullcontext() if progress.disable else undone_by_signal(progress.stop):
        yield progress


@contextmanager
def steps_progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for work of known size on a terminal, once it tells of some; elsewhere a line now and then."""
    console = err()
    began = printed = time.perf_counter()
    before = 0
    with _shown(
        Progress(
            TextColumn(label, markup=False),
            BarColumn(),
            TaskProgressColumn(show_speed=True),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
    ) as progress:
        task = progress.add_task(label, total=None, visible=False)

        def update(done: int, total: int) -> None:
            nonlocal began, before, printed
            progress.update(task, completed=done, total=total, visible=True)
            now = time.perf_counter()
            if done < before:  # of the next one
                began = now
            before = done
            if not console.is_terminal and done and now - printed >= LINE_EVERY:
                printed = now
                left = duration((total - done) * (now - began) / done)
                say(f"{label}: {done / max(total, 1):.0%}  left {left}")

        yield update


@contextmanager
def experiments_progress() -> Iterator[Callable[[str, int, int], None]]:
    """What is being measured, and how far along; a plain line for each experiment where no terminal is."""
    console = err()
    with _shown(
        Progress(
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
    ) as progress:
        task = progress.add_task("", total=None)
        before = ""

        def update(what: str, done: int, total: int) -> None:
            nonlocal before
            if what != before and what and not console.is_terminal:
                say(f"measuring {done + 1}/{total}: {what}")
            before = what
            progress.update(task, description=what, completed=done, total=total)

        yield update


def _columns_of_bytes(label: str) -> tuple[ProgressColumn, ...]:
    """Bytes, rate and time left, in one line: on a narrow terminal the bar is shorter."""
    whole = Column(no_wrap=True)
    ends = (
        DownloadColumn(table_column=whole),
        TransferSpeedColumn(whole),
        TimeRemainingColumn(table_column=whole),
    )
    return TextColumn(label, markup=False), BarColumn(), *ends


@contextmanager
def download_progress(label: str) -> Iterator[Callable[[int, int | None], None]]:
    """Bytes, rate and time left of a download; one plain line where there is no terminal."""
    console = err()
    with _shown(
        Progress(
            *_columns_of_bytes(label),
            console=console,
            disable=not console.is_terminal,
        )
    ) as progress:
        task = progress.add_task(label, total=None, visible=False)
        said = False

        def update(done: int, total: int | None) -> None:
            nonlocal said
            if not said and not console.is_terminal:
                say(label)
            said = True
            progress.update(task, completed=done, total=total, visible=True)

        yield update


class ReadingProgress:
    """What comes before a training: a text's download, then how far it is tokenized; one bar at a time."""

    def __init__(self, name: str):
        self.name, self.label = name, ""
        self.update: Any = None
        self.bar = ExitStack()

    def __enter__(self) -> "ReadingProgress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()

    def downloaded(self, done: int, total: int | None) -> None:
        """Bytes of the download, and in all where that is known."""
        self._bar(f"downloading {self.name}", download_progress)(done, total)

    def encoded(self, done: int, total: int) -> None:
        """Characters of a part of the text."""
        self._bar("tokenizing", steps_progress)(done, total)

    def _bar(self, label: str, kind: Any) -> Any:
        if label != self.label:
            self.bar.close()
            self.label, self.update = label, self.bar.enter_context(kind(label))
        return self.update


class ShownBytes:
    """Bytes that were read of so many, with rate and time left; called with each few more."""

    def __init__(self, label: str, total: int | None, console: Console, progress: Progress):
        self.label, self.total, self.console, self.progress = label, total, console, progress
        self.task = progress.add_task(label, total=total)
        self.done = 0
        self.lately: list[tuple[float, int]] = []  # when lines were printed, and what was read then

    def from_here(self) -> None:
        """What was read until now was passed over: it says nothing of rate and time left."""
        self.lately = [(time.perf_counter(), self.done)]
        self.progress.reset(self.task, total=self.total, completed=self.done)

    def __call__(self, more: int) -> None:
        self.done, now = self.done + more, time.perf_counter()
        self.progress.update(self.task, completed=self.done)
        if not self.lately:
            self.lately = [(now, self.done)]
        if self.console.is_terminal or now - self.lately[-1][0] < LINE_EVERY:
            return
        then, before = self.lately[0]
        self.lately = [*self.lately[-5:], (now, self.done)]
        rate, total = (self.done - before) / (now - then), self.total
        of = f" of {total / 1e6:,.0f}" if total else ""
        left = f"  left {duration((total - self.done) / max(rate, 1.0))}" if total else ""
        say(f"{self.label}: {self.done / 1e6:,.0f}{of} MB  {rate / 1e6:,.1f} MB/s{left}")


@contextmanager
def bytes_progress(label: str, total: int | None) -> Iterator[ShownBytes]:
    """What shows how many bytes were read, while the block runs."""
    console = err()
    columns = _columns_of_bytes(label)
    with _shown(
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    ) as progress:
        yield ShownBytes(label, total, console, progress)
