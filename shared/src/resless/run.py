"""One run: its folder, Accelerator, seeds, progress, metrics, checkpoints, signals; all that is around a loop.

    with Run(config, "resless-train", label) as run:
        ...                                              # data, model, optimiser
        model, optimizer = run.prepare(model, optimizer)
        for epoch in run.epochs(config.optim.epochs):
            for images, labels in run.steps(batches):
                ...                                      # one step of the method
                run.track(loss=loss, accuracy=accuracy)
            run.log(held_out=...)
        run.finish(model, data, metrics=...)

The run folder holds `config.json`, `env.json`, `metrics.jsonl` (one line an epoch), `curves.png`, `result.json`,
`checkpoints/` and `model/`. Until `prepare` nothing is written: bad input leaves nothing behind.
"""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, gather_object, set_seed
from safetensors import SafetensorError
from torch import nn

from resless import checkpoint, report, weights
from resless.config import RunConfig, as_dict, check_choices, flatten
from resless.data.pipeline import Pipeline
from resless.data.shards import Shards
from resless.environment import environment
from resless.errors import InputError, check, unknown_name
from resless.evaluate import average_buffers
from resless.files import WRITING, read_json, write_text
from resless.memory import keep_freed_memory
from resless.models.folded import check_unfolded
from resless.precision import computes_in_bf16, resolve
from resless.progress import ProgressReport

LOSS_CHECK_STEPS = 20  # reading a loss waits for the device, so several are read at once
SIGNAL_CHECK_STEPS = 10  # with several processes, agreeing to stop costs a reduction
LOCK = ".lock"
RECORD = "env.json"  # the first file that a run writes: what makes a folder a run folder


class HasRun(Protocol):
    """A configuration with a `run` part."""

    @property
    def run(self) -> RunConfig: ...


