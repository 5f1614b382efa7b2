from __future__ import annotations

import random
from typing import get_args

import numpy as np
import pytest
import torch
from resless.config import AutoAugment
from resless.data.policies import NAMES, auto_augment, interpolation_mode, transform_each
from resless.errors import InputError
from torchvision.transforms import InterpolationMode, v2

MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}


def photographs(n=6, channels=3):
    """Smooth images of 24 x 20 pixels."""
    small = torch.rand(n, channels, 6, 5, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(small, scale_factor=4, mode="bilinear").mul(255).to(torch.uint8)


def reference(name, mode):
    """What torchvision's presets.py builds for --auto-augment, with its own values of magnitude and severity."""
    if name == "ra":
        return v2.RandAugment(num_ops=2, interpolation=mode, magnitude=9)
    if name == "ta_wide":
        return v2.TrivialAugmentWide(interpolation=mode)
    if name == "augmix":
        return v2.AugMix(interpolation=mode, severity=3)
    return v2.AutoAugment(policy=v2.AutoAugmentPolicy(name), interpolation=mode)


def drawn(transform, image, seed):
    torch.manual_seed(seed)
    return transform(image)


def test_the_policies_are_those_of_the_configuration():
    assert len(NAMES) == 6
    assert get_args(AutoAugment) == NAMES


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "interpolation"),
    [(name, mode) for name in NAMES for mode in MODES if (name, mode) != ("augmix", "bicubic")],
)
def test_a_policy_is_torchvisions(name, interpolation, channels):
    (image,) = photographs(1, channels)
    found, expected = auto_augment(name, interpolation), reference(name, MODES[interpolation])
    picture = v2.functional.to_pil_image(image)
    changed = 0
    for seed in range(30):
        result = drawn(found, image, seed)
        assert result.dtype == torch.uint8
        assert torch.equal(result, v2.functional.pil_to_tensor(drawn(expected, picture, seed)))
        changed += not torch.equal(result, image)
    assert changed > 15


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_draws_from_torchs_default_generator_only(name):
    (image,) = photographs(1)
    policy = auto_augment(name)
    results = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 the old generator is what is meant
        before = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
        results.append([drawn(policy, image, index) for index in range(20)])
        assert random.getstate() == before[0]
        assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert len(torch.stack(results[0]).flatten(1).unique(dim=0)) > 5


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_takes_grey_images(name):
    (image,) = photographs(1, channels=1)
    results = [drawn(auto_augment(name), image, seed) for seed in range(60)]
    assert all(one.shape == image.shape and one.dtype == torch.uint8 for one in results)
    assert len(torch.stack(results).flatten(1).unique(dim=0)) > 10


def test_the_saturation_of_a_grey_image_stays_as_it_is():
    (image,) = photographs(1, channels=1)
    picture = v2.functional.to_pil_image(image)
    for factor in (0.1, 1.9):
        assert torch.equal(v2.functional.adjust_saturation(image, factor), image)
        assert v2.functional.adjust_saturation(picture, factor) == picture


def test_each_image_has_a_seed_of_its_own():
    images, seeds = photographs(), torch.tensor([5, 0, 2**62 - 1, 5, 7, 8])
    before, state = images.clone(), torch.get_rng_state()
    policy = auto_augment("ra")
    found = transform_each(images, policy, seeds)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, before)
    for index in range(6):
        assert torch.equal(found[index], drawn(policy, images[index], int(seeds[index])))
    assert torch.equal(transform_each(images.flip(0), policy, seeds.flip(0)).flip(0), found)
    assert torch.equal(transform_each(images, lambda image: image, seeds), images)


def test_other_names_are_refused():
    with pytest.raises(InputError, match="auto_augment is 'aa', but must be one of ra, ta_wide, augmix, imagenet, cif"):
        auto_augment("aa")
    with pytest.raises(InputError, match="interpolation is 'nearest', but must be bilinear or bicubic"):
        auto_augment("ra", "nearest")
    with pytest.raises(InputError, match="interpolation is 'bicubic', but must be bilinear with augmix"):
        auto_augment("augmix", "bicubic")
    assert interpolation_mode("bicubic") is InterpolationMode.BICUBIC
