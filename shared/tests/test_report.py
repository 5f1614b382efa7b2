from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from resless import report


def picture_size(path) -> tuple[int, int]:
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert len(picture.getcolors(maxcolors=2**24)) > 1, "the picture is blank"
        return picture.size


def test_a_table_holds_every_cell_in_a_log_that_is_no_terminal(capsys):
    report.table("a title", ["network", "top-1 %"], [["x" * 90, 93.5], ["b", "7"]])
    printed = capsys.readouterr().out
    for text in ("a title", "network", "top-1 %", "x" * 90, "93.5", "7"):
        assert text in printed


def test_markdown_aligns_numbers_to_the_right():
    text = report.markdown(["network", "top-1 %"], [["resnet20", 91.25], ["resnet32", 92]])
    assert text.splitlines() == ["| network | top-1 % |", "| --- | ---: |", "| resnet20 | 91.25 |", "| resnet32 | 92 |"]


def test_curves_are_drawn_from_records_of_different_fields(tmp_path):
    records = [
        {"epoch": 1, "lr": 0.1, "train_loss": 2.0, "train_accuracy": 0.25, "seconds": 1.0},
        {"epoch": 2, "lr": 0.1, "train_loss": 1.0, "train_accuracy": 0.5, "held_out_top1": 0.4, "seconds": 1.0},
    ]
    report.curves(records, tmp_path / "pictures" / "curves.png")
    assert picture_size(tmp_path / "pictures" / "curves.png") == (9 * 150, 3.6 * 150)


def test_a_run_without_epochs_has_no_curves(tmp_path):
    report.curves([], tmp_path / "curves.png")
    assert list(tmp_path.iterdir()) == []


def test_a_histogram_has_a_row_a_layer_and_takes_zeros_and_empty_layers(tmp_path):
    values = {"conv": np.array([0.0, 1e-3, 0.5]), "fc": np.zeros(4)}
    report.histogram(values, {"conv": 0.01, "fc": 0.0}, tmp_path / "h.png", xlabel="log10", title="weights")
    assert picture_size(tmp_path / "h.png") == (7 * 150, pytest.approx(3.8 * 150))


def test_a_figure_of_ones_own_is_saved(tmp_path):
    drawing, axes = report.figure(2, 1)
    axes.plot([0, 1], [1, 0])
    report.save(drawing, tmp_path / "own.png")
    assert picture_size(tmp_path / "own.png") == (300, 150)


def test_tables_do_not_load_matplotlib():
    code = "import sys, resless.report; assert 'matplotlib' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
