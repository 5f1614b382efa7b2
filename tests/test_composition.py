"""Methods on top of each other, by model folders alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import adn.cli
import blockdrop.cli
import deephoyer.cli
import epsilon_resnet.cli
import pytest
import resless.cli
import torch
from resless import costs, weights
from resless.testing import refused, succeeded
from torch import Tensor, nn

IMAGES = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
IMAGE = IMAGES[:1]


@torch.no_grad()
def logits(folder: Path) -> Tensor:
    return weights.from_pretrained(folder)(IMAGES)


def halved(folder: str, small: str, cwd: Path) -> int:
    """Prune a network to half of its MACs without training, and compact it; the MACs that it had."""
    macs = costs.macs(weights.from_pretrained(cwd / folder), IMAGE)
    cut = ("--recipe", "smoke_resnet", "--epochs", "0", "--target-macs", str(macs // 2), "--run-dir", f"{small}-pruned")
    succeeded(deephoyer.cli.prune, "--model", folder, *cut, cwd=cwd)
    succeeded(deephoyer.cli.compact, "--model", f"{small}-pruned/model", "--output", small, "--repeats", "0", cwd=cwd)
    assert costs.macs(weights.from_pretrained(cwd / small), IMAGE) <= macs // 2
    assert torch.allclose(logits(cwd / small), logits(cwd / f"{small}-pruned" / "model"), atol=1e-4)
    return macs


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ResNet-20 after one epoch on digits, in dense/model."""
    cwd = tmp_path_factory.mktemp("trained")
    succeeded(resless.cli.train, "--recipe", "smoke_resnet", "--epochs", "1", "--run-dir", "dense", cwd=cwd)
    return cwd


def test_blockdrop_on_a_compacted_network(trained: Path) -> None:
    halved("dense/model", "small", trained)
    stage = ("--recipe", "smoke", "--epochs", "1")
    succeeded(blockdrop.cli.train, *stage, "--backbone", "small", "--run-dir", "policy", cwd=trained)
    net, small = weights.from_pretrained(trained / "policy" / "model"), weights.from_pretrained(trained / "small")
    kept = torch.ones(len(IMAGES), net.num_blocks, dtype=torch.bool)
    with torch.no_grad():
        assert torch.allclose(net.resnet(IMAGES, kept), small(IMAGES), atol=1e-5)
    succeeded(blockdrop.cli.finetune, *stage, "--pretrained", "policy/model", "--run-dir", "joint", cwd=trained)
    said = succeeded(blockdrop.cli.evaluate, "--model", "joint/model", cwd=trained)
    assert f"the dense network takes {costs.macs(small, IMAGE):,}" in said


def test_deephoyer_on_one_configuration_of_an_adaptive_network(trained: Path) -> None:
    succeeded(adn.cli.train, "--recipe", "smoke", "--epochs", "0", "--run-dir", "adaptive", cwd=trained)
    skip = ("--skip-cfg", "True", "True", "True", "--output", "base", "--repeats", "0")
    succeeded(adn.cli.extract, "--model", "adaptive/model", *skip, cwd=trained)
    base = halved("base", "base-small", trained)
    assert base < costs.macs(weights.from_pretrained(trained / "adaptive" / "model"), IMAGE)


def test_what_methods_end_in_can_be_folded(trained: Path) -> None:
    halved("dense/model", "pruned", trained)
    succeeded(adn.cli.train, "--recipe", "smoke", "--epochs", "0", "--run-dir", "depths", cwd=trained)
    skip = ("--skip-cfg", "True", "False", "True", "--output", "shallow", "--repeats", "0")
    succeeded(adn.cli.extract, "--model", "depths/model", *skip, cwd=trained)
    for folder in ("pruned", "shallow"):
        said = succeeded(
            resless.cli.fold, "--model", folder, "--output", f"{folder}-fast", "--repeats", "0", cwd=trained
        )
        assert f"wrote {folder}-fast" in said
        assert torch.allclose(logits(trained / f"{folder}-fast"), logits(trained / folder), rtol=1e-4, atol=1e-4)
        assert not any(
            isinstance(module, nn.BatchNorm2d)
            for module in weights.from_pretrained(trained / f"{folder}-fast").modules()
        )
    trains = ("--recipe", "smoke_resnet", "--model", "resnet20", "--run-dir", "on")
    assert "it cannot be trained" in refused(deephoyer.cli.train, *trains, "--pretrained", "pruned-fast", cwd=trained)
    again = ("--model", "pruned-fast", "--output", "smaller-fast")
    assert "it cannot be compacted" in refused(deephoyer.cli.compact, *again, cwd=trained)
    cut = ("--recipe", "smoke_resnet", "--model", "pruned-fast")
    assert "it cannot be pruned" in refused(deephoyer.cli.prune, *cut, "--run-dir", "on", cwd=trained)


def test_a_skipping_network_that_was_folded_is_evaluated_and_not_trained(trained: Path) -> None:
    stage = ("--recipe", "smoke", "--epochs", "0")
    succeeded(blockdrop.cli.train, *stage, "--backbone", "dense/model", "--run-dir", "some", cwd=trained)
    fast = ("--output", "some-fast", "--repeats", "0")
    succeeded(resless.cli.fold, "--model", "some/model", *fast, cwd=trained)
    said = {
        folder: succeeded(blockdrop.cli.evaluate, "--model", folder, "--repeats", "0", cwd=trained)
        for folder in ("some/model", "some-fast")
    }
    assert said["some-fast"] == said["some/model"]
    on = (*stage, "--run-dir", "on")
    assert "it cannot be a backbone" in refused(blockdrop.cli.train, *on, "--backbone", "some-fast", cwd=trained)
    assert "it cannot be trained" in refused(blockdrop.cli.finetune, *on, "--pretrained", "some-fast", cwd=trained)
    one = ("--model", "some-fast", "--specialise", "one")
    assert "it cannot be specialised" in refused(blockdrop.cli.evaluate, *one, cwd=trained)
    onnx = ("--output", "some-onnx", "--export", "onnx")
    assert "leave it out" in refused(resless.cli.fold, "--model", "some/model", *onnx, cwd=trained)


@pytest.mark.parametrize(
    ("script", "options", "command"),
    [
        (adn.cli.train, (), "adn-extract"),
        (adn.cli.train, ("--no-second-norms",), "adn-extract"),
        (epsilon_resnet.cli.train, ("--side-weight", "0"), "epsilon-resnet-compress"),
    ],
)
def test_what_is_no_plain_network_yet_is_not_folded(
    script: Callable[[], None], options: tuple[str, ...], command: str, tmp_path: Path
) -> None:
    succeeded(script, "--recipe", "smoke", "--epochs", "0", "--run-dir", "run", *options, cwd=tmp_path)
    sentence = refused(resless.cli.fold, "--model", "run/model", "--output", "fast", cwd=tmp_path)
    assert f"write a plain network with {command}, and fold that" in sentence


def test_all_of_them_side_by_side(trained: Path) -> None:
    halved("dense/model", "smaller", trained)
    named = ("dense=dense/model", "DeepHoyer=smaller", "--batch-sizes", "1", "--repeats", "2")
    said = succeeded(resless.cli.compare, *named, cwd=trained)
    assert "speed-ups over dense" in said
    assert "DeepHoyer" in said
