"""Every command of the README files is one that the console scripts take: options, recipes and values."""

from __future__ import annotations

import re
import runpy
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adn import config as adn_configs
from adn import recipes as adn_recipes
from adn.cli import authors_arguments as adn_arguments
from blockdrop import config as blockdrop_configs
from blockdrop import recipes as blockdrop_recipes
from deephoyer import config as deephoyer_configs
from deephoyer import recipes as deephoyer_recipes
from epsilon_resnet import config as epsilon_configs
from epsilon_resnet import recipes as epsilon_recipes
from epsilon_resnet.cli import authors_arguments as epsilon_arguments
from resless import config, models, recipes, weights
from resless.cli import parse
from resless.errors import InputError
from resless.spellings import in_our_words

ROOT = Path(__file__).parents[1]
DEMO = runpy.run_path(str(ROOT / "benchmarks" / "compare.py"))
READMES = [
    *(ROOT / "README.md", ROOT / "shared" / "README.md"),
    *(ROOT / "packages" / paper / "README.md" for paper in ("deephoyer", "blockdrop", "epsilon_resnet", "adn")),
]
SCRIPTS = {
    "resless-train": (config.TrainConfig, recipes.TRAIN),
    "resless-eval": (config.EvalConfig, {}),
    "resless-compare": (config.CompareConfig, {}),
    "resless-fold": (config.FoldConfig, {}),
    "deephoyer-train": (deephoyer_configs.TrainConfig, deephoyer_recipes.TRAIN),
    "deephoyer-prune": (deephoyer_configs.PruneConfig, deephoyer_recipes.PRUNE),
    "deephoyer-compact": (deephoyer_configs.CompactConfig, {}),
    "deephoyer-eval": (deephoyer_configs.EvalConfig, {}),
    "blockdrop-train": (blockdrop_configs.TrainConfig, blockdrop_recipes.TRAIN),
    "blockdrop-finetune": (blockdrop_configs.FinetuneConfig, blockdrop_recipes.FINETUNE),
    "blockdrop-eval": (blockdrop_configs.EvalConfig, blockdrop_recipes.EVAL),
    "blockdrop-plot": (blockdrop_configs.PlotConfig, {}),
    "epsilon-resnet-train": (epsilon_configs.TrainConfig, epsilon_recipes.TRAIN),
    "epsilon-resnet-compress": (epsilon_configs.CompressConfig, {}),
    "epsilon-resnet-eval": (epsilon_configs.EvalConfig, {}),
    "adn-train": (adn_configs.TrainConfig, adn_recipes.TRAIN),
    "adn-eval": (adn_configs.EvalConfig, {}),
    "adn-extract": (adn_configs.ExtractConfig, {}),
}
TRANSLATIONS = {
    "resless-train": lambda args: in_our_words(args, recipes.TRAIN),
    "epsilon-resnet-train": epsilon_arguments,
    "epsilon-resnet-eval": lambda args: epsilon_arguments(args, recipe=False),
    "adn-train": adn_arguments,
}
"""What a script does to its arguments before it parses them."""


def commands() -> list[tuple[str, list[str]]]:
    """(script, arguments) of every command in the shell blocks, comments left out and continued lines joined."""
    found = []
    for path in READMES:
        for block in re.findall(r"```sh\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words and words[0] in SCRIPTS:
                    found.append((words[0], words[1:]))
    return found


def test_the_readme_files_show_every_script() -> None:
    assert {script for script, _ in commands()} == set(SCRIPTS)
    assert len(commands()) >= 15


@pytest.mark.parametrize(("script", "args"), commands(), ids=lambda value: value if isinstance(value, str) else None)
def test_the_command_is_taken(script: str, args: list[str]) -> None:
    config_type, known_recipes = SCRIPTS[script]
    args = TRANSLATIONS.get(script, list)(args)
    assert isinstance(parse(config_type, known_recipes, prog=script, description="", args=args), config_type)


def test_ones_own_network_is_made_smaller_as_the_readme_says() -> None:
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    (block,) = (block for block in blocks if "compact(net, images)" in block)
    names: dict[str, Any] = {}
    exec(block, names)
    assert names["loss"].isfinite()
    with torch.no_grad():
        assert torch.allclose(names["small"](names["images"]), names["net"](names["images"]), atol=1e-5)
    sizes = [sum(tensor.numel() for tensor in names[name].parameters()) for name in ("small", "net")]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("options", [{}, {"dataset": "cifar10", "data_dir": "data", "epochs": 2, "flip": True}])
def test_the_demo_takes_the_steps_that_make_what_it_compares(options: dict[str, object], tmp_path: Path) -> None:
    options = DEMO["Options"](runs=str(tmp_path), **options)
    net = models.create("resnet20")
    weights.save_pretrained(net, tmp_path / "dense" / "model", example=torch.zeros(1, 3, 32, 32))
    steps = list(DEMO["steps"](options))
    assert len(steps) == 11
    for step in steps:
        script, *args = step.command
        config_type, known_recipes = SCRIPTS[script]
        parsed = parse(config_type, known_recipes, prog=script, description="", args=args)
        assert "--run-dir" not in args or parsed.data.dataset == options.dataset
    made = {step.done.parent for step in steps}
    assert {
        folder if folder.name != "model" else folder.parent for folder in DEMO["networks"](options).values()
    } <= made


def test_the_demo_does_not_take_what_other_options_made(tmp_path: Path) -> None:
    options = DEMO["Options"](runs=str(tmp_path / "demo"))
    DEMO["claim"](options)
    DEMO["claim"](replace(options, repeats=3))
    with pytest.raises(InputError, match=r"another folder: this one holds a comparison with --model resnet20$"):
        DEMO["claim"](replace(options, model="resnet32"))
    (tmp_path / "old" / "dense").mkdir(parents=True)
    with pytest.raises(InputError, match="a folder that is empty or not there"):
        DEMO["claim"](replace(options, runs=str(tmp_path / "old")))