class Stateful(Protocol):
    """Anything a loop carries from step to step and that a resumed run must have again."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


class TrainingBatches(Protocol):
    """Batches of this process, a pure function of epoch and step."""

    batch_size: int
    steps_per_epoch: int

    def epoch(self, epoch: int, start_step: int = 0) -> Iterable[tuple[torch.Tensor, torch.Tensor]]: ...


class Run:
    """One run of one command.

    Args:
        config: the command's whole configuration.
        command: name of the console script, for the records.
        label: name of the folder below `runs/` where `--run-dir` names none.
        unused_parameters: whether a step may leave parameters without gradient, on some processes or on all.

    Raises:
        InputError: a word in the configuration is not known; the run folder exists already, or is no run folder; a
            tracker is not installed.
    """

    def __init__(self, config: HasRun, command: str, label: str, *, unused_parameters: bool = False) -> None:
        check_choices(config)
        self.config, self.settings, self.command = config, config.run, command
        # A data set may be a path or a hub id, whose slashes would make folders.
        self.folder = Path(self.settings.run_dir or Path("runs") / re.sub(r"[^\w.-]+", "-", label))
        check_folder(self.folder, self.settings)
        check_trackers(self.settings.trackers)
        settings = self.settings
        self.accelerator = accelerator(settings.mixed_precision, settings.trackers, self.folder, unused_parameters)
        # The same on all processes until the weights are built; `prepare` makes the processes differ.
        set_seed(self.settings.seed)
        self.epoch, self.step = 0, 0
        self._totals: dict[str, torch.Tensor] = {}
        self._unchecked_losses: list[torch.Tensor] = []
        self._record: dict[str, Any] = {}
        self._history: list[dict[str, Any]] = []
        self._signal: int | None = None
        self._old_handlers: dict[int, Any] = {}
        self._progress: ProgressReport | None = None
        self._lock: Any = None

    @property
    def history(self) -> list[dict[str, Any]]:
        """The records of the epochs that are done, as in `metrics.jsonl`."""
        return list(self._history)

    # -- before the loop

    @property
    def shards(self) -> Shards:
        """What loaders need to know of this process."""
        return Shards.of(self.accelerator, self.settings.channels_last)

    def prepare(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Stateful] | None = None
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Place and wrap model and optimiser, open the run folder, and take up where a checkpoint left off.

        Args:
            model, optimizer: as built on the CPU.
            state: whatever else the loop carries (masks, moving averages, adaptive schedules), by name.

        Raises:
            InputError: the network is folded; the folder cannot be written or is in use, or there is nothing that fits
                to resume from.
        """
        check_unfolded(model, "trained")
        source = self._find_checkpoint()
        self._open_folder()
        if self.settings.channels_last:
            model = model.to(memory_format=torch.channels_last)
        with warnings.catch_warnings():
            # torch has renamed the argument; Accelerate and older torch versions know only the former name.
            warnings.filterwarnings("ignore", message=".*broadcast_buffers.* is deprecated", category=FutureWarning)
            self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self._state = dict(state or {})
        set_seed(self.settings.seed, device_specific=True)
        if source is not None:
            self._restore(source)
        self._write_records(source)
        self._catch_signals()
        return self.model, self.optimizer

    # -- the loop

    def epochs(self, count: int) -> Iterator[int]:
        """The epochs (0-based) that are still to be done; each is recorded and saved after its body."""
        self._count = count
        while self.epoch < count:
            self._started = time.perf_counter()
            yield self.epoch
            self._end_epoch()
        self._stop_progress()
        self._release_signals()  # all is saved: what comes now may be interrupted like any other program

    def steps(self, batches: TrainingBatches) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of the current epoch that are still to be done; saves and stops between them when asked to."""
        per_epoch = batches.steps_per_epoch
        if self._progress is None:
            done = self.epoch * per_epoch + self.step
            main = self.accelerator.is_main_process
            self._progress = ProgressReport(self._count * per_epoch, per_epoch, done, main)
        for images, labels in batches.epoch(self.epoch, self.step):
            yield images, labels
            self.step += 1
            # At an epoch's end too, before anything is evaluated.
            if len(self._unchecked_losses) >= LOSS_CHECK_STEPS or self.step == per_epoch:
                self._check_losses()
            if self._progress.due():
                shown = {name: float(total) / self.step for name, total in self._totals.items()}
                shown["lr"] = self.optimizer.param_groups[0]["lr"]
                self._progress.show(self.epoch * per_epoch + self.step, batches.batch_size, shown)
            self._save_or_stop(last_of_epoch=self.step == per_epoch)

    def track(self, *, loss: torch.Tensor, **metrics: torch.Tensor) -> None:
        """Add this step's values (means over this process's images) to the epoch's means, without waiting for them."""
        self._unchecked_losses.append(loss.detach())
        for name, value in {"loss": loss, **metrics}.items():
            value = value.detach().float()
            self._totals[name] = self._totals[name] + value if name in self._totals else value

    def log(self, **metrics: float) -> None:
        """Add metrics to the record of the current epoch."""
        self._record.update(metrics)

    # -- after the loop

    def finish(
        self,
        model: nn.Module,
        data: Pipeline,
        *,
        metrics: dict[str, Any],
        description: str = "",
    ) -> Path:
        """Write the model folder, the curves and `result.json`; returns the model folder.

        Args:
            model: the trained network, as `prepare` returned it.
            data: what it was trained on: how images are to be prepared, their size, what the logits stand for.
            metrics: what was measured at the end, JSON values.
            description: Markdown for the model card.
        """
        average_buffers(model, self.accelerator)
        folder = self.folder / "model"
        if self.accelerator.is_main_process:
            with self.writing("the result"):
                weights.save_pretrained(
                    self.accelerator.unwrap_model(model),
                    folder,
                    preprocessing=data.preprocessing,
                    metrics=metrics,
                    description=description,
                    example=data.example.to(self.accelerator.device),
                    class_names=data.train.class_names,
                    overwrite=True,
                )
                report.curves(self._history, self.folder / "curves.png")
                write_text(self.folder / "result.json", json.dumps(metrics, indent=1) + "\n")
            self.say(f"wrote {folder}")
        self.accelerator.wait_for_everyone()
        return folder

    def say(self, text: str) -> None:
        """Print a line, from the first process only."""
        if self.accelerator.is_main_process:
            print(text, flush=True)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_progress()
        lost = error is not None and self.accelerator.num_processes > 1 and lost_a_process(error)
        if lost:
            where = f"epoch {self.epoch + 1}, step {self.step}"
            print(
                f"error: [process {self.accelerator.process_index}] another process of this run ended at {where}: "
                "its own message, or the launcher's, says why; start all of them again with --resume auto",
                file=sys.stderr,
                flush=True,
            )
        # Not before: once a process has died, torchrun ends the others by SIGTERM.
        self._release_signals()
        if self._lock is not None:
            self._lock.close()
        if self.settings.trackers and kind is None:
            self.accelerator.end_training()
        if lost:
            raise SystemExit(1) from None

    # -- folder and records

    def _open_folder(self) -> None:
        # All processes have checked the folder by now, so that none takes the fresh one for an old run's.
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self._lock_folder()
            check_folder(self.folder, self.settings)  # once more, now that no other run can be filling it
            if self.settings.overwrite:
                _empty(self.folder)
        self.accelerator.wait_for_everyone()

    def _lock_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / LOCK).open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"run folder {self.folder} is in use by another run: wait, or choose --run-dir") from None
        except OSError as error:
            raise InputError(f"cannot write to run folder {self.folder}: {error.strerror}") from error

    def _earlier_starts(self) -> list[dict[str, Any]]:
        """What the run folder records of earlier starts; nothing, with a warning, where that cannot be read."""
        record = self.folder / RECORD
        if not record.exists():
            return []
        try:
            starts = list(read_json(record, dict)["starts"])
        except (InputError, KeyError, TypeError):
            self.say(f"warning: {record} is damaged: it is written anew, without what it said of earlier starts")
            return []
        return starts

    def _write_records(self, source: Path | None) -> None:
        if not self.accelerator.is_main_process:
            return
        start = {
            **environment(device=self.accelerator.device.type),
            "seed": self.settings.seed,
            "processes": self.accelerator.num_processes,
            "mixed_precision": self.accelerator.mixed_precision,
            "arguments": sys.argv,
            "resumed_from": str(source) if source else None,
        }
        starts = self._earlier_starts()
        config = {"command": self.command, **as_dict(self.config)}
        with self.writing("its records"):
            write_text(self.folder / RECORD, json.dumps({"starts": [*starts, start]}, indent=1) + "\n")
            write_text(self.folder / "config.json", json.dumps(config, indent=1) + "\n")
            # From the checkpoint: epochs that were recorded, but not saved, before a kill will be done again.
            lines = [json.dumps(record) + "\n" for record in self._history]
            write_text(self.folder / "metrics.jsonl", "".join(lines))
        if self.settings.trackers:
            settings = {name: str(value) for name, value in flatten(as_dict(self.config)).items()}
            self.accelerator.init_trackers(self.command, config=settings)
        used = self.accelerator
        precision = "float32" if used.mixed_precision == "no" else used.mixed_precision
        self.say(f"run folder {self.folder}, {used.num_processes} process(es), {used.device}, {precision}")

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Turn a full or failing disk into one sentence."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"cannot write {what} to {self.folder} ({getattr(error, 'strerror', None) or error}): "
                "the checkpoints that are there are unharmed, make room and go on with --resume auto"
            ) from error

    def _end_epoch(self) -> None:
        self._check_losses()
        seconds = time.perf_counter() - self._started
        record: dict[str, Any] = {"epoch": self.epoch + 1, "lr": self.optimizer.param_groups[0]["lr"]}
        for name, total in self._totals.items():
            mean = self.accelerator.reduce(total / max(1, self.step), reduction="mean")
            record[f"train_{name}"] = float(mean)
        record.update(self._record, seconds=round(seconds, 3))
        self._history.append(record)
        if self.accelerator.is_main_process:
            with self.writing("metrics"), (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            shown = "  ".join(f"{name} {value:.4g}" for name, value in record.items() if name != "epoch")
            self._print(f"epoch {self.epoch + 1}/{self._count}  {shown}")
        if self.settings.trackers:
            self.accelerator.log(record, step=self.epoch + 1)
        self.epoch, self.step, self._totals, self._record = self.epoch + 1, 0, {}, {}
        due = self.epoch % self.settings.checkpoint_epochs == 0 or self.epoch == self._count
        stopping = self._asked_to_stop()
        if due or stopping:
            self._save()
        if stopping:
            self._stop()

    def _stop_progress(self) -> None:
        if self._progress is not None:
            self._progress.stop()

    def _print(self, text: str) -> None:
        console_print = self._progress.console.print if self._progress is not None else print
        console_print(text)

    # -- checkpoints

    def _find_checkpoint(self) -> Path | None:
        """The checkpoint to resume from, its configuration compared with this run's; None to start anew."""
        wanted = self.settings.resume
        if wanted is None:
            return None
        source = None if wanted == "auto" else Path(wanted)
        if source is None:
            source = checkpoint.newest_good(self.folder / "checkpoints", self.say)
        elif (source / "checkpoints").is_dir():
            source = checkpoint.newest_good(source / "checkpoints", self.say)
        elif not source.is_dir():
            raise InputError(f"--resume is {wanted!r}, but must be `auto`, a run folder, or a checkpoint folder")
        if source is None and wanted != "auto":
            raise InputError(f"--resume is {wanted!r}, but no undamaged checkpoint lies there")
        if source is None:
            self.say(f"no checkpoint in {self.folder}: starting anew")
        else:
            checkpoint.check(source, world_size=self.accelerator.num_processes, config=self._decisive())
        return source

    def _decisive(self) -> dict[str, Any]:
        """The configuration that a checkpoint belongs to: with the precision that `auto` stands for on this machine."""
        config = as_dict(self.config)
        config["run"]["mixed_precision"] = self.accelerator.mixed_precision
        return config

    def _restore(self, source: Path) -> None:
        accelerator = self.accelerator
        shared, own = checkpoint.load(source, rank=accelerator.process_index)
        plain = accelerator.unwrap_model(self.model)
        try:
            plain.load_state_dict(shared["model"])
            for name, buffer in plain.named_buffers():
                buffer.copy_(own["buffers"][name])
            self.optimizer.load_state_dict(shared["optimizer"])
            for name, item in self._state.items():
                item.load_state_dict(own["extra"][name])
        except (RuntimeError, ValueError, KeyError) as error:
            # The configurations agree, but what they refer to (another model folder, say) has changed.
            reason = " ".join(str(error).split())
            raise InputError(f"checkpoint {source} is of another network or optimiser: {reason}") from error
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(shared["scaler"])
        self.epoch, self.step = shared["epoch"], shared["step"]
        self._history, self._record = shared["metrics"], shared["record"]
        self._totals = {name: total.to(accelerator.device) for name, total in own["totals"].items()}
        checkpoint.set_rng_state(own["rng"])
        self.say(f"resumed from {source}")

    def _save(self) -> Path:
        self._check_losses()
        accelerator = self.accelerator
        plain = accelerator.unwrap_model(self.model)
        self._check_weights(plain)
        shared = {
            "epoch": self.epoch,
            "step": self.step,
            "metrics": self._history,
            "record": self._record,
            "model": plain.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else {},
        }
        own = {
            "rng": checkpoint.rng_state(),
            "buffers": dict(plain.named_buffers()),
            "totals": self._totals,
            "extra": {name: item.state_dict() for name, item in self._state.items()},
        }
        name = f"epoch_{self.epoch:04d}" + (f"_step_{self.step:06d}" if self.step else "")
        with self.writing(f"checkpoint {name}"):
            return checkpoint.save(
                self.folder / "checkpoints",
                name,
                shared=shared,
                own=own,
                config=self._decisive(),
                rank=accelerator.process_index,
                world_size=accelerator.num_processes,
                barrier=accelerator.wait_for_everyone,
                keep=self.settings.keep_checkpoints,
            )

    def _check_losses(self) -> None:
        if not self._unchecked_losses:
            return
        finite = torch.isfinite(torch.stack(self._unchecked_losses)).tolist()
        first = self.step - len(finite)
        self._unchecked_losses.clear()
        if not all(finite):
            raise InputError(
                f"the loss is not finite at epoch {self.epoch + 1}, step {first + finite.index(False) + 1}: "
                "lower the learning rate and start anew"
            )

    def _check_weights(self, plain: nn.Module) -> None:
        # A finite loss can have a gradient that is not: without this, the last checkpoint would be the poisoned one.
        tensors = {name: tensor for name, tensor in plain.state_dict().items() if tensor.is_floating_point()}
        finite = torch.stack([torch.isfinite(tensor).all() for tensor in tensors.values()]).tolist()
        if not all(finite):
            when = f"epoch {self.epoch + 1}, step {self.step}" if self.step else f"the last step of epoch {self.epoch}"
            raise InputError(
                f"{list(tensors)[finite.index(False)]} is not finite after {when}: "
                "lower the learning rate and start anew"
            )

    # -- stopping

    def _catch_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return

        def remember(number: int, frame: FrameType | None) -> None:
            # Ctrl-C again: do not wait for the step. Not so SIGTERM, which schedulers and torchrun may both send.
            if self._signal is not None and number == signal.SIGINT:
                raise KeyboardInterrupt
            self._signal = number

        for number in (signal.SIGTERM, signal.SIGINT):
            self._old_handlers[number] = signal.signal(number, remember)

    def _release_signals(self) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._old_handlers.clear()

    def _asked_to_stop(self) -> bool:
        if self.accelerator.num_processes == 1:
            return self._signal is not None
        flag = torch.tensor(float(self._signal or 0), device=self.accelerator.device)
        number = int(self.accelerator.reduce(flag, reduction="sum").item())
        if number and self._signal is None:
            self._signal = signal.SIGTERM
        return number > 0

    def _save_or_stop(self, last_of_epoch: bool) -> None:
        if last_of_epoch:  # the loop still has to end the epoch; `_end_epoch` saves and stops
            return
        every = self.settings.checkpoint_steps
        alone = self.accelerator.num_processes == 1
        stopping = (alone or self.step % SIGNAL_CHECK_STEPS == 0) and self._asked_to_stop()
        if stopping or (every is not None and self.step % every == 0):
            self._save()
        if stopping:
            self._stop()

    def _stop(self) -> None:
        number = self._signal or signal.SIGTERM
        name = signal.Signals(number).name
        self._print(f"stopped by {name} at epoch {self.epoch + 1}, step {self.step}; go on with --resume auto")
        raise SystemExit(128 + number)


def lost_a_process(error: BaseException) -> bool:
    """Whether an error of a collective operation says that the other side is gone."""
    gone = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in gone)


