"""Model folders and foreign checkpoints: exact round trips, strictness, and refusal of what is damaged or unsafe."""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from resless import data, models, weights
from resless.errors import InputError
from resless.testing import disk, shared_data
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

CHECKPOINTS = {
    "resnet20": "resnet20-12fca82f.th",
    "resnet32": "resnet32-d509ac18.th",
    "resnet44": "resnet44-014dd654.th",
    "resnet56": "resnet56-4bfd9763.th",
}


def small_lenet(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return models.create("lenet_300_100", in_channels=1, image_size=4, widths=(3, 2), **options)


def trained_resnet(shortcut: str = "conv") -> nn.Module:
    """A ResNet-8 whose running statistics and counters have moved."""
    torch.manual_seed(0)
    model = models.create("resnet8", shortcut=shortcut)
    model(torch.randn(8, 3, 8, 8))
    return model


def assert_equal_states(model: nn.Module, other: nn.Module) -> None:
    own, others = model.state_dict(), other.state_dict()
    assert len(own) > 0
    assert own.keys() == others.keys()
    for key in own:
        assert torch.equal(own[key], others[key]), key


# --- model folders


@pytest.mark.parametrize(
    "model",
    [trained_resnet(), trained_resnet("avgpool"), small_lenet(), small_lenet(inputs=[1, 5, 7])],
    ids=["conv", "avgpool", "lenet", "compacted lenet"],
)
def test_round_trip_is_exact(model: nn.Module, tmp_path: Path) -> None:
    weights.save_pretrained(model, tmp_path / "model")
    loaded = weights.from_pretrained(tmp_path / "model")
    assert_equal_states(loaded, model)
    assert loaded.spec == model.spec
    assert not loaded.training
    images = torch.randn(2, model.spec.in_channels, 4, 4)
    assert torch.equal(loaded(images), model.eval()(images))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"], "no staging folder is left"


def test_folder_loads_in_a_fresh_process(tmp_path: Path) -> None:
    model = small_lenet().eval()
    weights.save_pretrained(model, tmp_path / "model")
    code = (
        "import sys, torch; from resless.weights import from_pretrained\n"
        "print(from_pretrained(sys.argv[1])(torch.ones(1, 1, 4, 4)).tolist())\n"
        "import resless.compare, resless.folding  # without torchvision, which takes half a second\n"
        "assert 'torchvision' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model")], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == model(torch.ones(1, 1, 4, 4)).tolist()


def test_loading_leaves_random_numbers_alone(tmp_path: Path) -> None:
    weights.save_pretrained(trained_resnet(), tmp_path / "model")
    state = torch.get_rng_state()
    weights.from_pretrained(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), state)


def test_strided_and_tied_tensors_are_saved(tmp_path: Path) -> None:
    model = models.create("lenet_300_100", in_channels=1, image_size=2, widths=(4, 4))
    model.fc2.weight = model.fc1.weight
    weights.save_pretrained(model, tmp_path / "tied")
    assert_equal_states(weights.from_pretrained(tmp_path / "tied"), model)
    model = trained_resnet().to(memory_format=torch.channels_last)
    weights.save_pretrained(model, tmp_path / "strided")
    assert_equal_states(weights.from_pretrained(tmp_path / "strided"), model)


def test_config_and_card_tell_what_the_model_is(tmp_path: Path) -> None:
    preprocessing = {"mean": [0.5], "std": [0.25], "image_size": 4}
    weights.save_pretrained(
        small_lenet(),
        tmp_path / "tiny",
        preprocessing=preprocessing,
        metrics={"test accuracy %": 12.5},
        description="For tests only.",
        example=torch.zeros(5, 1, 4, 4),
    )
    config = weights.read_config(tmp_path / "tiny")
    macs = 16 * 3 + 3 * 2 + 2 * 10
    parameters = macs + 3 + 2 + 10
    assert config["preprocessing"] == preprocessing
    assert config["metrics"] == {"test accuracy %": 12.5}
    assert config["costs"] == {"parameters": parameters, "macs_per_image": macs, "image_shape": [1, 4, 4]}
    card = (tmp_path / "tiny" / "README.md").read_text()
    expected = [
        "# tiny",
        "For tests only.",
        'from_pretrained("tiny")',
        "| test accuracy % | 12.5 |",
        "| mean | [0.5] |",
    ]
    for text in [*expected, f"Parameters: {parameters}", f"1 x 4 x 4: {macs}"]:
        assert text in card


