"""What a reader of the README files copies really runs: the first block of each distribution, and all Python.

Their other blocks, which take hours, are run on few images in test_readme_trainings.py.
"""

from __future__ import annotations

import json
import re
import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import deephoyer.cli
import pytest
import resless.cli
import torch
from readmes import READMES, ROOT, blocks, cifar10, lines, photos, run_line, timed_briefly
from resless import costs, models, weights
from resless.testing import assert_every_parameter_gets_gradient, few_images, run, script, succeeded
from torch import nn

CIFAR10 = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.247, 0.2435, 0.2616]}
HOURS = "resless-train --recipe resnet20 --data-dir ~/data/cifar10"
"""A training in full, of which an epoch is run."""
PUBLISHED = "resnet20-12fca82f.th"


def run_own_network(paper: str) -> dict[str, Any]:
    """Run the Python of a package's section `Your own network`."""
    text = (ROOT / "packages" / paper / "README.md").read_text(encoding="utf-8")
    section = text.split("\n## Your own network\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    return run_python(block)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where everything runs; also the home folder, in which there are a few random images as CIFAR-10."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RESLESS_CACHE", str(tmp_path / "cache"))
    cifar10(tmp_path / "data" / "cifar10")
    return tmp_path


def prepare(readme: str) -> None:
    """The networks that the blocks of a README name, but that its first block does not make."""
    if readme == "README.md":
        net = models.create("lenet5", in_channels=1)
        weights.save_pretrained(net, "lenet5-small", example=torch.zeros(1, 1, 28, 28))
    if readme == "shared/README.md":
        net = models.create("resnet8")
        weights.save_pretrained(net, "small", preprocessing=CIFAR10, example=torch.zeros(1, 3, 32, 32))
        net = models.create("resnet20", shortcut="subsample")
        # The file is a download; the published ones have this layout.
        torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in net.state_dict().items()}}, PUBLISHED)


def run_first_block(readme: str, folder: Path) -> None:
    """Run a block line by line, in forks, which need not import torch again."""
    # ε-ResNet's blocks discard themselves only in as many steps as all digits make; others need few to succeed.
    few = nullcontext() if "epsilon" in readme else few_images(128, 40)
    ran = []
    with few, timed_briefly():
        for words in lines(blocks(readme, "sh")[0]):
            if words[:2] == ["pip", "install"]:
                continue
            shorter = ["--epochs", "1", "--batch-size", "8"] if words == shlex.split(HOURS) else []
            run_line([*words, *shorter], folder)
            ran.append(words[0])
    assert len(ran) >= 3


def run_python(block: str) -> dict[str, Any]:
    """Run a block in a namespace of its own; `images` are of the shape that it says."""
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    if shape := re.search(r"# .*\[N, (\d+), (\d+), (\d+)\]", block):
        names["images"] = torch.randn(4, *map(int, shape.groups()))
    exec(block, names)
    return names


def test_own_images_end_in_a_smaller_and_faster_network(folder: Path) -> None:
    """All lines of the block that begins with a dense training, in an epoch each."""
    onnxruntime = pytest.importorskip("onnxruntime")
    photos(folder / "data" / "flowers")
    (block,) = (block for block in blocks("README.md", "sh") if "flowers-fast" in block)
    with timed_briefly():
        for words in lines(block):
            said = run_line([*words, *(["--epochs", "1"] if "--run-dir" in words else [])], folder)
    dense, small = (
        weights.read_config(name)["costs"]["macs_per_image"] for name in ("runs/flowers/model", "flowers-small")
    )
    assert 0.45 * dense < small <= 0.51 * dense
    assert all(name in said for name in ("dense", "small", "fast"))
    assert weights.read_config("flowers-fast")["class_names"] == ["kind0", "kind1", "kind2"]
    session, images = onnxruntime.InferenceSession("flowers-fast.onnx"), torch.randn(2, 3, 32, 32)
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.inference_mode():
        expected = weights.from_pretrained("flowers-small")(images)
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("readme", READMES)
def test_what_a_reader_copies_runs(readme: str, folder: Path) -> None:
    prepare(readme)
    if readme != "README.md":  # whose first block is the nox sessions
        run_first_block(readme, folder)
    found = [run_python(block) for block in blocks(readme, "python")]
    for names in found:
        if "logits" in names:
            assert names["logits"].shape == (len(names["images"]), 10)
            assert names["logits"].isfinite().all()
    assert len(found) == (ROOT / readme).read_text(encoding="utf-8").count("```python")


