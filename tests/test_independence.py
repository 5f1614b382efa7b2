"""What is installed together, and what importing it loads.

Runs in every environment of `nox -s tests`: beside one paper alone, and beside all of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from importlib.metadata import EntryPoint, distribution, distributions
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAPERS = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
INSTALLED_PAPERS = [paper for paper in PAPERS if find_spec(paper)]
HEAVY = ["torch", "torchvision", "accelerate", "datasets", "matplotlib"]


def console_scripts(package: str) -> list[EntryPoint]:
    return list(distribution(package.replace("_", "-")).entry_points.select(group="console_scripts"))


SCRIPTS = [script for package in ["resless", *INSTALLED_PAPERS] for script in console_scripts(package)]
WRITTEN_PAPERS = [paper for paper in INSTALLED_PAPERS if console_scripts(paper)]
LIGHT_MODULES = [
    *INSTALLED_PAPERS,
    *(f"resless{name}" for name in ["", ".errors", ".files", ".config", ".cli", ".spellings"]),
    *(f"resless.data.{name}" for name in ["catalog", "classes", "samples", "binary"]),
    *("resless.models", "resless.models.options"),
    *(f"{paper}.{name}" for paper in WRITTEN_PAPERS for name in ["config", "recipes", "cli"]),
    *(f"{paper}.{name}" for paper, name in [("adn", "runtime"), ("blockdrop", "original")] if paper in WRITTEN_PAPERS),
]


BLOCK_HEAVY_LIBRARIES = f"""
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name in {HEAVY}:
            raise AssertionError(f"{{name}} is imported")  # an ImportError could be caught

sys.meta_path.insert(0, Block())
"""


def run_without_heavy_libraries(code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new interpreter in which importing one of HEAVY fails."""
    command = [sys.executable, "-c", f"{BLOCK_HEAVY_LIBRARIES}\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_importing_a_heavy_library_would_be_seen():
    result = run_without_heavy_libraries("import resless\ntry:\n    import torch.nn\nexcept ImportError:\n    pass")
    assert result.returncode != 0
    assert "torch is imported" in result.stderr


def test_the_lists_that_drive_these_tests_are_full():
    assert {"adn", "blockdrop", "deephoyer", "epsilon_resnet"} <= set(PAPERS)
    assert len(console_scripts("resless")) >= 2
    if "deephoyer" in INSTALLED_PAPERS:
        assert len(console_scripts("deephoyer")) >= 4
        assert {"deephoyer.config", "deephoyer.recipes", "deephoyer.cli"} <= set(LIGHT_MODULES)


def test_exactly_the_intended_papers_are_installed():
    if "RESLESS_PAPERS" not in os.environ:
        pytest.skip("only a nox session knows which papers belong into its environment (RESLESS_PAPERS)")
    intended = [paper for paper in os.environ["RESLESS_PAPERS"].split(",") if paper]
    names = {installed.metadata["Name"] for installed in distributions()}
    assert "resless" in names
    assert [paper for paper in PAPERS if paper.replace("_", "-") in names] == sorted(intended)
    assert sorted(intended) == INSTALLED_PAPERS  # the others cannot be imported, not even from the checkout


def test_distributions_have_the_version_of_their_modules():
    for package in ["resless", *INSTALLED_PAPERS]:
        code = f"import {package}; print({package}.__version__)"
        assert run_without_heavy_libraries(code).stdout.strip() == distribution(package.replace("_", "-")).version


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_console_script_is_installed_and_leads_to_a_function(script):
    suffix = ".exe" if os.name == "nt" else ""
    assert (Path(sysconfig.get_path("scripts")) / f"{script.name}{suffix}").is_file()
    assert callable(script.load())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_help_needs_no_heavy_library(script):
    result = run_without_heavy_libraries(
        f"sys.argv = [{script.name!r}, '--help']\nfrom {script.module} import {script.attr}\n{script.attr}()"
    )
    assert result.returncode == 0, result.stderr
    assert "--help" in result.stdout


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_importing_loads_no_heavy_library_and_prints_nothing(module):
    result = run_without_heavy_libraries(f"import {module}")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_every_paper_is_under_the_import_contracts():
    tomllib = pytest.importorskip("tomllib", reason="reading pyproject.toml needs Python 3.11")
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    independent, shared, _ = linter["contracts"]
    assert sorted(linter["root_packages"]) == sorted(["resless", *PAPERS])
    assert sorted(independent["modules"]) == PAPERS
    assert sorted(shared["forbidden_modules"]) == PAPERS
