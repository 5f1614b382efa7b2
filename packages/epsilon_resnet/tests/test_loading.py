"""Trained networks by path: model folders, run folders, checkpoints by step, and what is none of these."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from epsilon_resnet import loading
from epsilon_resnet.config import Optim, Run, TrainConfig
from epsilon_resnet.model import EpsilonResNet
from epsilon_resnet.train import train
from resless import checkpoint, models, weights
from resless.config import RunConfig
from resless.config import TrainConfig as DenseConfig
from resless.errors import InputError
from resless.testing import done, forked
from resless.train import train as train_dense
from safetensors.torch import load_file


@pytest.fixture
def unfinished(trained: Path, tmp_path: Path) -> Path:
    """The folder of a run that was killed after its last epoch."""
    folder = tmp_path / "unfinished"
    shutil.copytree(trained, folder)
    shutil.rmtree(folder / "model")
    (folder / "result.json").unlink()
    return folder


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    """A run folder of resless-train, whose checkpoints know nothing of blocks."""
    settings = RunConfig(run_dir=str(tmp_path / "dense"))
    recipe = DenseConfig(run=settings)
    train_dense(replace(recipe, optim=replace(recipe.optim, epochs=1, batch_size=256)))
    return tmp_path / "dense"


# --- what a path stands for


def test_a_model_folder_is_found_by_any_of_its_paths(trained: Path, unfinished: Path) -> None:
    model = trained / "model"
    for path in (trained, model, model / "config.json"):
        assert loading.model_folder(str(path)) == model
    assert loading.model_folder("nowhere") == Path("nowhere"), "loading it will say what is wrong"
    with pytest.raises(InputError) as refused:
        loading.model_folder(str(unfinished))
    assert str(refused.value) == (
        f"{unfinished} is the folder of a run that has not ended: go on with it (--resume auto), or give the --step of "
        "a checkpoint: there is step 140 and 160"
    )


@pytest.mark.parametrize("below", ["", "model", "model/config.json"])
def test_a_network_comes_in_eval_mode_with_what_it_was_trained_on(trained: Path, below: str) -> None:
    net, known = loading.trained(str(trained / below))
    assert isinstance(net, EpsilonResNet)
    assert not net.training
    assert net.closed() == [False, True, False, False, True, False]
    assert net.retired.tolist() == net.closed()
    config = weights.read_config(trained / "model")
    assert known == {
        "preprocessing": config["preprocessing"],
        "metrics": config["metrics"],
        "image_shape": config["costs"]["image_shape"],
        "class_names": list("0123456789"),
    }
    assert known["metrics"]["num_blocks"] == 6
    state = load_file(trained / "model" / "model.safetensors")
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


# --- checkpoints


@pytest.mark.parametrize("finished", [True, False])
def test_checkpoints_are_found_by_their_step(finished: bool, trained: Path, unfinished: Path) -> None:
    run = trained if finished else unfinished
    nets = {step: loading.trained(str(run), step) for step in (140, 160)}
    final, known = loading.trained(str(trained))
    for net, found in nets.values():
        assert isinstance(net, EpsilonResNet)
        assert not net.training
        assert net.retired.tolist() == [False, True, False, False, True, False]
        assert net.discarded.tolist() == [0, 1, 0, 0, 1, 0]
        assert models.spec_of(net) == models.spec_of(final)
        assert found == {key: known[key] for key in ("preprocessing", "image_shape", "class_names")} | {"metrics": {}}
    last = nets[160][0].state_dict()
    assert all(torch.equal(tensor, last[name]) for name, tensor in final.state_dict().items())
    assert not torch.equal(nets[140][0].state_dict()["resnet.linear.weight"], last["resnet.linear.weight"])


@pytest.mark.usefixtures("no_pictures")
def test_steps_are_those_of_all_epochs_even_inside_one(planted: str, tmp_path: Path) -> None:
    """With checkpoints every 5 of 11 steps: those of two, 16 steps and both epochs."""
    run = Run(run_dir=str(tmp_path / "run"), checkpoint_steps=5)
    optim = Optim(lr=0.01, batch_size=128, epochs=2)
    train(TrainConfig(n=2, epsilon=1.0, pretrained=planted, optim=optim, run=run))
    with pytest.raises(InputError, match=r"^--step is 10, but .*run has checkpoints of step 21 and 22$"):
        loading.trained(str(tmp_path / "run"), 10)
    assert isinstance(loading.trained(str(tmp_path / "run"), 21)[0], EpsilonResNet)


def test_a_step_without_a_checkpoint_is_told_which_there_are(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        loading.trained(str(trained), 303420)
    assert str(refused.value) == f"--step is 303420, but {trained} has checkpoints of step 140 and 160"
    for path in (tmp_path, tmp_path / "nowhere", trained / "model"):
        with pytest.raises(
            InputError, match=r"^--step is 3, but .* has no checkpoints: give the folder of a run, or l"
        ):
            loading.trained(str(path), 3)


def test_of_many_checkpoints_the_first_and_the_last_are_told() -> None:
    one, few, many = (dict.fromkeys(range(count), Path()) for count in (1, 8, 223))
    assert loading._listed(one) == "step 0"
    assert loading._listed(few) == "step 0, 1, 2, 3, 4, 5, 6 and 7"
    assert loading._listed(many) == "step 0, 1, 2, 3, 215 more, 219, 220, 221 and 222"


def test_a_checkpoint_of_another_network_is_refused(unfinished: Path) -> None:
    """As a file from elsewhere describes it, with three blocks a stage."""
    network = json.loads((unfinished / "network.json").read_text())
    network["model"]["options"]["backbone"] = "preresnet20"
    (unfinished / "network.json").write_text(json.dumps(network))
    with pytest.raises(InputError, match=r"checkpoint .*epoch_0008 is of another network: .*layers\.0\.2"):
        loading.trained(str(unfinished), 160)


@pytest.mark.parametrize("name", ["rank_0.pt", "state.pt"])
@pytest.mark.parametrize("damage", ["flipped", "truncated"])
def test_a_damaged_checkpoint_is_refused_until_it_is_removed(damage: str, name: str, unfinished: Path) -> None:
    last = checkpoint.find(unfinished / "checkpoints")[0]
    content = bytearray((last / name).read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    (last / name).write_bytes(content if damage == "flipped" else content[:-1000])
    sentence = f"checkpoint {last} is damaged: {name} does not match its checksum; remove it to take another one"
    for step in (140, 160):
        with pytest.raises(InputError) as refused:
            loading.trained(str(unfinished), step)
        assert str(refused.value) == sentence
    shutil.rmtree(last)
    assert isinstance(loading.trained(str(unfinished), 140)[0], EpsilonResNet)


# --- what is no trained network


@pytest.mark.parametrize("step", [None, 5])
def test_runs_of_other_commands_are_refused_in_one_sentence(step: int | None, dense: Path) -> None:
    shutil.rmtree(dense / "model")
    with pytest.raises(InputError, match=r"dense is no run of epsilon-resnet-train$"):
        loading.trained(str(dense), step)


@pytest.mark.usefixtures("no_pictures")
def test_a_run_that_was_stopped_in_its_first_epoch_has_a_network(planted: str, tmp_path: Path) -> None:
    config = TrainConfig(n=2, epsilon=1.0, pretrained=planted, optim=Optim(batch_size=256, epochs=1))
    run = Run(run_dir=str(tmp_path / "run"), checkpoint_steps=2)
    train(replace(config, run=run))
    # As if it had been killed there.
    shutil.rmtree(tmp_path / "run" / "model")
    (tmp_path / "run" / "blocks.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "epoch_0001")
    assert isinstance(loading.trained(str(tmp_path / "run"), 4)[0], EpsilonResNet)


@pytest.mark.usefixtures("few_images", "no_pictures")
def test_the_last_checkpoint_of_two_processes_is_the_network_at_the_end(planted: str, tmp_path: Path) -> None:
    optim = Optim(lr=0.01, batch_size=64, epochs=1)
    run = Run(run_dir=str(tmp_path / "run"))
    done(forked(lambda: train(TrainConfig(n=2, epsilon=1.0, pretrained=planted, optim=optim, run=run)), 2))
    net, _ = loading.trained(str(tmp_path / "run"), 4)
    for name, tensor in load_file(tmp_path / "run" / "model" / "model.safetensors").items():
        torch.testing.assert_close(net.state_dict()[name], tensor, msg=name)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda model: shutil.rmtree(model), "is not a folder"),
        (lambda model: (model / "config.json").write_text("{"), r"config\.json is not valid JSON"),
        (lambda model: (model / "model.safetensors").unlink(), r"there is no file .*model\.safetensors"),
        (lambda model: (model / "model.safetensors").write_bytes(b"x" * 99), "is not a readable safetensors file"),
    ],
)
def test_damaged_folders_are_refused(
    damage: Callable[[Path], object], message: str, trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained / "model", tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(InputError, match=message):
        loading.trained(str(tmp_path / "model"))


def test_a_runs_own_configuration_is_not_a_networks(trained: Path) -> None:
    """`RUN/config.json` beside `RUN/model/config.json`."""
    with pytest.raises(InputError, match=r"is a run folder: give the model folder in it, .*model"):
        loading.trained(str(trained / "config.json"))
