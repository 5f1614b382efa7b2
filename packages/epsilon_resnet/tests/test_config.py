"""Configurations: the authors' command lines, every value that is refused, and the recipes' numbers."""

from __future__ import annotations

import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from epsilon_resnet import cli, recipes
from epsilon_resnet.config import (
    IMAGENET_DEPTHS,
    MAX_N,
    CompressConfig,
    EvalConfig,
    Optim,
    TrainConfig,
    check_epsilon,
)
from epsilon_resnet.model import create
from resless import models
from resless.cli import parse
from resless.errors import InputError
from resless.models.options import MAX_DEPTH
from resless.models.preresnet import BasicBlock, CentredAvgPoolShortcut, PreResNet

CIFAR_NS, SVHN_NS = (18, 33, 83, 125), (18, 33, 50)
PAPER_RECIPES = {
    **{f"cifar10_n{n}": ("cifar10", n, None, 2.5) for n in CIFAR_NS},
    **{f"cifar100_n{n}": ("cifar100", n, None, 2.5) for n in CIFAR_NS},
    **{f"svhn_n{n}": ("svhn", n, None, 1.5) for n in SVHN_NS},
    "imagenet_101_e2.0": ("imagenet", None, 101, 2.0),
    "imagenet_101_e2.1": ("imagenet", None, 101, 2.1),
    "imagenet_152_e1.8": ("imagenet", None, 152, 1.8),
}


def parsed(command: str) -> TrainConfig:
    """The configuration of a command line of epsilon-resnet-train."""
    args = cli.authors_arguments(shlex.split(command))
    return parse(TrainConfig, recipes.TRAIN, prog="epsilon-resnet-train", description="", args=args)


def parsed_compress(command: str) -> CompressConfig:
    return parse(CompressConfig, {}, prog="epsilon-resnet-compress", description="", args=shlex.split(command))


def parsed_eval(command: str) -> EvalConfig:
    args = cli.authors_arguments(shlex.split(command), recipe=False)
    return parse(EvalConfig, {}, prog="epsilon-resnet-eval", description="", args=args)


def assert_refused(function: Any, *args: Any, match: str, **options: Any) -> None:
    with pytest.raises(InputError, match=match):
        function(*args, **options)


# --- the authors' commands


def test_the_authors_cifar_training() -> None:
    args = cli.authors_arguments(shlex.split("-n 18 -e 2.5 -o NAME --cifar10"))
    assert args == ["--recipe", "cifar10_n18", "-n", "18", "-e", "2.5", "-o", "NAME"]
    config = parsed("-n 18 -e 2.5 -o NAME --cifar10")
    assert config == replace(recipes.TRAIN["cifar10_n18"], run=replace(config.run, run_dir="NAME"))
    assert (config.n, config.depth, config.epsilon, config.run.run_dir) == (18, None, 2.5, "NAME")
    assert config.data.dataset == "cifar10"


@pytest.mark.parametrize("flag", ["cifar10", "cifar100", "svhn"])
@pytest.mark.parametrize("n", [3, 125])
def test_their_flags_choose_the_data_set_and_its_recipe_with_any_n(flag: str, n: int) -> None:
    recipe = recipes.TRAIN[f"{flag}_n18"]
    for command in (f"-n {n} --{flag}", f"--{flag} -n {n}"):
        assert parsed(command) == replace(recipe, n=n)
        assert parsed(f"{command} -e 3.5 -o x") == replace(
            recipe, n=n, epsilon=3.5, run=replace(recipe.run, run_dir="x")
        )
    assert parsed(f"--{flag}") == recipe


@pytest.mark.parametrize("spelling", ["-n 33", "--n 33", "-n33", "-n=33", "--n=33"])
def test_n_alone_is_for_cifar10_however_it_is_spelled(spelling: str) -> None:
    assert parsed(f"{spelling} -e 2.5") == recipes.TRAIN["cifar10_n33"]


@pytest.mark.parametrize("spelling", ["-d 101", "--depth 101", "-d101", "-d=101", "--depth=101"])
def test_depth_alone_is_for_imagenet_however_it_is_spelled(spelling: str) -> None:
    assert parsed(f"{spelling} -e 2.1") == recipes.TRAIN["imagenet_101_e2.1"]


@pytest.mark.parametrize("spelling", ["--data PATH", "--data-dir PATH", "--data_dir PATH", "--data=PATH"])
def test_the_authors_imagenet_training(spelling: str) -> None:
    config = parsed(f"-d 101 -e 2.0 {spelling}")
    recipe = recipes.TRAIN["imagenet_101_e2.0"]
    assert config == replace(recipe, data=replace(recipe.data, data_dir="PATH"))
    assert (config.data.dataset, config.data.data_dir, config.depth, config.n) == ("imagenet", "PATH", 101, None)
    assert config.epsilon == 2.0


