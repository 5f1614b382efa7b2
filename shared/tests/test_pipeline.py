from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from resless import models, weights
from resless.config import DataConfig, OptimConfig, RunConfig, SourceConfig, TrainConfig
from resless.data import Augmentation, Batches, StreamBatches
from resless.data.pipeline import Pipeline, check_fit
from resless.data.shards import Shards
from resless.data.stream import train_transform
from resless.errors import InputError
from resless.run import accelerator
from resless.train import train
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms


def pipeline(seed: int = 0, shards: Shards | None = None, **config: object) -> Pipeline:
    return Pipeline(DataConfig(**config), seed, shards or Shards())


def test_held_out_images_are_no_training_images_and_depend_on_the_seed():
    data = pipeline(holdout=0.2)
    kept, held_out = data.split
    assert len(held_out) == round(0.2 * 1437)
    assert torch.equal(torch.cat([kept, held_out]).sort().values, torch.arange(1437))
    assert torch.equal(held_out, pipeline(holdout=0.2).split[1])
    assert not torch.equal(held_out, pipeline(seed=1, holdout=0.2).split[1])
    assert data.training(64).num_images == len(kept)
    labels = torch.cat([labels for _, labels in data.held_out()])
    assert torch.equal(labels, data.train.labels[held_out])


def test_nothing_is_held_out_unless_asked_and_something_if_asked():
    kept, held_out = pipeline().split
    assert (len(kept), len(held_out)) == (1437, 0)
    with pytest.raises(InputError, match=r"--holdout is 0\.0001, but must be large enough to hold out one of 1437"):
        pipeline(holdout=0.0001).training(64)


def test_images_are_read_only_when_asked_for(monkeypatch):
    read = []
    data = pipeline()
    load = data._load
    monkeypatch.setattr(data, "_load", lambda split: read.append(split) or load(split))
    assert len(data.test) == 360
    assert read == ["test"]
    assert len(data.train) == len(data.train) == 1437
    assert read == ["test", "train"]


def test_a_named_data_set_is_normalised_by_its_published_numbers():
    data = pipeline()
    assert data.preprocessing == {"image_size": 8, "mean": [0.3056], "std": [0.3760]}
    assert data.example.shape == (1, 1, 8, 8)
    images, labels = next(iter(data.evaluation(data.test, batch_size=3)))
    torch.testing.assert_close(images, (data.test.images[:3].float() / 255 - 0.3056) / 0.3760)
    assert torch.equal(labels, data.test.labels[:3])


@pytest.fixture
def pets(tmp_path, monkeypatch) -> str:
    """A data set without a name: 20 training and 20 test images of 5 x 5 pixels, in two classes."""
    monkeypatch.setenv("RESLESS_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            for number in range(10):
                pixels = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "pets" / split / name / f"{number}.png")
    return str(tmp_path / "pets")


def test_a_folder_is_normalised_by_its_own_images_without_those_held_out(pets):
    data = pipeline(dataset=pets, holdout=0.4)
    kept, held_out = data.split
    assert (len(kept), len(held_out)) == (12, 8)
    pixels = data.train.images[kept].double() / 255
    assert data.preprocessing["mean"] == pytest.approx(pixels.mean(dim=(0, 2, 3)).tolist(), abs=1e-9)
    assert data.preprocessing["std"] == pytest.approx(pixels.std(dim=(0, 2, 3), unbiased=False).tolist(), abs=1e-9)


def test_the_mean_of_each_pixel_is_that_of_the_training_images_without_those_held_out(pets):
    data = pipeline(dataset=pets, holdout=0.4, normalize="pixel")
    kept, held_out = data.split
    means = sum(data.train.images[index].double() for index in kept) / 12  # [3, 5, 5], grey levels
    assert data.preprocessing["image_size"] == 5
    torch.testing.assert_close(torch.tensor(data.preprocessing["mean"]).double() * 255, means, rtol=0, atol=2e-4)
    assert data.preprocessing["std"] == [128 / 255] * 3
    for batches, images in (
        (data.held_out(), data.train.images[held_out]),
        (data.evaluation(data.test), data.test.images),
    ):
        found = torch.cat([found for found, _ in batches])
        torch.testing.assert_close(found, ((images - means) / 128).float(), rtol=0, atol=1e-5)
    trained = torch.cat([found for found, _ in data.training(12).epoch(0)])
    torch.testing.assert_close(trained.mean(dim=0), torch.zeros(3, 5, 5), rtol=0, atol=1e-5)
    again = Pipeline(SourceConfig(pets), 0, Shards(), data.preprocessing)
    assert again.preprocessing == data.preprocessing


