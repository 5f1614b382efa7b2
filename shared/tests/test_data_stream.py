from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from resless.cli import in_a_sentence
from resless.data import Augmentation, Shards, StreamBatches, StreamEvalBatches, lighting_shift, open_samples
from resless.data.loaders import generator, mix, repeat
from resless.data.policies import NAMES, auto_augment
from resless.data.stream import Lighting, eval_transform, train_transform
from resless.errors import InputError
from resless.testing import shared_data
from torch.utils.data import DataLoader
from torchvision.transforms import InterpolationMode, v2

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
COLOURS = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "lighting": 0.1}
RECIPE = {"auto_augment": "ta_wide", "random_erase": 0.5, "interpolation": "bicubic"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """22 photographs-to-be of different sizes in 2 classes, train and val."""
    root = tmp_path_factory.mktemp("tree")
    random = np.random.default_rng(0)
    for split, count in (("train", 22), ("val", 7)):
        for index in range(count):
            folder = root / split / f"class{index % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            size = (20 + index, 30 - index % 5, 3)
            Image.fromarray(random.integers(0, 256, size, dtype=np.uint8)).save(folder / f"{index:02}.jpg", quality=90)
    return root


# Of the colours of ImageNet's pixels; a row of red, green and blue each.
VALUES = (0.2175, 0.0188, 0.0045)
VECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


def stream(tree, num_workers=0, batch_size=4, **options):
    samples = open_samples(str(tree))
    options = {"mean": MEAN, "std": STD, "seed": 5, "transform": train_transform(16), **options}
    return StreamBatches(samples, batch_size, num_workers=num_workers, **options)


def assert_equal(first, second):
    first, second = list(first), list(second)
    assert len(first) == len(second) > 0
    for (images, labels), (other_images, other_labels) in zip(first, second, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


@pytest.mark.parametrize(
    ("num_workers", "colours", "repeats"),
    [(1, {}, 1), (2, {}, 1), (1, COLOURS, 1), (1, RECIPE, 3), (1, {"auto_augment": "augmix"}, 1)],
)
def test_workers_do_not_change_any_batch(tree, num_workers, colours, repeats):
    options = {"transform": train_transform(16, Augmentation(**colours), MEAN), "repeats": repeats}
    alone, helped = stream(tree, **options), stream(tree, num_workers, **options)
    expected = [list(alone.epoch(epoch)) for epoch in (0, 1)]
    for epoch in (0, 1):  # the workers stay alive between the two
        assert_equal(helped.epoch(epoch), expected[epoch])
    assert_equal(helped.epoch(1, start_step=3), expected[1][3:])
    next(helped.epoch(0))  # an epoch left early does not disturb the next
    assert_equal(helped.epoch(1), expected[1])
    assert not torch.equal(expected[0][0][0], expected[1][0][0])


def test_epoch_visits_images_once_and_drops_the_incomplete_batch(tree):
    loader = stream(tree, transform=eval_transform(8, 8), mean=(0, 0, 0), std=(1, 1, 1))
    found = list(loader.epoch(0))
    assert loader.steps_per_epoch == len(found) == 5
    assert loader.num_images == 22
    assert found[0][0].shape == (4, 3, 8, 8)
    assert len(torch.cat([images for images, _ in found]).flatten(1).unique(dim=0)) == 20


@pytest.mark.parametrize(("colours", "repeats"), [({}, 1), (COLOURS, 1), (RECIPE, 3)])
@pytest.mark.parametrize("world_size", [2, 4])
def test_slices_of_all_ranks_make_up_the_batch_of_one(tree, world_size, colours, repeats):
    options = {"transform": train_transform(16, Augmentation(**colours), MEAN), "repeats": repeats}
    shards = [Shards(rank=rank, world_size=world_size) for rank in range(world_size)]
    ranks = [list(stream(tree, **options, shards=shard).epoch(0)) for shard in shards]
    joined = [tuple(torch.cat(parts) for parts in zip(*step, strict=True)) for step in zip(*ranks, strict=True)]
    assert_equal(joined, stream(tree, **options).epoch(0))


@pytest.mark.parametrize("repeats", [1, 3])
def test_each_image_is_what_its_generator_says(tree, repeats):
    """The seeds by which runs of earlier versions resume, and after them those of repeats."""
    samples, transform = open_samples(str(tree)), train_transform(16)
    found = list(stream(tree, repeats=repeats, mean=(0, 0, 0), std=(1, 1, 1)).epoch(6))
    assert len(found) == 5
    indices, copies = repeat(torch.randperm(22, generator=generator(5, 6, -1)), repeats, 4)
    assert set(copies.tolist()) == set(range(repeats))
    for place, image in enumerate(image for images, _ in found for image in images):
        index, copy = int(indices[place]), int(copies[place])
        seed = mix(5, 6, index, copy) if copy else mix(5, 6, index)
        expected = drawn(transform, torch.from_numpy(samples.image(index)), seed)
        assert torch.equal((image * 255).round().byte(), expected)
    labels = torch.cat([labels for _, labels in found])
    assert labels.tolist() == samples.labels[indices[:20].numpy()].tolist()


def drawn(transform, image, seed):
    torch.manual_seed(seed)
    return transform(image)


def test_without_colours_the_transform_is_a_crop_and_a_flip(tree):
    image = torch.from_numpy(open_samples(str(tree)).image(0))
    plain = v2.Compose([v2.RandomResizedCrop(16, antialias=True), v2.RandomHorizontalFlip()])
    off = train_transform(
        16, Augmentation(brightness=0.0, contrast=0.0, saturation=0.0, lighting=0.0, random_erase=0.0), MEAN
    )
    assert repr(off) == repr(train_transform(16))
    assert [type(step) for step in off.transforms] == [type(step) for step in plain.transforms]
    for seed in range(20):
        assert torch.equal(drawn(off, image, seed), drawn(plain, image, seed))


def test_the_transform_is_torchvisions_jitter_then_lighting_between_crop_and_flip(tree):
    image = torch.from_numpy(open_samples(str(tree)).image(0))
    found = train_transform(16, Augmentation(**COLOURS))
    crop, flip = v2.RandomResizedCrop(16, antialias=True), v2.RandomHorizontalFlip()
    expected = v2.Compose([crop, v2.ColorJitter(0.4, 0.4, 0.4), Lighting(0.1), flip])
    images = [drawn(found, image, seed) for seed in range(20)]
    assert all(one.dtype == torch.uint8 and one.shape == (3, 16, 16) for one in images)
    assert all(torch.equal(one, drawn(expected, image, seed)) for seed, one in enumerate(images))
    only = v2.Compose([crop, v2.ColorJitter(contrast=0.4), flip])
    assert torch.equal(drawn(train_transform(16, Augmentation(contrast=0.4)), image, 3), drawn(only, image, 3))
    grey = image[:1]
    assert drawn(train_transform(16, Augmentation(brightness=0.4, contrast=0.4)), grey, 0).shape == (1, 16, 16)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_is_that_of_torchvisions_reference_recipes(tree, name):
    image = torch.from_numpy(open_samples(str(tree)).image(3))
    bicubic = name != "augmix"
    mode = InterpolationMode.BICUBIC if bicubic else InterpolationMode.BILINEAR
    options = {"auto_augment": name, "random_erase": 0.5, "interpolation": mode.value}
    crop, flip = v2.RandomResizedCrop(16, interpolation=mode, antialias=True), v2.RandomHorizontalFlip()
    policy, eraser = auto_augment(name, mode.value), v2.RandomErasing(0.5, value=[128, 102, 76])
    expected = v2.Compose([crop, flip, policy, eraser])
    coloured = v2.Compose([crop, v2.ColorJitter(0.4, 0.4, 0.4), Lighting(0.1), flip, policy, eraser])
    for seed in range(20):
        found = drawn(train_transform(16, Augmentation(**options), MEAN), image, seed)
        assert found.dtype == torch.uint8
        assert torch.equal(found, drawn(expected, image, seed))
        assert torch.equal(
            drawn(train_transform(16, Augmentation(**COLOURS, **options), MEAN), image, seed),
            drawn(coloured, image, seed),
        )


def test_erased_rectangles_have_the_mean_colour():
    image = torch.full((3, 40, 40), 200, dtype=torch.uint8)
    torch.manual_seed(0)
    transform = train_transform(32, Augmentation(random_erase=0.25), (0.485, 0.456, 1.2))
    images = torch.stack([transform(image) for _ in range(1000)])
    changed = (images != 200).any(1)
    assert (images.movedim(1, 3)[changed] == torch.tensor([124, 116, 255], dtype=torch.uint8)).all()
    erased = changed.flatten(1).any(1)
    # Standard errors: 0.014 of the probability, 0.006 of the area.
    assert erased.float().mean().item() == pytest.approx(0.25, abs=0.06)
    assert changed[erased].float().mean().item() == pytest.approx(0.175, abs=0.025)
    with pytest.raises(InputError, match="mean is None, but must be given together with random_erase"):
        train_transform(32, Augmentation(random_erase=0.25))
    with pytest.raises(InputError, match=r"random_erase is -0.1, but must be a probability from 0 to 1"):
        train_transform(32, Augmentation(random_erase=-0.1))


def test_evaluated_images_are_resized_as_asked_for(tree):
    image = torch.from_numpy(open_samples(str(tree)).image(5))
    resized = v2.functional.resize(image, 20, interpolation=InterpolationMode.BICUBIC, antialias=True)
    found = eval_transform(16, 20, "bicubic")(image)
    assert torch.equal(found, v2.functional.center_crop(resized, [16, 16]))
    assert not torch.equal(found, eval_transform(16, 20)(image))


def test_a_strip_is_evaluated_unless_resizing_makes_too_much_of_it(tmp_path):
    options = {"mean": MEAN, "std": STD, "num_workers": 0}
    file = tmp_path / "train" / "class0" / "strip.png"
    file.parent.mkdir(parents=True)
    Image.new("RGB", (3000, 20)).save(file)
    ((images, _),) = StreamEvalBatches(open_samples(str(tmp_path)), 1, **options)
    assert images.shape == (1, 3, 224, 224)
    Image.new("RGB", (3, 3000)).save(file)
    batches = StreamEvalBatches(open_samples(str(tmp_path)), 1, **options)
    said = f"image {file} cannot be resized: of 3 x 3000 pixels it would get 65,536,000 with a shorter side of 256, "
    with pytest.raises(InputError, match=f"^{said}but at most 16,777,216 are allowed: crop it or leave it out$"):
        list(batches)


def test_lighting_shifts_all_pixels_of_an_image_alike():
    image = torch.full((3, 2, 2), 100, dtype=torch.uint8)
    torch.manual_seed(1)
    found = Lighting(0.1)(image)
    torch.manual_seed(1)
    shift = lighting_shift(0.1 * torch.randn(1, 3)).view(3, 1, 1)
    assert found.dtype == torch.uint8
    assert torch.equal(found.float(), (100 + shift).round().expand(3, 2, 2))
    assert torch.equal(image, torch.full_like(image, 100))
    shifts = torch.stack([Lighting(0.1)(image)[:, 0, 0] - 100.0 for _ in range(2000)])
    # The variances 25.5^2 * sum of (eigenvalue * part of eigenvector)^2, and 1/12 of the rounding; standard error 3 %.
    variances = [25.5**2 * sum((value * part) ** 2 for value, part in zip(VALUES, row, strict=True)) for row in VECTORS]
    torch.testing.assert_close(shifts.var(0), torch.tensor(variances) + 1 / 12, rtol=0.15, atol=0)
    assert shifts.mean(0).abs().max() < 0.4  # five standard errors


def test_the_global_random_state_is_left_alone(tree):
    before = torch.get_rng_state()
    list(stream(tree, transform=train_transform(16, Augmentation(**COLOURS, **RECIPE), MEAN), repeats=2).epoch(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_only_the_given_indices_are_used(tree):
    indices = torch.arange(0, 22, 2)
    samples = open_samples(str(tree))
    ((_, labels),) = stream(tree, batch_size=11, indices=indices).epoch(0)
    assert sorted(labels.tolist()) == sorted(samples.labels[indices.numpy()].tolist())


@pytest.mark.parametrize("world_size", [1, 2])
def test_evaluation_sees_every_image_once_in_order(tree, world_size):
    samples = open_samples(str(tree), "test")
    options = {"mean": (0, 0, 0), "std": (1, 1, 1), "transform": eval_transform(16, 20), "num_workers": 0}
    seen = []
    for rank in range(world_size):
        loader = StreamEvalBatches(samples, 4, shards=Shards(rank=rank, world_size=world_size), **options)
        assert loader.num_images == 7
        found = list(loader)
        assert len(found) == len(loader)
        seen += [image for images, _ in found for image in (images * 255).round().byte()]
    expected = [
        v2.functional.center_crop(
            v2.functional.resize(torch.from_numpy(samples.image(i)), 20, antialias=True), [16, 16]
        )
        for i in range(7)
    ]
    assert len(seen) == 7
    assert all(any(torch.equal(image, other) for other in expected) for image in seen)
    assert world_size > 1 or all(torch.equal(image, other) for image, other in zip(seen, expected, strict=True))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_order_says_which_images_come(tree, world_size):
    samples, chosen = open_samples(str(tree)), torch.tensor([4, 21, 2, 9, 0, 11, 20])
    transform = eval_transform(8, 8)
    options = {"mean": (0, 0, 0), "std": (1, 1, 1), "transform": transform, "num_workers": 0, "indices": chosen}
    seen = []
    for rank in range(world_size):
        loader = StreamEvalBatches(samples, 3, shards=Shards(rank=rank, world_size=world_size), **options)
        order = loader.order
        assert order.dtype == torch.int64
        seen += order.tolist()
        found = list(loader)
        assert torch.cat([labels for _, labels in found]).tolist() == samples.labels[order.numpy()].tolist()
        images = (torch.cat([images for images, _ in found]) * 255).round().byte()
        expected = torch.stack([(transform(torch.from_numpy(samples.image(index)))) for index in order.tolist()])
        assert torch.equal(images, expected)
    assert sorted(seen) == sorted(chosen.tolist())
    assert world_size > 1 or seen == chosen.tolist()
    nothing = StreamEvalBatches(samples, 3, **(options | {"indices": chosen[:0]}))
    assert nothing.order.dtype == torch.int64
    assert len(nothing.order) == 0


@pytest.mark.parametrize("num_workers", [0, 1])
def test_truncated_file_is_named_in_one_sentence(tree, tmp_path, num_workers):
    shutil.copytree(tree, tmp_path / "tree")
    file = tmp_path / "tree" / "train" / "class1" / "05.jpg"
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(InputError, match=rf"^image {file} cannot be decoded: [^\n]*$"):
        list(stream(tmp_path / "tree", num_workers, batch_size=22).epoch(0))


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_worker_that_dies_in_the_middle_of_a_batch_is_told_as_that(tree, monkeypatch, error):
    def broken(_):
        raise error

    monkeypatch.setattr(DataLoader, "__iter__", broken)
    with pytest.raises(RuntimeError) as raised:
        list(stream(tree).epoch(0))
    sentence = in_a_sentence(raised.value)
    assert sentence.startswith("a process that decodes images has died (DataLoader worker is gone:")
    assert str(error) in sentence


def test_impossible_options(tree):
    with pytest.raises(InputError, match="batch_size is 23"):
        stream(tree, batch_size=23)
    with pytest.raises(InputError, match="repeats is 0, but must be 1 or more"):
        stream(tree, repeats=0)
    with pytest.raises(InputError, match="num_workers is -1"):
        stream(tree, num_workers=-1)
    with pytest.raises(InputError, match="mean is"):
        stream(tree, mean=(0.5,))
    with pytest.raises(InputError, match=r"shape of the mean is \[3, 16, 16\], but must be one number for each of 3"):
        stream(tree, mean=torch.zeros(3, 16, 16))


def test_real_photographs(tmp_path):
    for file in sorted(shared_data("data", "imagenet-sample").glob("*.JPEG"))[:24]:
        folder = tmp_path / "train" / file.name.split("_")[0]
        folder.mkdir(parents=True)
        shutil.copy(file, folder)
    samples = open_samples(str(tmp_path))
    loader = StreamBatches(samples, 12, mean=MEAN, std=STD, seed=0, num_workers=1)
    found = list(loader.epoch(0))
    assert [images.shape for images, _ in found] == [(12, 3, 224, 224)] * 2
    assert sorted(torch.cat([labels for _, labels in found]).tolist()) == list(range(24))