@pytest.mark.parametrize("depth", IMAGENET_DEPTHS)
def test_every_imagenet_depth_has_a_command(depth: int) -> None:
    assert parsed(f"-d {depth} -e 1.8") == replace(recipes.TRAIN["imagenet_101_e2.0"], depth=depth, epsilon=1.8)


def test_the_authors_compression() -> None:
    config = parsed_compress("--dir models/cifar10-e_2.5-n_125 --step 303420")
    assert config == CompressConfig("models/cifar10-e_2.5-n_125", 303420)
    assert parsed_compress("--model x") == CompressConfig("x")


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "svhn"])
def test_the_authors_evaluation(dataset: str) -> None:
    path = "models/cifar10-n_125/compressed/config.json"
    args = cli.authors_arguments(["--cfg", path, f"--{dataset}"], recipe=False)
    assert args == ["--dataset", dataset, "--cfg", path]
    config = parsed_eval(f"--cfg {path} --{dataset}")
    assert (config.model, config.data.dataset) == (path, dataset)
    assert parsed_eval(f"--dir x --{dataset} --data PATH").data.data_dir == "PATH"
    assert parsed_eval("--model x") == EvalConfig("x")


def test_the_authors_choice_of_gpus_is_taken() -> None:
    """As their README has the commands; which GPUs run is not the configuration's."""
    config = parsed("-n 18 -e 2.5 --gpu 1 -o cifar10-e_2.5-n_18")
    assert (config.n, config.epsilon, config.run.run_dir) == (18, 2.5, "cifar10-e_2.5-n_18")
    config = parsed("-d 101 -e 2.0 --gpu 0,1,2,3 --data PATH")
    assert (config.depth, config.data.data_dir) == (101, "PATH")
    assert parsed_eval("--cfg x --gpu 0 --cifar10").data.dataset == "cifar10"


def test_a_recipe_or_data_set_of_ones_own_goes_first() -> None:
    assert parsed("--recipe smoke -n 2") == replace(recipes.TRAIN["smoke"], n=2)
    assert parsed("--recipe=smoke -n 2") == replace(recipes.TRAIN["smoke"], n=2)
    assert parsed("--dataset digits -n 2") == TrainConfig(n=2)
    assert parsed("--dataset=mnist -d 18").data.dataset == "mnist"
    assert cli.authors_arguments([]) == []


@pytest.mark.parametrize("flag", ["cifar10", "cifar100", "svhn"])
def test_beside_a_recipe_the_flags_still_mean_a_data_set(flag: str) -> None:
    assert parsed(f"--recipe smoke --{flag}").data.dataset == flag
    assert parsed(f"--{flag} --recipe smoke -n 2") == replace(
        recipes.TRAIN["smoke"], n=2, data=replace(recipes.TRAIN["smoke"].data, dataset=flag)
    )


# --- networks


@pytest.mark.parametrize(("n", "layers"), [(1, 8), (3, 20), (18, 110), (33, 200), (83, 500), (125, 752), (MAX_N, 9998)])
def test_n_blocks_a_stage_are_6n_plus_2_layers(n: int, layers: int) -> None:
    config = TrainConfig(n=n)
    assert config.backbone == f"preresnet{layers}"
    models.check_name(config.backbone)
    assert 6 * (MAX_N + 1) + 2 > MAX_DEPTH >= 6 * MAX_N + 2


@pytest.mark.parametrize("n", [9, 27])
def test_blocks_are_basic_where_the_depth_alone_would_not_say_so(n: int) -> None:
    """27 blocks a stage are 164 layers, which alone mean 18 bottleneck blocks; 9 are 56, which could mean 6 of them."""
    config = TrainConfig(n=n)
    with torch.device("meta"):
        net = create(config.backbone, num_classes=10, in_channels=3, epsilon=2.5, **config.backbone_options)
    assert net.num_blocks == 3 * n
    assert all(isinstance(block, BasicBlock) for block in net.blocks())
    assert [len(stage) for stage in net.resnet.stages()] == [n] * 3