def test_published_weights_are_loaded_as_the_readme_says(folder: Path) -> None:
    prepare("shared/README.md")
    (block,) = (block for block in blocks("shared/README.md", "python") if PUBLISHED in block)
    saved = torch.load(PUBLISHED, weights_only=True)["state_dict"]
    for key, tensor in run_python(block)["model"].state_dict().items():
        assert torch.equal(tensor, saved[f"module.{key}"]), key


def test_the_depth_is_chosen_as_the_readme_says() -> None:
    (block,) = (block for block in blocks("packages/adn/README.md", "python") if "DepthController" in block)
    names = run_python(block)
    assert repr(names["skip"]) == re.search(r"choose\(\)  # (.*)", block)[1]
    assert sum(names["controller"].choose()) > sum(names["skip"]), "the next choice is a cheaper one"


@torch.no_grad()
def assert_same_logits(net: nn.Module, images: torch.Tensor, logits: torch.Tensor) -> None:
    assert logits.shape == (len(images), 10)
    assert torch.allclose(net.eval()(images), logits, atol=1e-5)


def test_deephoyer_makes_ones_own_network_smaller() -> None:
    names = run_own_network("deephoyer")
    assert names["loss"].isfinite()
    assert_same_logits(names["small"], names["images"], names["net"](names["images"]))
    assert costs.count_parameters(names["small"]) < costs.count_parameters(names["net"])


def test_blockdrop_skips_blocks_of_ones_own_network() -> None:
    names = run_own_network("blockdrop")
    parts = nn.ModuleDict({name: names[name] for name in ("stem", "blocks", "head", "policy_network")})
    assert_every_parameter_gets_gradient(parts, names["loss"])
    net = nn.Sequential(names["stem"], *names["blocks"], names["head"]).eval()
    kept = torch.ones(len(names["images"]), len(names["blocks"]), dtype=torch.bool)
    assert_same_logits(net, names["images"], names["run"](kept)[0])


def test_epsilon_resnet_drops_blocks_of_ones_own_network() -> None:
    names = run_own_network("epsilon_resnet")
    assert_same_logits(names["net"], names["images"], names["logits"])
    assert len(list(names["net"].blocks())) == names["gated"].num_blocks - 1


def test_adn_gives_ones_own_network_several_depths() -> None:
    names = run_own_network("adn")
    assert_same_logits(names["short"], names["images"], names["logits"])
    assert costs.count_parameters(names["short"]) < costs.count_parameters(names["net"].net)


def test_ones_own_network_is_known_by_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (block,) = (block for block in blocks("shared/README.md", "python") if "def build" in block)
    (entry,) = blocks("shared/README.md", "toml")
    name, package = re.search(r'^(\w+) = "(\w+):build"$', entry, re.M).groups()
    (tmp_path / f"{package}.py").write_text(block)
    (tmp_path / f"{package}-1.0.dist-info").mkdir()
    (tmp_path / f"{package}-1.0.dist-info" / "METADATA").write_text(f"Name: {package}\nVersion: 1.0\n")
    (tmp_path / f"{package}-1.0.dist-info" / "entry_points.txt").write_text(
        f"[{models.ENTRY_POINTS}]\n{name} = {package}:build\n"
    )
    net, images = models.create(name, width=64).eval(), torch.randn(2, 3, 32, 32)
    weights.save_pretrained(net, tmp_path / "saved")
    assert_same_logits(weights.from_pretrained(tmp_path / "saved"), images, net(images))
    short = ["--model", name, "--dataset", "digits", "--epochs", "1", "--batch-size", "16"]
    with few_images(train=32, test=16):
        succeeded(resless.cli.train, *short, "--run-dir", "dense", cwd=tmp_path)
        tied = ["--structural", "--reg", "group_hoyer_square", "--pretrained", "dense/model"]
        succeeded(deephoyer.cli.train, *short, *tied, "--run-dir", "sparse", cwd=tmp_path)
    for folder in ("dense", "sparse"):
        assert weights.read_config(tmp_path / folder / "model")["model"]["name"] == name


def test_accelerate_launches_a_training(tmp_path: Path) -> None:
    command = [script("accelerate"), "launch", "-m", "deephoyer.train", "--recipe", "smoke", "--epochs", "1"]
    said = run([*command, "--run-dir", "run"], tmp_path)
    assert "1 process(es)" in said.stdout
    assert 0 < json.loads((tmp_path / "run" / "result.json").read_text())["top1"] <= 1