def accelerator(
    mixed_precision: str,
    trackers: tuple[str, ...] = (),
    folder: Path | None = None,
    unused_parameters: bool = False,
) -> Accelerator:
    """An Accelerator of this precision, whichever one an earlier run in this process had.

    Args:
        mixed_precision: no, bf16, fp16 or auto.
        trackers: experiment trackers to log with, which write to `folder`.
        unused_parameters: look, every step, for parameters that got no gradient, which has its price.

    Raises:
        InputError: fp16 on a CPU, which Accelerate would pass over in silence; `auto` on machines that differ.
    """
    AcceleratorState._reset_state()  # Accelerate keeps the first precision for good, and refuses any other
    precision = resolve(mixed_precision)
    made = Accelerator(
        # Without a GPU, Accelerate starts its process group only when told that the CPU is meant.
        cpu=not torch.accelerator.is_available(),
        mixed_precision=precision,
        # Buffers are averaged where it matters, see `average_buffers`.
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=unused_parameters)
        ],
        log_with=list(trackers) or None,
        project_dir=None if folder is None else str(folder),
    )
    if made.device.type == "cpu":
        keep_freed_memory()
    check_alike(precision, made)
    if made.is_main_process and precision == "bf16" and made.device.type in ("cpu", "cuda") and not computes_in_bf16():
        print("warning: bf16 is emulated here, and slow: leave it to --mixed-precision auto, or no", flush=True)
    return made