def test_cifar_networks_are_the_authors() -> None:
    """Stem with batch norm and ReLU, so that the first block has none; centred zero channels beside the average."""
    config = TrainConfig(n=2)
    with torch.device("meta"):
        plain = models.create(config.backbone, **config.backbone_options)
    assert isinstance(plain, PreResNet)
    assert [type(layer).__name__ for layer in plain.stem] == ["Conv2d", "BatchNorm2d", "ReLU"]
    blocks = list(plain.blocks())
    assert [block.bn1 is None for block in blocks] == [True] + [False] * 5
    shortcuts = [block.shortcut for block in blocks]
    assert [isinstance(each, CentredAvgPoolShortcut) for each in shortcuts] == [False, False, True, False, True, False]


@pytest.mark.parametrize("depth", IMAGENET_DEPTHS)
def test_depths_are_imagenets_networks(depth: int) -> None:
    config = TrainConfig(depth=depth)
    assert (config.backbone, config.backbone_options) == (f"imagenet/preresnet{depth}", {})
    models.check_name(config.backbone)


# --- bad values


@pytest.mark.parametrize("given", [{}, {"n": 18, "depth": 101}])
def test_either_n_or_depth_is_needed(given: dict[str, int]) -> None:
    assert_refused(TrainConfig, match="^give either -n, .* CIFAR .*, or -d, .* ImageNet", **given)


@pytest.mark.parametrize("n", [0, -1, MAX_N + 1, 10**6])
def test_n_out_of_range_is_refused(n: int) -> None:
    assert_refused(TrainConfig, n=n, match=f"^-n is {n}, but must be from 1 to 1666 blocks a stage$")


@pytest.mark.parametrize("depth", [0, 20, 100, 110, 200, -18])
def test_another_depth_is_told_which_there_are(depth: int) -> None:
    match = rf"^-d is {depth}, but must be one of 18, 34, 50, 101, 152 \(for CIFAR, give -n\)$"
    assert_refused(TrainConfig, depth=depth, match=match)


@pytest.mark.parametrize("epsilon", [-1e-9, -2.5, math.nan, math.inf, -math.inf, True, False, "2.5", None, [2.5]])
def test_bad_epsilons_are_refused(epsilon: Any) -> None:
    match = r"^--epsilon is .*, but must be 0 \(no block is discarded\) or more, and finite$"
    assert_refused(TrainConfig, n=3, epsilon=epsilon, match=match)
    assert_refused(check_epsilon, epsilon, match=match)


@pytest.mark.parametrize("epsilon", [0, 0.0, 1, 2.5, 1e30])
def test_good_epsilons_are_taken(epsilon: float) -> None:
    assert TrainConfig(n=3, epsilon=epsilon).epsilon == epsilon


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"epsilon_start": -1}, "^--epsilon-start is -1, but must be 0 epochs or more"),
        ({"side_weight": -0.1}, r"^--side-weight is -0\.1, but must be 0 or more, and finite"),
        ({"side_weight": math.nan}, "^--side-weight is nan"),
        ({"side_weight": math.inf}, "^--side-weight is inf"),
        ({"retire_after": -1}, r"^--retire-after is -1, but must be 0 \(never\) or more epochs"),
        ({"weight_bound": 0.0}, r"^--weight-bound is 0\.0, but must be above 0 and below 1"),
        ({"weight_bound": 1.0}, r"^--weight-bound is 1\.0"),
        ({"weight_bound": -0.5}, r"^--weight-bound is -0\.5"),
        ({"weight_bound": math.nan}, "^--weight-bound is nan"),
    ],
)
def test_bad_values_of_a_training_are_refused(given: dict[str, Any], match: str) -> None:
    assert_refused(TrainConfig, n=3, match=match, **given)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"restart_milestones": (3,)}, r"^--restart-milestones is \(3,\), but must be as many as --milestones, 0, or"),
        (
            {"milestones": (3, 5), "restart_milestones": (3,)},
            r"^--restart-milestones is \(3,\), but must be as many as --milestones, 2, or none",
        ),
        (
            {"milestones": (3,), "restart_milestones": (3, 5)},
            r"^--restart-milestones is \(3, 5\), but must be as many as --milestones, 1, or none",
        ),
        (
            {"milestones": (3, 5), "restart_milestones": (3, 3)},
            r"^--restart-milestones is \(3, 3\), but must be increasing epochs",
        ),
        ({"milestones": (3, 5), "restart_milestones": (5, 3)}, r"^--restart-milestones is \(5, 3\)"),
        ({"milestones": (3, 5), "restart_milestones": (0, 3)}, r"^--restart-milestones is \(0, 3\)"),
        ({"milestones": (3, 5), "restart_milestones": (-1, 3)}, r"^--restart-milestones is \(-1, 3\)"),
        ({"milestones": (5, 3)}, r"^--milestones is \(5, 3\), but must be increasing epochs"),
        ({"milestones": (0,)}, r"^--milestones is \(0,\)"),
        ({"factors": (0.1,)}, r"^--factors is \(0\.1,\), but must be as many as --milestones, 0, or none"),
        (
            {"milestones": (3, 5), "factors": (0.1,)},
            "^--factors is .*, but must be as many as --milestones, 2, or none",
        ),
        (
            {"milestones": (3, 5), "factors": (0.1, 0.01), "gamma": 0.2},
            r"^--gamma is 0\.2, but must be left out beside --factors 0\.1 0\.01, which replace it$",
        ),
        ({"milestones": (3,), "factors": (0.0,)}, r"^--factors is \(0\.0,\), but must be above 0 and at most 1 each"),
        ({"milestones": (3,), "factors": (1.1,)}, r"^--factors is \(1\.1,\), but must be above 0"),
        ({"milestones": (3,), "factors": (math.nan,)}, r"^--factors is \(nan,\), but must be above 0"),
        (
            {"milestones": (3,), "restart_milestones": (3,), "schedule": "cosine"},
            r"^--restart-milestones is \(3,\), but must be left out with --schedule cosine",
        ),
        ({"lr": 0.0}, r"^--lr is 0\.0"),
        ({"weight_decay": -1.0}, r"^--weight-decay is -1\.0"),
        ({"batch_size": 0}, "^--batch-size is 0"),
        ({"epochs": -1}, "^--epochs is -1"),
    ],
)
def test_bad_values_of_a_schedule_are_refused(given: dict[str, Any], match: str) -> None:
    assert_refused(Optim, match=match, **given)


