from __future__ import annotations

import pytest
import torch
from resless.data import Batches, EvalBatches, Images, crop_flip, jitter, lighting_shift, load, normalise
from resless.data.loaders import generator
from resless.errors import InputError
from torchvision.transforms.v2 import functional as transforms

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
COLOURS = {"brightness": 0.4, "contrast": 0.3, "saturation": 0.2, "lighting": 0.1}
LEVELS = {"mean": (0, 0, 0), "std": (1 / 255,) * 3}  # batches in grey levels


def make(n=50, size=8):
    """Random images whose label is their index."""
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=random)
    return Images(images, torch.arange(n), tuple(map(str, range(n))))


def batches(data, batch_size=16, **options):
    return Batches(data, batch_size, **{"mean": MEAN, "std": STD, "seed": 7, "pad": 2, "flip": True, **options})


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
        assert torch.equal(torch.get_rng_state(), before)

    def test_crops_and_flips_differ_from_epoch_to_epoch_and_step_to_step(self):
        data = Images(make(1).images.expand(32, -1, -1, -1), torch.zeros(32, dtype=torch.int64), ("x",))
        steps = [images for epoch in (0, 1) for images, _ in batches(data, shuffle=False).epoch(epoch)]
        assert len(steps) == 4
        for index, one in enumerate(steps):
            assert len(one.flatten(1).unique(dim=0)) > 4
            assert not any(torch.equal(one, other) for other in steps[index + 1 :])

    @pytest.mark.parametrize("colours", [{}, COLOURS])
    @pytest.mark.parametrize("start_step", [0, 1, 2])
    def test_starting_in_the_middle_continues_exactly(self, start_step, colours):
        loader = batches(make(), **colours)
        assert_equal(loader.epoch(2, start_step), list(loader.epoch(2))[start_step:])

    @pytest.mark.parametrize("colours", [{}, COLOURS])
    @pytest.mark.parametrize("world_size", [2, 4])
    def test_slices_of_all_ranks_make_up_the_batch_of_one(self, world_size, colours):
        data = make()
        shards = [{"rank": rank, "world_size": world_size, **colours} for rank in range(world_size)]
        ranks = [list(batches(data, **shard).epoch(1)) for shard in shards]
        assert all(len(images) == 16 // world_size for steps in ranks for images, _ in steps)
        joined = [tuple(torch.cat(parts) for parts in zip(*step, strict=True)) for step in zip(*ranks, strict=True)]
        assert_equal(joined, batches(data, **colours).epoch(1))

    def test_switched_off_it_is_the_data_in_order(self):
        data = make()
        loader = batches(data, pad=0, flip=False, shuffle=False, drop_last=False)
        found = list(loader.epoch(0))
        assert loader.steps_per_epoch == len(found) == 4
        assert torch.cat([labels for _, labels in found]).tolist() == list(range(50))
        assert_equal(found, EvalBatches(data, 16, mean=MEAN, std=STD))

    def test_a_shift_without_flips_keeps_the_image_within_the_frame(self):
        data = make(32, size=4)
        steps = list(batches(data, flip=False, pad=1, mean=(0, 0, 0), std=(1, 1, 1), shuffle=False).epoch(0))
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

    @pytest.mark.parametrize("colours", [{}, COLOURS])
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
            ({"batch_size": 49, "world_size": 7, "drop_last": False}, "last batch of 1 images cannot be shared by 7"),
            ({"pad": -1}, "pad is -1"),
            ({"brightness": 1.0}, "brightness is 1.0, but must be at least 0 and below 1"),
            ({"contrast": -0.1}, "contrast is -0.1"),
            ({"saturation": float("nan")}, "saturation is nan"),
            ({"lighting": float("inf")}, "lighting is inf, but must be 0 or more, and finite"),
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
            loader = EvalBatches(make(), batch_size, mean=MEAN, std=STD, rank=rank, world_size=world_size)
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
            shard = {"rank": rank, "world_size": world_size}
            loader = EvalBatches(make(), 3, mean=MEAN, std=STD, indices=chosen, **shard)
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