def test_a_network_with_statistics_of_its_own_is_not_normalised_otherwise():
    config = DataConfig(normalize="pixel")
    with pytest.raises(
        InputError, match="--normalize is 'pixel', but must be left out: the network comes with its own"
    ):
        Pipeline(config, 0, Shards(), {"mean": [0.5], "std": [0.5]})
    assert Pipeline(config, 0, Shards(), {"image_size": 8}).preprocessing["std"] == [128 / 255]


def test_processes_share_a_batch_and_no_image():
    single = pipeline(pad=1, flip=True)
    halves = [pipeline(shards=Shards(rank=rank, world_size=2), pad=1, flip=True) for rank in range(2)]
    whole_images, whole_labels = next(iter(single.training(64).epoch(5, start_step=3)))
    parts = [next(iter(half.training(64).epoch(5, start_step=3))) for half in halves]
    assert torch.equal(torch.cat([images for images, _ in parts]), whole_images)
    assert torch.equal(torch.cat([labels for _, labels in parts]), whole_labels)


def test_colours_of_training_images_alone_are_varied(pets):
    colours = {"brightness": 0.1, "contrast": 0.2, "saturation": 0.3, "lighting": 0.4}
    plain, varied = pipeline(dataset=pets, holdout=0.2), pipeline(dataset=pets, holdout=0.2, **colours)
    batches = Batches(
        plain.train, 16, indices=plain.split[0], seed=0, augmentation=Augmentation(**colours), **plain.statistics
    )
    ((images, labels),), ((expected, order),) = varied.training(16).epoch(1), batches.epoch(1)
    assert torch.equal(images, expected)
    assert torch.equal(labels, order)
    for name in colours:
        ((less, _),) = pipeline(dataset=pets, holdout=0.2, **(colours | {name: 0.0})).training(16).epoch(1)
        assert not torch.equal(less, images), f"{name} has no effect"
    ((held_out, _),), ((same, _),) = varied.held_out(), plain.held_out()
    assert torch.equal(held_out, same)


IN_BATCHES = {"auto_augment": "ta_wide", "random_erase": 0.5, "interpolation": "bicubic"}
RECIPE = {**IN_BATCHES, "repeats": 2}


def test_the_recipe_of_training_images_in_memory(pets):
    plain, varied = pipeline(dataset=pets, holdout=0.2), pipeline(dataset=pets, holdout=0.2, **RECIPE)
    options = {"augmentation": Augmentation(**IN_BATCHES), "repeats": 2}
    batches = Batches(plain.train, 8, indices=plain.split[0], seed=0, **plain.statistics, **options)
    found, expected = list(varied.training(8).epoch(1)), list(batches.epoch(1))
    assert len(found) == len(expected) == 2
    for (images, labels), (others, order) in zip(found, expected, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, order)
    for name, off in {"auto_augment": None, "random_erase": 0.0, "interpolation": "bilinear", "repeats": 1}.items():
        less = pipeline(dataset=pets, holdout=0.2, **(RECIPE | {name: off})).training(8)
        pairs = zip(less.epoch(1), found, strict=True)
        assert any(not torch.equal(one[0], other[0]) for one, other in pairs), f"{name} has no effect"
    ((held_out, _),), ((same, _),) = varied.held_out(), plain.held_out()
    assert torch.equal(held_out, same)


def test_the_recipe_of_streamed_images(pets):
    data = pipeline(dataset=pets, stream=True, image_size=8, train_crop_size=6, workers=0, **RECIPE)
    transform = train_transform(6, Augmentation(**IN_BATCHES), data.statistics["mean"])
    options = {"transform": transform, "seed": 0, "num_workers": 0, "repeats": 2, **data.statistics}
    found, expected = list(data.training(10).epoch(0)), list(StreamBatches(data.train.samples, 10, **options).epoch(0))
    assert len(found) == len(expected) == 2
    for (images, labels), (others, order) in zip(found, expected, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, order)


