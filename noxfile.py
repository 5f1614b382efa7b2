"""Tests, demo, checks and benchmarks: `./dev --list` tells them all, `./dev -s SESSION -- ARGUMENTS` runs one.

Every session has its own environment, into which the distributions are built and installed as a user would install
them, never in editable form.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import nox
from nox.command import CommandFailed

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["tests", "lint"]

ROOT = Path(__file__).parent
PAPERS = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
PYTEST = ["pytest>=8", "pytest-xdist>=3.6"]
FILES_AT_A_TIME = ["--numprocesses=auto", "--maxprocesses=4", "--dist=loadfile"]  # each with one thread: see `pytest`
ON_CPU = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1", "CUDA_VISIBLE_DEVICES": ""}
ONNX = ["onnx", "onnxscript", "onnxruntime"]  # what the optional exports need, to test them

# Those that read MNIST or CIFAR-10 come first: they take --data-dir.
DATA_BENCHMARKS = [
    f"benchmarks/{name}.py"
    for name in (
        *("deephoyer_mnist", "deephoyer_sweep", "deephoyer_cifar", "deephoyer_strengths"),
        *("blockdrop_cifar", "blockdrop_throughput"),
        *("epsilon_cifar", "adn_cifar", "adn_ablation", "adn_alpha", "speed"),
    )
]
BENCHMARKS = [f"benchmarks/{name}.py" for name in ("deephoyer_speed", "epsilon_speed", "adn_speed", "composition")]

LINT = [
    ["ruff", "check"],
    ["ruff", "format", "--check"],
    ["lint-imports", "--no-logo"],
    ["mypy"],
]


def install(session: nox.Session, papers: list[str], *more: str) -> None:
    """Install `resless`, the given papers and `more` (other requirements and options), and nothing else.

    What is imported is compiled by the first of the many processes of tests, even where the shell says otherwise; to
    compile all that is installed would take longer.
    """
    session.env["PYTHONDONTWRITEBYTECODE"] = ""
    session.install("./shared", *(f"./packages/{paper}" for paper in papers), *more)
    session.env["RESLESS_PAPERS"] = ",".join(papers)  # tests/test_independence.py compares it with what is installed


def pytest(session: nox.Session, *folders: str) -> None:
    """Test several files at a time, a process a core; on the processor, also where there is a GPU."""
    session.run("pytest", *FILES_AT_A_TIME, *folders, *session.posargs, env=ON_CPU)


@nox.session
@nox.parametrize("package", ["resless", *PAPERS, "integration"], ids=["resless", *PAPERS, "integration"])
def tests(session: nox.Session, package: str) -> None:
    """Test one package with only it and resless installed; `integration`: all of them, and the tests across them."""
    if package == "integration":
        install(session, PAPERS, *PYTEST, *ONNX)
        pytest(session, "tests")
    else:
        paper = [package] if package in PAPERS else []
        folder = f"packages/{package}/tests" if paper else "shared/tests"
        install(session, paper, *PYTEST, *ONNX)
        pytest(session, folder, "tests/test_independence.py")


@nox.session
def gpu(session: nox.Session) -> None:
    """Test on the GPU what depends on it (not a default session); everything else is tested on the processor."""
    install(session, PAPERS, *PYTEST)
    session.run("pytest", "tests/test_gpu.py", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Damage files and kill runs for long (not a default session); -- --minutes 60 --kills 20."""
    install(session, PAPERS, *PYTEST)
    session.run("python", "benchmarks/fuzz.py", *session.posargs, env=ON_CPU)


@nox.session
def demo(session: nox.Session) -> None:
    """All methods beside one dense network, on real images, in minutes, into runs/demo; goes on where it stopped."""
    install(session, PAPERS)
    session.run("python", "benchmarks/compare.py", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Run every check of style, imports and types; arguments after -- (as --fix) go to `ruff check`."""
    install(session, PAPERS, "ruff==0.17.*", "import-linter>=2.5,<3", "mypy==2.4.*", "pytest>=8")
    failed = []
    for command in LINT:
        try:
            session.run(*command, *(session.posargs if command == ["ruff", "check"] else []))
        except CommandFailed:
            failed.append(shlex.join(command))
    if failed:
        session.error(f"failed: {'; '.join(failed)}")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure everything again and make the READMEs' tables (hours; not a default session); -- --data-dir FOLDER."""
    install(session, PAPERS, "torch-pruning")  # to compare with
    for script in DATA_BENCHMARKS:
        session.run("python", script, *session.posargs)
    for script in BENCHMARKS:
        session.run("python", script)
    session.run("python", "benchmarks/tables.py")


@nox.session(python="3.10", venv_backend="uv")
def lowest(session: nox.Session) -> None:
    """Run the tests with the oldest Python and the oldest libraries that are allowed (not a default session)."""
    install(session, PAPERS, *PYTEST, "--resolution", "lowest-direct")
    folders = ["shared/tests", *(f"packages/{paper}/tests" for paper in PAPERS), "tests"]
    pytest(session, *folders)
