"""The progress of a run: a live line in a terminal, otherwise a plain line every few seconds."""

import math
import sys
import time
from collections.abc import Mapping
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

PLAIN_EVERY_S = 10.0


class Progress:
    """Shows progress. total_steps: of the run. done: steps that a resumed run has already finished."""

    def __init__(self, total_steps: int, done: int = 0, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._total = total_steps
        self._done_at_start = done
        self._started = time.monotonic()
        self._last_plain = -math.inf
        self._held_out = ""
        self._bar: Bar | None = None
        if self._stream.isatty():
            columns = (BarColumn(28), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self._bar = Bar(*columns, console=Console(file=self._stream), refresh_per_second=4)
            self._task = self._bar.add_task("starting", total=total_steps, completed=done)
            self._bar.start()

    def step(self, row: Mapping[str, float]) -> None:
        """Show a step's row of metrics."""
        step = int(row["step"])
        text = "  ".join(part for part in (*_numbers(row), self._held_out) if part)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=text)
        elif time.monotonic() - self._last_plain >= PLAIN_EVERY_S or step == self._total:
            self._last_plain = time.monotonic()
            pace = (time.monotonic() - self._started) / max(1, step - self._done_at_start)
            left = _duration(pace * (self._total - step))
            print(f"step {step}/{self._total}  {text}  {left} left", file=self._stream, flush=True)

    def evaluation(self, metrics: Mapping[str, float]) -> None:
        """Show the newest held-out accuracy, or another result of the evaluation, from now on."""
        shown = {"pass@1": "pass@1", "preference_accuracy": "held-out preferred", "loss": "held-out loss"}
        shown["win_rate"] = "win rate vs initial policy"
        for name, label in shown.items():
            if not math.isnan(metrics.get(name, math.nan)):
                self._held_out = f"{label} {metrics[name]:.2f}"
                return

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def _numbers(row: Mapping[str, float]) -> list[str]:
    shown = {"loss": "loss {:.3f}", "reward_mean": "reward {:.2f}", "accuracy": "accuracy {:.2f}"}
    shown["preference_accuracy"] = "preferred {:.2f}"
    parts = [form.format(row[name]) for name, form in shown.items() if not math.isnan(row.get(name, math.nan))]
    speed = row["samples_per_s"]
    tokens = speed * row["completion_tokens"] / row["samples"]
    return [*parts, f"{speed:.0f} samples/s", f"{tokens:,.0f} tokens/s"]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
