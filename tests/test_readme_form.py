"""The READMEs of the packages have one form, and every link of the Markdown pages leads somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAPERS = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
PAGES = sorted(page for folder in (".", "docs", "shared", "packages/*") for page in ROOT.glob(f"{folder}/*.md"))

SECTIONS = [
    "Install and first commands",
    "The method",
    "The paper's commands",
    "Your own images",
    "Your own network",
    "What comes out",
    "Measured",
    "Choosing settings",
    "Deviations from the paper",
    "What was tried",
    "Cite",
]


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def headings(page: Path, level: str = "#+") -> list[str]:
    return re.findall(rf"^{level} (.+)$", prose(page), flags=re.MULTILINE)


def anchors(page: Path) -> list[str]:
    """The names by which GitHub finds the headings: no capitals, no punctuation, hyphens for spaces."""
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings(page)]


def links(page: Path) -> Iterator[str]:
    """Where a page leads within the repository, pictures included."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"https?:", target):
            yield target


def leads_somewhere(page: Path, target: str) -> bool:
    path, _, anchor = target.partition("#")
    file = page.parent / path if path else page
    return file.exists() and (not anchor or anchors(file).count(anchor) == 1)


@pytest.mark.parametrize("paper", PAPERS)
def test_the_packages_have_the_same_sections(paper: str) -> None:
    assert headings(ROOT / "packages" / paper / "README.md", "##") == SECTIONS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    assert [target for target in links(page) if not leads_somewhere(page, target)] == []


def test_links_and_pages_are_seen() -> None:
    assert len(PAPERS) >= 4
    assert {ROOT / "README.md", ROOT / "shared" / "README.md", ROOT / "docs" / "gallery.md"} < set(PAGES)
    for paper in PAPERS:
        found = list(links(ROOT / "packages" / paper / "README.md"))
        assert "../../README.md#your-own-images" in found
        assert any(target.endswith(".png") for target in found)


@pytest.mark.parametrize("target", ["nowhere.md", "#nowhere", "page.md#nowhere", "page.md#twice"])
def test_a_link_that_leads_nowhere_would_be_seen(target: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Here, *now*\n## Twice\n## Twice\n[a](#here-now) [b](https://example.org) [c]({target})\n")
    assert list(links(page)) == ["#here-now", target]
    assert [leads_somewhere(page, link) for link in links(page)] == [True, False]
