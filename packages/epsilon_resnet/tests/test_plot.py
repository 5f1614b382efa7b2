"""What the pictures of a run show: numbers and labels by hand, artists of the pictures, and files that open."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from epsilon_resnet import plot
from matplotlib.figure import Figure
from PIL import Image

NAMES = ["blocks.png", "learning_rate.png", "errors.png", "responses.png"]


def blocks_of(epochs: int = 4) -> dict[str, Any]:
    """Of three blocks: the first is always kept, the second is lost in epoch 2 and retired at its end, the third is
    lost in epoch 3."""
    records = [
        {"discarded": [0.0, 0.25, 0.0], "largest": [8.0, 3.0, 4.0], "size": [1.0, 0.9, 1.0]},
        {"discarded": [0.0, 1.0, 0.125], "largest": [7.0, 0.5, 3.0], "size": [1.0, 0.01, 1.0]},
        {"discarded": [0.0, 1.0, 0.75], "largest": [6.0, 0.0, 2.0], "size": [1.0, 0.01, 0.8]},
        {"discarded": [0.0, 1.0, 1.0], "largest": [5.0, 0.0, 0.25], "size": [1.0, 0.01, 0.5]},
    ]
    return {
        "epsilon": 2.5,
        "epsilon_start": 0,
        "stages": [1, 2],
        "retired": {"1": 1},
        "restarts": [{"epoch": 1, "blocks": [1]}, {"epoch": 2, "blocks": [2]}],
        "epochs": records[:epochs],
    }


def untouched(num_blocks: int, epochs: int) -> dict[str, Any]:
    """Blocks of which none is ever discarded, with ε 0."""
    record = {"discarded": [0.0] * num_blocks, "largest": [3.0] * num_blocks, "size": [1.0] * num_blocks}
    return {
        "epsilon": 0,
        "epsilon_start": 0,
        "stages": [num_blocks],
        "retired": {},
        "restarts": [],
        "epochs": [record] * epochs,
    }


def history_of(epochs: int = 4, *, side: bool = True, held_out: bool = True) -> list[dict[str, Any]]:
    rates = [0.1, 0.01, 0.1, 0.1]
    more = {"train_side_accuracy": 0.5} if side else {}
    more |= {"held_out_top1": 0.625} if held_out else {}
    return [
        {"epoch": epoch + 1, "lr": rates[epoch % 4], "train_loss": 1.0, "train_accuracy": 0.75, **more}
        for epoch in range(epochs)
    ]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """The pictures that a test draws, by name, in place of their files."""
    pictures: dict[str, Figure] = {}
    monkeypatch.setattr(plot, "save", lambda drawing, path: pictures.__setitem__(path.name, drawing))
    return pictures


def assert_inside(drawing: Figure) -> None:
    """Nothing that is written on a picture is cut off at its border."""
    drawing.canvas.draw()
    width, height = drawing.canvas.get_width_height()
    legends = drawing.legends
    texts = [text for axes in drawing.axes for text in (*axes.texts, axes.title, axes.xaxis.label, axes.yaxis.label)]
    for artist in (*legends, *texts, *drawing.texts):
        box = artist.get_window_extent()
        assert min(box.x0, box.y0, width - box.x1, height - box.y1) > -1, f"{artist} is cut off"


def test_discarded_fractions_are_blocks_by_epochs_without_retired_cells() -> None:
    expected = [[0, 0, 0, 0], [0.25, 1, np.nan, np.nan], [0, 0.125, 0.75, 1]]
    np.testing.assert_array_equal(plot.discarded_fractions(blocks_of()), expected)
    np.testing.assert_array_equal(plot.discarded_fractions(blocks_of() | {"retired": {1: 1}}), expected)
    at_the_end = plot.discarded_fractions(blocks_of() | {"retired": {"1": 3}})
    assert not np.isnan(at_the_end).any()


def test_responses_leave_out_blocks_that_are_not_computed() -> None:
    expected = [[8, 7, 6, 5], [3, 0.5, np.nan, np.nan], [4, 3, 2, 0.25]]
    np.testing.assert_array_equal(plot.largest_responses(blocks_of()), expected)


def test_errors_are_percent_of_what_was_measured() -> None:
    series = plot.error_series(history_of(2))
    assert series == {
        "training images": ([1, 2], [25, 25]),
        "training images, side head": ([1, 2], [50, 50]),
        "held-out images": ([1, 2], [37.5, 37.5]),
    }
    assert list(plot.error_series(history_of(1, side=False, held_out=False))) == ["training images"]
    sometimes = [*history_of(2, held_out=False), {**history_of(3)[2], "held_out_top1": 0.0}]
    assert plot.error_series(sometimes)["held-out images"] == ([3], [100])


@pytest.mark.parametrize(
    ("blocks", "name"),
    [
        ([4], "block 4"),
        ([3, 7], "blocks 3, 7"),
        ([3, 7, 8, 9], "blocks 3, 7, 8, 9"),
        ([3, 7, 8, 9, 11], "blocks 3, 7, 8 and 2 more"),
        (range(15), "blocks 0, 1, 2 and 12 more"),
    ],
)
def test_many_blocks_are_abbreviated(blocks: list[int], name: str) -> None:
    assert plot.blocks_named(blocks) == name


def test_restarts_are_at_the_end_of_their_epoch_counted_from_1() -> None:
    restarts = [{"epoch": 5, "blocks": [4]}, {"epoch": 9, "blocks": [1, 7]}]
    assert plot.restart_ends(restarts) == [6.5, 10.5]
    assert plot.restart_labels(restarts, 2) == [(6.5, "epoch 6: block 4"), (10.5, "epoch 10: blocks 1, 7")]
    assert plot.restart_labels([], 2) == []


def test_the_nearest_of_too_many_restarts_share_a_label() -> None:
    lost = {0: [4], 20: [5], 22: [1, 2], 30: [5], 80: [6]}
    restarts = [{"epoch": epoch, "blocks": blocks} for epoch, blocks in lost.items()]
    assert plot.restart_labels(restarts, 4) == [
        (1.5, "epoch 1: block 4"),
        (22.5, "epochs 21 to 23, twice: blocks 1, 2, 5"),
        (31.5, "epoch 31: block 5"),
        (81.5, "epoch 81: block 6"),
    ]
    assert plot.restart_labels(restarts, 3)[1] == (25.5, "epochs 21 to 31, 3 times: blocks 1, 2, 5")
    assert [text for _, text in plot.restart_labels(restarts, 1)] == [
        "epochs 1 to 81, 5 times: blocks 1, 2, 4 and 2 more"
    ]


def test_labels_give_way_to_each_other_and_stay_within_the_picture() -> None:
    np.testing.assert_allclose(plot.spread([10, 50, 90], 0, 100, 5), [10, 50, 90])
    np.testing.assert_allclose(plot.spread([50, 50, 90], 0, 100, 4), [48, 52, 90])
    np.testing.assert_allclose(plot.spread([1, 1, 1], 0, 100, 10), [0, 10, 20])
    np.testing.assert_allclose(plot.spread([99, 100], 0, 100, 10), [90, 100])
    assert plot.spread([], 0, 100, 10).size == 0
    random = np.random.default_rng(0)
    for count in (2, 20, 40):
        places = plot.spread(sorted(random.uniform(0, 100, count) ** 2 / 100), 0, 100, 2)
        assert np.diff(places).min() > 2 - 1e-9
        assert places[0] > -1e-9
        assert places[-1] < 100 + 1e-9


def test_the_map_shows_fractions_stages_and_restarts(drawn: dict[str, Figure], tmp_path: Path) -> None:
    plot.draw_blocks(blocks_of(), tmp_path / "a.png")
    axes = drawn["a.png"].axes[0]
    shown = axes.images[0].get_array()
    np.testing.assert_array_equal(shown.mask, np.isnan(plot.discarded_fractions(blocks_of())))
    assert shown[2].tolist() == [0, 0.125, 0.75, 1]
    assert axes.images[0].get_clim() == (0, 1)
    assert (axes.get_xlim(), axes.get_ylim()) == ((0.5, 4.5), (2.5, -0.5))
    stage, restarts = axes.lines
    assert stage.get_ydata()[0] == 0.5
    assert list(restarts.get_xdata()) == [2.5, 3.5]
    assert [text.get_text() for text in axes.texts] == ["stage 1", "stage 2"]
    assert axes.get_title() == "Discarded in epoch 4: 2 of 3 blocks, 1 for good"
    legend = [text.get_text() for text in drawn["a.png"].legends[0].get_texts()]
    assert legend == ["learning rate starts anew", "not computed any more"]
    assert_inside(drawn["a.png"])


def test_the_learning_rate_is_labelled_with_the_blocks_that_were_lost(drawn: dict[str, Figure], tmp_path: Path) -> None:
    plot.draw_learning_rate(history_of(), blocks_of()["restarts"], tmp_path / "a.png")
    axes = drawn["a.png"].axes[0]
    values, edges, _ = axes.patches[0].get_data()
    np.testing.assert_allclose(values, [0.1, 0.01, 0.1, 0.1])
    np.testing.assert_allclose(edges, [0.5, 1.5, 2.5, 3.5, 4.5])
    assert axes.get_yscale() == "log"
    assert [text.get_text() for text in axes.texts] == ["epoch 2: block 1", "epoch 3: block 2"]
    assert drawn["a.png"].get_suptitle() == "The learning rate starts anew twice"
    assert_inside(drawn["a.png"])


def test_a_learning_rate_that_falls_to_0_leaves_the_logarithmic_picture(
    drawn: dict[str, Figure], tmp_path: Path
) -> None:
    falling = [{"epoch": epoch + 1, "lr": lr} for epoch, lr in enumerate([0.1, 0.05, 0.0])]
    plot.draw_learning_rate(falling, [], tmp_path / "a.png")
    values, *_ = drawn["a.png"].axes[0].patches[0].get_data()
    np.testing.assert_allclose(values, [0.1, 0.05, np.nan])
    assert drawn["a.png"].get_suptitle() == "The learning rate never starts anew"


def test_errors_have_a_line_for_each_head_and_for_each_restart(drawn: dict[str, Figure], tmp_path: Path) -> None:
    plot.draw_errors(history_of(), blocks_of()["restarts"], tmp_path / "a.png")
    axes = drawn["a.png"].axes[0]
    assert [line.get_label() for line in axes.lines[:3]] == [
        "training images: 25.00 %",
        "training images, side head: 50.00 %",
        "held-out images: 37.50 %",
    ]
    assert list(axes.lines[1].get_xdata()) == [1, 2, 3, 4]
    assert list(axes.lines[1].get_ydata()) == [50] * 4
    assert [line.get_xdata()[0] for line in axes.lines[3:]] == [2.5, 3.5]
    assert axes.get_ylim()[0] == 0
    assert_inside(drawn["a.png"])
    plot.draw_errors(history_of(side=False, held_out=False), [], tmp_path / "b.png")
    assert len(drawn["b.png"].axes[0].lines) == 1


def test_responses_have_a_line_for_each_block_and_epsilon_from_its_start(
    drawn: dict[str, Figure], tmp_path: Path
) -> None:
    plot.draw_responses(blocks_of(), tmp_path / "a.png")
    axes, scale = drawn["a.png"].axes
    assert len(axes.lines) == 4
    np.testing.assert_array_equal(axes.lines[1].get_ydata(), [3, 0.5, np.nan, np.nan])
    assert list(axes.lines[1].get_xdata()) == [1, 2, 3, 4]
    assert len({line.get_color() for line in axes.lines}) == 4
    assert list(axes.lines[3].get_xdata()) == [0.5, 4.5]
    assert list(axes.lines[3].get_ydata()) == [2.5, 2.5]
    assert axes.get_yscale() == "log"
    assert axes.get_ylim()[0] < 0.25
    assert scale.get_ylabel() == "block, by depth"
    assert_inside(drawn["a.png"])

    plot.draw_responses(blocks_of() | {"epsilon_start": 2}, tmp_path / "b.png")
    assert list(drawn["b.png"].axes[0].lines[3].get_xdata()) == [2.5, 4.5]
    for never in ({"epsilon_start": 4}, {"epsilon": 0}):
        plot.draw_responses(blocks_of() | never, tmp_path / "c.png")
        assert len(drawn["c.png"].axes[0].lines) == 3
        assert not drawn["c.png"].legends


def test_responses_that_vanish_run_out_of_the_picture(drawn: dict[str, Figure], tmp_path: Path) -> None:
    blocks = untouched(1, 2)
    blocks["epochs"] = [{"discarded": [0.0], "largest": [value], "size": [1.0]} for value in (4.0, 1e-30)]
    plot.draw_responses(blocks, tmp_path / "a.png")
    low, high = drawn["a.png"].axes[0].get_ylim()
    assert 1e-5 < low < high < 10
    blocks["epochs"] = [{"discarded": [1.0], "largest": [0.0], "size": [0.0]}]
    plot.draw_responses(blocks, tmp_path / "a.png")
    assert np.isnan(drawn["a.png"].axes[0].lines[0].get_ydata()).all()


def large_run() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """375 blocks in 1000 epochs, of which every second one is lost, one every five epochs."""
    random = np.random.default_rng(0)
    lost = {2 * index: 5 * index + 2 for index in range(187)}
    epochs = np.arange(1000)[:, None]
    from_epoch = np.array([lost.get(block, 2000) for block in range(375)])
    discarded = (epochs >= from_epoch).astype(float)
    largest = random.uniform(3, 9, 375) * np.exp(random.normal(0, 0.02, (1000, 375)))
    largest *= np.where(epochs > from_epoch + 20, 0, np.exp(-0.2 * np.maximum(0, epochs - from_epoch)))
    blocks = {
        "epsilon": 2.5,
        "epsilon_start": 0,
        "stages": [125, 125, 125],
        "retired": {str(block): min(999, epoch + 20) for block, epoch in lost.items()},
        "restarts": [{"epoch": epoch, "blocks": [block]} for block, epoch in lost.items()],
        "epochs": [
            {"discarded": row.tolist(), "largest": sizes.tolist(), "size": [1.0] * 375}
            for row, sizes in zip(discarded, largest, strict=True)
        ],
    }
    return blocks, history_of(1000)


@pytest.mark.parametrize(
    ("blocks", "history"),
    [
        pytest.param(blocks_of(), history_of(), id="small"),
        pytest.param(untouched(1, 1), history_of(1, side=False, held_out=False), id="one block, one epoch"),
        pytest.param(untouched(9, 3), history_of(3), id="no restart, epsilon 0"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_pictures_of_small_runs_open(blocks: dict[str, Any], history: list[dict[str, Any]], tmp_path: Path) -> None:
    paths = plot.draw(tmp_path / "run", blocks, history)
    assert paths == [tmp_path / "run" / name for name in NAMES]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(NAMES)
    for path in paths:
        with Image.open(path) as picture:
            assert 900 <= picture.width <= 1700
            assert 400 <= picture.height <= 1300
            assert len(picture.convert("L").getcolors() or ()) > 1, path


def test_pictures_of_a_long_run_of_a_deep_network_are_readable(drawn: dict[str, Figure], tmp_path: Path) -> None:
    blocks, history = large_run()
    plot.draw(tmp_path, blocks, history)
    assert sorted(drawn) == sorted(NAMES)
    assert len(drawn["learning_rate.png"].axes[0].texts) == plot.LABELS
    for picture in drawn.values():
        assert_inside(picture)
        assert max(picture.get_size_inches()) <= 11
    boxes = [text.get_window_extent() for text in drawn["learning_rate.png"].axes[0].texts]
    assert all(left.x1 <= right.x0 for left, right in itertools.pairwise(boxes))


def test_a_run_without_epochs_has_no_pictures(tmp_path: Path) -> None:
    assert plot.draw(tmp_path / "run", untouched(3, 0), []) == []
    assert not (tmp_path / "run").exists()
