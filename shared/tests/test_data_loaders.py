from __future__ import annotations

import math
from collections import Counter
from dataclasses import fields
from itertools import chain

import pytest
import torch
from resless.data import (
    Augmentation,
    Batches,
    EvalBatches,
    Images,
    Shards,
    crop_flip,
    jitter,
    lighting_shift,
    load,
    normalise,
)
from resless.data.augment import erase, erased_rectangles
from resless.data.loaders import generator, repeat
from resless.data.policies import auto_augment, transform_each
from resless.errors import InputError
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as transforms

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
COLOURS = {"brightness": 0.4, "contrast": 0.3, "saturation": 0.2, "lighting": 0.1}
RECIPE = {"auto_augment": "ta_wide", "random_erase": 0.5, "repeats": 3, "interpolation": "bicubic"}
LEVELS = {"mean": (0, 0, 0), "std": (1 / 255,) * 3}  # batches in grey levels


def make(n=50, size=8):
    """Random images whose label is their index."""
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=random)
    return Images(images, torch.arange(n), tuple(map(str, range(n))))


def batches(data, batch_size=16, **options):
    """Batches of images that are moved and mirrored; options of an augmentation, of shards, or of their own."""
    options = {"mean": MEAN, "std": STD, "seed": 7, "pad": 2, "flip": True, **options}
    augmentation, shards = (
        kind(**{field.name: options.pop(field.name) for field in fields(kind) if field.name in options})
        for kind in (Augmentation, Shards)
    )
    return Batches(data, batch_size, augmentation=augmentation, shards=shards, **options)


