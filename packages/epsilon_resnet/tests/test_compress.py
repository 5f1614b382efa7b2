"""The plain network of the blocks that are left: equal outputs, what is dropped and why, what is refused."""

from __future__ import annotations

import copy
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from epsilon_resnet import compress as compress_module
from epsilon_resnet import loading
from epsilon_resnet.compress import Block, blocks_of, compress, without
from epsilon_resnet.compress import main as write_compressed
from epsilon_resnet.config import CompressConfig, Optim, Run, TrainConfig
from epsilon_resnet.method import relative_size
from epsilon_resnet.model import EpsilonResNet, create
from epsilon_resnet.report import say_next
from epsilon_resnet.train import train
from PIL import Image
from resless import costs, models, weights
from resless.cli import parse
from resless.config import DataConfig
from resless.data.pipeline import Pipeline
from resless.data.shards import Shards
from resless.errors import InputError
from resless.evaluate import evaluate
from resless.models.preresnet import PreResNet
from resless.run import accelerator
from resless.testing import environment, shared_data
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

AUTHORS = TrainConfig(n=2).backbone_options
DIGITS = {"image_size": 8, "mean": [0.3056], "std": [0.376]}


def gated(
    name: str = "preresnet14",
    *,
    closed: Iterable[int] = (),
    undecayed: Iterable[int] = (),
    in_channels: int = 1,
    options: dict[str, Any] | None = None,
) -> EpsilonResNet:
    """A network in eval mode, as if trained: some blocks discarded and decayed, others (`undecayed`) only discarded."""
    torch.manual_seed(0)
    options = AUTHORS if options is None and name == "preresnet14" else options or {}
    net = create(name, num_classes=10, in_channels=in_channels, epsilon=1.0, **options)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    with torch.no_grad():
        for index, block in enumerate(net.blocks()):
            if index in closed:
                for part, conv in block.named_children():
                    if isinstance(conv, nn.Conv2d) and part != "shortcut":
                        conv.weight.mul_(1e-3)
        net.discarded[[*closed, *undecayed]] = 1.0
    return net.eval()


def images(count: int = 8, channels: int = 1, size: int = 8) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))


def saved(net: nn.Module, folder: Path, **options: Any) -> Path:
    """Its model folder, for the digits."""
    defaults: dict[str, Any] = {"preprocessing": DIGITS, "example": torch.zeros(1, 1, 8, 8)}
    weights.save_pretrained(net, folder, **(defaults | options))
    return folder


def compressing(model: Path | str, /, **options: Any) -> CompressConfig:
    defaults: dict[str, Any] = {"model": str(model), "repeats": 0}
    return CompressConfig(**(defaults | options))


@pytest.fixture
def gone(tmp_path: Path) -> Path:
    """A model folder in which blocks 1 and 4 are gone."""
    return saved(gated(closed=(1, 4)), tmp_path / "gone")


# --- equal outputs

CLOSED: list[tuple[str, dict[str, Any] | None, int, tuple[int, ...]]] = [
    ("preresnet14", None, 1, (1,)),
    ("preresnet14", None, 1, (0,)),
    ("preresnet14", None, 1, (2, 4)),  # the first blocks of stages
    ("preresnet14", None, 1, (2, 3, 4, 5)),  # whole stages
    ("preresnet14", None, 1, (0, 1, 2, 3, 4, 5)),
    ("preresnet14", {"shortcut": "conv"}, 1, (0, 2, 5)),
    ("preresnet20", {"block": "bottleneck", "shortcut": "subsample"}, 1, (0, 1)),
    ("imagenet/preresnet18", None, 3, (0, 2, 5, 6)),
    ("imagenet/preresnet50", None, 3, (0, 1, 3, 13, 15)),
]