def test_class_names_are_kept_and_shown_where_they_say_something(tmp_path: Path) -> None:
    net = models.create("lenet_300_100", num_classes=12)
    names = [f"kind of {animal}" for animal in "abcdefghijkl"]
    weights.save_pretrained(net, tmp_path / "named", class_names=names)
    assert weights.read_config(tmp_path / "named")["class_names"] == names
    card = (tmp_path / "named" / "README.md").read_text()
    assert f"Classes, in the order of the logits: {', '.join(names[:10])} and 2 more; see config.json." in card
    weights.save_pretrained(net, tmp_path / "numbered", class_names=[str(number) for number in range(12)])
    assert "Classes" not in (tmp_path / "numbered" / "README.md").read_text()
    weights.save_pretrained(net, tmp_path / "without")
    assert "class_names" not in weights.read_config(tmp_path / "without")
    for few in (names[:-1], [*names, "m"], [*names[:-1], 5], []):
        with pytest.raises(InputError, match=r"class_names of the model to save is .* must be 12 texts, one for"):
            weights.save_pretrained(net, tmp_path / "few", class_names=few)  # type: ignore[arg-type]
    assert not (tmp_path / "few").exists()
    edited(lambda config: config["class_names"].pop())(tmp_path / "named")
    with pytest.raises(InputError, match=r"class_names of .*config.json is .* must be 12 texts"):
        weights.from_pretrained(tmp_path / "named")


def test_existing_folder_is_replaced_only_on_request(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    weights.save_pretrained(small_lenet(), folder)
    with pytest.raises(InputError, match="exists and is not empty"):
        weights.save_pretrained(trained_resnet(), folder)
    assert weights.from_pretrained(folder).spec.name == "lenet_300_100"
    weights.save_pretrained(trained_resnet(), folder, overwrite=True)
    assert weights.from_pretrained(folder).spec.name == "resnet8"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_leaves_no_part_of_a_model_folder(tmp_path: Path) -> None:
    with disk(tmp_path, "size=128k"):
        weights.save_pretrained(small_lenet(), tmp_path / "model")
        with pytest.raises(OSError, match="No space left on device") as failed:
            weights.save_pretrained(trained_resnet(), tmp_path / "model", overwrite=True)
        assert failed.value.filename == str(tmp_path / "model")
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
        assert weights.from_pretrained(tmp_path / "model").spec.name == "lenet_300_100"


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("mean", None, "mean in {} is None, std [0.25]"),
        ("mean", [0.5, 0.5], "mean in {} is [0.5, 0.5], std [0.25]"),
        ("mean", ["a"], "mean in {} is ['a'], std [0.25]"),
        ("mean", [10**400], "mean in {} is [1000"),
        ("std", [0], "mean in {} is [0.5], std [0]"),
        ("std", [float("nan")], "mean in {} is [0.5], std [nan]"),
        ("image_size", -8, "image_size in {} is -8, but must be a whole number in 1.."),
        ("image_size", [8, "x"], "image_size in {} is 'x', but must be a whole number in 1.."),
        ("val_resize_size", 0, "val_resize_size in {} is 0, but must be a whole number in 1.."),
        ("interpolation", "x", "unknown interpolation in {} 'x'"),
    ],
)
def test_preprocessing_that_cannot_be_is_refused_with_its_file(
    field: str, value: object, sentence: str, tmp_path: Path
) -> None:
    weights.save_pretrained(small_lenet(), tmp_path / "net", preprocessing={"mean": [0.5], "std": [0.25]})
    edited(lambda config: config["preprocessing"].update({field: value}))(tmp_path / "net")
    with pytest.raises(InputError, match=re.escape(sentence.format(tmp_path / "net" / "config.json"))):
        weights.read_config(tmp_path / "net")


