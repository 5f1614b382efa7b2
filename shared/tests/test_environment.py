"""The commit that stands beside a measured number."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from resless.environment import environment


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one file, committed."""
    monkeypatch.delenv("RESLESS_COMMIT", raising=False)
    (tmp_path / "file").write_text("one")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "file")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "--quiet", "--message", "one")
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_commit_is_that_of_the_checkout_and_a_change_shows(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    assert environment(checkout)["commit"] == head
    (checkout / "file").write_text("two")
    assert environment(checkout)["commit"] == f"{head}+"


def test_a_file_that_the_checkout_does_not_track_has_none(checkout: Path) -> None:
    (checkout / "installed.py").write_text("here by chance")
    assert environment(checkout / "file")["commit"] == git(checkout, "rev-parse", "HEAD")
    assert environment(checkout / "installed.py")["commit"] is None


def test_what_the_variable_says_goes_before_the_checkout(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESLESS_COMMIT", "of the copy")
    assert environment(checkout)["commit"] == "of the copy"


def test_outside_a_checkout_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RESLESS_COMMIT", raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment(tmp_path)["commit"] is None