@pytest.mark.parametrize(("name", "options", "channels", "closed"), CLOSED)
def test_outputs_are_those_of_the_gated_network(
    name: str, options: dict[str, Any] | None, channels: int, closed: tuple[int, ...]
) -> None:
    """First blocks of stages included: their shortcut stays, whatever its kind."""
    if options and "block" in options:
        name = "preresnet11"  # 9n + 2
    net = gated(name, closed=closed, in_channels=channels, options=options)
    before = copy.deepcopy(net.state_dict())
    plain = compress(net)
    assert isinstance(plain, PreResNet)
    assert not plain.training
    assert not any(module.training for module in plain.modules())
    x = images(4, channels, 64 if name.startswith("imagenet") else 8)
    with torch.inference_mode():
        expected, found, running = net(x), plain(x), net.resnet(x)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    # With the decayed blocks running it is nearly the same network, with any open one dropped another.
    assert (found - running).abs().max() < 0.1 * expected.std()
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items()), "it is not changed"

    spec = models.spec_of(plain)
    kept = tuple(index for index in range(net.num_blocks) if index not in closed)
    assert spec == models.Spec(name, 10, channels, models.spec_of(net.resnet).options | {"kept_blocks": kept})
    state = net.resnet.state_dict()
    assert set(plain.state_dict()) < set(state), "no side head, no averages"
    assert all(torch.equal(tensor, state[key]) for key, tensor in plain.state_dict().items())
    assert sum(hasattr(block, "residual") for block in plain.blocks()) == len(kept)


def test_a_shortcut_that_is_a_convolution_stays() -> None:
    """Of block 2, the first one of the second stage, which the network of 18 layers begins with 128 channels."""
    plain = compress(gated("imagenet/preresnet18", closed=(2,), in_channels=3))
    left = [name for name in plain.state_dict() if name.startswith("layers.1.0.")]
    assert left == ["layers.1.0.shortcut.weight"]


def test_dropping_an_open_block_would_be_seen() -> None:
    """What the test above relies on."""
    net = gated(closed=(1,))
    with torch.inference_mode():
        assert (without(net, [1, 3])(images()) - net(images())).abs().max() > 0.1


def test_outputs_on_real_images_are_those_of_the_trained_network(trained: Path) -> None:
    net, known = loading.trained(str(trained))
    data = Pipeline(TrainConfig(n=2).data, 0, Shards(), known["preprocessing"])
    plain, seen = compress(net), 0
    with torch.inference_mode():
        for batch, _ in data.evaluation(data.test):
            torch.testing.assert_close(plain(batch), net(batch), rtol=0, atol=1e-5)
            seen += len(batch)
        torch.testing.assert_close(plain(images()), net(images()), rtol=0, atol=1e-5)
    assert seen == 360