def test_what_a_kill_left_between_two_moves_is_named_and_the_next_write_takes_it_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, old = tmp_path / "model", small_lenet()
    weights.save_pretrained(old, folder)
    (tmp_path / ".model-elsewhere").mkdir()

    def killed(self: Path, target: Path) -> Path:
        if target == folder:
            raise KeyboardInterrupt
        return rename(self, target)

    rename = Path.rename
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            weights.save_pretrained(trained_resnet(), folder, overwrite=True)
    (left,) = tmp_path.glob(".model-*-replaced")
    with pytest.raises(InputError, match=f"; what a killed command was replacing there is in {left}$"):
        weights.from_pretrained(folder)
    assert weights.from_pretrained(left).state_dict().keys() == old.state_dict().keys()
    weights.save_pretrained(trained_resnet(), folder)
    assert {path.name for path in tmp_path.iterdir()} == {"model", ".model-elsewhere"}


def test_folder_with_other_files_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="not a model folder, for it holds other files"):
        weights.save_pretrained(small_lenet(), tmp_path, overwrite=True)
    with pytest.raises(InputError, match="is a file"):
        weights.save_pretrained(small_lenet(), tmp_path / "thesis.tex", overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def failing_save(*args: object, **kwargs: object) -> None:
    raise OSError("no space left on device")


def test_failed_save_leaves_the_old_folder_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_lenet()
    weights.save_pretrained(model, tmp_path / "model")
    monkeypatch.setattr(weights, "save_file", failing_save)
    with pytest.raises(OSError, match="no space"):
        weights.save_pretrained(trained_resnet(), tmp_path / "model", overwrite=True)
    assert_equal_states(weights.from_pretrained(tmp_path / "model"), model)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a Linear has no spec"):
        weights.save_pretrained(nn.Linear(2, 2), tmp_path / "model")
    changed = small_lenet()
    changed.fc3 = nn.Linear(2, 11)
    with pytest.raises(InputError, match=r"fc3.weight \[11, 2\] float32 where the network has \[10, 2\] float32"):
        weights.save_pretrained(changed, tmp_path / "model")
    with pytest.raises(InputError, match="float16 where the network has"):
        weights.save_pretrained(small_lenet().half(), tmp_path / "model")
    for value in (float("nan"), torch.zeros(1), {1, 2}):
        with pytest.raises(InputError, match="must be finite JSON values"):
            weights.save_pretrained(small_lenet(), tmp_path / "model", metrics={"accuracy": value})
    assert list(tmp_path.iterdir()) == []


def sha256_of(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_the_checksum_of_the_tensors_is_recorded_at_each_save(tmp_path: Path) -> None:
    first, again, other = tmp_path / "first", tmp_path / "again", tmp_path / "other"
    weights.save_pretrained(trained_resnet(), first)
    model = weights.from_pretrained(first)
    weights.save_pretrained(model, again)
    with torch.no_grad():
        model.linear.bias[0] += 1
    weights.save_pretrained(model, other)
    for folder in (first, again, other):
        assert weights.read_config(folder)["tensors_sha256"] == sha256_of(folder)
    assert sha256_of(first) == sha256_of(again) != sha256_of(other)
    weights.save_pretrained(model, first, overwrite=True)
    assert weights.read_config(first)["tensors_sha256"] == sha256_of(first) == sha256_of(other)


def readers(folder: Path) -> list[Callable[[], object]]:
    """All ways to read the weights of a folder with a `small_lenet`."""
    tensors = folder / "model.safetensors"
    return [
        lambda: weights.from_pretrained(folder),
        lambda: weights.load(small_lenet(), folder),
        lambda: weights.load(small_lenet(), tensors),
        lambda: weights.read_checkpoint(folder),
        lambda: weights.read_checkpoint(tensors),
    ]


@pytest.mark.parametrize("part", ["length", "header", "tensors"])
def test_one_flipped_bit_of_the_weights_is_refused(part: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    weights.save_pretrained(small_lenet(), folder)
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    # As safetensors defines it: the length of the header in 8 bytes, the header, the tensors.
    start = 8 + int.from_bytes(whole[:8], "little")
    places = {"length": range(8), "header": range(8, start), "tensors": range(start, len(whole))}[part]
    chance = random.Random(part)
    for at in [places[0], places[-1], *(chance.choice(places) for _ in range(20))]:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        for read in readers(folder):
            with pytest.raises(InputError, match=re.escape(str(path))) as error:
                read()
            if part == "tensors":
                assert "take a good copy of the folder or, if the weights were changed on purpose" in str(error.value)
    path.write_bytes(whole)
    for read in readers(folder):
        read()


def test_without_a_checksum_any_tensors_that_fit_are_loaded(tmp_path: Path) -> None:
    folder, changed = tmp_path / "model", small_lenet()
    weights.save_pretrained(changed, folder)
    with torch.no_grad():
        changed.fc1.weight += 1
    save_file(changed.state_dict(), folder / "model.safetensors")
    with pytest.raises(InputError, match=r"does not match tensors_sha256 in config\.json beside it"):
        weights.from_pretrained(folder)
    edited(lambda config: config.pop("tensors_sha256"))(folder)
    assert_equal_states(weights.from_pretrained(folder), changed)
    own = (folder / "config.json").read_text()
    for content in (own, '{"architectures": ["of another library"]}', "[]"):
        (folder / "config.json").write_text(content)
        for source in (folder, folder / "model.safetensors"):
            loaded = small_lenet()
            weights.load(loaded, source)
            assert_equal_states(loaded, changed)


def test_a_checksum_may_be_in_capitals(tmp_path: Path) -> None:
    saved = small_lenet()
    weights.save_pretrained(saved, tmp_path)
    edited(lambda config: config.update(tensors_sha256=config["tensors_sha256"].upper()))(tmp_path)
    assert_equal_states(weights.from_pretrained(tmp_path), saved)
    for read in readers(tmp_path):
        read()


@pytest.mark.parametrize("entry", [None, 7, "", "0" * 63, "0" * 65, "g" * 64, "0" * 64 + "\n", ["0" * 64]])
def test_a_checksum_that_is_none_is_refused(entry: object, tmp_path: Path) -> None:
    weights.save_pretrained(small_lenet(), tmp_path)
    edited(lambda config: config.update(tensors_sha256=entry))(tmp_path)
    expected = re.escape(
        f"tensors_sha256 in {tmp_path / 'config.json'} is {entry!r}, but must be 64 hexadecimal digits"
    )
    for read in readers(tmp_path):
        with pytest.raises(InputError, match=expected):
            read()


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A function that applies `change` to the config.json of a folder."""

    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is not valid JSON"),
        (lambda folder: (folder / "config.json").write_text("[" * 100_000), "config.json is not valid JSON"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"), "config.json is not valid JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "holds a list, but must hold an object"),
        (edited(lambda c: c.update(format_version=2)), "format_version in .* is 2, but must be 1"),
        (edited(lambda c: c.update(format_version=True)), "format_version in .* is True"),
        (edited(lambda c: c.update(hook="x")), "has the unknown field hook"),
        (edited(lambda c: c.pop("metrics")), "config.json lacks metrics"),
        *(
            (edited(lambda c, shape=shape: c["costs"].update(image_shape=shape)), "image_shape in .* height, width")
            for shape in ("abc", 5, [], [1, 8], [1, -1, 8], [1, 8, 8.0], [1, 8, True], [3, 8, 8], [1, 10**9, 8])
        ),
        (edited(lambda c: c["model"].update(name=3)), "name in model in .* of type str"),
        (edited(lambda c: c["model"].update(code="x")), "unknown field code"),
        (edited(lambda c: c["model"].update(name="lenet_300_10")), "config.json: .* did you mean lenet_300_100"),
        (edited(lambda c: c["model"].update(num_classes=10**9)), "config.json: num_classes is 1000000000"),
        (edited(lambda c: c["model"].update(num_classes="10")), "num_classes in model in"),
        (edited(lambda c: c["model"]["options"].update(widths=[3, 70_000])), r"config.json: widths\[1\] is 70000"),
        (edited(lambda c: c["model"]["options"].update(width=3)), "config.json: unknown option of lenet_300_100"),
        (edited(lambda c: c["model"]["options"].update(num_classes=3)), "config.json: unknown option"),
        (edited(lambda c: c["model"]["options"].update(inputs=[99])), r"config.json: inputs\[0\] is 99"),
        (edited(lambda c: c["model"]["options"].update(widths=[3, 5])), r"safetensors does not match .*fc2.weight"),
        # As large as the options allow: 65,536 x 16.8 million weights are never allocated.
        (edited(lambda c: c["model"]["options"].update(widths=[65_536, 65_536], image_size=4096)), "does not match"),
        (lambda folder: (folder / "model.safetensors").unlink(), "there is no file .*model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 100), "not a readable safetensors file"),
        (lambda folder: truncate(folder / "model.safetensors"), "not a readable safetensors file"),
        (lambda folder: save_file({"a": torch.zeros(1)}, folder / "model.safetensors"), "lacks fc1.bias.*; it has a,"),
    ],
)
def test_damaged_folder_is_refused_by_name(damage: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    weights.save_pretrained(small_lenet(), folder)
    damage(folder)
    with pytest.raises(InputError, match=message) as error:
        weights.from_pretrained(folder)
    assert str(folder) in str(error.value)
    assert len(str(error.value)) < 1000


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_what_logits_stand_for_is_known_by_names_or_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    weights.save_pretrained(small_lenet(), folder)
    count = small_lenet().spec.num_classes
    assert weights.class_names_of(folder) == tuple(map(str, range(count)))
    weights.save_pretrained(small_lenet(), folder, class_names=[f"kind {k}" for k in range(count)], overwrite=True)
    assert weights.class_names_of(folder) == tuple(f"kind {k}" for k in range(count))
    assert weights.class_names_of(folder / "model.safetensors") is None
    assert weights.class_names_of(None) is None
    edited(lambda c: (c.pop("class_names"), c["model"].update(num_classes=10**12)))(folder)
    with pytest.raises(InputError, match=r"^num_classes in .*model/config.json is 1000000000000, but must be a whole"):
        weights.class_names_of(folder)  # before a name is made for each


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere is not a folder"):
        weights.from_pretrained(tmp_path / "nowhere")


# --- foreign checkpoints


def as_is(state: dict[str, Tensor]) -> object:
    return state


def wrapped(state: dict[str, Tensor]) -> object:
    return {"epoch": 3, "state_dict": {f"module.{key}": tensor for key, tensor in state.items()}, "optimizer": {}}


def nested(state: dict[str, Tensor]) -> object:
    return {"net": {"model": state}, "best": 0.5}


def without_counters(state: dict[str, Tensor]) -> object:
    return {key: tensor for key, tensor in state.items() if "num_batches_tracked" not in key}


def in_double(state: dict[str, Tensor]) -> object:
    return {key: tensor.double() if tensor.is_floating_point() else tensor for key, tensor in state.items()}


def test_networks_that_insist_on_a_version_load_from_files(tmp_path: Path) -> None:
    model = models.create("torchvision/mnasnet0_5")
    torch.save(dict(model.state_dict()), tmp_path / "mnasnet.pth")
    other = models.create("torchvision/mnasnet0_5")
    weights.load(other, tmp_path / "mnasnet.pth")
    assert_equal_states(other, model)


@pytest.mark.parametrize("layout", [as_is, wrapped, nested, in_double])
@pytest.mark.parametrize("old_format", [False, True])
def test_checkpoint_layouts_are_understood(layout: Callable[..., object], old_format: bool, tmp_path: Path) -> None:
    source, target = trained_resnet(), models.create("resnet8")
    file = tmp_path / "checkpoint.th"
    torch.save(layout(source.state_dict()), file, _use_new_zipfile_serialization=not old_format)
    weights.load(target, file)
    assert_equal_states(target, source)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (lambda t: t.to_sparse(), "conv1.weight in sparse form or without numbers: save plain tensors"),
        (lambda t: t.to("meta"), "conv1.weight in sparse form or without numbers: save plain tensors"),
        # Of one number in the file, of 80 GB in memory.
        (lambda t: torch.zeros(1, dtype=torch.float64).expand(10**5, 10**5), r"\[100000, 100000\] float32 where"),
    ],
)
def test_tensors_of_another_kind_are_refused_before_they_are_copied(
    odd: Callable[[Tensor], Tensor], message: str, tmp_path: Path
) -> None:
    state = trained_resnet().state_dict()
    torch.save(state | {"conv1.weight": odd(state["conv1.weight"])}, tmp_path / "odd.pth")
    with pytest.raises(InputError, match=message):
        weights.load(models.create("resnet8"), tmp_path / "odd.pth")


def test_a_dict_that_holds_itself_is_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = {"net": content}
    torch.save(content, tmp_path / "circle.pth")
    with pytest.raises(InputError, match="holds dicts in dicts, more than 8: save its state dict alone"):
        weights.load(models.create("resnet8"), tmp_path / "circle.pth")


def test_names_of_several_lines_make_one_line(tmp_path: Path) -> None:
    torch.save({"two\nlines": torch.zeros(1)}, tmp_path / "named.pth")
    with pytest.raises(InputError, match="it has two lines, unknown to the network"):
        weights.load(small_lenet(), tmp_path / "named.pth")


def test_counters_may_be_missing_as_a_whole_only(tmp_path: Path) -> None:
    source, target = trained_resnet(), trained_resnet()
    torch.save(without_counters(source.state_dict()), tmp_path / "old.pth")
    weights.load(target, tmp_path / "old.pth")
    assert target.bn1.num_batches_tracked == 0
    assert torch.equal(target.bn1.running_mean, source.bn1.running_mean)
    state = source.state_dict()
    del state["bn1.num_batches_tracked"]
    torch.save(state, tmp_path / "partial.pth")
    with pytest.raises(InputError, match=r"lacks bn1.num_batches_tracked"):
        weights.load(target, tmp_path / "partial.pth")


def test_safetensors_and_model_folders_load_too(tmp_path: Path) -> None:
    source = trained_resnet()
    weights.save_pretrained(source, tmp_path / "model")
    for path in (tmp_path / "model", tmp_path / "model" / "model.safetensors"):
        target = models.create("resnet8")
        weights.load(target, path)
        assert_equal_states(target, source)


def test_key_map_renames_and_leaves_out(tmp_path: Path) -> None:
    source, target = small_lenet(), models.create("lenet_300_100", in_channels=1, image_size=4, widths=(3, 2))
    state = source.state_dict()
    state["head.weight"], state["head.bias"] = state.pop("fc3.weight"), state.pop("fc3.bias")
    state["value.weight"] = torch.zeros(1)
    torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}}, tmp_path / "a.pt")
    names = {"head.weight": "fc3.weight", "head.bias": "fc3.bias", "value.weight": None}
    weights.load(target, tmp_path / "a.pt", names)
    assert_equal_states(target, source)
    with pytest.raises(InputError, match=r"does not hold tail.weight, named in the key map"):
        weights.load(target, tmp_path / "a.pt", names | {"tail.weight": "fc1.weight"})
    with pytest.raises(InputError, match=r"both named fc3.bias"):
        weights.load(target, tmp_path / "a.pt", names | {"head.weight": "fc3.bias"})


def test_unmatched_keys_and_shapes_are_named_and_change_nothing(tmp_path: Path) -> None:
    model = small_lenet()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state = small_lenet().state_dict()
    state["extra.weight"] = torch.zeros(1)
    del state["fc2.bias"]
    state["fc1.weight"] = torch.zeros(3, 15)
    state["fc3.bias"] = torch.zeros(10, dtype=torch.int8)
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(InputError) as error:
        weights.load(model, tmp_path / "other.pt")
    for part in (
        "other.pt does not match the network",
        "lacks fc2.bias",
        "has extra.weight, unknown to the network",
        "fc1.weight [3, 15] float32 where the network has [3, 16] float32",
        "fc3.bias [10] int8 where the network has [10] float32",
    ):
        assert part in str(error.value)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_the_content_of_a_checkpoint_can_be_read_and_loaded_in_parts(tmp_path: Path) -> None:
    source, other = trained_resnet(), small_lenet()
    parts = {"resnet": wrapped(source.state_dict()), "agent": other.state_dict(), "epoch": 3}
    torch.save(parts, tmp_path / "both.t7")
    content = weights.read_checkpoint(tmp_path / "both.t7")
    assert content.keys() == {"resnet", "agent", "epoch"}
    assert content["epoch"] == 3
    state = weights.unwrapped(content["resnet"], "both.t7, resnet")
    assert state.keys() == source.state_dict().keys(), "without module. and what is around it"
    target = models.create("resnet8")
    weights.load_state(target, state, "both.t7, resnet")
    assert_equal_states(target, source)
    lenet = small_lenet()
    weights.load_state(lenet, content["agent"], "both.t7, agent", {"fc1.weight": "fc1.weight"})
    assert_equal_states(lenet, other)


def test_loading_a_state_leaves_it_as_it_is_and_names_its_source() -> None:
    source, target = trained_resnet(), models.create("resnet8")
    state = weights.unwrapped(in_double(without_counters(wrapped(source.state_dict())["state_dict"])), "somewhere")
    before = dict(state)
    weights.load_state(target, state, "somewhere")
    assert state == before
    assert target.bn1.num_batches_tracked == 0
    assert torch.equal(target.bn1.running_mean, source.bn1.running_mean)
    unchanged = {key: tensor.clone() for key, tensor in target.state_dict().items()}
    for change, key_map, message in [
        ({"extra": torch.zeros(1)}, None, "^part 2 does not match the network: it has extra, unknown to the network$"),
        ({}, {"tail": None}, "^part 2 does not hold tail, named in the key map$"),
    ]:
        with pytest.raises(InputError, match=message):
            weights.load_state(target, source.state_dict() | change, "part 2", key_map)
    assert all(torch.equal(tensor, unchanged[key]) for key, tensor in target.state_dict().items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "^part 2 holds no state dict that can be told apart: its keys are epoch, but"),
        ({"net": {}, "model": {}}, "its keys are net, model, but"),
        (torch.zeros(1), "^part 2 holds a Tensor, but a dict of tensors is needed$"),
        (3, "^part 2 holds a int"),
    ],
)
def test_what_holds_no_state_dict_is_refused_by_its_source(content: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        weights.unwrapped(content, "part 2")


def test_prefixes_are_dropped_from_all_keys_or_none() -> None:
    tensor = torch.zeros(1)
    assert weights.unwrapped({"module.a": tensor, "module.b": tensor}, "x").keys() == {"a", "b"}
    assert weights.unwrapped({"module.a": tensor, "b": tensor}, "x").keys() == {"module.a", "b"}


@pytest.mark.parametrize("place", ["model", "model/model.safetensors"])
def test_a_model_folder_can_be_read_as_a_checkpoint(place: str, tmp_path: Path) -> None:
    source = trained_resnet()
    weights.save_pretrained(source, tmp_path / "model")
    content = weights.read_checkpoint(tmp_path / place)
    assert content.keys() == source.state_dict().keys()
    assert all(torch.equal(content[key], tensor) for key, tensor in source.state_dict().items())


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no file .*nowhere\.pt"):
        weights.read_checkpoint(tmp_path / "nowhere.pt")
    with pytest.raises(InputError, match=r"there is no file .*model\.safetensors"):
        weights.read_checkpoint(tmp_path)
    torch.save({"agent": Attack(tmp_path / "executed")}, tmp_path / "evil.t7")
    with pytest.raises(InputError, match=r"evil\.t7 is damaged, or holds Python objects other than tensors"):
        weights.read_checkpoint(tmp_path / "evil.t7")
    (tmp_path / "a.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(InputError, match=r"a\.safetensors is not a readable safetensors file"):
        weights.read_checkpoint(tmp_path / "a.safetensors")
    assert not (tmp_path / "executed").exists()


class Attack:
    """Unpickled without care, this would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "link").symlink_to("large")
    for _ in range(2):
        weights.save_pretrained(small_lenet(), tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large", "link"]
    assert models.spec_of(weights.from_pretrained(tmp_path / "large")).name == "lenet_300_100"


def test_memory_that_runs_out_is_told_apart_from_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(small_lenet().state_dict(), tmp_path / "large.pt")
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: torch.empty(10**15))
    with pytest.raises(InputError, match=r"large\.pt asks for more memory than there is"):
        weights.load(small_lenet(), tmp_path / "large.pt")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("old_format", [False, True])
def test_pickles_with_anything_but_tensors_are_refused(old_format: bool, tmp_path: Path) -> None:
    model, mark = small_lenet(), tmp_path / "executed"
    file = tmp_path / "evil.pt"
    torch.save({"state_dict": Attack(mark)}, file, _use_new_zipfile_serialization=not old_format)
    with pytest.raises(InputError, match=r"evil.pt is damaged, or holds Python objects other than tensors"):
        weights.load(model, file)
    torch.save(model, tmp_path / "whole.pt")
    with pytest.raises(InputError, match=r"whole.pt is damaged, or holds"):
        weights.load(model, tmp_path / "whole.pt")
    file.write_bytes(pickle.dumps(Attack(mark)))
    with pytest.raises(InputError, match=r"evil.pt is damaged, or holds"):
        weights.load(model, file)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {}, "net": {}}, "no state dict that can be told apart: its keys are model, net"),
        ({"epoch": 3}, "no state dict that can be told apart: its keys are epoch"),
        ({}, "no state dict"),
        ({0: torch.zeros(1)}, "no state dict"),
        ([torch.zeros(1)], "holds a list, but a dict of tensors is needed"),
        (torch.zeros(1), "holds a Tensor"),
    ],
)
def test_files_without_one_state_dict_are_refused(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(InputError, match=message):
        weights.load(small_lenet(), tmp_path / "a.pt")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("old_format", [False, True])
def test_damaged_checkpoints_give_input_errors_only(old_format: bool, tmp_path: Path) -> None:
    model = small_lenet()
    torch.save(model.state_dict(), tmp_path / "a.pt", _use_new_zipfile_serialization=not old_format)
    whole = (tmp_path / "a.pt").read_bytes()
    rng, refused = random.Random(0), 0
    for attempt in range(150):
        damaged = bytearray(whole)
        if attempt % 3 == 0:
            del damaged[rng.randrange(len(whole)) :]
        else:
            for _ in range(20):
                damaged[rng.randrange(len(whole))] = rng.randrange(256)
        (tmp_path / "a.pt").write_bytes(damaged)
        try:
            weights.load(model, tmp_path / "a.pt")
        except InputError:
            refused += 1
    assert refused > 100
    with pytest.raises(InputError, match="there is no file"):
        weights.load(model, tmp_path / "b.pt")


# --- published weights


@pytest.fixture(scope="module")
def cifar10_test(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, Tensor]:
    """Normalised test images [10000, 3, 32, 32] and labels [10000]."""
    folder = shared_data("data", "cifar10")
    loaded = data.load("cifar10", "test", folder, cache_dir=tmp_path_factory.mktemp("cache"))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = (loaded.images.float() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    return images, loaded.labels


def count_correct(model: nn.Module, images: Tensor, labels: Tensor) -> int:
    model = model.eval().to(memory_format=torch.channels_last)
    with torch.inference_mode():
        logits = torch.cat([model(batch.contiguous(memory_format=torch.channels_last)) for batch in images.split(250)])
    return int((logits.argmax(1) == labels).sum())


# Right predictions on all 10,000 images (91.73 %) or the first 500. One image is left to the rounding of another CPU.
@pytest.mark.parametrize(
    ("name", "num_images", "correct"),
    [("resnet20", 10_000, 9173), ("resnet32", 500, 462), ("resnet44", 500, 461), ("resnet56", 500, 465)],
)
def test_published_weights_score_as_published(
    name: str, num_images: int, correct: int, cifar10_test: tuple[Tensor, Tensor]
) -> None:
    images, labels = cifar10_test
    model = models.create(name, shortcut="subsample")
    weights.load(model, shared_data("weights", CHECKPOINTS[name]))
    assert count_correct(model, images[:num_images], labels[:num_images]) == pytest.approx(correct, abs=1)


def test_published_weights_are_loaded_unchanged() -> None:
    path = shared_data("weights", CHECKPOINTS["resnet56"])
    content = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    model = models.create("resnet56", shortcut="subsample")
    weights.load(model, path)
    state = model.state_dict()
    assert len(content) == 277
    for key, tensor in content.items():
        assert torch.equal(state[key.removeprefix("module.")], tensor), key
    with pytest.raises(InputError, match=r"resnet56.* does not match the network: it has layer1.7"):
        weights.load(models.create("resnet44", shortcut="subsample"), path)
    with pytest.raises(InputError, match=r"lacks layer2.0.shortcut.0.weight"):
        weights.load(models.create("resnet56", shortcut="conv"), path)


def test_published_weights_survive_a_model_folder(tmp_path: Path) -> None:
    path = shared_data("weights", CHECKPOINTS["resnet20"])
    model = models.create("resnet20", shortcut="subsample")
    weights.load(model, path)
    weights.save_pretrained(model, tmp_path / "resnet20")
    stored = load_file(tmp_path / "resnet20" / "model.safetensors")
    assert stored.keys() == model.state_dict().keys()
    assert_equal_states(weights.from_pretrained(tmp_path / "resnet20"), model)
