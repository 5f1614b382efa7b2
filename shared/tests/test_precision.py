"""What `auto` stands for, and what a run says and records of its precision."""

import gc
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from resless import precision, run
from resless.config import OptimConfig, RunConfig, TrainConfig
from resless.errors import InputError
from resless.precision import computes_in_bf16, resolve
from resless.testing import done, forked
from resless.train import train

WARNING = "warning: bf16 is emulated here, and slow: leave it to --mixed-precision auto, or no"


@pytest.fixture(params=[True, False], ids=["with bf16 units", "without"])
def units(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the processor is taken to have bf16 units."""
    for module in (precision, run):
        monkeypatch.setattr(module, "computes_in_bf16", lambda: request.param)
    return bool(request.param)


def test_auto_is_bf16_where_there_are_units_for_it(units: bool) -> None:
    assert resolve("auto") == ("bf16" if units else "no")
    assert [resolve(name) for name in ("no", "bf16")] == ["no", "bf16"]


@pytest.mark.parametrize("available", [True, False])
@pytest.mark.parametrize("cpu_wanted", ["1", "0", None])
def test_a_build_for_gpus_is_no_gpu(available: bool, cpu_wanted: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: available)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(precision.platform, "machine", lambda: "x86_64")
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    if cpu_wanted is not None:
        monkeypatch.setenv("ACCELERATE_USE_CPU", cpu_wanted)
    on_gpu = available and cpu_wanted != "1"
    assert computes_in_bf16() == on_gpu
    assert resolve("auto") == ("bf16" if on_gpu else "no")
    if on_gpu:
        assert resolve("fp16") == "fp16"
    else:
        with pytest.raises(InputError, match="--mixed-precision is 'fp16', but must be auto, bf16 or no on a CPU"):
            resolve("fp16")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="the default device is not the processor")
def test_this_processor_has_units_if_it_has_their_instructions() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    if "flags" not in flags:
        pytest.skip("no x86 flags to compare with")
    assert computes_in_bf16() == ("avx512_bf16" in flags)


@pytest.mark.parametrize("asked", ["no", "bf16", "auto"])
def test_a_run_says_and_records_what_it_computes_in(asked: str, units: bool, tmp_path: Path) -> None:
    settings = RunConfig(run_dir=str(tmp_path / "run"), mixed_precision=asked)  # type: ignore[arg-type]
    config = replace(TrainConfig(), run=settings, optim=OptimConfig(epochs=1, batch_size=500))
    printed = done(forked(lambda: train(config)))
    used = {"no": "no", "bf16": "bf16", "auto": "bf16" if units else "no"}[asked]
    assert f"cpu, {'float32' if used == 'no' else used}\n" in printed
    assert (WARNING in printed) == (asked == "bf16" and not units)
    start = json.loads((tmp_path / "run" / "env.json").read_text(encoding="utf-8"))["starts"][0]
    assert start["mixed_precision"] == used
    assert json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))["run"]["mixed_precision"] == asked


def test_a_checkpoint_belongs_to_what_auto_stood_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def training(resume: str | None) -> TrainConfig:
        settings = RunConfig(run_dir=str(tmp_path / "run"), mixed_precision="auto", resume=resume)
        return replace(TrainConfig(), run=settings, optim=OptimConfig(epochs=1, batch_size=500))

    monkeypatch.setattr(precision, "computes_in_bf16", lambda: False)
    done(forked(lambda: train(training(None))))
    monkeypatch.setattr(precision, "computes_in_bf16", lambda: True)
    ended = forked(lambda: train(training("auto")))[0]
    assert "--mixed-precision = 'no' (now 'bf16'): give the same, or start anew" in ended.printed


def test_machines_of_which_only_some_compute_in_bf16_are_refused(tmp_path: Path) -> None:
    def task() -> None:
        precision.computes_in_bf16 = lambda: os.environ["RANK"] == "1"
        train(replace(TrainConfig(), run=RunConfig(run_dir=str(tmp_path / "run"), mixed_precision="auto")))

    for ended in forked(task, 2):
        assert (
            "--mixed-precision is 'auto', but must be no or bf16: on these machines it is bf16 and no" in ended.printed
        )
    assert not (tmp_path / "run").exists()


def test_forks_do_not_finalize_garbage_of_the_process_that_tests() -> None:
    class Cycle:
        def __init__(self, report: Callable[[str], None]) -> None:
            self.me, self.report = self, report

        def __del__(self) -> None:
            self.report("finalized")

    here: list[str] = []
    gc.disable()
    try:
        Cycle(lambda text: (here.append(text), print(text)))
        assert done(forked(lambda: print(gc.collect()))).strip().isdigit()
    finally:
        gc.enable()
    gc.collect()
    assert here == ["finalized"]
