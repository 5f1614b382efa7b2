"""Pictures of what a network decided."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from resless.data import Images
from resless.data.stream import Stream

from blockdrop.analyse import Decisions
from blockdrop.config import PlotConfig


def draw(found: Decisions, images: Images | Stream, folder: Path, result: dict[str, Any]) -> None:
    """Draw all pictures of decisions on `images` into a folder."""


def main(config: PlotConfig) -> None:
    """What `blockdrop-plot` does."""
