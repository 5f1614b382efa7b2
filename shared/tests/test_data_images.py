from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from resless.data import Images, channel_mean_std, get, images, load, pixel_mean, stratified_split
from resless.errors import InputError
from resless.testing import shared_data


def write_parquet(folder, arrays, labels, split="train"):
    """PNG images uint8 [n, H, W, 3] in the hub's layout."""
    folder.mkdir(parents=True, exist_ok=True)
    encoded = []
    for array in arrays:
        content = io.BytesIO()
        Image.fromarray(array).save(content, "PNG")
        encoded.append(content.getvalue())
    table = pyarrow.table({"image": pyarrow.array(encoded, pyarrow.binary()), "label": pyarrow.array(labels)})
    parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")


def _killed(start: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def random_arrays(n, size=6, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


class TestDigits:
    def test_splits_hold_all_1797_real_digits(self):
        train, test = load("digits"), load("digits", "test")
        assert (len(train), len(test)) == (1437, 360)
        for part in (train, test):
            assert part.images.shape == (len(part), 1, 8, 8)
            assert part.images.dtype == torch.uint8
            assert part.labels.dtype == torch.int64
            assert part.class_names == tuple("0123456789")
            assert part.num_classes == 10
        counts = train.labels.bincount() + test.labels.bincount()
        assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # scikit-learn's description
        assert test.labels.bincount().tolist() == [36, 37, 35, 37, 36, 36, 36, 36, 35, 36]

    def test_grey_levels_are_the_originals_scaled_to_a_byte(self):
        levels = torch.cat([load("digits").images, load("digits", "test").images]).unique()
        assert levels.tolist() == [round(level * 255 / 16) for level in range(17)]

    def test_first_training_image_is_the_known_zero(self):
        # The first digit of scikit-learn's set, row by row, on its scale 0..16.
        zero = """0 0 5 13 9 1 0 0  0 0 13 15 10 15 5 0  0 3 15 2 0 11 8 0  0 4 12 0 0 8 8 0
                  0 5 8 0 0 9 8 0  0 4 11 0 1 12 7 0  0 2 14 5 10 12 0 0  0 0 6 13 10 0 0 0"""
        expected = torch.tensor([round(int(value) * 255 / 16) for value in zero.split()]).view(1, 8, 8)
        both = [load("digits"), load("digits", "test")]
        assert sum(int((part.images == expected).all((1, 2, 3)).sum()) for part in both) == 1
        assert any(torch.equal(part.images[0], expected.byte()) and part.labels[0] == 0 for part in both)

    def test_catalogue_states_the_statistics_of_the_training_images(self):
        mean, std = channel_mean_std(load("digits"))
        assert mean == pytest.approx(get("digits").mean, abs=5e-5)
        assert std == pytest.approx(get("digits").std, abs=5e-5)

    def test_they_can_be_resized(self):
        assert load("digits", "test", image_size=28).images.shape == (360, 1, 28, 28)

    def test_there_is_no_third_split(self):
        with pytest.raises(InputError, match="unknown split of digits 'extra'"):
            load("digits", "extra")


class TestLoad:
    def test_images_labels_and_shape(self, tmp_path):
        arrays, labels = random_arrays(9), [0, 1, 2, 3, 4, 5, 6, 7, 8]
        write_parquet(tmp_path / "set", arrays, labels)
        data = load(str(tmp_path / "set"), cache_dir=tmp_path / "cache")
        assert torch.equal(data.images, torch.from_numpy(arrays).permute(0, 3, 1, 2))
        assert data.labels.tolist() == labels
        assert data.num_classes == 9
        assert [entry.name.split("-")[:2] for entry in (tmp_path / "cache").glob("*[!k]")] == [["set", "train"]]

    def test_processes_decode_the_same_as_one(self, tmp_path, monkeypatch):
        arrays = random_arrays(700)
        write_parquet(tmp_path, arrays, [i % 10 for i in range(700)])
        one = load(str(tmp_path), cache_dir=tmp_path / "one")
        monkeypatch.setattr(images, "_FEW", 1)
        monkeypatch.setattr(images, "_num_cpus", lambda: 2)
        two = load(str(tmp_path), cache_dir=tmp_path / "two")
        assert torch.equal(one.images, torch.from_numpy(arrays).permute(0, 3, 1, 2))
        assert torch.equal(one.images, two.images)

    def test_broken_image_found_by_a_worker_is_named(self, tmp_path, monkeypatch):
        write_parquet(tmp_path, random_arrays(700), [0] * 700)
        file = tmp_path / "train-00000-of-00001.parquet"
        table = parquet.read_table(file).to_pydict()
        table["image"][600] = table["image"][600][:60]
        parquet.write_table(pyarrow.table(table), file)
        monkeypatch.setattr(images, "_FEW", 1)
        monkeypatch.setattr(images, "_num_cpus", lambda: 2)
        with pytest.raises(InputError, match=f"^row 600 of {file} cannot be decoded: "):
            load(str(tmp_path), cache_dir=tmp_path / "cache")
        assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]

    def test_a_link_to_nothing_is_named(self, tmp_path):
        (tmp_path / "set" / "train" / "cat").mkdir(parents=True)
        link = tmp_path / "set" / "train" / "cat" / "x.png"
        link.symlink_to("nowhere")
        with pytest.raises(InputError, match=f"{link} cannot be read: it is missing, or no regular file"):
            load(str(tmp_path / "set"), cache_dir=tmp_path / "cache")

    def test_resizing_equals_pil(self, tmp_path):
        arrays = random_arrays(3, size=20)
        write_parquet(tmp_path, arrays, [0, 1, 2])
        data = load(str(tmp_path), image_size=8, cache_dir=tmp_path / "cache")
        expected = [np.asarray(Image.fromarray(array).resize((8, 8), Image.Resampling.BILINEAR)) for array in arrays]
        assert np.array_equal(data.images.permute(0, 2, 3, 1).numpy(), np.stack(expected))

    def test_images_of_several_sizes_need_a_size(self, tmp_path):
        write_parquet(tmp_path, [*random_arrays(2), *random_arrays(1, size=9)], [0, 1, 2])
        with pytest.raises(
            InputError, match=r"row 2 of .* has 9 x 9 pixels, but the first image 6 x 6: give --image-size"
        ):
            load(str(tmp_path), cache_dir=tmp_path / "cache")
        assert load(str(tmp_path), image_size=6, cache_dir=tmp_path / "cache").images.shape == (3, 3, 6, 6)
        with pytest.raises(InputError, match="image_size is 0"):
            load(str(tmp_path), image_size=0)

    def test_changed_content_is_decoded_anew_and_copies_share_an_entry(self, tmp_path):
        write_parquet(tmp_path / "a" / "set", random_arrays(3), [0, 1, 2])
        write_parquet(tmp_path / "b" / "set", random_arrays(3), [0, 1, 2])
        cache = tmp_path / "cache"
        for folder in ("a", "b"):
            load(str(tmp_path / folder / "set"), cache_dir=cache)
        assert len(list(cache.rglob("images.npy"))) == 1
        changed = random_arrays(3)
        changed[1, 2, 3] ^= 1
        write_parquet(tmp_path / "a" / "set", changed, [0, 1, 2])
        data = load(str(tmp_path / "a" / "set"), cache_dir=cache)
        assert torch.equal(data.images, torch.from_numpy(changed).permute(0, 3, 1, 2))
        assert len(list(cache.rglob("images.npy"))) == 2

    def test_pictures_that_parquet_rows_name_are_read_again_when_they_change(self, tmp_path):
        first, second = random_arrays(1), random_arrays(1, seed=1)
        picture = tmp_path / "picture.png"
        rows = pyarrow.array(
            [{"bytes": None, "path": str(picture)}],
            pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}),
        )
        parquet.write_table(pyarrow.table({"image": rows, "label": [0]}), tmp_path / "train-0.parquet")
        for arrays in (first, second):
            Image.fromarray(arrays[0]).save(picture)
            found = load(str(tmp_path), cache_dir=tmp_path / "cache")
            assert torch.equal(found.images, torch.from_numpy(arrays).permute(0, 3, 1, 2))
        assert not (tmp_path / "cache").exists()

    def test_a_worker_that_is_killed_is_no_fault_of_the_cache(self, tmp_path, monkeypatch):
        write_parquet(tmp_path, random_arrays(4), [0, 1, 0, 1])
        monkeypatch.setattr(images, "_FEW", 0)
        monkeypatch.setattr(images, "_num_cpus", lambda: 2)
        monkeypatch.setattr(images, "_decode_in_worker", _killed)
        with pytest.raises(InputError, match=r"a process that decodes images ended .* --stream"):
            load(str(tmp_path), cache_dir=tmp_path / "cache")

    def test_cache_lies_where_the_environment_says(self, tmp_path, monkeypatch):
        monkeypatch.setenv("RESLESS_CACHE", str(tmp_path / "here"))
        write_parquet(tmp_path / "set", random_arrays(3), [0, 1, 2])
        load(str(tmp_path / "set"))
        assert len(list((tmp_path / "here").rglob("images.npy"))) == 1

    @pytest.mark.skipif(sys.platform != "linux", reason="forks the test process")
    def test_several_processes_may_start_at_once(self, tmp_path):
        arrays = random_arrays(600)
        write_parquet(tmp_path / "set", arrays, [i % 10 for i in range(600)])
        with multiprocessing.get_context("fork").Pool(3) as pool:
            jobs = [pool.apply_async(total, (tmp_path / "set", tmp_path / "cache")) for _ in range(3)]
            results = [job.get(timeout=60) for job in jobs]
        assert results == [int(arrays.sum())] * 3
        assert len(list((tmp_path / "cache").rglob("images.npy"))) == 1


