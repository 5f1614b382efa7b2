"""Progress of a run: one live bar on a terminal, plain lines elsewhere, nothing from processes other than the first."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

LINE_SECONDS = 30.0
REDRAW_SECONDS = 0.2


class ProgressReport:
    """Shows epoch, step, metrics, images/s and the time that is left.

    Args:
        total_steps: steps of the whole run.
        steps_per_epoch: steps of one epoch.
        done_steps: steps that an earlier start of the run has done.
        enabled: False on all processes but one.
    """

    def __init__(self, total_steps: int, steps_per_epoch: int, done_steps: int, enabled: bool) -> None:
        self.console = Console(quiet=not enabled, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._enabled = enabled
        self._total, self._per_epoch = total_steps, steps_per_epoch
        self._start, self._started_at = done_steps, time.perf_counter()
        self._shown_at = self._started_at
        self._bar: Progress | None = None
        if enabled and self.console.is_terminal:
            self._bar = Progress(BarColumn(30), TextColumn("{task.description}"), console=self.console)
            self._task = self._bar.add_task("starting", total=total_steps, completed=done_steps)
            self._bar.start()

    def due(self) -> bool:
        """Is it time to show something? Metrics are read from the device only then."""
        wait = LINE_SECONDS if self._bar is None else REDRAW_SECONDS
        return self._enabled and time.perf_counter() - self._shown_at >= wait

    def show(self, step: int, batch_size: int, metrics: Mapping[str, float]) -> None:
        """Show the state after `step` steps of the whole run."""
        self._shown_at = time.perf_counter()
        text = self._line(step, batch_size, metrics)
        if self._bar is None:
            self.console.print(text)
        else:
            self._bar.update(self._task, completed=step, description=text)

    def stop(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()

    def _line(self, step: int, batch_size: int, metrics: Mapping[str, float]) -> str:
        steps_a_second = (step - self._start) / max(1e-9, time.perf_counter() - self._started_at)
        left = (self._total - step) / max(1e-9, steps_a_second)
        epoch, step_in_epoch = divmod(max(0, step - 1), self._per_epoch)
        epochs = self._total // self._per_epoch
        parts = [f"epoch {epoch + 1}/{epochs} step {step_in_epoch + 1}/{self._per_epoch}"]
        parts += [f"{name} {value:.4g}" for name, value in metrics.items()]
        parts += [f"{steps_a_second * batch_size:,.0f} images/s", f"{_clock(left)} left"]
        return "  ".join(parts)


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
