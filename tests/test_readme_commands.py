"""Every command of the README files is one that exists and takes these arguments; nothing is run here.

What really runs is in test_readme_runs.py and test_readme_trainings.py.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import tyro
from accelerate.commands.launch import launch_command_parser
from resless import models, weights
from resless.cli import parse
from torch.distributed.run import get_args_parser as torchrun_parser

ROOT = Path(__file__).parents[1]
PAPERS = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
DISTRIBUTIONS = [ROOT / "shared", *(ROOT / "packages" / paper for paper in PAPERS)]
READMES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(folder / "README.md" for folder in DISTRIBUTIONS)]
DEMO = runpy.run_path(str(ROOT / "benchmarks" / "compare.py"))


# --- what there is


def table(folder: Path, name: str) -> dict[str, str]:
    """A table of a distribution's pyproject.toml, its values as they are written; Python 3.10 has no tomllib."""
    found = re.search(rf"^\[{re.escape(name)}\]\n(.*?)(?:^\[|\Z)", (folder / "pyproject.toml").read_text(), re.M | re.S)
    return dict(re.findall(r"^([\w-]+) = (.*)$", found[1], re.M)) if found else {}


SCRIPTS = {
    script: tuple(entry.strip('"').split(":"))
    for folder in DISTRIBUTIONS
    for script, entry in table(folder, "project.scripts").items()
}
"""Console script -> its module and function."""


def sessions() -> set[str]:
    """The sessions of the noxfile, which is read, not imported: where the tests run there is no nox."""
    names = set()
    for function in ast.parse((ROOT / "noxfile.py").read_text()).body:
        if not isinstance(function, ast.FunctionDef):
            continue
        decorators = [ast.unparse(decorator) for decorator in function.decorator_list]
        if any(decorator.startswith("nox.session") for decorator in decorators):
            names.add(function.name)
            for decorator in decorators:
                ids = re.search(r"ids=(\[.*?\])", decorator)
                names |= {f"{function.name}({name})" for name in eval(ids[1], {"PAPERS": PAPERS})} if ids else set()
    return names


# --- the commands


def texts(path: Path) -> tuple[list[str], list[str]]:
    """The shell blocks of a file, and the code within its text."""
    text = path.read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL), re.findall(r"`([^`]+)`", prose)


def commands() -> Iterator[tuple[str, str]]:
    """(file, command) of every line of the shell blocks, continued lines joined, and of every command in the text."""
    starts = ("python benchmarks/", "./dev -", "pip install ", "torchrun ", "accelerate launch -")
    starts += tuple(f"{script} " for script in SCRIPTS)
    for path in READMES:
        blocks, within = texts(path)
        lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        lines += [code for code in (" ".join(code.split()) for code in within) if code.startswith(starts)]
        for line in lines:
            if words := shlex.split(line, comments=True):
                yield str(path.relative_to(ROOT)), shlex.join(words)


COMMANDS = list(dict.fromkeys(commands()))


# --- what a command must be


class Taken(Exception):
    """A configuration, in place of the work that it asks for."""


def check(words: list[str]) -> None:
    """Raise, or end the test, unless the command is of a known kind, what it names exists, and its arguments parse."""
    match words:
        case [script, *args] if script in SCRIPTS:
            taken(script, args)
        case ["./dev", *args]:
            check_sessions(args)
        case ["pip" | ".venv/bin/uv", *args]:
            check_installed(args if words[0] == "pip" else args[1:])
        case [".venv/bin/pytest", *folders]:
            assert all((ROOT / folder).is_dir() for folder in folders), f"not all of {folders} are there"
        case ["torchrun", *args]:
            check_launched(torchrun_parser().parse_args(args))
        case ["accelerate", "launch", *args]:
            check_launched(launch_command_parser().parse_args(args))
        case ["python", script, *args] if script.startswith("benchmarks/"):
            check_benchmark(ROOT / script, args)
        case _:
            raise AssertionError(f"a new kind of command: {shlex.join(words)}; say in `check` what it must be")


def taken(script: str, args: list[str]) -> Any:
    """The configuration that a console script makes of its arguments, all but `...`, which leaves out the rest."""
    module, function = SCRIPTS[script]
    entry = importlib.import_module(module)

    def stop(*given: Any, **named: Any) -> NoReturn:
        raise Taken(parse(*given, **named))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *left_out(args)])
        patch.setattr(entry, "parse", stop)
        with pytest.raises(Taken) as stopped:
            getattr(entry, function)()
    return stopped.value.args[0]


def left_out(args: list[str]) -> list[str]:
    """Arguments without a `...` at the end, but for one that stands for the value of an option."""
    return args if args[-2:-1] == ["--backbone"] or args[-1:] != ["..."] else args[:-1]