def total(folder: os.PathLike[str], cache_dir: os.PathLike[str]) -> int:
    return int(load(str(folder), cache_dir=cache_dir).images.numpy().sum(dtype=np.int64))


class TestStratifiedSplit:
    def test_every_class_gives_its_share(self):
        labels = torch.tensor([0] * 100 + [1] * 50 + [2] * 30)[torch.randperm(180)]
        kept, held_out = stratified_split(labels, 0.1, seed=3)
        assert labels[held_out].bincount().tolist() == [10, 5, 3]
        assert torch.equal(torch.cat([kept, held_out]).sort().values, torch.arange(180))
        assert torch.equal(kept, kept.sort().values)
        assert torch.equal(held_out, held_out.sort().values)

    def test_rounding_goes_to_the_largest_remainder(self):
        # Shares 0.6, 1.4 and 3.0 of 5 images: the rounded total 5 gives the first class the missing image.
        labels = torch.tensor([0] * 3 + [1] * 7 + [2] * 15)
        _, held_out = stratified_split(labels, 0.2, seed=0)
        assert labels[held_out].bincount().tolist() == [1, 1, 3]

    def test_it_depends_on_the_seed_alone(self):
        labels = load("digits").labels
        first, again, other = (stratified_split(labels, 0.2, seed=seed)[1] for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_zero_holds_out_nothing(self):
        kept, held_out = stratified_split(torch.tensor([1, 0, 1]), 0.0, seed=0)
        assert kept.tolist() == [0, 1, 2]
        assert held_out.dtype == torch.int64
        assert len(held_out) == 0

    @pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
    def test_fraction_out_of_range(self, fraction):
        with pytest.raises(InputError, match="held-out fraction is"):
            stratified_split(torch.tensor([0, 1]), fraction, seed=0)


class TestStatistics:
    data = Images(
        torch.randint(0, 256, (5000, 3, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
        torch.zeros(5000, dtype=torch.int64),
        ("only",),
    )

    @pytest.mark.parametrize("indices", [None, torch.arange(0, 5000, 3)])
    def test_pixel_mean(self, indices):
        chosen = self.data.images if indices is None else self.data.images[indices]
        expected = (chosen.double() / 255).mean(0)
        found = pixel_mean(self.data, indices)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-7)

    @pytest.mark.parametrize("indices", [None, torch.arange(0, 5000, 3)])
    def test_channel_mean_std(self, indices):
        chosen = self.data.images if indices is None else self.data.images[indices]
        expected = (chosen.double() / 255).transpose(0, 1).flatten(1)
        mean, std = channel_mean_std(self.data, indices)
        assert mean == pytest.approx(expected.mean(1).tolist(), abs=1e-12)
        assert std == pytest.approx(expected.std(1, correction=0).tolist(), abs=1e-12)


class TestRealImages:
    def test_mnist(self, tmp_path):
        data = load("mnist", "test", shared_data("data", "mnist"), cache_dir=tmp_path)
        assert data.images.shape == (10_000, 1, 28, 28)
        # Class counts and mean grey value of the published test set.
        assert data.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
        assert channel_mean_std(data)[0][0] == pytest.approx(0.1325, abs=1e-4)

    def test_cifar10(self, tmp_path):
        data = load("cifar10", "test", shared_data("data", "cifar10"), cache_dir=tmp_path)
        assert data.images.shape == (10_000, 3, 32, 32)
        assert data.labels.bincount().tolist() == [1000] * 10
        assert data.class_names == get("cifar10").class_names
        assert channel_mean_std(data)[0] == pytest.approx((0.4942, 0.4851, 0.4504), abs=1e-4)

    def test_cifar100_has_the_names_of_its_classes(self, tmp_path):
        data = load("cifar100", "train", shared_data("data", "cifar100-small"), cache_dir=tmp_path)
        assert data.images.shape == (5000, 3, 32, 32)
        assert data.labels.bincount().tolist() == [50] * 100
        assert data.class_names[:3] == ("apple", "aquarium_fish", "baby")
        assert data.num_classes == 100