def test_rates_are_factors_of_the_first_or_powers_of_gamma() -> None:
    assert Optim(lr=0.5).rates == [0.5]
    assert Optim(lr=0.5, milestones=(2, 4), gamma=0.2).rates == pytest.approx([0.5, 0.1, 0.02])
    assert Optim(lr=0.5, milestones=(2, 4), factors=(0.5, 0.4)).rates == pytest.approx([0.5, 0.25, 0.2])
    assert Optim(lr=0.1, milestones=(2,), restart_milestones=(1,), factors=(1.0,)).rates == [0.1, 0.1]
    assert Optim(schedule="cosine").rates == [0.1]


@pytest.mark.parametrize(
    ("config", "given", "match"),
    [
        (CompressConfig, {"step": -1}, "^--step is -1, but must be 0 or more"),
        (CompressConfig, {"batch_size": 0}, "^--batch-size is 0, but must be 1 or more"),
        (CompressConfig, {"repeats": 1}, "^--repeats is 1, but must be 0, or 2 or more"),
        (CompressConfig, {"repeats": -2}, "^--repeats is -2"),
        (CompressConfig, {"weight_bound": 0.0}, r"^--weight-bound is 0\.0, but must be above 0 and below 1"),
        (CompressConfig, {"weight_bound": 1.0}, r"^--weight-bound is 1\.0"),
        (CompressConfig, {"weight_bound": math.nan}, "^--weight-bound is nan"),
        (EvalConfig, {"batch_size": 0}, "^--batch-size is 0, but must be 1 or more"),
        (EvalConfig, {"output": "nowhere/x.json"}, "^--output is 'nowhere/x.json', but must be a file in a folder"),
    ],
)
def test_bad_values_of_the_other_commands_are_refused(
    config: type, given: dict[str, Any], match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(config, "x", match=match, **given)


@pytest.mark.parametrize(
    ("command", "match"),
    [
        ("", "^give either -n"),
        ("-e 2.5", "^give either -n"),
        ("-n 3 -d 18", "^give either -n"),
        ("--cifar10 -n 3 -d 18", "^give either -n"),
        ("-n 0 --cifar10", "^-n is 0"),
        ("-n 1667", "^-n is 1667"),
        ("-d 110", "^-d is 110, but must be one of 18, 34, 50, 101, 152"),
        ("-n 3 -e -1", r"^--epsilon is -1\.0"),
        ("-n 3 -e nan", "^--epsilon is nan"),
        ("-n 3 -e inf", "^--epsilon is inf"),
        ("-n 3 --milestones 3 5", r"^--restart-milestones is \(41, 61, 150\), but must be as many as --milestones, 2"),
        ("-n 3 --factors 0.1", "^--factors is"),
        ("-n 3 --gamma 0.2", r"^--gamma is 0\.2, but must be left out beside --factors 0\.1 0\.01 0\.002, which"),
        (
            "-n 3 --epochs 100 --epsilon-start 100",
            "^--epsilon-start is 100, but must be less than --epochs, 100, or no",
        ),
        ("--recipe cifar_n18", "^unknown recipe 'cifar_n18': did you mean cifar10"),
    ],
)
def test_bad_values_are_refused_while_parsing(command: str, match: str) -> None:
    assert_refused(parsed, command, match=match)


# --- recipes


def test_every_experiment_of_the_paper_has_a_recipe() -> None:
    assert set(PAPER_RECIPES) | {"smoke"} <= set(recipes.TRAIN)
    assert len(PAPER_RECIPES) == 14


@pytest.mark.parametrize("name", recipes.TRAIN)
def test_recipes_are_configurations_of_networks_there_are(name: str) -> None:
    config = parsed(f"--recipe {name}")
    assert config == recipes.TRAIN[name]
    models.check_name(config.backbone)
    assert config.optim.milestones[-1] < config.optim.epochs
    assert config.side_weight == 0.1
    assert config.run.run_dir is None


@pytest.mark.parametrize("name", PAPER_RECIPES)
def test_recipes_are_the_papers(name: str) -> None:
    config, (dataset, n, depth, epsilon) = recipes.TRAIN[name], PAPER_RECIPES[name]
    assert (config.data.dataset, config.n, config.depth, config.epsilon) == (dataset, n, depth, epsilon)
    assert (config.epsilon_start, config.side_weight, config.pretrained) == (0, 0.1, None)
    optim, imagenet = config.optim, dataset == "imagenet"
    assert (optim.optimizer, optim.lr, optim.momentum, optim.schedule) == ("sgd", 0.1, 0.9, "step")
    assert optim.nesterov == imagenet
    assert optim.weight_decay == (1e-4 if imagenet else 2e-4)
    assert optim.batch_size == (256 if imagenet else 128)
    # Milestones are epochs that are done: the paper's epoch 82, counted from 1, comes after 81.
    first = {"svhn": (20, 28, 50), "imagenet": (30, 60, 85, 95)}.get(dataset, (82, 123, 300))
    restarted = {"svhn": (10, 14, 25), "imagenet": ()}.get(dataset, (41, 61, 150))
    rates = {"svhn": [0.1, 0.01, 1e-3, 1e-4], "imagenet": [0.1, 0.01, 1e-3, 1e-4, 1e-5]}
    assert optim.milestones == tuple(epoch - 1 for epoch in first)
    assert optim.restart_milestones == restarted
    assert optim.rates == pytest.approx(rates.get(dataset, [0.1, 0.01, 0.001, 0.0002]))
    assert optim.epochs == {"svhn": 200, "imagenet": 110}.get(dataset, 1000)


@pytest.mark.parametrize("name", PAPER_RECIPES)
def test_recipes_vary_images_as_the_paper(name: str) -> None:
    data = recipes.TRAIN[name].data
    if name.startswith("imagenet"):
        assert data.stream
        assert data.normalize == "channel"
        return
    # Subtract each pixel's mean, divide by 128; crops of padded images, mirrored but for digits.
    assert (data.normalize, data.pad, data.flip) == ("pixel", 4, name.startswith("cifar"))
    assert data.train_split == ("train+extra" if name.startswith("svhn") else "train")
    assert data.holdout == 0


@pytest.mark.parametrize("name", [name for name, config in recipes.TRAIN.items() if "short" in name or name == "smoke"])
def test_our_own_recipes_are_short_and_keep_the_rules(name: str) -> None:
    config = recipes.TRAIN[name]
    assert config.n is not None
    assert config.n <= 18
    assert config.optim.epochs <= 100
    assert config.retire_after > 0
    assert bool(config.optim.restart_milestones) is (name == "smoke"), "so few epochs would end at a high rate"


def test_epsilon_acts_from_its_start_to_its_stop() -> None:
    config = TrainConfig(n=1, epsilon=2.0, epsilon_start=1, epsilon_stop=3)
    assert [config.epsilon_in(epoch) for epoch in range(5)] == [0, 2, 2, 0, 0]
    assert [TrainConfig(n=1, epsilon=2.0).epsilon_in(epoch) for epoch in (0, 999)] == [2, 2]
    assert_refused(
        TrainConfig, n=1, epsilon_start=3, epsilon_stop=3, match="^--epsilon-stop is 3, but must be more than"
    )


def test_two_data_sets_of_the_authors_are_refused() -> None:
    assert_refused(
        cli.authors_arguments,
        ["--cifar10", "--cifar100"],
        match="the data set is '--cifar10 --cifar100', but must be one",
    )