def check_sessions(args: list[str]) -> None:
    """`./dev` runs nox: its sessions are those of the noxfile, and what follows `--` is for them."""
    nox, rest = (args[: args.index("--")], args[args.index("--") + 1 :]) if "--" in args else (args, [])
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("-s", nargs="+", default=[])
    parser.add_argument("-r", action="store_true")
    parser.add_argument("--version", action="store_true")
    given = parser.parse_args(nox)
    assert given.version or set(given.s)
    assert set(given.s) <= sessions()
    if given.s == ["demo"]:
        check_benchmark(ROOT / "benchmarks" / "compare.py", rest)


def check_installed(args: list[str]) -> None:
    """Folders hold a distribution, with the extras that are asked for; others are installed where the tests run."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--no-deps", action="store_true")
    parser.add_argument("-e", action="append", default=[])
    parser.add_argument("requirements", nargs="*")
    assert args[0] == "install"
    given = parser.parse_intermixed_args(args[1:])
    folders = [*given.e, *(name for name in given.requirements if name.startswith("."))]
    assert folders
    for wanted in folders:
        folder, _, extras = wanted.rstrip("]").partition("[")
        assert ROOT / folder in DISTRIBUTIONS, f"{folder} holds no distribution"
        assert set(filter(None, extras.split(","))) <= table(ROOT / folder, "project.optional-dependencies").keys()
    for name in set(given.requirements) - set(folders):
        assert find_spec(name), f"{name} is not installed here"


def check_launched(launch: argparse.Namespace) -> None:
    """A module that is launched is that of a console script, and takes the arguments by the same parser."""
    assert launch.module
    module = find_spec(launch.training_script)
    assert module is not None, f"there is no module {launch.training_script}"
    assert module.origin is not None
    main = re.search(
        r'^if __name__ == "__main__":\n    from (\S+) import (\w+) as', Path(module.origin).read_text(), re.M
    )
    assert main, f"{launch.training_script} does nothing when it is launched"
    (script,) = (script for script, entry in SCRIPTS.items() if entry == main.groups())
    if launch.training_script_args != ["..."]:  # which leaves out all of them
        taken(script, launch.training_script_args)


def check_benchmark(path: Path, args: list[str]) -> None:
    """A benchmark has these options. Its module is imported: tyro looks there for the types."""
    assert path.is_file(), f"there is no {path.relative_to(ROOT)}"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path.parent)
        module = importlib.import_module(path.stem)
    assert hasattr(module, "Options") or not args, f"{path.name} takes no arguments"
    if hasattr(module, "Options"):
        tyro.cli(module.Options, args=args)


# --- the tests


def test_every_file_and_every_script_is_seen() -> None:
    assert {file for file, _ in COMMANDS} == {str(path.relative_to(ROOT)) for path in READMES}
    assert {command.split()[0] for _, command in COMMANDS} >= {
        *SCRIPTS,
        "./dev",
        "pip",
        "torchrun",
        "accelerate",
        "python",
    }
    assert len(SCRIPTS) >= 18
    assert len(PAPERS) >= 4


@pytest.mark.parametrize(("file", "command"), COMMANDS)
def test_the_command_is_taken(file: str, command: str) -> None:
    check(shlex.split(command))


@pytest.mark.parametrize(
    "command",
    [
        "pip3 install ./shared",
        "pip install ./packages/nowhere",
        "pip install './shared[nothing]'",
        "pip install ./shared of-no-distribution",
        ".venv/bin/pytest shared packages/nowhere",
        "./dev -s nothing",
        "./dev -s 'tests(nothing)'",
        "./dev",
        "./dev -s demo -- --no-such-option",
        "resless-train --recipe nothing",
        "deephoyer-prune --epochs few",
        "torchrun --no-such-option -m adn.train",
        "torchrun -m adn.nothing",
        "torchrun -m adn.method",
        "torchrun -m adn.train --no-such-option",
        "accelerate launch -m deephoyer.train --recipe nothing",
        "accelerate launch deephoyer.train",
        "python benchmarks/nothing.py",
        "python benchmarks/tables.py --quick",
        "python benchmarks/adn_cifar.py --recipe nothing",
        "python train.py",
    ],
)
def test_a_wrong_command_would_be_seen(command: str) -> None:
    with pytest.raises((AssertionError, SystemExit)):
        check(shlex.split(command))


# --- the demo, whose steps are commands too


@pytest.mark.parametrize(
    "options", [{}, {"dataset": "cifar10", "data_dir": "data", "epochs": 2, "batch_size": 32, "flip": True}]
)
def test_the_demo_takes_the_steps_that_make_what_it_compares(options: dict[str, object], tmp_path: Path) -> None:
    options = DEMO["Options"](runs=str(tmp_path), **options)
    net = models.create("resnet20")
    weights.save_pretrained(net, tmp_path / "dense" / "model", example=torch.zeros(1, 3, 32, 32))
    steps = list(DEMO["steps"](options))
    assert len(steps) == 11
    for step in steps:
        script, *args = step.command
        parsed = taken(script, args)
        assert "--run-dir" not in args or parsed.data.dataset == options.dataset
    made = {step.done.parent for step in steps}
    assert {
        folder if folder.name != "model" else folder.parent for folder in DEMO["networks"](options).values()
    } <= made
