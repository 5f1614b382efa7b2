from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import shutil
from unittest.mock import Mock

import datasets
import huggingface_hub
import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet
from resless.data import catalog, open_samples, sources
from resless.errors import InputError
from resless.testing import caused_by, peak_memory, reset_peak_memory

RNG = np.random.default_rng(0)


def pictures(n, channels=3, size=6):
    return RNG.integers(0, 256, (n, channels, size, size), dtype=np.uint8)


def encode(image, kind="PNG"):
    content = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(content, kind)
    return content.getvalue()


def write_parquet(file, images, labels, image_column="image", label_column="label", class_names=None):
    """A file in the hub's layout; `images` are arrays or encoded bytes."""
    encoded = [image if isinstance(image, bytes | None) else encode(image) for image in images]
    rows = [{"bytes": content, "path": None} for content in encoded]
    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    table = pyarrow.table({image_column: pyarrow.array(rows, kind), label_column: pyarrow.array(labels)})
    if class_names:
        features = {label_column: {"names": class_names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, file)


def write_image(file, image):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(encode(image))


def flipped(content, bit):
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def assert_same(samples, images, labels):
    assert len(samples) == len(images) == len(labels)
    assert samples.labels.dtype == np.int64
    assert samples.labels.tolist() == list(labels)
    assert all(np.array_equal(samples.image(index), image) for index, image in enumerate(images))


class TestParquet:
    def test_files_of_a_split_are_laid_end_to_end_at_any_depth(self, tmp_path):
        images, labels = pictures(5), [2, 0, 1, 1, 0]
        folder = tmp_path / "data" / "plain"
        write_parquet(folder / "train-00000-of-00002.parquet", images[:3], labels[:3], class_names=["a", "b", "c"])
        write_parquet(folder / "train-00001-of-00002.parquet", images[3:], labels[3:], class_names=["a", "b", "c"])
        write_parquet(folder / "test-00000-of-00001.parquet", images[:1], labels[:1])
        samples = open_samples(str(tmp_path), "train")
        assert_same(samples, images, labels)
        assert samples.class_names == ("a", "b", "c")
        assert samples.where(2) == f"row 2 of {folder / 'train-00000-of-00002.parquet'}"
        assert samples.where(3) == f"row 0 of {folder / 'train-00001-of-00002.parquet'}"

    def test_a_part_that_is_missing_is_told(self, tmp_path):
        for part in (0, 2):
            write_parquet(tmp_path / f"train-0000{part}-of-00003.parquet", pictures(1), [0])
        with pytest.raises(InputError, match=rf"{tmp_path} holds 2 of the 3 parts of train: copy the others there"):
            open_samples(str(tmp_path), "train")

    @pytest.mark.parametrize("name", ["test-0.parquet", "validation-0.parquet", "val.parquet", "test/0000.parquet"])
    def test_test_split_is_found_under_its_usual_names(self, tmp_path, name):
        write_parquet(tmp_path / name, pictures(2), [0, 1])
        assert len(open_samples(str(tmp_path), "test")) == 2

    def test_test_comes_before_validation_except_for_imagenet(self, tmp_path):
        write_parquet(tmp_path / "test-0.parquet", pictures(1), [0])
        write_parquet(tmp_path / "validation-0.parquet", pictures(2), [0, 1])
        assert len(open_samples(str(tmp_path), "test")) == 1
        assert len(open_samples("imagenet", "test", tmp_path)) == 2
        assert len(open_samples(str(tmp_path), "validation")) == 2

    def test_splits_are_joined_by_plus(self, tmp_path):
        train, extra = pictures(3), pictures(2)
        write_parquet(tmp_path / "cropped_digits" / "train-0.parquet", train, [1, 2, 3])
        write_parquet(tmp_path / "cropped_digits" / "extra-0.parquet", extra, [4, 5])
        write_parquet(tmp_path / "full_numbers" / "train-0.parquet", train, [9, 9, 9])
        samples = open_samples("svhn", "train+extra", tmp_path)
        assert_same(samples, np.concatenate([train, extra]), [1, 2, 3, 4, 5])
        assert samples.where(3) == f"row 0 of {tmp_path / 'cropped_digits' / 'extra-0.parquet'}"

    def test_folder_that_holds_data_sets_by_name(self, tmp_path):
        write_parquet(tmp_path / "cifar10" / "train-0.parquet", pictures(2, size=32), [7, 9], "img")
        write_parquet(tmp_path / "other" / "train-0.parquet", pictures(1), [0])
        assert open_samples("cifar10", "train", tmp_path).labels.tolist() == [7, 9]
        with pytest.raises(InputError, match=f"several data sets under {tmp_path}: give the folder of one"):
            open_samples(str(tmp_path), "train")

    def test_grey_images_stay_grey_and_catalogue_decides_for_named_sets(self, tmp_path):
        grey = pictures(2, channels=1)
        write_parquet(tmp_path / "train-0.parquet", grey, [0, 1])
        assert_same(open_samples(str(tmp_path)), grey, [0, 1])
        coloured = open_samples("svhn", "train", tmp_path).image(0)
        assert np.array_equal(coloured, np.repeat(grey[0], 3, axis=0))

    def test_columns_can_be_named_and_are_found_where_only_one_fits(self, tmp_path):
        images = pictures(2)
        write_parquet(tmp_path / "train-0.parquet", images, [1, 0], "photo", "kind")
        assert_same(open_samples(str(tmp_path)), images, [1, 0])
        assert_same(
            open_samples("cifar10", "train", tmp_path, image_column="photo", label_column="kind"), images, [1, 0]
        )

    def test_wrong_column_names_file_and_columns(self, tmp_path):
        file = tmp_path / "train-0.parquet"
        write_parquet(file, pictures(2), [1, 0], "photo", "kind")
        with pytest.raises(
            InputError, match=f"no label column 'colour' in {file}: give --label-column, one of photo, kind"
        ):
            open_samples(str(tmp_path), label_column="colour")
        with pytest.raises(InputError, match=f"no image column 'img' in {file}: give --image-column"):
            open_samples("cifar10", "train", tmp_path)
        with pytest.raises(InputError, match=f"column 'photo' of {file} holds struct.*not labels"):
            open_samples(str(tmp_path), label_column="photo")
        with pytest.raises(InputError, match=f"column 'kind' of {file} holds int64, not images"):
            open_samples(str(tmp_path), image_column="kind")

    def test_unclear_column_is_asked_for(self, tmp_path):
        write_parquet(tmp_path / "train-0.parquet", pictures(2), [1, 0])
        table = parquet.read_table(tmp_path / "train-0.parquet")
        parquet.write_table(table.append_column("coarse", pyarrow.array([3, 4])), tmp_path / "train-0.parquet")
        with pytest.raises(
            InputError, match="2 columns that may hold labels: give --label-column, one of image, label"
        ):
            open_samples(str(tmp_path))
        assert open_samples(str(tmp_path), label_column="coarse").labels.tolist() == [3, 4]

    @pytest.mark.parametrize("label", [10, -1])
    def test_label_out_of_range_names_file_and_row(self, tmp_path, label):
        write_parquet(tmp_path / "train-0.parquet", pictures(2), [0, 9], "img")
        write_parquet(tmp_path / "train-1.parquet", pictures(2), [0, label], "img")
        expected = (
            f"row 1 of {tmp_path / 'train-1.parquet'} has the label {label}, but labels of cifar10 must be 0 to 9"
        )
        with pytest.raises(InputError, match=expected):
            open_samples("cifar10", "train", tmp_path)

    def test_missing_label_names_file_and_row(self, tmp_path):
        write_parquet(tmp_path / "train-0.parquet", pictures(2), [0, None])
        with pytest.raises(InputError, match=f"row 1 of {tmp_path / 'train-0.parquet'} has no label in column 'label'"):
            open_samples(str(tmp_path))

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
    def test_truncated_image_names_file_and_row(self, tmp_path, kind):
        whole = encode(pictures(1, size=64)[0], kind)
        write_parquet(tmp_path / "train-0.parquet", [whole, whole[: len(whole) // 2]], [0, 1])
        samples = open_samples(str(tmp_path))
        assert samples.image(0).shape == (3, 64, 64)
        with pytest.raises(InputError, match=f"row 1 of {tmp_path / 'train-0.parquet'} cannot be decoded: "):
            samples.image(1)

    @pytest.mark.parametrize("content", [None, b"", b"no image", b"\x89PNG"])
    def test_row_without_an_image_names_file_and_row(self, tmp_path, content):
        write_parquet(tmp_path / "train-0.parquet", [encode(pictures(1)[0]), content], [0, 1])
        with pytest.raises(InputError, match=f"row 1 of {tmp_path / 'train-0.parquet'} cannot be decoded: ") as error:
            open_samples(str(tmp_path)).image(1)
        assert "BytesIO" not in str(error.value)

    def test_label_that_no_network_can_have_names_file_and_row(self, tmp_path):
        write_parquet(tmp_path / "train-0.parquet", pictures(2), [0, 10**12])
        with pytest.raises(
            InputError, match=r"row 1 of .* has the label 1000000000000, but labels .* must be 0 to 65535"
        ):
            open_samples(str(tmp_path))

    @pytest.mark.parametrize("stored", ["no json", "[]", '{"info": {"features": {"label": {"names": "ab"}}}}'])
    def test_class_names_that_cannot_be_read_name_the_file(self, tmp_path, stored):
        write_parquet(tmp_path / "train-0.parquet", pictures(2), [0, 1])
        table = parquet.read_table(tmp_path / "train-0.parquet").replace_schema_metadata({"huggingface": stored})
        parquet.write_table(table, tmp_path / "train-0.parquet")
        with pytest.raises(InputError, match=f"{tmp_path / 'train-0.parquet'} does not say the class names of 'label'"):
            open_samples(str(tmp_path))

    def test_files_whose_columns_differ_are_named(self, tmp_path):
        write_parquet(tmp_path / "train-0.parquet", pictures(2), [0, 1])
        write_parquet(tmp_path / "train-1.parquet", pictures(2), [0.5, 1.5])
        with pytest.raises(InputError, match=f"'label' of {tmp_path / 'train-1.parquet'} holds double, not int64"):
            open_samples(str(tmp_path))
        write_parquet(tmp_path / "train-1.parquet", pictures(2), [0, 1], label_column="kind")
        with pytest.raises(InputError, match=f"{tmp_path / 'train-1.parquet'} cannot be read as parquet: .*label"):
            open_samples(str(tmp_path))

    def test_a_column_that_is_there_twice_is_refused(self, tmp_path):
        write_parquet(tmp_path / "train-0.parquet", pictures(2), [0, 1])
        table = parquet.read_table(tmp_path / "train-0.parquet")
        parquet.write_table(table.append_column("label", pyarrow.array([3, 4])), tmp_path / "train-0.parquet")
        with pytest.raises(InputError, match=r"train-0.parquet has several columns 'label'"):
            open_samples(str(tmp_path), label_column="label")

    @pytest.mark.parametrize("path", ["/dev/zero", "nowhere"])
    def test_a_path_in_place_of_an_image_leads_to_a_file(self, tmp_path, path):
        write_image(tmp_path / "there.png", pictures(1)[0])
        rows = [{"bytes": None, "path": str(tmp_path / "there.png")}, {"bytes": None, "path": path}]
        table = pyarrow.table({"image": pyarrow.array(rows), "label": pyarrow.array([0, 1])})
        parquet.write_table(table, tmp_path / "train-0.parquet")
        samples = open_samples(str(tmp_path))
        assert samples.image(0).shape == (3, 6, 6)
        with pytest.raises(InputError, match=f"row 1 of .* cannot be decoded: {path} cannot be read: it is missing"):
            samples.image(1)

    def test_one_picture_in_colour_makes_a_data_set_coloured(self, tmp_path):
        images = [*pictures(3, channels=1), *pictures(1)]
        for order in ([0, 1, 2, 3], [3, 0, 1, 2]):
            write_parquet(tmp_path / "train-0.parquet", [images[index] for index in order], [0, 1, 2, 3])
            samples = open_samples(str(tmp_path))
            assert samples.channels == 3
            assert np.array_equal(samples.image(order.index(3)), images[3])
            assert np.array_equal(samples.image(order.index(0)), np.repeat(images[0], 3, axis=0))

    def test_the_channels_of_a_damaged_image_are_refused_in_a_sentence(self, tmp_path):
        write_parquet(tmp_path / "train-0.parquet", [b"no image"], [0])
        with pytest.raises(InputError, match=f"row 0 of {tmp_path / 'train-0.parquet'} cannot be decoded: "):
            _ = open_samples(str(tmp_path)).channels

    def test_a_flipped_bit_in_a_page_with_a_checksum_is_found(self, tmp_path):
        file = tmp_path / "train-0.parquet"
        write_parquet(file, pictures(40), [*range(40)])
        parquet.write_table(parquet.read_table(file), file, write_page_checksum=True)
        end = parquet.ParquetFile(file).metadata.row_group(0).column(0).total_compressed_size
        whole = file.read_bytes()
        for bit in np.random.default_rng(0).integers(8 * end // 4, 8 * end // 2, 60):
            file.write_bytes(flipped(whole, bit))
            with pytest.raises(InputError, match=f"{file} cannot be read as parquet: .*CRC"):
                open_samples(str(tmp_path)).image(0)

    @pytest.mark.parametrize("column", [None, "image"])
    def test_two_columns_of_one_name_are_refused_even_where_one_fits(self, tmp_path, column):
        file = tmp_path / "train-0.parquet"
        write_parquet(file, pictures(2), [0, 1])
        table = parquet.read_table(file)
        parquet.write_table(table.append_column("image", pyarrow.array([True, False])), file)
        with pytest.raises(InputError, match=f"{file} has several columns 'image': give --image-column another name"):
            _ = open_samples(str(tmp_path), image_column=column).names_other_files

    def test_tables_without_rows_are_refused(self, tmp_path):
        write_parquet(tmp_path / "train-0.parquet", [], np.array([], dtype=np.int64))
        with pytest.raises(InputError, match=f"no images in the files under {tmp_path}"):
            open_samples(str(tmp_path))

    def test_damaged_file_is_named(self, tmp_path):
        write_parquet(tmp_path / "train-0.parquet", pictures(2), [0, 1])
        (tmp_path / "train-1.parquet").write_bytes((tmp_path / "train-0.parquet").read_bytes()[:-100])
        with pytest.raises(InputError, match=f"{tmp_path / 'train-1.parquet'} cannot be read as parquet: "):
            open_samples(str(tmp_path))

    def test_memory_that_runs_out_is_told_apart_from_damage(self, tmp_path, monkeypatch):
        file = tmp_path / "train-0.parquet"
        write_parquet(file, pictures(2), [0, 1])
        samples = open_samples(str(tmp_path))
        monkeypatch.setattr(parquet, "read_table", lambda *args, **options: pyarrow.allocate_buffer(10**15))
        with pytest.raises(InputError, match=f"{file} asks for more memory than there is"):
            samples.image(0)

    def test_samples_survive_pickling_for_worker_processes(self, tmp_path):
        images = pictures(2)
        write_parquet(tmp_path / "train-0.parquet", images, [0, 1])
        samples = open_samples(str(tmp_path))
        samples.image(0)
        assert_same(pickle.loads(pickle.dumps(samples)), images, [0, 1])

    def test_mapped_rows_equal_rows_in_memory(self, tmp_path, monkeypatch):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
        images = pictures(5)
        write_parquet(tmp_path / "train-0.parquet", images[:2], [0, 1])
        write_parquet(tmp_path / "train-1.parquet", images[2:], [2, 3, 4])
        samples = open_samples(str(tmp_path), stream=True)
        assert_same(samples, images, [0, 1, 2, 3, 4])
        assert samples.where(2) == f"row 0 of {tmp_path / 'train-1.parquet'}"
        assert_same(pickle.loads(pickle.dumps(samples)), images, [0, 1, 2, 3, 4])

    def test_files_that_cannot_be_mapped_are_refused_in_a_sentence(self, tmp_path, monkeypatch):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
        write_parquet(tmp_path / "train-0.parquet", pictures(2), [0, 1])
        write_parquet(tmp_path / "train-1.parquet", pictures(2), ["a", "b"], label_column="kind")
        with pytest.raises(InputError, match=f"^cannot map the parquet files in {tmp_path}: [^\n]+$"):
            open_samples(str(tmp_path), stream=True)


class TestImageTree:
    def test_classes_are_numbered_by_their_sorted_names(self, tmp_path):
        images = pictures(5)
        write_image(tmp_path / "train" / "dog" / "b.png", images[2])
        write_image(tmp_path / "train" / "dog" / "deep" / "a.PNG", images[3])
        write_image(tmp_path / "train" / "cat" / "x.png", images[0])
        write_image(tmp_path / "train" / "cat" / "y.png", images[1])
        (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
        write_image(tmp_path / "val" / "dog" / "z.png", images[4])
        train = open_samples(str(tmp_path), "train")
        assert_same(train, images[:4], [0, 0, 1, 1])
        assert train.class_names == ("cat", "dog")
        test = open_samples(str(tmp_path), "test")
        assert_same(test, images[4:], [1])
        assert test.class_names == ("cat", "dog")

    def test_truncated_image_names_its_file(self, tmp_path):
        file = tmp_path / "train" / "cat" / "x.png"
        write_image(file, pictures(1, size=32)[0])
        file.write_bytes(file.read_bytes()[:500])
        with pytest.raises(InputError, match=f"image {file} cannot be decoded: "):
            open_samples(str(tmp_path)).image(0)

    def test_of_16_bits_the_upper_8_are_taken(self, tmp_path):
        values = np.array([[0, 255, 256, 32_768, 50_000, 65_535]], dtype=np.uint16)
        (tmp_path / "train" / "cat").mkdir(parents=True)
        Image.fromarray(values).save(tmp_path / "train" / "cat" / "x.png")
        assert open_samples(str(tmp_path)).image(0).tolist() == [[[0, 0, 1, 128, 195, 255]]]

    @pytest.mark.parametrize(
        ("values", "message"),
        [([[0.5]], "floating-point"), ([[70_000]], "more than 16 bits"), ([[-1]], "more than 16 bits")],
    )
    def test_pixels_that_would_be_clipped_are_refused(self, values, message, tmp_path):
        (tmp_path / "train" / "cat").mkdir(parents=True)
        kind = np.float32 if isinstance(values[0][0], float) else np.int32
        Image.fromarray(np.array(values, dtype=kind)).save(tmp_path / "train" / "cat" / "x.tiff")
        with pytest.raises(InputError, match=message):
            open_samples(str(tmp_path)).image(0)

    def test_memory_that_runs_out_is_no_damage(self, tmp_path, monkeypatch):
        write_image(tmp_path / "train" / "cat" / "x.png", pictures(1)[0])
        monkeypatch.setattr(Image, "open", Mock(side_effect=MemoryError))
        with pytest.raises(MemoryError):
            open_samples(str(tmp_path)).image(0)

    def test_a_line_of_text_is_resized_like_any_image(self, tmp_path):
        line = np.tile(pictures(1, size=20)[0], 150)
        write_image(tmp_path / "train" / "cat" / "x.png", line)
        samples = open_samples(str(tmp_path))
        assert np.array_equal(samples.image(0), line)
        assert samples.image(0, 32).shape == (3, 32, 32)

    def test_links_in_a_circle_are_followed_once(self, tmp_path):
        write_image(tmp_path / "train" / "cat" / "x.png", pictures(1)[0])
        for name in ("back", "again"):
            (tmp_path / "train" / "cat" / name).symlink_to(tmp_path / "train" / "cat")
        assert len(open_samples(str(tmp_path))) == 1

    @pytest.mark.parametrize("backwards", [False, True])
    def test_of_a_folder_and_a_link_to_it_the_first_name_is_taken(self, tmp_path, monkeypatch, backwards):
        walk = os.walk

        def ordered(*args, **options):
            for parent, folders, names in walk(*args, **options):
                folders.sort(reverse=backwards)
                yield parent, folders, names

        monkeypatch.setattr(os, "walk", ordered)
        cat = tmp_path / "train" / "cat"
        write_image(cat / "b" / "x.png", pictures(1)[0])
        (cat / "a").symlink_to(cat / "b")
        assert open_samples(str(tmp_path)).files == (cat / "a" / "x.png",)

    def test_wrong_class_folders_and_empty_trees_are_named(self, tmp_path):
        write_image(tmp_path / "train" / "cat" / "x.png", pictures(1)[0])
        write_image(tmp_path / "val" / "cow" / "x.png", pictures(1)[0])
        with pytest.raises(InputError, match=f"class folder {tmp_path / 'val' / 'cow'} has no counterpart"):
            open_samples(str(tmp_path), "test")
        with pytest.raises(InputError, match=f"imagenet has 1000 classes, but {tmp_path} has 1 class folders"):
            open_samples("imagenet", "train", tmp_path)
        (tmp_path / "test" / "cat").mkdir(parents=True)
        with pytest.raises(InputError, match=rf"no images \(.*\) in class folders under {tmp_path / 'test'}"):
            open_samples(str(tmp_path), "test")


class TestTorchvisionFiles:
    def write_cifar10(self, folder):
        images, labels = pictures(12, size=32), RNG.integers(0, 10, 12)
        for number in range(6):
            name = f"data_batch_{number + 1}" if number < 5 else "test_batch"
            rows = slice(2 * number, 2 * number + 2)
            batch = {b"data": images[rows].reshape(2, -1), b"labels": labels[rows].tolist(), b"batch_label": b"x"}
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
        meta = {b"label_names": [name.encode() for name in catalog.get("cifar10").class_names]}
        (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
        return images, labels.tolist()

    @pytest.mark.parametrize("given", [".", "cifar-10-batches-py"])
    def test_cifar10_batches(self, tmp_path, given):
        images, labels = self.write_cifar10(tmp_path / "cifar-10-batches-py")
        train = open_samples("cifar10", "train", tmp_path / given)
        assert_same(train, images[:10], labels[:10])
        assert train.class_names[9] == "truck"
        assert train.where(5) == f"row 1 of {tmp_path / 'cifar-10-batches-py' / 'data_batch_3'}"
        assert_same(open_samples("cifar10", "test", tmp_path / given), images[10:], labels[10:])

    def test_cifar100_takes_fine_labels(self, tmp_path):
        images = pictures(2, size=32)
        batch = {b"data": images.reshape(2, -1), b"fine_labels": [99, 3], b"coarse_labels": [0, 1]}
        names = [f"class{i}".encode() for i in range(100)]
        (tmp_path / "train").write_bytes(pickle.dumps(batch, protocol=2))
        (tmp_path / "meta").write_bytes(pickle.dumps({b"fine_label_names": names}, protocol=2))
        samples = open_samples("cifar100", "train", tmp_path)
        assert_same(samples, images, [99, 3])
        assert samples.class_names[99] == "class99"

    def test_damaged_or_missing_batch_is_named(self, tmp_path):
        self.write_cifar10(tmp_path)
        batch = tmp_path / "data_batch_2"
        batch.write_bytes(batch.read_bytes()[:3000])
        with pytest.raises(InputError, match=f"{batch} cannot be read as a CIFAR file"):
            open_samples("cifar10", "train", tmp_path)
        batch.unlink()
        with pytest.raises(InputError, match=f"{batch} cannot be read as a CIFAR file.*No such file"):
            open_samples("cifar10", "train", tmp_path)

    def test_pickle_that_would_run_code_is_refused(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return (shutil.rmtree, (str(tmp_path / "victim"),))

        (tmp_path / "victim").mkdir()
        self.write_cifar10(tmp_path)
        (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": Evil()}, protocol=2))
        with pytest.raises(InputError, match=r"test_batch cannot be read .*it asks for shutil.rmtree"):
            open_samples("cifar10", "test", tmp_path)
        assert (tmp_path / "victim").is_dir()

    def test_damage_does_not_decide_how_much_memory_is_taken(self, tmp_path):
        self.write_cifar10(tmp_path)
        length = (2**44).to_bytes(8, "little")
        for opcodes in (
            b"\x80\x02}r\x00\x00\x00\x80.",  # a place for two billion objects
            b"\x80\x04\x8e" + length + b"x.",  # bytes
            b"\x80\x05\x96" + length + b"x.",  # a bytearray
            b"\x80\x04\x95" + length + b"x.",  # a frame of opcodes
            b"cnumpy\nndarray\n((J\x00\x00\x00\x40J\x00\x00\x01\x00ttR.",  # an array of 2^46 numbers
        ):
            (tmp_path / "test_batch").write_bytes(opcodes)
            before = reset_peak_memory()
            with pytest.raises(InputError, match="test_batch cannot be read as a CIFAR file") as error:
                open_samples("cifar10", "test", tmp_path)
            assert not caused_by(error.value, MemoryError)
            assert peak_memory() - before < 100 * 2**20

    @pytest.mark.parametrize("value", [[0.5, 1.5], ["1", "2"], [[1, 2]], 3, [2**80, 1]])
    def test_labels_that_are_no_whole_numbers_are_named(self, tmp_path, value):
        self.write_cifar10(tmp_path)
        batch = {b"data": pictures(2, size=32).reshape(2, -1), b"labels": value}
        (tmp_path / "test_batch").write_bytes(pickle.dumps(batch, protocol=2))
        with pytest.raises(InputError, match=f"{tmp_path / 'test_batch'} "):
            open_samples("cifar10", "test", tmp_path)

    @pytest.mark.parametrize("sizes", [[3, -28, -28], [2**31 - 1] * 3, [0, 28, 28], [3, 28, 27]])
    def test_idx_files_hold_what_they_state(self, tmp_path, sizes):
        file = tmp_path / "t10k-images-idx3-ubyte"
        file.write_bytes(np.array([0x803, *sizes], ">i4").tobytes() + bytes(3 * 28 * 28))
        (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(np.array([0x801, 3], ">i4").tobytes() + bytes(3))
        with pytest.raises(InputError, match=f"{file} is damaged: it is not an idx file of 3 dimensions"):
            open_samples("mnist", "test", tmp_path)

    @pytest.mark.parametrize(("height", "width"), [(0, 28), (1_549_869_891, 0)])
    def test_an_image_without_pixels_is_named(self, tmp_path, height, width):
        (tmp_path / "t10k-images-idx3-ubyte").write_bytes(np.array([0x803, 1, height, width], ">i4").tobytes())
        (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(np.array([0x801, 1], ">i4").tobytes() + bytes(1))
        before = reset_peak_memory()
        with pytest.raises(InputError, match=r"row 0 of .* cannot be decoded: it has \d+ x \d+ pixels, but must have"):
            open_samples("mnist", "test", tmp_path).image(0)
        assert peak_memory() - before < 2**28, "PIL would take memory for each row of no pixels"

    @pytest.mark.parametrize("packed", [False, True])
    def test_mnist_idx_files(self, tmp_path, packed):
        images, labels = pictures(3, channels=1, size=28), [5, 0, 4]
        folder = tmp_path / "MNIST" / "raw"
        folder.mkdir(parents=True)
        contents = {
            "t10k-images-idx3-ubyte": np.array([0x803, 3, 28, 28], ">i4").tobytes() + images.tobytes(),
            "t10k-labels-idx1-ubyte": np.array([0x801, 3], ">i4").tobytes() + bytes(labels),
        }
        for name, content in contents.items():
            file = folder / (name + ".gz" * packed)
            file.write_bytes(gzip.compress(content) if packed else content)
        assert_same(open_samples("mnist", "test", tmp_path), images, labels)
        file = folder / ("t10k-images-idx3-ubyte" + ".gz" * packed)
        whole = file.read_bytes()
        # A file that is not packed has nothing that would tell a flipped bit in a pixel.
        for damaged in (whole[:-50], flipped(whole, 8 * len(whole) // 2) if packed else flipped(whole, 30)):
            file.write_bytes(damaged)
            with pytest.raises(InputError, match=f"{file} "):
                open_samples("mnist", "test", tmp_path)


class TestMissing:
    def test_folder_without_the_data_says_what_was_looked_for_and_what_to_do(self, tmp_path):
        with pytest.raises(InputError) as error:
            open_samples("mnist", "train", tmp_path)
        message = str(error.value)
        for part in ("train images of mnist", str(tmp_path), "train-*.parquet", "--data-dir", "--dataset digits"):
            assert part in message

    def test_folder_that_does_not_exist(self, tmp_path):
        with pytest.raises(InputError, match=r"there is no folder .*nowhere .*--data-dir.*--dataset digits"):
            open_samples("mnist", "train", tmp_path / "nowhere")
        with pytest.raises(InputError, match=r"there is no folder .*nowhere"):
            open_samples(str(tmp_path / "nowhere"))

    def test_options_without_effect_are_refused(self, tmp_path):
        with pytest.raises(InputError, match=r"--data-dir is 'data', but must be left out, for digits come with the"):
            open_samples("digits", "test", "data")
        with pytest.raises(InputError, match="--label-column is 'kind', but must be left out, for digits"):
            open_samples("digits", label_column="kind")
        write_image(tmp_path / "train" / "cat" / "x.png", pictures(1)[0])
        with pytest.raises(InputError, match=f"--image-column is 'img', but .*, for the files in {tmp_path} are no"):
            open_samples(str(tmp_path), image_column="img")

    def test_folder_given_twice(self, tmp_path):
        with pytest.raises(InputError, match="is a folder already: leave --data-dir"):
            open_samples(str(tmp_path), "train", tmp_path)

    def test_hub_out_of_reach_is_one_sentence_without_retries(self, monkeypatch):
        calls = []

        def unreachable(self, repo_id, timeout):
            calls.append((repo_id, timeout))
            raise ConnectionError("Name or service not known")

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
        with pytest.raises(InputError) as error:
            open_samples("cifar10")
        assert calls == [("uoft-cs/cifar10", 10)]
        for part in ("cannot reach the hub", "uoft-cs/cifar10", "--data-dir", "--dataset digits", "HF_HUB_OFFLINE=1"):
            assert part in str(error.value)

    def test_offline_without_an_earlier_download_fails_at_once(self, monkeypatch, tmp_path):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
        with pytest.raises(InputError, match=r"cannot load the split 'test' of nobody/nothing .*--data-dir"):
            open_samples("nobody/nothing", "test")


def test_hub_data_set_is_read_from_its_arrow_files(tmp_path, monkeypatch):
    images = pictures(3, size=32)
    write_parquet(tmp_path / "x.parquet", images, [3, 1, 9], "img")
    asked = []

    def load_dataset(*args, split, keep_in_memory):
        assert not keep_in_memory, (
            "what is decoded once is known by its files, whatever $HF_DATASETS_IN_MEMORY_MAX_SIZE"
        )
        asked.append((*args, split))
        files = {"train": str(tmp_path / "x.parquet")}
        return datasets.Dataset.from_parquet(files["train"], cache_dir=str(tmp_path / "hf"))

    monkeypatch.setattr(sources, "_check_hub", lambda hub_id: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    samples = open_samples("cifar10", "test")
    assert asked == [("uoft-cs/cifar10", "plain_text", "test")]
    assert_same(samples, images, [3, 1, 9])
    assert samples.where(2) == "row 2 of uoft-cs/cifar10 (test)"
    assert samples.files
    assert all(file.is_file() for file in samples.files)
    open_samples("imagenet", "test", image_column="img")
    assert asked[-1] == ("ILSVRC/imagenet-1k", None, "validation")
    assert not samples.names_other_files


@pytest.mark.parametrize("there", [("train", "valid"), ("train", "validation", "valid"), ("train",)])
def test_what_the_hub_calls_validation_is_the_test_split_where_there_is_no_other(there, tmp_path, monkeypatch):
    write_parquet(tmp_path / "x.parquet", pictures(3), [0, 1, 1])

    def load_dataset(*_, split, keep_in_memory):
        if split not in there:
            raise ValueError(f'Unknown split "{split}". Should be one of {list(there)}.')
        return datasets.Dataset.from_parquet(str(tmp_path / "x.parquet"), cache_dir=str(tmp_path / "hf"))

    monkeypatch.setattr(sources, "_check_hub", lambda hub_id: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    if there == ("train",):
        with pytest.raises(InputError, match=r"cannot load the split 'test' of some/pets .* Should be one of \['train"):
            open_samples("some/pets", "test")
    else:
        assert open_samples("some/pets", "test").where(0) == f"row 0 of some/pets ({there[1]})"
    with pytest.raises(InputError, match="cannot load the split 'extra' of some/pets"):
        open_samples("some/pets", "extra")