def assert_equal(first, second):
    first, second = list(first), list(second)
    assert len(first) == len(second) > 0
    for (images, labels), (other_images, other_labels) in zip(first, second, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


class TestAugment:
    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize(("channels", "height", "width", "pad"), [(3, 32, 32, 4), (1, 28, 20, 2), (3, 5, 7, 0)])
    def test_crop_flip_equals_torchvision(self, device, channels, height, width, pad):
        random = torch.Generator().manual_seed(1)
        images = torch.randint(0, 256, (64, channels, height, width), dtype=torch.uint8, generator=random)
        top, left = torch.randint(0, 2 * pad + 1, (2, 64), generator=random)
        flip = torch.rand(64, generator=random) < 0.5
        found = crop_flip(images.to(device), top.to(device), left.to(device), flip.to(device), pad).cpu()
        assert found.dtype == torch.uint8
        assert 0 < flip.sum() < 64
        for index in range(64):
            expected = transforms.pad(images[index], [pad])
            expected = transforms.crop(expected, int(top[index]), int(left[index]), height, width)
            expected = transforms.hflip(expected) if flip[index] else expected
            assert torch.equal(found[index], expected)

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize(
        "names", [("brightness",), ("contrast",), ("saturation",), ("brightness", "contrast", "saturation")]
    )
    def test_jitter_equals_torchvision(self, device, names):
        random = torch.Generator().manual_seed(2)
        images = torch.randint(0, 256, (64, 3, 32, 24), dtype=torch.uint8, generator=random)
        images[:8] = images[:8, :1]  # grey
        images[0] = 0
        images[1] = 200
        factors = {name: 2 * torch.rand(64, generator=random) for name in names}
        found = jitter(images.to(device), **{name: factor.to(device) for name, factor in factors.items()}).cpu()
        assert found.dtype == torch.uint8
        assert found.shape == images.shape
        for index in range(64):
            exact, levels = images[index] / 255, images[index]
            for name in names:
                change = getattr(transforms, f"adjust_{name}")
                exact = change(exact, factors[name][index].item())
                levels = change(levels, factors[name][index].item())
            assert (found[index] - 255 * exact).abs().max() <= 0.501  # rounded to the nearest level
            # On bytes torchvision cuts off the fractions of the result, and of the grey that it is blended with.
            assert len(names) > 1 or (found[index].int() - levels.int()).abs().max() <= 2

    def test_contrast_and_brightness_of_grey_images_equal_torchvision(self):
        random = torch.Generator().manual_seed(3)
        images = torch.randint(0, 256, (16, 1, 9, 7), dtype=torch.uint8, generator=random)
        brightness, contrast = 2 * torch.rand(2, 16, generator=random)
        found = jitter(images, brightness=brightness, contrast=contrast)
        for index in range(16):
            expected = transforms.adjust_brightness(images[index] / 255, brightness[index].item())
            expected = transforms.adjust_contrast(expected, contrast[index].item())
            assert (found[index] - 255 * expected).abs().max() <= 0.501

    def test_jitter_in_numbers(self):
        grey = torch.tensor([[100, 200], [30, 90]], dtype=torch.uint8).view(2, 1, 1, 2)  # means 150 and 60
        assert jitter(grey, brightness=torch.tensor([1.2, 3.0])).flatten(1).tolist() == [[120, 240], [90, 255]]
        assert jitter(grey, contrast=torch.tensor([0.5, 2.0])).flatten(1).tolist() == [[125, 175], [0, 120]]
        # Brightness first: 50 and 100, then twice as far from their mean of 75; 30 and 90 are left as they are.
        both = jitter(grey, brightness=torch.tensor([0.5, 1.0]), contrast=torch.tensor([2.0, 1.0]))
        assert both.flatten(1).tolist() == [[25, 125], [30, 90]]
        colour = torch.tensor([[10, 20, 30], [60, 60, 60]], dtype=torch.uint8).view(2, 3, 1, 1)
        # The first one's grey is 0.2989 * 10 + 0.587 * 20 + 0.114 * 30 = 18.149, the second its own.
        for factor, expected in ((0.0, [18, 18, 18]), (0.5, [14, 19, 24]), (2.0, [2, 22, 42])):
            found = jitter(colour, saturation=torch.full((2,), factor))
            assert found.flatten(1).tolist() == [expected, [60, 60, 60]]
        shift = torch.tensor([[-12.0, 0.4, 0.6], [200.0, -60.0, -0.6]])
        assert jitter(colour, shift=shift).flatten(1).tolist() == [[0, 20, 31], [255, 0, 59]]

    def test_jitter_by_nothing_is_the_image_and_leaves_its_argument_alone(self):
        images = make().images
        before = images.clone()
        ones, zeros = torch.ones(50), torch.zeros(50, 3)
        assert torch.equal(jitter(images), images)
        assert torch.equal(jitter(images, brightness=ones, contrast=ones, saturation=ones, shift=zeros), images)
        jitter(images, brightness=ones / 2, contrast=ones / 2, saturation=ones / 2, shift=zeros + 9)
        assert torch.equal(images, before)

    def test_lighting_follows_the_components_of_imagenets_colours(self):
        first = lighting_shift(torch.tensor([[0.1, 0.0, 0.0], [0.0, -0.1, 0.0], [0.0, 0.0, 1.0]]))
        expected = [  # 255 * noise * eigenvalue * eigenvector (red, green, blue)
            [255 * 0.1 * 0.2175 * part for part in (-0.5675, -0.5808, -0.5836)],
            [-255 * 0.1 * 0.0188 * part for part in (0.7192, -0.0045, -0.6948)],
            [255 * 0.0045 * part for part in (0.4009, -0.8140, 0.4203)],
        ]
        torch.testing.assert_close(first, torch.tensor(expected))
        # A tenth along each: the length is 25.5 times that of the eigenvalues, as the vectors are orthonormal.
        assert lighting_shift(torch.full((1, 3), 0.1)).norm().item() == pytest.approx(
            25.5 * (0.2175**2 + 0.0188**2 + 0.0045**2) ** 0.5, rel=1e-3
        )

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    def test_erase_equals_torchvision(self, device, layout):
        random = torch.Generator().manual_seed(4)
        images = torch.randn(64, 3, 12, 9, generator=random).contiguous(memory_format=layout)
        before = images.clone()
        height, width = torch.randint(0, 12, (64,), generator=random), torch.randint(0, 9, (64,), generator=random)
        top = (torch.rand(64, generator=random) * (13 - height)).long()
        left = (torch.rand(64, generator=random) * (10 - width)).long()
        found = erase(images.to(device), *(part.to(device) for part in (top, left, height, width)))
        assert found.is_contiguous(memory_format=layout)
        assert torch.equal(images, before)
        for index in range(64):
            place = [int(part[index]) for part in (top, left, height, width)]
            assert torch.equal(found[index].cpu(), transforms.erase(images[index], *place, v=torch.zeros(3, 1, 1)))
        assert 0 < (height == 0).sum() < 64

    @pytest.mark.parametrize(("height", "width"), [(32, 32), (4, 7), (2, 2), (3, 9)])
    def test_erased_rectangles_are_the_first_of_ten_that_fit(self, height, width):
        """torchvision's loop over tries, written out for the same uniform numbers."""
        found = erased_rectangles(200, height, width, 0.6, torch.Generator().manual_seed(3))
        random = torch.Generator().manual_seed(3)
        wanted = torch.rand(200, generator=random) < 0.6
        uniform = torch.rand(4, 10, 200, dtype=torch.float64, generator=random).tolist()
        erased = Counter()
        for index in range(200):
            expected = None
            for attempt in range(10):
                of_area, of_ratio, of_top, of_left = (part[attempt][index] for part in uniform)
                area = height * width * (0.02 + 0.31 * of_area)
                ratio = math.exp(math.log(0.3) + (math.log(3.3) - math.log(0.3)) * of_ratio)
                h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
                if h < height and w < width:
                    expected = [int(of_top * (height - h + 1)), int(of_left * (width - w + 1)), h, w]
                    erased[attempt] += bool(wanted[index])
                    break
            if wanted[index] and expected is not None:
                assert found[:, index].tolist() == expected
            else:
                assert found[2:, index].tolist() == [0, 0]
        assert erased[0] > 20
        assert max(height, width) > 7 or erased[1] > 0, "no second try was needed"

    def test_erased_rectangles_are_spread_as_torchvisions(self):
        count = 20_000
        top, left, height, width = erased_rectangles(count, 224, 224, 0.25, torch.Generator().manual_seed(0)).double()
        erased = height > 0
        # Standard error 0.003.
        assert erased.double().mean().item() == pytest.approx(0.25, abs=0.015)
        top, left, height, width = erased_rectangles(count, 224, 224, 1.0, torch.Generator().manual_seed(0)).double()
        area, ratio = height * width / 224**2, (height / width).log()
        assert 0.019 < area.min() < area.max() < 0.333  # rounded to whole pixels
        # Uniform; standard errors: 0.0006 and 0.0005 of the area, 0.005 and 0.003 of the logarithm of the ratio. One in
        # 200 does not fit at first, which takes 0.0003 off the area.
        assert area.mean().item() == pytest.approx(0.175, abs=0.003)
        assert area.std().item() == pytest.approx(0.31 / 12**0.5, abs=0.003)
        assert ratio.mean().item() == pytest.approx(math.log(0.3 * 3.3) / 2, abs=0.025)
        assert ratio.std().item() == pytest.approx(math.log(3.3 / 0.3) / 12**0.5, abs=0.02)
        assert (top + height).max() == (left + width).max() == 224
        assert top.min() == left.min() == 0
        # torchvision's own draws, on images where rounding and refusal matter; within five standard errors.
        torch.manual_seed(0)
        eraser, image = v2.RandomErasing(p=1.0), torch.zeros(3, 10, 14)
        places = [eraser.make_params([image]) for _ in range(4000)]
        assert all(place["v"] is not None for place in places)
        expected = torch.tensor([[place[name] for name in "ijhw"] for place in places]).double()
        found = erased_rectangles(4000, 10, 14, 1.0, torch.Generator().manual_seed(1)).T.double()
        errors = ((expected.var(0) + found.var(0)) / 4000).sqrt()
        assert ((expected.mean(0) - found.mean(0)).abs() < 5 * errors).all()
        assert ((expected.std(0) / found.std(0)).log().abs() < 0.08).all()  # standard error 0.016

    @pytest.mark.parametrize("device", DEVICES)
    def test_normalise_equals_torchvision(self, device):
        images = make().images
        expected = transforms.normalize(transforms.to_dtype(images, torch.float32, scale=True), MEAN, STD)
        mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD))
        found = normalise(images.to(device), mean, std)
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-5)
        assert normalise(images.to(device), mean, std, torch.bfloat16).dtype == torch.bfloat16


