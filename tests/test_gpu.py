"""On a GPU the commands run, and give what they give on the processor. `./dev -s gpu`; skipped where there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from blockdrop.model import BlockDropNet
from deephoyer import channels, method
from deephoyer.report import prunable
from resless import costs, models, weights
from resless.folding import fold
from resless.precision import resolve
from safetensors.torch import load_file

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that CUDA sees")

TRAININGS = {
    "dense": ["resless.train", "--recipe", "smoke_resnet"],
    "deephoyer": ["deephoyer.train", "--recipe", "smoke_resnet"],
    "epsilon": ["epsilon_resnet.train", "--recipe", "smoke"],
    "adn": ["adn.train", "--recipe", "smoke"],
}


@pytest.fixture(autouse=True)
def full_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TensorFloat-32, whose products have eleven bits; the commands' own processes keep it."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def python(folder: Path, *arguments: str, gpu: bool = True) -> str:
    """What a module prints, run on the GPU or on the processor."""
    hidden = {} if gpu else {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "1"}
    command = [sys.executable, "-m", *arguments]
    environment = os.environ | hidden | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def first_epoch(folder: Path) -> dict:
    return json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])


@pytest.mark.parametrize("name", TRAININGS)
def test_an_epoch_goes_as_on_the_processor(name: str, tmp_path: Path) -> None:
    for where, gpu in (("gpu", True), ("cpu", False)):
        common = ["--epochs", "1", "--mixed-precision", "no", "--run-dir", where]
        python(tmp_path, *TRAININGS[name], *common, gpu=gpu)
    start = json.loads((tmp_path / "gpu" / "env.json").read_text(encoding="utf-8"))["starts"][0]
    assert start["device"] == torch.cuda.get_device_name()
    found, wanted = (first_epoch(tmp_path / where)["train_loss"] for where in ("gpu", "cpu"))
    assert found == pytest.approx(wanted, rel=0.03)


def test_blockdrop_goes_through_all_stages(tmp_path: Path) -> None:
    python(tmp_path, *TRAININGS["dense"], "--epochs", "2", "--run-dir", "dense")
    common = ["--recipe", "smoke", "--epochs", "1"]
    python(tmp_path, "blockdrop.train", *common, "--backbone", "dense/model", "--run-dir", "policy")
    python(tmp_path, "blockdrop.finetune", *common, "--pretrained", "policy/model", "--run-dir", "joint")
    result = json.loads((tmp_path / "joint" / "result.json").read_text(encoding="utf-8"))
    assert 0 < result["blocks_used"] <= result["num_blocks"]
    named = ["dense=dense/model", "blockdrop=joint/model"]
    python(tmp_path, "resless.compare", *named, "--dataset", "digits", "--repeats", "2", "--output", "found.json")
    compared = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert compared["environment"]["device"] == torch.cuda.get_device_name()
    assert compared["networks"][1]["accuracy"]["top1"] == pytest.approx(result["top1"], abs=0.005)


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    smoke = ["resless.train", "--recipe", "smoke", "--mixed-precision", "no", "--epochs", "4"]
    python(tmp_path, *smoke, "--run-dir", "whole")
    saved = tmp_path / "whole" / "checkpoints" / "epoch_0003"
    python(tmp_path, *smoke, "--run-dir", "parts", "--resume", str(saved))
    whole, parts = (load_file(tmp_path / run / "model" / weights.TENSORS_NAME) for run in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize("executor", ["gathered", "grouped"])
def test_blocks_that_are_skipped_give_what_masked_ones_give(executor: str) -> None:
    torch.manual_seed(0)
    net = BlockDropNet("R32_C10").eval().cuda()
    images = torch.randn(64, 3, 32, 32, device="cuda")
    policies = torch.rand(4, net.num_blocks, device="cuda")[torch.arange(64) % 4] < 0.5
    with torch.inference_mode():
        masked = net.resnet(images, policies, "masked")
        assert torch.allclose(net.resnet(images, policies, executor), masked, atol=1e-5)


@pytest.mark.parametrize("regulariser", ["group_lasso", "group_hoyer", "group_hoyer_square"])
def test_penalties_and_their_gradients_are_the_processor_s(regulariser: str) -> None:
    torch.manual_seed(0)
    model = models.create("resnet20")
    coupling = channels.coupling(model, torch.zeros(1, 3, 32, 32))
    names = [name for name in prunable(model) if name in coupling.rows]
    found = {}
    for device in ("cpu", "cuda"):
        model = model.to(device)
        tensors = [prunable(model)[name].detach().requires_grad_() for name in names]
        penalties = {
            "each": method.penalty(tensors, regulariser),
            "tied": method.tied_penalty(tensors, coupling.ties(names).to(torch.device(device)), regulariser),
        }
        gradients = torch.autograd.grad(sum(penalties.values()), tensors)
        found[device] = [*(value.detach().cpu() for value in penalties.values()), *(one.cpu() for one in gradients)]
    for ours, theirs in zip(found["cuda"], found["cpu"], strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_folded_network_gives_the_same_outputs() -> None:
    torch.manual_seed(0)
    net = models.create("resnet20").train()
    for _ in range(3):
        net(torch.randn(32, 3, 32, 32))
    images = torch.randn(16, 3, 32, 32)
    folded = fold(net.eval(), images)
    assert costs.macs(folded, images[:1]) == costs.macs(net, images[:1])
    with torch.inference_mode():
        assert torch.allclose(folded.cuda()(images.cuda()).cpu(), net(images), atol=1e-3)


def test_auto_is_bf16_where_the_gpu_computes_in_it() -> None:
    wanted = torch.cuda.get_device_capability() >= (8, 0)
    assert resolve("auto") == ("bf16" if wanted else "no")
