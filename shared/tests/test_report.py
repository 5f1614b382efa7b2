from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from resless import report
from resless.testing import disk


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


def test_a_narrow_terminal_cuts_no_cell(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a terminal
    monkeypatch.setenv("COLUMNS", "20")
    report.table("sizes", ["network", "MACs", "parameters"], [["a network of a long name", "40,812,736", "272,474"]])
    printed = capsys.readouterr().out
    assert all(cell in printed for cell in ("a network of a long name", "40,812,736", "272,474", "parameters"))
    assert "…" not in printed


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


def test_a_full_disk_leaves_no_part_of_a_picture_and_is_told_with_its_name(tmp_path):
    with disk(tmp_path, "size=8k"):
        with pytest.raises(OSError, match="No space left") as failed:
            report.curves([{"epoch": 1, "train_loss": 2.0}], tmp_path / "curves.png")
        assert failed.value.filename == str(tmp_path / "curves.png")
        assert list(tmp_path.iterdir()) == []


def test_a_run_without_epochs_has_no_curves(tmp_path):
    report.curves([], tmp_path / "curves.png")
    assert list(tmp_path.iterdir()) == []


def test_a_histogram_has_a_row_a_layer_and_takes_zeros_and_empty_layers(tmp_path):
    values = {"conv": np.array([0.0, 1e-3, 0.5]), "fc": np.zeros(4)}
    report.histogram(values, {"conv": 0.01, "fc": 0.0}, tmp_path / "h.png", xlabel="log10", title="weights")
    assert picture_size(tmp_path / "h.png") == (7 * 150, pytest.approx(3.8 * 150))


@pytest.mark.parametrize("classes", [2, 100, 151])
def test_a_confusion_matrix_names_what_can_be_read(classes, tmp_path, monkeypatch):
    drawn = []
    save = report.save
    monkeypatch.setattr(report, "save", lambda drawing, path: (drawn.append(drawing), save(drawing, path)))
    counts = np.diag(np.arange(classes) * 100)  # the first class has no images
    counts[1, 0] = 50
    names = [f"class {number}" for number in range(classes)]
    report.confusion_matrix(counts, names, tmp_path / "confusion.png")
    width, height = picture_size(tmp_path / "confusion.png")
    assert width - height == pytest.approx(0.8 * 150, abs=1)
    axes = drawn[0].axes[0]
    assert axes.images[0].get_array()[1].tolist() == [1 / 3, 2 / 3] + [0] * (classes - 2)
    total = counts.sum()
    assert axes.get_title() == f"{total:,} images, {100 * (total - 50) / total:.2f} % right"
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert ([label.get_text() for label in labels] == names) == (classes <= 150)
    numbers = sorted(text.get_text() for text in axes.texts if text.get_text())
    assert numbers == (sorted(f"{count:,}" for count in counts.ravel() if count) if classes <= 20 else [])
    # Everything lies within the picture.
    box, whole = axes.get_tightbbox(), drawn[0].bbox
    assert 0 <= box.x0 < box.x1 <= whole.x1
    assert 0 <= box.y0 < box.y1 <= whole.y1


def test_a_figure_of_ones_own_is_saved(tmp_path):
    drawing, axes = report.figure(2, 1)
    axes.plot([0, 1], [1, 0])
    report.save(drawing, tmp_path / "own.png")
    assert picture_size(tmp_path / "own.png") == (300, 150)


def test_tables_do_not_load_matplotlib():
    code = "import sys, resless.report; assert 'matplotlib' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