class TestBatches:
    def test_an_epoch_visits_images_once_in_a_new_order(self):
        loader = batches(make())
        assert loader.steps_per_epoch == 3
        assert loader.num_images == 50
        orders = [torch.cat([labels for _, labels in loader.epoch(epoch)]) for epoch in (0, 1)]
        for order in orders:
            assert len(order) == 48
            assert len(order.unique()) == 48
        assert not torch.equal(orders[0], orders[1])

    def test_images_belong_to_their_labels(self):
        data = make()
        for images, labels in batches(data, pad=0, flip=False).epoch(0):
            assert images.dtype == torch.float32
            expected = (data.images[labels].double() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(
                3, 1, 1
            )
            torch.testing.assert_close(images.double(), expected, rtol=1e-5, atol=1e-5)

    def test_everything_random_is_a_function_of_seed_epoch_and_step(self):
        data = make()
        torch.manual_seed(1)
        first = list(batches(data).epoch(3))
        torch.manual_seed(2)
        used = batches(data)
        list(used.epoch(0))
        assert_equal(first, used.epoch(3))
        for other in (batches(data, seed=8).epoch(3), batches(data).epoch(4)):
            assert not torch.equal(next(other)[1], first[0][1])

    def test_the_global_random_state_is_left_alone(self):
        before = torch.get_rng_state()
        list(batches(make()).epoch(0))
        list(batches(make(), **RECIPE).epoch(0))
        assert torch.equal(torch.get_rng_state(), before)

    def test_crops_and_flips_differ_from_epoch_to_epoch_and_step_to_step(self):
        data = Images(make(1).images.expand(32, -1, -1, -1), torch.zeros(32, dtype=torch.int64), ("x",))
        steps = [images for epoch in (0, 1) for images, _ in batches(data).epoch(epoch)]
        assert len(steps) == 4
        for index, one in enumerate(steps):
            assert len(one.flatten(1).unique(dim=0)) > 4
            assert not any(torch.equal(one, other) for other in steps[index + 1 :])

    @pytest.mark.parametrize("colours", [{}, COLOURS, RECIPE, COLOURS | RECIPE])
    @pytest.mark.parametrize("start_step", [0, 1, 2])
    def test_starting_in_the_middle_continues_exactly(self, start_step, colours):
        loader = batches(make(), **colours)
        assert_equal(loader.epoch(2, start_step), list(loader.epoch(2))[start_step:])

    @pytest.mark.parametrize("colours", [{}, COLOURS, RECIPE, COLOURS | RECIPE])
    @pytest.mark.parametrize("world_size", [2, 4])
    def test_slices_of_all_ranks_make_up_the_batch_of_one(self, world_size, colours):
        data = make()
        shards = [{"rank": rank, "world_size": world_size, **colours} for rank in range(world_size)]
        ranks = [list(batches(data, **shard).epoch(1)) for shard in shards]
        assert all(len(images) == 16 // world_size for steps in ranks for images, _ in steps)
        joined = [tuple(torch.cat(parts) for parts in zip(*step, strict=True)) for step in zip(*ranks, strict=True)]
        assert_equal(joined, batches(data, **colours).epoch(1))

    def test_switched_off_it_is_the_data_in_another_order(self):
        data = make()
        loader = batches(data, pad=0, flip=False)
        found = list(loader.epoch(0))
        assert loader.steps_per_epoch == len(found) == 3
        order = torch.cat([labels for _, labels in found])
        assert len(order.unique()) == 48  # the incomplete last batch is left out
        assert order.tolist() != sorted(order.tolist())
        assert_equal(found, EvalBatches(data, 16, mean=MEAN, std=STD, indices=order))

    def test_a_shift_without_flips_keeps_the_image_within_the_frame(self):
        data = make(32, size=4)
        steps = list(batches(data, flip=False, pad=1, mean=(0, 0, 0), std=(1, 1, 1)).epoch(0))
        for images, labels in steps:
            for image, label in zip((images * 255).round().byte(), labels, strict=True):
                padded = transforms.pad(data.images[label], [1])
                shifts = [padded[:, top : top + 4, left : left + 4] for top in range(3) for left in range(3)]
                assert any(torch.equal(image, shift) for shift in shifts)

    @pytest.mark.parametrize("colours", [{}, COLOURS, {"contrast": 0.3}, {"brightness": 0.4, "lighting": 0.1}])
    def test_a_batch_is_what_its_generator_says(self, colours):
        """The draws of crops and flips, by which runs of earlier versions resume, and after them those of colours."""
        data = make()
        steps = list(batches(data, **LEVELS, **colours).epoch(4))
        assert len(steps) == 3
        for step, (images, labels) in enumerate(steps):
            random = generator(7, 4, step)
            top, left = torch.randint(0, 5, (2, 16), generator=random)
            flip = torch.rand(16, generator=random) < 0.5
            uniform, normal = torch.rand(3, 16, generator=random), torch.randn(16, 3, generator=random)
            expected = crop_flip(data.images[labels], top, left, flip, 2)
            if colours:
                wide, deep, full, noisy = (colours.get(name, 0.0) for name in COLOURS)
                expected = jitter(
                    expected,
                    brightness=1 + wide * (2 * uniform[0] - 1),
                    contrast=1 + deep * (2 * uniform[1] - 1),
                    saturation=1 + full * (2 * uniform[2] - 1),
                    shift=lighting_shift(noisy * normal),
                )
            torch.testing.assert_close(images, expected.float(), rtol=0, atol=1e-4)

    def test_colours_do_not_depend_on_crops_and_flips(self):
        data = Images(torch.full((48, 3, 8, 8), 100, dtype=torch.uint8), torch.arange(48), tuple(map(str, range(48))))
        ((alone, _),) = batches(data, 48, pad=0, flip=False, **LEVELS, brightness=0.4).epoch(0)
        ((moved, _),) = batches(data, 48, pad=0, flip=True, **LEVELS, brightness=0.4).epoch(0)
        ((more, _),) = batches(data, 48, pad=2, flip=True, **LEVELS, brightness=0.4).epoch(0)
        assert torch.equal(alone, moved)
        torch.testing.assert_close(more[:, :, 3:5, 3:5], alone[:, :, 3:5, 3:5], rtol=0, atol=0)
        assert len(alone[:, 0, 0, 0].unique()) > 20

    def test_factors_and_noise_are_spread_as_asked_for(self):
        """Of a uniform image: brightness 100 * (1 +- 0.4); noise of which the covariance is known in closed form."""
        data = Images(torch.full((4000, 3, 2, 2), 100, dtype=torch.uint8), torch.zeros(4000, dtype=torch.int64), ("x",))
        ((images, _),) = batches(data, 4000, **LEVELS, pad=0, flip=False, brightness=0.4).epoch(0)
        assert (images == images[:, :1, :1, :1]).all()
        levels = images[:, 0, 0, 0]
        assert 59.99 < levels.min() < 60.5
        assert 139.5 < levels.max() < 140.01
        # Standard errors: 0.4 of the mean, 0.2 of the deviation.
        assert levels.mean().item() == pytest.approx(100, abs=2)
        assert levels.std().item() == pytest.approx(80 / 12**0.5, abs=1)
        ((images, _),) = batches(data, 4000, **LEVELS, pad=0, flip=False, lighting=0.1).epoch(0)
        assert (images == images[:, :, :1, :1]).all()
        shifts = images[:, :, 0, 0] - 100
        vectors = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
        # In square levels; the rounding to whole levels adds 1/12. Standard error: 2 to 3 % of a variance of 10.
        covariance = vectors @ torch.diag((25.5 * torch.tensor([0.2175, 0.0188, 0.0045])) ** 2) @ vectors.T
        torch.testing.assert_close(shifts.T.cov(), covariance + torch.eye(3) / 12, rtol=0, atol=1)
        assert shifts.mean(0).abs().max() < 0.25  # five standard errors

    def test_switched_off_policies_erasing_and_repeats_change_nothing(self):
        off = {"auto_augment": None, "random_erase": 0.0, "repeats": 1, "interpolation": "bicubic"}
        assert_equal(batches(make(), **COLOURS, **off).epoch(1), batches(make(), **COLOURS).epoch(1))

    @pytest.mark.parametrize("colours", [{}, COLOURS])
    def test_a_policy_follows_crops_flips_and_colours_and_erasing_comes_last(self, colours):
        """The draws of a step, written out."""
        data = make()
        plain = list(batches(data, **LEVELS, **colours).epoch(4))
        only = list(batches(data, **LEVELS, **colours, random_erase=0.5).epoch(4))
        both = list(batches(data, **colours, random_erase=0.5, auto_augment="ra", interpolation="bicubic").epoch(4))
        assert len(plain) == len(only) == len(both) == 3
        mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
        for step, (images, _) in enumerate(plain):
            random = generator(7, 4, step, 1)
            seeds = torch.randint(2**62, (16,), generator=random)
            places = erased_rectangles(16, 8, 8, 0.5, random)
            assert 0 < (places[2] > 0).sum() < 16
            assert torch.equal(only[step][0], erase(images, *places))
            changed = transform_each(images.round().byte(), auto_augment("ra", "bicubic"), seeds)
            assert torch.equal(both[step][0], erase(normalise(changed, mean, std), *places))

    def test_an_erased_rectangle_has_the_mean_of_its_pixels(self):
        data = make(32)
        mean_image = data.images.float().mean(0) / 255
        options = {"mean": mean_image, "std": (1, 1, 1), "pad": 0, "flip": False}
        ((plain, _),) = batches(data, 32, **options).epoch(0)
        ((erased, _),) = batches(data, 32, **options, random_erase=1.0).epoch(0)
        changed = (erased != plain).any(1)
        assert changed.flatten(1).any(1).all()
        assert (erased.movedim(1, 3)[changed] == 0).all()
        assert 0.02 < changed.float().mean() < 0.33

    def test_an_epoch_with_repeats_takes_as_many_steps_for_fewer_images(self):
        once, thrice = (batches(make(), repeats=repeats, **LEVELS) for repeats in (1, 3))
        assert thrice.steps_per_epoch == once.steps_per_epoch == 3
        assert thrice.num_images == 50
        order = repeat(torch.arange(50), 1, 16)[0]
        assert order.tolist() == list(range(50))
        for epoch in (0, 1):
            expected = torch.cat([labels for _, labels in once.epoch(epoch)])
            steps = list(thrice.epoch(epoch))
            assert all(len(labels) == 16 for _, labels in steps)
            counts = Counter(torch.cat([labels for _, labels in steps]).tolist())
            assert list(counts.values()).count(3) == 48 / 3
            assert set(counts) == set(expected[:16].tolist())  # the first ones of the epoch without repeats
        pictures = {}
        for images, labels in thrice.epoch(2):
            for image, label in zip(images, labels.tolist(), strict=True):
                pictures.setdefault(label, []).append(image)
        varied = sum(len(torch.stack(copies).unique(dim=0)) > 1 for copies in pictures.values())
        assert varied >= 14, "crops and flips vary the repeats of an image"

    @pytest.mark.parametrize(("count", "repeats", "batch_size"), [(50, 3, 16), (50, 4, 7), (9, 2, 9), (5, 8, 2)])
    def test_repeats_are_exact_except_at_the_end(self, count, repeats, batch_size):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0)) + 100
        indices, copies = repeat(order, repeats, batch_size)
        pairs = [(int(order[place // repeats]), place % repeats) for place in range(count)]
        assert sorted(zip(indices.tolist(), copies.tolist(), strict=True)) == sorted(pairs)
        for start in range(0, count, batch_size):
            part = slice(start, start + batch_size)
            batch = list(zip(indices[part].tolist(), copies[part].tolist(), strict=True))
            assert sorted(batch) == sorted(pairs[part])
            assert [copy for _, copy in batch] == sorted(copy for _, copy in batch)

    @pytest.mark.parametrize("repeats", [2, 3, 4])
    @pytest.mark.parametrize("world_size", [1, 2, 4, 8])
    def test_repeats_are_dealt_out_as_by_torchvisions_sampler(self, world_size, repeats):
        """Its ranks' batches of a step hold together what a step here holds; on enough ranks, none an image twice."""
        data = Images(torch.zeros(512, 1, 1, 1, dtype=torch.uint8), torch.arange(512), tuple(map(str, range(512))))
        options = {"mean": (0,), "std": (1,), "pad": 0, "flip": False}
        ((_, order),) = batches(data, 512, **options).epoch(0)
        options["repeats"] = repeats
        ranks = [
            [labels.tolist() for _, labels in loader.epoch(0)]
            for rank in range(world_size)
            for loader in [batches(data, 64, rank=rank, world_size=world_size, **options)]
        ]
        share = 64 // world_size
        reference = []
        for rank in range(world_size):  # RASampler.__iter__, for the same order
            total = math.ceil(512 * repeats / world_size) * world_size
            repeated = [index for index in order.tolist() for _ in range(repeats)]
            repeated += repeated[: total - len(repeated)]
            taken = repeated[rank:total:world_size][: 512 // 256 * 256 // world_size]
            reference.append([taken[start : start + share] for start in range(0, len(taken), share)])
        assert len(ranks[0]) == len(reference[0]) == 8
        for step in range(8):
            mine, theirs = ([rank[step] for rank in all_ranks] for all_ranks in (ranks, reference))
            assert Counter(chain.from_iterable(mine)) == Counter(chain.from_iterable(theirs))
            if world_size >= repeats:
                assert all(len(set(part)) == share for part in (*mine, *theirs))

    def test_only_the_given_indices_are_used(self):
        chosen = torch.arange(0, 50, 2)
        loader = batches(make(), 25, indices=chosen)
        ((_, labels),) = loader.epoch(0)
        assert loader.num_images == 25
        assert torch.equal(labels.sort().values, chosen)

    def test_the_mean_may_be_one_of_each_pixel(self):
        data = make(16)
        mean_image = data.images.float().mean(0) / 255
        loader = batches(data, mean=mean_image, std=(1, 1, 1), pad=0, flip=False)
        ((images, _),) = loader.epoch(0)
        torch.testing.assert_close(images.mean(0), torch.zeros(3, 8, 8), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("colours", [{}, COLOURS, RECIPE])
    @pytest.mark.parametrize("device", DEVICES)
    def test_layout_and_device_do_not_change_values(self, device, colours):
        data = make()
        changed = list(batches(data, channels_last=True, device=device, **colours).epoch(0))
        assert all(images.is_contiguous(memory_format=torch.channels_last) for images, _ in changed)
        assert all(images.device.type == labels.device.type == device for images, labels in changed)
        for (images, labels), (other, other_labels) in zip(changed, batches(data, **colours).epoch(0), strict=True):
            torch.testing.assert_close(images.cpu(), other, rtol=1e-6, atol=1e-6)
            assert torch.equal(labels.cpu(), other_labels)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"batch_size": 0}, "batch_size is 0, but must be from 1 to the number of images, 50"),
            ({"batch_size": 51}, "batch_size is 51"),
            ({"batch_size": 15, "world_size": 2}, "batch_size is 15, but must be a multiple of the 2 processes"),
            ({"pad": -1}, "pad is -1"),
            ({"brightness": 1.0}, "brightness is 1.0, but must be at least 0 and below 1"),
            ({"contrast": -0.1}, "contrast is -0.1"),
            ({"saturation": float("nan")}, "saturation is nan"),
            ({"lighting": float("inf")}, "lighting is inf, but must be 0 or more, and finite"),
            ({"auto_augment": "rand"}, "auto_augment is 'rand', but must be one of ra, ta_wide"),
            ({"random_erase": 1.1}, "random_erase is 1.1, but must be a probability from 0 to 1"),
            ({"random_erase": float("nan")}, "random_erase is nan"),
            ({"repeats": 0}, "repeats is 0, but must be 1 or more"),
            ({"mean": (0.5,)}, r"mean is \(0.5,\), but must be one number for each of 3 channels"),
            ({"mean": torch.zeros(3, 8, 4)}, r"shape of the mean is \[3, 8, 4\], but must be \[3, 8, 8\]"),
            ({"std": (0.5, 0.0, 0.1)}, r"std is \(0.5, 0.0, 0.1\), but must be greater than 0"),
        ],
    )
    def test_impossible_options(self, options, message):
        with pytest.raises(InputError, match=message):
            batches(make(), **options)

    @pytest.mark.parametrize("option", ["saturation", "lighting"])
    def test_images_without_colours_have_no_saturation_and_no_lighting(self, option):
        grey = Images(make().images[:, :1], torch.arange(50), tuple(map(str, range(50))))
        options = {"mean": (0.5,), "std": (0.2,), "brightness": 0.4, "contrast": 0.4}
        ((images, _),) = batches(grey, 50, **options).epoch(0)
        assert images.shape == (50, 1, 8, 8)
        with pytest.raises(InputError, match=rf"^--{option} is 0.1, but must be left out: the images have 1 channel"):
            batches(grey, **options, **{option: 0.1})


class TestEvalBatches:
    @pytest.mark.parametrize("world_size", [1, 2, 3])
    @pytest.mark.parametrize("batch_size", [1, 16, 17, 64])
    def test_every_image_exactly_once_over_all_ranks(self, world_size, batch_size):
        seen = []
        for rank in range(world_size):
            loader = EvalBatches(
                make(), batch_size, mean=MEAN, std=STD, shards=Shards(rank=rank, world_size=world_size)
            )
            found = list(loader)
            assert len(found) == len(loader)
            assert loader.num_images == 50
            assert all(1 <= len(labels) <= batch_size for _, labels in found)
            seen += [int(label) for _, labels in found for label in labels]
        assert sorted(seen) == list(range(50))

    def test_it_can_be_iterated_again_and_over_nothing(self):
        loader = EvalBatches(make(), 20, mean=MEAN, std=STD, indices=torch.tensor([4, 2, 9]))
        assert [labels.tolist() for _ in range(2) for _, labels in loader] == [[4, 2, 9], [4, 2, 9]]
        assert list(EvalBatches(make(), 20, mean=MEAN, std=STD, indices=torch.tensor([], dtype=torch.int64))) == []

    @pytest.mark.parametrize("world_size", [1, 2, 3])
    def test_order_says_which_images_come(self, world_size):
        chosen = torch.tensor([4, 49, 2, 9, 30, 11, 0])
        for rank in range(world_size):
            shards = Shards(rank=rank, world_size=world_size)
            loader = EvalBatches(make(), 3, mean=MEAN, std=STD, indices=chosen, shards=shards)
            assert loader.order.dtype == torch.int64
            # The label of an image is its index.
            assert loader.order.tolist() == [int(label) for _, labels in loader for label in labels]
        nothing = EvalBatches(make(), 3, mean=MEAN, std=STD, indices=torch.tensor([], dtype=torch.int64))
        assert nothing.order.dtype == torch.int64
        assert nothing.order.tolist() == []


def test_digits_from_load_to_batch():
    data = load("digits")
    loader = Batches(data, 100, mean=(0.3056,), std=(0.3760,), seed=0)
    images = torch.cat([images for images, _ in loader.epoch(0)])
    assert images.shape == (1400, 1, 8, 8)
    assert images.mean().item() == pytest.approx(0, abs=0.01)
    assert images.std().item() == pytest.approx(1, abs=0.01)
