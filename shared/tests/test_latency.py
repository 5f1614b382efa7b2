"""Latency: order, modes, counting of calls and statistics. No test depends on how fast anything is."""

from __future__ import annotations

import json
import statistics

import pytest
import torch
from resless import latency, models
from resless.errors import InputError
from resless.latency import Timing
from torch import Tensor, nn


def timing(*times_ms: float) -> Timing:
    return Timing(times_ms, {"batch_size": 10})


class Recorder:
    """A model that notes who was called, and in which mode of torch."""

    def __init__(self, name: str, calls: list[tuple[str, bool]]) -> None:
        self.name, self.calls = name, calls

    def __call__(self, x: Tensor) -> Tensor:
        self.calls.append((self.name, torch.is_inference_mode_enabled()))
        return x


def test_models_are_interleaved_and_take_turns_to_be_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "MIN_MEASUREMENT_MS", 0.0)  # one call a measurement
    calls: list[tuple[str, bool]] = []
    recorders = {name: Recorder(name, calls) for name in "abc"}
    timings = latency.compare(recorders, torch.zeros(1, 1), repeats=3, warmup=2)
    assert "".join(name for name, _ in calls) == "aabbcc" + "aaabbbccc" + "abc" + "bca" + "cab"
    assert all(inference for _, inference in calls)
    assert list(timings) == ["a", "b", "c"]
    assert all(len(timing.times_ms) == 3 and min(timing.times_ms) > 0 for timing in timings.values())


def test_fast_models_are_called_several_times_a_measurement() -> None:
    calls: list[tuple[str, bool]] = []
    latency.compare({"a": Recorder("a", calls)}, torch.zeros(1, 1), repeats=2, warmup=1)
    assert len(calls) > 1 + 3 + 2


def test_networks_run_in_eval_mode_and_get_their_modes_back() -> None:
    model = models.create("resnet8")
    model.layer2.eval()
    modes = [module.training for module in model.modules()]
    seen = []
    model.layer1.register_forward_hook(lambda module, args, output: seen.append(module.training))
    statistics_before = model.bn1.running_mean.clone()
    latency.compare({"resnet8": model}, torch.randn(2, 3, 8, 8), repeats=2, warmup=1)
    assert seen
    assert not any(seen)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model.bn1.running_mean, statistics_before)


def test_modes_return_after_a_failure() -> None:
    model = nn.Linear(3, 3)
    with pytest.raises(RuntimeError):
        latency.compare({"linear": model}, torch.zeros(1, 4))
    assert model.training


def test_statistics_of_a_timing() -> None:
    measured = timing(1.0, 2.0, 3.0, 4.0, 100.0)
    assert (measured.median_ms, measured.q25_ms, measured.q75_ms) == (3.0, 2.0, 4.0)
    assert measured.images_per_second == pytest.approx(10 / 0.003)


def test_speedup_pairs_the_repeats() -> None:
    slow, fast = timing(2.0, 8.0, 6.0), timing(1.0, 2.0, 2.0)
    ratios = [2.0, 4.0, 3.0]
    result = latency.speedup(slow, fast)
    assert result.median == statistics.median(ratios) == 3.0
    assert (result.q25, result.q75) == (2.5, 3.5)
    with pytest.raises(InputError, match="repeats of the model is 2, but must be those of the baseline, 3"):
        latency.speedup(slow, timing(1.0, 2.0))


def test_environment_tells_what_the_number_depends_on() -> None:
    images = torch.zeros(4, 3, 8, 8).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        found = latency.compare({"identity": nn.Identity()}, images, repeats=2)["identity"].environment
    assert found["batch_size"] == 4
    assert found["input_shape"] == [3, 8, 8]
    assert (found["dtype"], found["autocast"], found["channels_last"]) == ("float32", "bfloat16", True)
    assert found["threads"] == torch.get_num_threads()
    assert found["torch"] == torch.__version__
    assert found["device"]
    assert json.loads(json.dumps(found)) == found
    assert latency.environment(torch.zeros(1, 3, 8, 8))["autocast"] is None


@pytest.mark.parametrize(
    ("given", "message"),
    [({"repeats": 1}, "repeats is 1, but must be 2 or more"), ({"warmup": 0}, "warmup is 0, but must be 1 or more")],
)
def test_too_few_calls_are_refused(given: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        latency.compare({"identity": nn.Identity()}, torch.zeros(1, 1), **given)
    with pytest.raises(InputError, match="at least one model"):
        latency.compare({}, torch.zeros(1, 1))
