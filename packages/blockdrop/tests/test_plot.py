"""What the pictures show, read from their artists; and `blockdrop-plot` on a run folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blockdrop import plot
from blockdrop.analyse import Decisions, policies
from blockdrop.config import PlotConfig, TrainConfig
from blockdrop.costs import BlockCosts
from blockdrop.evaluate import summary
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from resless.config import as_dict
from resless.data import Images, Stream, load, open_samples
from resless.errors import InputError
from resless.testing import refusal, run, script

DIGITS = load("digits", "test")
COST = BlockCosts(always=100, blocks=(50, 60, 70, 80), policy=36)
PICTURES = ["blocks_used.png", "cost_accuracy.png", "easy_hard.png", "keep_rates.png", "policies.png"]


def decided(num_blocks: int = 4, images: Images = DIGITS, seed: int = 0) -> Decisions:
    """Random decisions, the first block always kept, the last never."""
    random = np.random.default_rng(seed)
    kept = random.random((len(images), num_blocks)) < 0.5
    kept[:, 0], kept[:, -1] = True, False
    labels = images.labels.numpy()
    return Decisions(kept, random.random(len(images)) < 0.9, labels, np.arange(len(images)))


def result_of(found: Decisions) -> dict[str, Any]:
    """What a run writes about decisions on four blocks."""
    controls = {
        "most_frequent": {"top1": 0.8, "cost_fraction": 0.5},
        "random": {"top1": 0.7, "cost_fraction": 0.55},
        "all_blocks": {"top1": 0.95, "cost_fraction": 1.0},
    }
    return summary(found, COST) | {"controls": controls}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """The pictures that a test draws, by name, in place of their files."""
    pictures: dict[str, Figure] = {}
    monkeypatch.setattr(plot, "save", lambda drawing, path: pictures.__setitem__(path.name, drawing))
    return pictures


def assert_nothing_overlaps(drawing: Figure) -> None:
    """No two texts of a picture share a pixel, and none is cut off at its border."""
    drawing.canvas.draw()
    hidden = _hidden_texts(drawing)
    texts = [text for text in drawing.findobj(Text) if text.get_text().strip() and id(text) not in hidden]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_visible()]
    assert len(boxes) > 1
    width, height = drawing.canvas.get_width_height()
    for text, box in boxes:
        assert min(box.x0, box.y0, width - box.x1, height - box.y1) > -1, f"{text!r} is cut off"
    for index, (text, box) in enumerate(boxes):
        for other, second in boxes[:index]:
            across = min(box.x1, second.x1) - max(box.x0, second.x0)
            along = min(box.y1, second.y1) - max(box.y0, second.y0)
            assert across < 1 or along < 1, f"{text!r} lies over {other!r}"


def _hidden_texts(drawing: Figure) -> set[int]:
    """Labels of ticks that are outside of their axis, or whose axes are switched off."""
    hidden = set()
    for axes in drawing.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not (axes.axison and low <= tick.get_loc() <= high):
                    hidden |= {id(tick.label1), id(tick.label2)}
    return hidden


def test_keep_rates_are_those_of_blocks_and_classes(drawn: dict[str, Figure], tmp_path: Path) -> None:
    found = decided()
    plot.draw_keep_rates(found, [*DIGITS.class_names, "unseen"], tmp_path / "a.png", stages=[1, 3])
    bars, heat, _ = drawn["a.png"].axes
    heights = [bar.get_height() for bar in bars.patches]
    np.testing.assert_allclose(heights, 100 * found.kept.mean(axis=0))
    assert (heights[0], heights[3]) == (100, 0)
    shown = heat.collections[0].get_array()
    assert shown.shape == (11, 4)
    np.testing.assert_allclose(shown[7], 100 * found.kept[found.labels == 7].mean(axis=0))
    assert shown.mask[10].all()
    assert [text.get_text() for text in heat.get_yticklabels()][-2:] == ["9", "unseen"]
    assert [line.get_xdata()[0] for line in heat.lines] == [1.5]
    assert_nothing_overlaps(drawn["a.png"])


@pytest.mark.parametrize(("num_blocks", "num_classes"), [(1, 10), (54, 100), (33, 1000)])
def test_keep_rates_of_networks_of_any_size_are_readable(
    drawn: dict[str, Figure], tmp_path: Path, num_blocks: int, num_classes: int
) -> None:
    names = [f"class number {label}, with a long name" for label in range(num_classes)]
    plot.draw_keep_rates(decided(num_blocks), names, tmp_path / "a.png")
    assert max(drawn["a.png"].get_size_inches()) < 15
    if num_classes < 1000:  # of more, the names touch
        assert_nothing_overlaps(drawn["a.png"])


def test_blocks_used_adds_up_to_all_images_of_each_kind(drawn: dict[str, Figure], tmp_path: Path) -> None:
    found = decided()
    plot.draw_blocks_used(found, tmp_path / "a.png")
    right, wrong = drawn["a.png"].axes[0].containers
    for bars, correct in ((right, True), (wrong, False)):
        used = found.kept[found.correct == correct].sum(axis=1)
        np.testing.assert_allclose([bar.get_height() for bar in bars], [100 * (used == n).mean() for n in range(5)])
        assert f"{len(used)} {'right' if correct else 'wrong'} predictions, mean {used.mean():.2f}" in bars.get_label()
    assert_nothing_overlaps(drawn["a.png"])


def test_blocks_used_without_a_wrong_prediction(drawn: dict[str, Figure], tmp_path: Path) -> None:
    found = decided()
    plot.draw_blocks_used(
        Decisions(found.kept, np.ones_like(found.correct), found.labels, found.images), tmp_path / "a.png"
    )
    assert len(drawn["a.png"].axes[0].containers) == 1


def test_policies_show_frequency_digits_and_their_own_images(drawn: dict[str, Figure], tmp_path: Path) -> None:
    found, stream = decided(6), Stream(open_samples("digits", "test"), 8)
    distinct = policies(found.kept)
    assert len(distinct.counts) == 16
    for images in (DIGITS, stream):  # a streamed image passes through a resize
        plot.draw_policies(found, images, tmp_path / "a.png", stages=[2, 2, 2])
        ranks, *cells = drawn["a.png"].axes
        np.testing.assert_allclose(ranks.lines[0].get_ydata(), 100 * distinct.counts / 360)
        assert f"16 policies on 360 images, entropy {distinct.entropy_bits:.2f} bits" in ranks.get_title()
        rows = [cells[start : start + 8] for start in range(0, len(cells), 8)]
        assert len(rows) == plot.POLICIES
        for index, (note, strip, *pictures) in enumerate(rows):
            own = distinct.of_image == index
            assert f"{100 * found.correct[own].mean():.1f} % right" in note.texts[0].get_text()
            np.testing.assert_array_equal(strip.collections[0].get_array().ravel(), distinct.kept[index])
            assert len(pictures) == 6
            for axes in pictures if images is DIGITS else ():
                shown = axes.images[0].get_array()
                same = np.flatnonzero([np.array_equal(shown, image[0]) for image in DIGITS.images.numpy()])
                assert own[same].any()
                framed = axes.spines["left"].get_visible()
                assert framed != found.correct[same].all()
    assert to_hex(rows[0][2].spines["left"].get_edgecolor()) == plot.ORANGE.lower()
    assert_nothing_overlaps(drawn["a.png"])


@pytest.mark.parametrize("num_blocks", [1, 54])
def test_policies_of_networks_of_any_size_are_readable(
    drawn: dict[str, Figure], tmp_path: Path, num_blocks: int
) -> None:
    found = decided(num_blocks)
    plot.draw_policies(found, DIGITS, tmp_path / "a.png")
    assert_nothing_overlaps(drawn["a.png"])
    title = drawn["a.png"].axes[0].get_title()
    assert title.startswith("1 policy on 360" if num_blocks == 1 else "360 policies on 360")


def test_easy_and_hard_images_carry_class_and_blocks(drawn: dict[str, Figure], tmp_path: Path) -> None:
    found = decided(8)
    plot.draw_easy_and_hard(found, DIGITS, tmp_path / "a.png")
    titles = [axes.get_title().split("\n") for axes in drawn["a.png"].axes if axes.images]
    assert len(titles) == 2 * plot.EASY
    used = [int(blocks.removesuffix(" of 8")) for _, blocks in titles]
    right = np.sort(found.kept[found.correct].sum(axis=1))
    assert (used[0], used[16]) == (right[0], right[-1])
    assert used[:16] == sorted(used[:16])
    assert used[16:] == sorted(used[16:], reverse=True)
    assert max(used[:16]) < right.mean() < min(used[16:])
    assert len({name for name, _ in titles[:16]}) >= 8
    assert_nothing_overlaps(drawn["a.png"])


@pytest.mark.parametrize(("right", "sentence"), [(True, "images use 3 blocks"), (False, "no prediction is right")])
def test_without_easy_images_the_picture_says_why(
    drawn: dict[str, Figure], tmp_path: Path, right: bool, sentence: str
) -> None:
    same = Decisions(np.ones((360, 3), bool), np.full(360, right), DIGITS.labels.numpy(), np.arange(360))
    plot.draw_easy_and_hard(same, DIGITS, tmp_path / "a.png")
    assert sentence in drawn["a.png"].axes[0].texts[0].get_text()


def test_cost_and_accuracy_of_the_policy_network_and_its_controls(drawn: dict[str, Figure], tmp_path: Path) -> None:
    found = decided()
    plot.draw_cost_accuracy(result_of(found), tmp_path / "a.png")
    axes = drawn["a.png"].axes[0]
    blocks = 100 + 50 + 60 * found.kept[:, 1].mean() + 70 * found.kept[:, 2].mean()  # the last block never runs
    own, network, *controls = axes.lines[:5]
    np.testing.assert_allclose(own.get_xdata(), [blocks / 3.6, (blocks + 36) / 3.6])
    np.testing.assert_allclose([network.get_xdata()[0], network.get_ydata()[0]], [own.get_xdata()[1], 100 * found.top1])
    points = [(line.get_xdata()[0], line.get_ydata()[0]) for line in controls]
    np.testing.assert_allclose(points, [(50, 80), (55, 70), (100, 95)])
    assert axes.get_xlim()[1] > 100
    assert_nothing_overlaps(drawn["a.png"])


def test_accuracy_against_cost_without_controls(drawn: dict[str, Figure], tmp_path: Path) -> None:
    plot.draw_cost_accuracy(result_of(decided()) | {"controls": {}}, tmp_path / "a.png")
    assert_nothing_overlaps(drawn["a.png"])


def records(epochs: int, *, curriculum: bool) -> list[dict[str, float]]:
    names = ("reward", "sampled_reward", "accuracy", "sampled_accuracy", "blocks_used", "sampled_blocks_used")
    lines = [
        {"epoch": epoch, **{f"train_{name}": epoch + place / 10 for place, name in enumerate(names)}}
        for epoch in range(1, epochs + 1)
    ]
    extra = {"open_blocks": 3, "held_out_top1": 0.5, "held_out_reward": 0.25, "held_out_blocks_used": 2.5}
    return [line | extra for line in lines] if curriculum else lines


@pytest.mark.parametrize("curriculum", [True, False])
def test_rewards_of_both_stages(drawn: dict[str, Figure], tmp_path: Path, curriculum: bool) -> None:
    plot.draw_rewards(records(3, curriculum=curriculum), tmp_path / "a.png")
    panels = drawn["a.png"].axes
    assert [axes.get_ylabel() for axes in panels] == ["reward", "accuracy", "blocks used"]
    assert [len(axes.lines) for axes in panels] == ([3, 3, 4] if curriculum else [2, 2, 2])
    for place, axes in enumerate(panels):
        np.testing.assert_allclose(axes.lines[0].get_ydata(), np.arange(1, 4) + 2 * place / 10)
        np.testing.assert_allclose(axes.lines[1].get_ydata(), np.arange(1, 4) + (2 * place + 1) / 10)
    if curriculum:
        assert [axes.lines[2].get_ydata()[0] for axes in panels] == [0.25, 0.5, 2.5]
        assert panels[2].lines[3].get_label() == "blocks open to decision"
    assert_nothing_overlaps(drawn["a.png"])


def test_a_run_without_epochs_has_no_rewards(drawn: dict[str, Figure], tmp_path: Path) -> None:
    plot.draw_rewards([], tmp_path / "a.png")
    assert not drawn


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a finished run leaves behind, of what is drawn."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    folder.mkdir()
    found = decided()
    found.save(folder / "policies.npz")
    config = {"command": "blockdrop-train", **as_dict(TrainConfig())}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "result.json").write_text(json.dumps(result_of(found)))
    lines = [json.dumps(record) + "\n" for record in records(3, curriculum=True)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


def test_the_command_draws_a_finished_run(run_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    run([script("blockdrop-plot"), "--cv_dir", "run"], tmp_path)
    assert sorted(path.name for path in folder.glob("*.png")) == sorted([*PICTURES, "rewards.png"])
    for path in folder.glob("*.png"):
        with Image.open(path) as picture:
            assert len(picture.convert("L").getcolors() or ()) > 1, path
    written = json.loads((folder / "policies.json").read_text())
    assert sum(policy["images"] for policy in written["policies"]) == 360
    assert refusal([script("blockdrop-plot"), "--run-dir", "elsewhere"], tmp_path).count("\n") == 1


def test_images_of_many_sizes_are_drawn_at_the_size_that_the_network_saw(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / "pets" / "test" / f"kind{number % 2}").mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (6 + number, 9))
        image.save(tmp_path / "pets" / "test" / f"kind{number % 2}" / f"{number}.png")
    settings = {"data": as_dict(TrainConfig().data) | {"dataset": str(tmp_path / "pets")}}
    assert plot._test_images(settings, None, {"image_size": 8}, None).image_shape == (3, 8, 8)
    with pytest.raises(InputError, match="give --image-size"):
        plot._test_images(settings, None, {}, None)


def test_output_leaves_the_run_as_it_is(run_folder: Path, tmp_path: Path) -> None:
    before = sorted(run_folder.iterdir())
    plot.main(PlotConfig(str(run_folder), output=str(tmp_path / "new" / "pictures")))
    assert sorted(run_folder.iterdir()) == before
    assert sorted(path.name for path in (tmp_path / "new" / "pictures").glob("*.png")) == [*PICTURES, "rewards.png"]


@pytest.mark.parametrize("name", ["config.json", "result.json", "metrics.jsonl", "policies.npz"])
def test_a_folder_that_is_no_finished_run_is_refused(run_folder: Path, tmp_path: Path, name: str) -> None:
    folder, output = tmp_path / "run", tmp_path / "pictures"
    shutil.copytree(run_folder, folder)
    (folder / name).write_text("{")
    with pytest.raises(InputError, match=rf"{name} (cannot be read|is not a readable)"):
        plot.main(PlotConfig(str(folder), output=str(output)))
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"no finished run of blockdrop-train or blockdrop-finetune: it has no {name}"):
        plot.main(PlotConfig(str(folder), output=str(output)))
    assert not output.exists()


def test_runs_of_other_commands_and_other_images_are_refused(run_folder: Path, tmp_path: Path) -> None:
    folder, output = tmp_path / "run", tmp_path / "pictures"
    shutil.copytree(run_folder, folder)
    config = PlotConfig(str(folder), output=str(output))
    (folder / "result.json").write_text('{"top1": 0.5}')
    with pytest.raises(InputError, match=r"its result\.json is another command's"):
        plot.main(config)
    shutil.copy(run_folder / "result.json", folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"data": {"unknown": 1}}))
    with pytest.raises(InputError, match="does not say which images"):
        plot.main(config)
    shutil.copy(run_folder / "config.json", folder)
    with pytest.raises(InputError, match="--data-dir is 'missing', but must be a folder"):
        plot.main(PlotConfig(str(folder), output=str(output), data_dir="missing"))
    found = decided()
    Decisions(found.kept, found.correct, found.labels[::-1], found.images).save(folder / "policies.npz")
    with pytest.raises(InputError, match="the 360 test images are not those of"):
        plot.main(config)
    assert not output.exists()


def test_a_data_set_that_moved_is_found_again(run_folder: Path, tmp_path: Path) -> None:
    """The folder that is the data set takes another name; its pictures are drawn all the same."""
    folder, moved = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(run_folder, folder)
    for label in range(2):
        (moved / "test" / str(label)).mkdir(parents=True)
        Image.fromarray(np.full((8, 8), 100 * label, np.uint8)).save(moved / "test" / str(label) / "a.png")
    settings = json.loads((folder / "config.json").read_text())
    settings["data"]["dataset"] = str(tmp_path / "before")
    (folder / "config.json").write_text(json.dumps(settings))
    kept = np.array([[True, True, False, False], [True, True, True, False]])
    Decisions(kept, np.array([True, True]), np.arange(2), np.arange(2)).save(folder / "policies.npz")
    output = tmp_path / "pictures"
    plot.main(PlotConfig(str(folder), output=str(output), data_dir=str(moved)))
    assert len(list(output.glob("*.png"))) == 6


def test_a_folder_that_cannot_be_written_is_refused(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write pictures to"):
        plot.main(PlotConfig(str(run_folder), output=str(tmp_path / "file" / "pictures")))