def check_alike(precision: str, accelerator: Accelerator) -> None:
    """Refuse a run in which `auto` stands for bf16 on some machines, and for float32 on others."""
    if accelerator.num_processes > 1:
        found = gather_object([precision])
        stands_for = " and ".join(sorted(set(found)))
        check(stands_for == found[0], "--mixed-precision", "auto", f"no or bf16: on these machines it is {stands_for}")


def check_folder(folder: Path, settings: RunConfig) -> None:
    """Refuse a folder that is in use already, unless an earlier run in it is resumed or replaced."""
    used = folder.exists() and (not folder.is_dir() or any(_is_content(path) for path in folder.iterdir()))
    if not used:
        return
    if not settings.resume and not settings.overwrite:
        raise InputError(
            f"run folder {folder} exists: go on with --resume auto, replace it with --overwrite, or choose --run-dir"
        )
    if not (folder / RECORD).is_file():
        wish = "--overwrite does not delete it" if settings.overwrite else "--resume does not write to it"
        raise InputError(f"{folder} is not a run folder, so {wish}: choose another --run-dir")


def _is_content(path: Path) -> bool:
    """Whether a file of a run folder is neither its lock nor what a kill left of a file that was being written."""
    return path.name != LOCK and not path.name.startswith(WRITING)


def check_trackers(names: tuple[str, ...]) -> None:
    """Refuse trackers that Accelerate does not know, or that are not installed (which it would pass over)."""
    installed = [str(tracker) for tracker in get_available_trackers()]
    for name in names:
        if name not in installed:
            raise unknown_name("tracker, or one that is not installed,", name, installed or ["none here"])


def _empty(folder: Path) -> None:
    """Delete what a run folder holds, but for its lock; last what makes it a run folder, in case of a kill."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == RECORD):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()