def test_outputs_on_photographs_are_those_of_the_gated_network() -> None:
    photographs = sorted(shared_data("data", "imagenet-sample").glob("*.JPEG"))[:4]
    assert len(photographs) == 4
    pixels = [np.asarray(Image.open(path).convert("RGB").resize((96, 96)), np.float32) for path in photographs]
    x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 128 - 1
    net = gated("imagenet/preresnet18", closed=(2, 4, 7), in_channels=3)
    with torch.inference_mode():
        expected = net(x)
        torch.testing.assert_close(compress(net)(x), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_a_network_without_discarded_blocks_is_the_plain_one() -> None:
    net = gated()
    plain = compress(net)
    assert models.spec_of(plain).options["kept_blocks"] == (0, 1, 2, 3, 4, 5)
    with torch.inference_mode():
        assert torch.equal(plain(images()), net.resnet(images()))


# --- what is gone


def test_blocks_are_gone_that_were_discarded_in_all_of_the_last_steps_and_have_decayed() -> None:
    net = gated(closed=(0, 1, 2), undecayed=(4,))
    # Of the four, one has just been used: in the last 135 steps; one was not closed in most of them.
    net.discarded[:5] = torch.tensor([1.0, 0.9989, 0.49, 0.0, 0.999])
    blocks = blocks_of(net)
    assert [(block.block, block.stage) for block in blocks] == [(0, 1), (1, 1), (2, 2), (3, 2), (4, 3), (5, 3)]
    assert [block.is_discarded for block in blocks] == [True, True, False, False, True, False] == net.closed()
    assert [block.is_gone(0.05) for block in blocks] == [True, False, False, False, False, False]
    assert [block.is_gone(0.999) for block in blocks][:3] == [True, False, False]
    assert [block.discarded for block in blocks] == pytest.approx([1, 0.9989, 0.49, 0, 0.999, 0], abs=1e-6)
    for block in blocks:
        weights_of = [
            net.get_parameter(f"resnet.layers.{block.stage - 1}.{block.block % 2}.conv{i}.weight") for i in (1, 2)
        ]
        fans = [weight.shape[0] * 9 for weight in weights_of]
        sizes = [
            weight.square().mean().sqrt().item() / (2 / fan) ** 0.5
            for weight, fan in zip(weights_of, fans, strict=True)
        ]
        assert block.size == pytest.approx(max(sizes), rel=1e-4, abs=1e-6)


def test_undecayed_blocks_are_refused_by_name() -> None:
    net = gated(closed=(1,), undecayed=(3, 4))
    net.discarded[4] = 0.75
    sizes = [block.size for block in blocks_of(net)]
    with pytest.raises(InputError) as refused:
        compress(net)
    assert str(refused.value) == (
        f"discarded, but not gone for good: blocks 3 (in 100 % of its last steps, weights at {100 * sizes[3]:.3g} %), "
        f"4 (in 75 % of its last steps, weights at {100 * sizes[4]:.3g} %), where all steps and weights under 5 % of "
        "their size at initialisation are asked for: train on, raise --weight-bound, or drop all that is discarded "
        "with --force"
    )
    net.discarded[4] = 0.4
    with pytest.raises(InputError, match=r"^discarded, but not gone for good: block 3 \(in 100 %"):
        compress(net)
    with pytest.raises(InputError, match=r"blocks 1 .*, 3 .* weights under 0\.05 % of"):
        compress(net, weight_bound=5e-4)
    forced = compress(net, force=True)
    assert models.spec_of(forced).options["kept_blocks"] == (0, 2, 4, 5)
    with torch.inference_mode():
        torch.testing.assert_close(forced(images()), net(images()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet20", "preresnet14", "lenet5"])
def test_other_networks_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"a network of epsilon-resnet-train is needed, but this is a \w*Net\w*$"):
        compress(models.create(name, in_channels=1))


# --- the command


def test_the_folder_is_a_plain_one_and_says_what_was_dropped(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_compressed(compressing(trained, output=str(tmp_path / "small"), repeats=2, batch_size=4))
    config, before = weights.read_config(tmp_path / "small"), weights.read_config(trained / "model")
    assert config["model"]["name"] == "preresnet14"
    assert config["model"]["options"]["kept_blocks"] == [0, 2, 3, 5]
    assert config["preprocessing"] == before["preprocessing"]
    assert config["class_names"] == before["class_names"] == list("0123456789")
    # Of equal outputs: not measured anew.
    measured = {name: before["metrics"][name] for name in ("images", "top1", "top5", "loss")}
    why = "discarded: training stopped computing it"
    dropped = [block | {"why": why} for block in before["metrics"]["discarded"]]
    assert config["metrics"] == measured | {"dropped": dropped}
    assert [(block["block"], block["stage"]) for block in dropped] == [(1, 1), (4, 3)]
    assert all(block["discarded"] > 0.999 and block["size"] < 0.05 for block in dropped)
    assert config["description"] == (
        "The plain network of the 4 blocks that ε-ResNet (ε = 1) left of 6; `dropped` says which are gone, and why."
    )
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == [
        *("README.md", "config.json", "model.safetensors")
    ]

    small, full = weights.from_pretrained(tmp_path / "small"), weights.from_pretrained(trained / "model")
    assert isinstance(full, EpsilonResNet)
    x = images()
    with torch.inference_mode():
        torch.testing.assert_close(small(x), full(x), rtol=0, atol=1e-5)
    lost = {
        1: (2 * 16 * 16 * 9, 4 * 16, 2 * 16 * 16 * 9 * 64),
        4: (32 * 64 * 9 + 64 * 64 * 9, 2 * (32 + 64), (32 * 64 * 9 + 64 * 64 * 9) * 4),
    }
    assert costs.count_parameters(full.resnet) - costs.count_parameters(small) == sum(
        convolutions + batch_norms for convolutions, batch_norms, _ in lost.values()
    )
    cost = {name: costs.macs(net, torch.zeros(1, 1, 8, 8)) for name, net in (("all", full.resnet), ("small", small))}
    assert cost["all"] - cost["small"] == sum(macs for *_, macs in lost.values())
    printed = capsys.readouterr().out
    for number in (*cost.values(), costs.count_parameters(small), costs.count_parameters(full.resnet)):
        assert f"{number:,}" in printed
    assert "batch 1" in printed
    assert "batch 4" in printed
    assert "speed-up, median (quartiles)" in printed


OUTSIDE = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "epsilon_resnet":
            raise ImportError(f"{name} cannot be imported here")

sys.meta_path.insert(0, Block())
folder, batch, logits, output = sys.argv[1:]
import torch
from resless import cli, weights
from safetensors.torch import load_file, save_file
net = weights.from_pretrained(folder)
with torch.inference_mode():
    save_file({"logits": net(load_file(batch)["images"])}, logits)
sys.argv = ["resless-eval", "--model", folder, "--output", output]
cli.evaluate()
"""


def test_the_folder_loads_where_this_package_cannot_be_imported(gone: Path, tmp_path: Path) -> None:
    write_compressed(compressing(gone, output=str(tmp_path / "small")))
    save_file({"images": images()}, tmp_path / "batch")
    paths = [str(tmp_path / name) for name in ("small", "batch", "logits", "eval.json")]
    command = [sys.executable, "-c", OUTSIDE, *paths]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    net = weights.from_pretrained(gone)
    with torch.inference_mode():
        torch.testing.assert_close(load_file(tmp_path / "logits")["logits"], net(images()), rtol=0, atol=1e-5)
    assert json.loads((tmp_path / "eval.json").read_text())["images"] == 360


def test_by_default_it_is_written_into_the_run_folder(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    write_compressed(compressing(tmp_path / "run"))
    config = weights.read_config(tmp_path / "run" / "compressed")
    assert config["model"]["options"]["kept_blocks"] == [0, 2, 3, 5]
    # A second time only if asked to; of the model folder in it, too.
    for name in ("run", "run/model", "run/model/config.json"):
        with pytest.raises(InputError, match="run/compressed exists and is not empty: choose another folder, or overw"):
            write_compressed(compressing(tmp_path / name))
    write_compressed(compressing(tmp_path / "run", overwrite=True))


@pytest.mark.parametrize("name", ["gone", "gone/config.json"])
def test_of_a_model_folder_it_is_written_beside_it(name: str, gone: Path) -> None:
    write_compressed(compressing(gone.parent / name))
    assert weights.read_config(gone.parent / "compressed")["model"]["name"] == "preresnet14"
    assert sorted(path.name for path in gone.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_an_existing_output_is_refused_before_any_work(
    gone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "trained", lambda *_: pytest.fail("it was loaded"))
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.json").write_text("{}")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="small exists and is not empty: choose another folder, or overwrite it"):
        write_compressed(compressing(gone, output=str(tmp_path / "small")))
    with pytest.raises(InputError, match="file is a file, but a model folder is to be written there"):
        write_compressed(compressing(gone, output=str(tmp_path / "file")))
    (tmp_path / "small" / "thesis.tex").touch()
    with pytest.raises(InputError, match="small is not a model folder, for it holds other files: it is not overwr"):
        write_compressed(compressing(gone, output=str(tmp_path / "small"), overwrite=True))
    assert (tmp_path / "small" / "config.json").read_text() == "{}"


def test_forced_blocks_are_measured_before_and_after(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the trained network, whose blocks 1 and 4 are gone, blocks 3 and 5 as if discarded in its last steps only."""
    net, known = loading.trained(str(trained))
    assert isinstance(net, EpsilonResNet)
    net.discarded[[3, 5]] = torch.tensor([1.0, 0.75])
    folder = saved(net, tmp_path / "model", preprocessing=known["preprocessing"], metrics={"top1": 0.5, "other": 1})
    with pytest.raises(InputError, match=r"^discarded, but not gone for good: blocks 3 .*, 5 \(in 75 %"):
        write_compressed(compressing(folder, output=str(tmp_path / "small")))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert capsys.readouterr().out == ""

    write_compressed(compressing(folder, output=str(tmp_path / "small"), force=True, batch_size=100))
    data = Pipeline(TrainConfig(n=2).data, 0, Shards(), known["preprocessing"])
    before, after = (
        evaluate(network, data.evaluation(data.test), accelerator("no"))
        for network in (without(net, [1, 4]), without(net, [1, 3, 4, 5]))
    )
    assert before.top1 == known["metrics"]["top1"] > after.top1
    printed = capsys.readouterr().out
    assert (
        f"error on 360 test images: {100 * (1 - before.top1):.2f} % with the blocks that have not decayed running, "
        f"{100 * (1 - after.top1):.2f} % without them\n"
    ) in printed
    config = weights.read_config(tmp_path / "small")
    assert config["model"]["options"]["kept_blocks"] == [0, 2]
    metrics = config["metrics"]
    dropped = metrics.pop("dropped")
    assert metrics == {
        **{"images": 360, "top1": after.top1, "top5": after.top5, "loss": pytest.approx(after.loss)},
        "top1_before_forcing": before.top1,
    }
    forced = "discarded, but not decayed: dropped with --force"
    assert [block["block"] for block in dropped] == [1, 3, 4, 5]
    assert [block["why"] == forced for block in dropped] == [False, True, False, True]


def test_a_larger_weight_bound_needs_no_force(tmp_path: Path) -> None:
    folder = saved(gated(closed=(1,)), tmp_path / "model")
    with pytest.raises(InputError, match=r"weights under 0\.01 % of"):
        write_compressed(compressing(folder, output=str(tmp_path / "small"), weight_bound=1e-4))
    write_compressed(compressing(folder, output=str(tmp_path / "small"), weight_bound=0.01))
    (dropped,) = weights.read_config(tmp_path / "small")["metrics"]["dropped"]
    assert dropped["why"] == "discarded in all of the last steps, weights under 1 % of their initial size"


def test_without_a_discarded_block_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(gated(), tmp_path / "model")
    sentence = f"no block of {folder} is discarded: there is nothing to drop, and nothing was written"
    with pytest.raises(InputError) as refused:
        write_compressed(compressing(folder, output=str(tmp_path / "small")))
    assert str(refused.value) == (f"{sentence}; train longer, or with a larger --epsilon (--allow-none: exit code 0)")
    write_compressed(compressing(folder, output=str(tmp_path / "small"), allow_none=True))
    assert capsys.readouterr().out == f"{sentence}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_checkpoint_of_a_run_is_compressed(trained: Path, tmp_path: Path) -> None:
    for step in (140, 160):
        output = tmp_path / str(step)
        write_compressed(compressing(trained, step=step, output=str(output)))
        net, _ = loading.trained(str(trained), step)
        with torch.inference_mode():
            small = weights.from_pretrained(output)(images())
            torch.testing.assert_close(small, net(images()), rtol=0, atol=1e-5)
        config = weights.read_config(output)
        assert config["model"]["options"]["kept_blocks"] == [0, 2, 3, 5]
        # It was not evaluated.
        assert list(config["metrics"]) == ["dropped"]
        assert config["preprocessing"] == weights.read_config(trained / "model")["preprocessing"]
    last, other = (load_file(tmp_path / step / "model.safetensors") for step in ("160", "140"))
    final = load_file(trained / "model" / "model.safetensors")
    assert all(torch.equal(tensor, final[f"resnet.{name}"]) for name, tensor in last.items())
    assert not torch.equal(other["linear.weight"], last["linear.weight"])


@pytest.mark.usefixtures("few_images", "no_pictures")
@pytest.mark.parametrize("epochs", [2, 4])
def test_blocks_that_a_run_called_gone_for_good_are(
    epochs: int, planted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last line of a run names the command that drops them. Here they are retired after the first epoch, when the
    moving averages are far below 1."""
    optim = Optim(lr=0.01, batch_size=64, epochs=epochs)
    run = Run(run_dir=str(tmp_path / "run"))
    train(TrainConfig(n=2, epsilon=1.0, retire_after=1, pretrained=planted, optim=optim, run=run))
    assert f"next: epsilon-resnet-compress --model {tmp_path / 'run'}\n" in capsys.readouterr().out
    write_compressed(compressing(tmp_path / "run"))
    config = weights.read_config(tmp_path / "run" / "compressed")
    assert config["model"]["options"]["kept_blocks"] == [0, 2, 3, 5]


@pytest.mark.usefixtures("few_images", "no_pictures")
def test_blocks_that_a_run_called_gone_for_good_are_by_its_own_bound(planted: str, tmp_path: Path) -> None:
    """They are at 8 % of their size, and stay there: what is retired does not decay any more."""
    state = torch.load(planted, weights_only=True)
    for name, tensor in state.items():
        if name.startswith(("layers.0.1.conv", "layers.2.0.conv")):
            tensor *= 8
    torch.save(state, tmp_path / "a.pth")
    optim = Optim(lr=0.01, batch_size=64, epochs=2)
    options: dict[str, Any] = {"optim": optim, "run": Run(run_dir=str(tmp_path / "run"))}
    folder = train(
        TrainConfig(n=2, epsilon=4.0, retire_after=1, weight_bound=0.1, pretrained=str(tmp_path / "a.pth"), **options)
    )
    assert weights.read_config(folder)["metrics"]["retired"] == [1, 4]
    write_compressed(compressing(tmp_path / "run"))
    config = weights.read_config(tmp_path / "run" / "compressed")
    assert config["model"]["options"]["kept_blocks"] == [0, 2, 3, 5]


def said_next(net: EpsilonResNet, folder: Path, **fields: Any) -> list[list[str]]:
    """The lines with which a run of this network ends, as a shell reads them; it lies in the run's folder."""
    lines: list[str] = []
    run: Any = SimpleNamespace(folder=folder, say=lines.append)
    say_next(run, TrainConfig(n=2, **fields), net)
    saved(net, folder / "model")
    return [shlex.split(line) for line in lines]


def write_as_said(words: list[str]) -> None:
    write_compressed(parse(CompressConfig, {}, prog="", description="", args=[*words, "--repeats", "0"]))


@pytest.mark.parametrize(
    ("size", "weight_bound", "options"),
    [(0.01, 0.05, []), (0.01, 0.001, []), (0.08, 0.1, ["--weight-bound", "0.1"])],
)
def test_the_command_that_a_run_names_compresses(
    size: float, weight_bound: float, options: list[str], tmp_path: Path
) -> None:
    """By the run's own bound where that is wider than the command's, whatever the folder is called."""
    net, folder = gated(closed=(1,)), tmp_path / "a run"
    block: Any = list(net.blocks())[1]
    with torch.no_grad():
        for conv in (block.conv1, block.conv2):
            conv.weight.mul_(size / relative_size(conv.weight))
    (words,) = said_next(net, folder, weight_bound=weight_bound)
    assert words == ["next:", "epsilon-resnet-compress", "--model", str(folder), *options]
    write_as_said(words[2:])
    assert weights.read_config(folder / "compressed")["model"]["options"]["kept_blocks"] == [0, 2, 3, 4, 5]


def test_the_command_that_a_run_names_forces_what_has_not_decayed(tmp_path: Path) -> None:
    net, folder, data = gated(closed=(1,), undecayed=(3, 4)), tmp_path / "a run", DataConfig(image_size=8)
    warning, words = said_next(net, folder, weight_bound=0.1, data=data)
    assert " ".join(warning).startswith("blocks 3, 4 discarded, but not gone for good: ")
    source = ["--dataset", "digits", "--image-size", "8"]
    assert words == ["next:", "epsilon-resnet-compress", "--model", str(folder), "--force", *source]
    with pytest.raises(InputError, match="discarded, but not gone for good: blocks 3 "):
        write_as_said([word for word in words[2:] if word != "--force"])
    write_as_said(words[2:])
    assert weights.read_config(folder / "compressed")["model"]["options"]["kept_blocks"] == [0, 2, 5]


def test_a_run_without_discarded_blocks_names_no_command(tmp_path: Path) -> None:
    assert said_next(gated(), tmp_path / "run") == []


def test_where_it_was_written_is_said_in_one_piece(
    gone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "a-folder-whose-name-is-longer-than-the-table-is-wide-which-others-are-too"
    write_compressed(compressing(gone, output=str(output)))
    assert f"wrote {output}" in capsys.readouterr().out


def test_a_model_folder_that_does_not_tell_the_size_of_its_images_is_refused(tmp_path: Path) -> None:
    folder = saved(gated(closed=(1, 4)), tmp_path / "model", example=None)
    with pytest.raises(InputError, match="model does not tell the size of its images: save it again with an `example`"):
        write_compressed(compressing(folder, output=str(tmp_path / "small")))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["preresnet14", "resnet20", "lenet5"])
def test_folders_of_other_networks_are_refused(name: str, tmp_path: Path) -> None:
    """As those of resless-train, deephoyer-prune and of this command."""
    net, side = models.create(name, in_channels=1), 28 if name == "lenet5" else 8
    folder = saved(net, tmp_path / "model", example=torch.zeros(1, 1, side, side))
    with pytest.raises(InputError, match=r"^a network of epsilon-resnet-train is needed, but this is a "):
        write_compressed(compressing(folder))
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_dir()) == ["model"]


def test_a_block_says_of_itself_that_it_is_gone() -> None:
    assert Block(0, 1, 0.9991, 0.04, False).is_gone(0.05)
    assert not Block(0, 1, 0.9989, 0.04, False).is_gone(0.05)
    assert not Block(0, 1, 0.9991, 0.05, False).is_gone(0.05)
    assert compress_module.why(Block(0, 1, 1.0, 0.04, False), 0.05).startswith("discarded in all of the last steps")
    assert (
        compress_module.why(Block(0, 1, 1.0, 0.06, False), 0.05) == "discarded, but not decayed: dropped with --force"
    )
    assert Block(0, 1, 1.0, 0.5, True).is_gone(0.05), "training says so"
    assert compress_module.why(Block(0, 1, 1.0, 0.06, True), 0.05).endswith("training stopped computing it")