@pytest.mark.parametrize("policy", ["ra", "ta_wide", "augmix", "imagenet", "cifar10", "svhn"])
@pytest.mark.parametrize("stream", [False, True])
def test_policies_and_erasing_take_grey_images(policy, stream):
    data = pipeline(stream=stream, workers=0, auto_augment=policy, random_erase=0.5)
    images, _ = next(iter(data.training(100).epoch(0)))
    assert images.shape == (100, 1, 8, 8)
    plain, _ = next(iter(pipeline(stream=stream, workers=0).training(100).epoch(0)))
    assert (images != plain).flatten(1).any(1).sum() > 50


def test_sizes_of_training_and_evaluation_may_differ(tmp_path):
    """ResNet-50's second recipe: trained at 176, evaluated at 224 out of 232 pixels."""
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            pixels = random.integers(0, 256, (260, 300, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / split / name / "0.png")
    options = {"dataset": str(tmp_path), "stream": True, "workers": 0}
    sizes = {"train_crop_size": 176, "image_size": 224, "val_resize_size": 232, "interpolation": "bicubic"}
    data = pipeline(**options, **sizes)
    assert data.train.image_shape == (3, 224, 224)
    assert data.example.shape == (1, 3, 224, 224)
    assert data.preprocessing["image_size"] == 224
    ((images, _),) = data.training(2).epoch(0)
    assert images.shape == (2, 3, 176, 176)
    ((images, _),) = data.evaluation(data.test)
    assert images.shape == (2, 3, 224, 224)
    mean, std = (torch.tensor(data.statistics[name]).view(3, 1, 1) for name in ("mean", "std"))
    for index in range(2):
        image = torch.from_numpy(data.test.samples.image(index))
        resized = transforms.resize(image, 232, interpolation=InterpolationMode.BICUBIC, antialias=True)
        assert min(resized.shape[1:]) == 232
        expected = transforms.center_crop(resized, [224, 224])
        torch.testing.assert_close(images[index], (expected / 255 - mean) / std, rtol=1e-4, atol=1e-4)
    ((plain, _),) = pipeline(**options).evaluation(data.test)
    resized = transforms.resize(torch.from_numpy(data.test.samples.image(0)), 256, antialias=True)
    expected = (transforms.center_crop(resized, [224, 224]) / 255 - mean) / std
    torch.testing.assert_close(plain[0], expected, rtol=1e-4, atol=1e-4)
    source = SourceConfig(str(tmp_path), stream=True, workers=0, val_resize_size=232, interpolation="bicubic")
    other = Pipeline(source, 0, Shards())  # of a command that only evaluates
    ((same, _),) = other.evaluation(other.test)
    assert torch.equal(same, images)
    small = pipeline(**options, val_resize_size=200)
    with pytest.raises(InputError, match="--val-resize-size is 200, but must be at least 224, the side of the images"):
        small.evaluation(small.test)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("option", ["saturation", "lighting"])
def test_colours_of_grey_images_cannot_be_varied(option, stream, tmp_path, monkeypatch):
    monkeypatch.setenv("RESLESS_CACHE", str(tmp_path / "cache"))
    for name in ("cat", "dog"):
        (tmp_path / "grey" / "train" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("L", (5, 5), 50 * number).save(tmp_path / "grey" / "train" / name / f"{number}.png")
    options = {"dataset": str(tmp_path / "grey"), "stream": stream, "image_size": 5, "workers": 0}
    ((images, _),) = pipeline(brightness=0.4, contrast=0.4, **options).training(8).epoch(0)
    assert images.shape == (8, 1, 5, 5)
    data = pipeline(**options, **{option: 0.1})
    with pytest.raises(InputError, match=rf"^--{option} is 0.1, but must be left out: the images have 1 channel"):
        data.training(4)


def test_colours_of_streamed_images_are_varied_by_their_transform(pets):
    options = {"dataset": pets, "stream": True, "image_size": 4, "workers": 0}
    colours = {"brightness": 0.1, "contrast": 0.2, "saturation": 0.3, "lighting": 0.4}
    data = pipeline(**options, **colours)
    transform = train_transform(4, Augmentation(**colours))
    expected = StreamBatches(data.train.samples, 20, transform=transform, seed=0, num_workers=0, **data.statistics)
    ((images, _),), ((same, _),) = data.training(20).epoch(0), expected.epoch(0)
    assert torch.equal(images, same)
    ((plain, _),) = pipeline(**options).training(20).epoch(0)
    assert not torch.equal(plain, images)


def test_the_preprocessing_of_another_network_can_be_given():
    data = Pipeline(DataConfig(), 0, Shards(), {"mean": [0.0], "std": [1.0]})
    images, _ = next(iter(data.evaluation(data.test)))
    torch.testing.assert_close(images, data.test.images.float() / 255)


def test_a_trained_networks_preprocessing_takes_the_place_of_the_data_sets():
    data = Pipeline(DataConfig(holdout=0.2), 0, Shards(), {"mean": (0.1,), "std": [0.2], "image_size": 99})
    assert data.preprocessing == {"image_size": 8, "mean": [0.1], "std": [0.2]}
    own = data.train.images[data.split[1]].float() / 255
    images = torch.cat([images for images, _ in data.held_out()])
    torch.testing.assert_close(images, (own - 0.1) / 0.2)
    known = torch.cat([images for images, _ in pipeline(holdout=0.2).training(64).epoch(0)])
    trained = torch.cat([images for images, _ in data.training(64).epoch(0)])
    torch.testing.assert_close(trained, (known * 0.3760 + 0.3056 - 0.1) / 0.2, rtol=1e-4, atol=1e-5)
    other = Pipeline(DataConfig(), 0, Shards(), {"mean": [0.0], "std": [1.0]})
    asked, _ = next(iter(other.evaluation(other.test)))
    torch.testing.assert_close(asked, data.test.images.float() / 255)


@pytest.mark.parametrize(("asked", "side"), [(None, 4), (3, 3)])
def test_images_without_a_size_get_that_of_a_trained_network_unless_asked(pets, asked, side):
    data = Pipeline(
        SourceConfig(pets, image_size=asked), 0, Shards(), {"image_size": 4, "mean": [0.1] * 3, "std": [1.0] * 3}
    )
    assert data.test.image_shape == (3, side, side)
    images, _ = next(iter(data.evaluation(data.test)))
    torch.testing.assert_close(images, data.test.images.float() / 255 - 0.1)
    assert "train" not in vars(data), "an evaluation does not read the training images"
    assert data.preprocessing == {"image_size": side, "mean": [0.1] * 3, "std": [1.0] * 3}


def test_a_named_data_set_is_not_evaluated_at_another_size_than_the_network_was_trained_at():
    trained_at = {"image_size": 16, "mean": [0.3], "std": [0.4]}
    data = Pipeline(SourceConfig(), 0, Shards(), trained_at)
    with pytest.raises(InputError) as refused:
        data.evaluation(data.test)
    assert str(refused.value) == (
        "the size of the images of digits is '8 x 8', but must be 16 x 16, as the network was trained at: give its "
        "--dataset, or an --image-size to resize to"
    )
    data = Pipeline(SourceConfig(image_size=16), 0, Shards(), trained_at)
    images, _ = next(iter(data.evaluation(data.test)))
    assert images.shape[1:] == (1, 16, 16)
    data = Pipeline(SourceConfig(), 0, Shards(), trained_at)
    with pytest.raises(InputError, match="the size of the images of digits is '8 x 8', but must be 16 x 16"):
        data.evaluation(data.train)
    data = Pipeline(DataConfig(), 0, Shards(), trained_at)  # what trains further may do so at another size
    assert data.preprocessing["image_size"] == 8
    for images in (data.train, data.test):
        assert next(iter(data.evaluation(images)))[0].shape[1:] == (1, 8, 8)


def test_streamed_images_are_resized_as_those_that_the_network_was_trained_on(pets):
    source = SourceConfig(pets, stream=True, workers=0)
    trained = {"image_size": 6, "val_resize_size": 9, "interpolation": "bicubic"}

    def evaluated(config: SourceConfig, recorded: dict[str, object] | None = None) -> torch.Tensor:
        data = Pipeline(config, 0, Shards(), recorded)
        ((images, _),) = data.evaluation(data.test)
        return images

    recorded = Pipeline(replace(source, **trained), 0, Shards()).preprocessing
    assert recorded.items() >= trained.items()
    assert torch.equal(evaluated(source, recorded), evaluated(replace(source, **trained)))
    for given in ({"val_resize_size": 8}, {"interpolation": "bilinear"}, {"image_size": 7, "val_resize_size": 7}):
        expected = evaluated(replace(source, **(trained | given)))
        assert torch.equal(evaluated(replace(source, **given), recorded), expected), given
    # To what the shorter side is resized belongs to the side that is cut out.
    wider, bicubic = replace(source, image_size=7), replace(source, image_size=7, interpolation="bicubic")
    assert torch.equal(evaluated(wider, recorded), evaluated(bicubic))
    for name, value in {"interpolation": "nearest", "val_resize_size": "big"}.items():
        with pytest.raises(InputError, match=name):
            evaluated(source, recorded | {name: value})


def test_streamed_images_of_a_named_data_set_get_the_size_of_the_network():
    source, trained_at = SourceConfig(stream=True, workers=0), {"image_size": 16}
    data = Pipeline(source, 0, Shards(), trained_at)
    assert next(iter(data.evaluation(data.test)))[0].shape[1:] == (1, 16, 16)
    data = Pipeline(replace(source, image_size=12), 0, Shards(), trained_at)
    assert next(iter(data.evaluation(data.test)))[0].shape[1:] == (1, 12, 12)


@pytest.mark.parametrize("stream", [False, True])
def test_the_classes_of_images_are_those_of_the_network_that_is_evaluated(stream, pets, tmp_path):
    shutil.rmtree(tmp_path / "pets" / "train")
    (tmp_path / "pets" / "test" / "dog").rename(tmp_path / "pets" / "test" / "owl")
    source = SourceConfig(pets, image_size=5, stream=stream, workers=0)
    alone = Pipeline(source, 0, Shards())
    assert (alone.test.class_names, alone.test.labels.tolist()) == (("cat", "owl"), [0] * 10 + [1] * 10)
    known = ("cat", "dog", "owl")
    data = Pipeline(source, 0, Shards(), {"mean": [0.5] * 3, "std": [0.5] * 3}, known)
    assert (data.test.class_names, data.test.num_classes) == (known, 3)
    assert data.test.labels.tolist() == [0] * 10 + [2] * 10
    ((_, labels),) = data.evaluation(data.test)
    assert labels.tolist() == [0] * 10 + [2] * 10
    other = Pipeline(source, 0, Shards(), None, ("cat", "dog", "hen"))
    with pytest.raises(InputError, match=f"^the images of {pets} show owl, not only the 3 classes that the network is"):
        _ = other.test


def test_test_images_are_numbered_as_the_training_images_are(tmp_path, monkeypatch):
    monkeypatch.setenv("RESLESS_CACHE", str(tmp_path / "cache"))
    content = io.BytesIO()
    Image.linear_gradient("L").save(content, "PNG")
    for split, names in {"train": ["cat", "dog", "owl"], "test": ["owl", "cat"]}.items():
        table = pyarrow.table({"image": [content.getvalue()] * len(names), "label": list(range(len(names)))})
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        parquet.write_table(table, tmp_path / f"{split}-0.parquet")
    data = pipeline(dataset=str(tmp_path))
    data.training(3)
    assert (data.test.class_names, data.test.labels.tolist()) == (("cat", "dog", "owl"), [2, 0])


def test_images_that_are_not_square_keep_their_size_and_both_sides_are_recorded(pets, tmp_path):
    for file in tmp_path.glob("pets/*/*/*.png"):
        Image.open(file).resize((7, 5)).save(file)
    data = pipeline(dataset=pets)
    assert data.preprocessing["image_size"] == [5, 7]
    for kind, fits in (("lenet_300_100", False), ("resnet8", True)):
        options = {"image_size": 5} if kind == "lenet_300_100" else {}
        net = models.create(kind, num_classes=2, in_channels=3, **options)
        if fits:
            check_fit(net, data.train)
        else:
            with pytest.raises(InputError, match="the images are 3 x 5 x 7 in 2 classes, but lenet_300_100 was train"):
                check_fit(net, data.train)
    later = Pipeline(SourceConfig(pets), 0, Shards(), data.preprocessing)
    images, _ = next(iter(later.evaluation(later.test)))
    assert images.shape[1:] == (3, 5, 7)
    other = Pipeline(SourceConfig(pets), 0, Shards(), {**data.preprocessing, "image_size": [5, 6]})
    with pytest.raises(InputError, match=r"of .*pets is '5 x 7', but must be 5 x 6, as the network was trained at"):
        other.evaluation(other.test)
    with pytest.raises(InputError, match="image_size is -1"):
        Pipeline(SourceConfig(pets), 0, Shards(), {"image_size": [5, -1]})


@pytest.mark.parametrize("given", [None, {}, {"image_size": 8}, {"mean": [0.1]}])
def test_preprocessing_without_statistics_leaves_the_data_sets(given):
    data = Pipeline(DataConfig(), 0, Shards(), given)
    assert data.preprocessing == pipeline().preprocessing


def test_preprocessing_for_other_channels_is_refused():
    data = Pipeline(DataConfig(), 0, Shards(), {"mean": [0.1] * 3, "std": [0.2] * 3})
    sentence = "the images of digits have 1 channel, but the mean that the network comes with, or that was given, is of"
    for batches in (data.training, lambda size: data.evaluation(data.test, size)):
        with pytest.raises(InputError, match=f"^{sentence} 3 channels: give the --dataset that it was trained on$"):
            batches(64)


def test_shards_are_those_of_the_accelerator():
    used = accelerator("no")
    assert Shards.of(used, channels_last=True) == Shards(used.device, 0, 1, True)


@pytest.mark.parametrize(
    ("name", "options", "wanted"),
    [
        ("lenet_300_100", {"in_channels": 1, "image_size": 28}, "1 x 28 x 28 in 10 classes"),
        ("resnet8", {"in_channels": 3}, "3 x any size in 10 classes"),
        ("resnet8", {"in_channels": 1, "num_classes": 100}, "1 x any size in 100 classes"),
    ],
)
def test_a_network_for_other_images_is_refused_by_what_differs(name, options, wanted):
    with pytest.raises(InputError) as refused:
        check_fit(models.create(name, **options), pipeline().test)
    assert f"the images are 1 x 8 x 8 in 10 classes, but {name} was trained on {wanted}" in str(refused.value)
    assert str(refused.value).endswith(", or --image-size 28 to resize to") == ("28 x 28" in wanted)


def test_a_network_for_these_images_is_accepted():
    images = pipeline().test
    for name in ("lenet_300_100", "resnet8"):
        model = models.create_for(name, images)
        check_fit(model, images)
        assert model(images.images[:3].float()).shape == (3, 10)


def test_streamed_images_train_and_evaluate_a_network(tmp_path):
    """Photographs of many sizes, two classes, through `--stream`: the same loop as for images in memory."""
    random = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 7)):
        for index in range(count):
            folder = tmp_path / "photos" / split / ("dark" if index % 2 else "light")
            folder.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 128, (20 + index, 30, 3), dtype=np.uint8) + (0 if index % 2 else 127)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.jpg")
    data = DataConfig(dataset=str(tmp_path / "photos"), stream=True, workers=1, image_size=16, holdout=0.25)
    config = TrainConfig(
        model="resnet8", data=data, optim=OptimConfig(batch_size=6, epochs=8), run=RunConfig(str(tmp_path / "run"))
    )
    found = train(config)
    assert (found.images, found.top1) == (7, 1.0)
    settings = weights.read_config(tmp_path / "run" / "model")
    statistics = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    size = {"image_size": 16, "val_resize_size": 18, "interpolation": "bilinear"}
    assert settings["preprocessing"] == size | statistics


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mean": 0.5, "std": [1.0]}, "mean is 0.5, but must be one number for each of 1 channels"),
        ({"mean": ["a"], "std": [1.0]}, "mean is ('a',), but must be one number for each of 1 channels"),
        ({"mean": [0.5], "std": None}, "std is None, but must be one number for each of 1 channels"),
        ({"mean": [0.5], "std": [0]}, "std is (0,), but must be greater than 0"),
        ({"mean": [[[0.5]]], "std": [1]}, "the shape of the mean is [1, 1, 1], but must be [1, 8, 8]"),
    ],
)
def test_a_model_folder_with_other_statistics_than_numbers_is_refused(given: dict[str, object], message: str):
    data = Pipeline(SourceConfig(), 0, Shards(), given)
    with pytest.raises(InputError, match=re.escape(message)):
        data.evaluation(data.test)


def test_a_model_folder_with_another_image_size_than_a_number_is_refused(tmp_path):
    with pytest.raises(InputError, match="image_size is 'big', but must be a whole number"):
        Pipeline(SourceConfig(dataset=str(tmp_path)), 0, Shards(), {"image_size": "big"})
