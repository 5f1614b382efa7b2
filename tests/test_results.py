"""The tables of the READMEs, the table of all methods and the gallery are those that the result files make."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from readmes import cifar10
from resless import models
from resless.testing import environment

ROOT = Path(__file__).parents[1]


def test_whatever_is_not_as_the_results_say_is_named_and_nothing_else(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks")
    for page in [
        *ROOT.glob("README.md"),
        *ROOT.glob("shared/README.md"),
        *ROOT.glob("packages/*/README.md"),
        *ROOT.glob("docs/*.md"),
    ]:
        copy = tmp_path / page.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(page, copy)
    readme = tmp_path / "packages" / "adn" / "README.md"
    text = readme.read_text(encoding="utf-8")
    changed = re.sub(r"(?<=<!-- table: adn-ablation -->\n)(.*?\d)\d", r"\g<1>x", text, count=1, flags=re.DOTALL)
    assert changed != text
    readme.write_text(changed, encoding="utf-8")
    command = [sys.executable, str(tmp_path / "benchmarks" / "tables.py"), "--check"]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert ended.stderr == "not as the results say: packages/adn/README.md; run python benchmarks/tables.py\n"
    assert ended.returncode == 1
    assert readme.read_text(encoding="utf-8") == changed


def test_given_networks_are_evaluated_and_timed(tmp_path: Path) -> None:
    """The one benchmark that no session runs, for it needs checkpoints of others; here they are untrained."""
    cifar10(tmp_path / "images")
    for name in ("resnet8", "resnet14"):
        torch.save(models.create(name, shortcut="subsample").state_dict(), tmp_path / f"{name}-given.th")
    script = [sys.executable, str(ROOT / "benchmarks" / "given_cifar.py"), "--data-dir", "images", "--repeats", "2"]
    command = [*script, "--checkpoints", "resnet8-given.th", "resnet14-given.th"]
    subprocess.run(command, cwd=tmp_path, env=environment() | {"RESLESS_RESULTS": str(tmp_path)}, check=True)
    (written,) = tmp_path.glob("given-cifar_*.json")
    found = json.loads(written.read_text(encoding="utf-8"))
    assert {name: network["result"]["images"] for name, network in found["networks"].items()} == {
        "resnet8": 16,
        "resnet14": 16,
    }
    assert found["networks"]["resnet8"]["macs"] < found["networks"]["resnet14"]["macs"]
    assert [row["network"] for row in found["latency"]["resnet14"]][-1] == "resnet8"
