from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from resless.data import cache
from resless.errors import InputError

IMAGES = np.random.default_rng(0).integers(0, 256, (300, 3, 4, 5), dtype=np.uint8)
LABELS = np.arange(300) % 7
NAMES = tuple("abcdefg")


class Maker:
    """Counts how often the content is made."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        chunks = (IMAGES[start : start + 128] for start in range(0, 300, 128))
        return cache.Content(IMAGES.shape, chunks, LABELS, NAMES)


def check(found):
    images, labels, names = found
    assert np.array_equal(images, IMAGES)
    assert np.array_equal(labels, LABELS)
    assert names == NAMES


def test_content_is_made_once_and_then_mapped(tmp_path):
    make = Maker()
    check(cache.fetch(tmp_path / "deep" / "entry", make))
    again = cache.fetch(tmp_path / "deep" / "entry", make)
    check(again)
    assert make.calls == 1
    assert isinstance(again[0], np.memmap)


def test_writing_to_the_images_does_not_reach_the_file(tmp_path):
    images, _, _ = cache.fetch(tmp_path / "entry", Maker())
    images[:] = 0
    again = cache.fetch(tmp_path / "entry", Maker())
    assert again[0].any()
    check(again)


def truncate(entry):
    os.truncate(entry / "images.npy", IMAGES.size // 2)


def flip_a_pixel(entry):
    content = bytearray((entry / "images.npy").read_bytes())
    content[-17] ^= 1
    (entry / "images.npy").write_bytes(content)


def change_a_label(entry):
    np.save(entry / "labels.npy", np.roll(LABELS, 1))


def cut_the_information(entry):
    text = (entry / "info.json").read_text()
    (entry / "info.json").write_text(text[: len(text) // 2])


def empty_the_information(entry):
    (entry / "info.json").write_text(json.dumps([]))


def leave_the_header_open(entry):
    content = (entry / "labels.npy").read_bytes()
    (entry / "labels.npy").write_bytes(content.replace(b"}", b"("))


def call_the_pixels_signed(entry):
    content = (entry / "images.npy").read_bytes()
    (entry / "images.npy").write_bytes(content.replace(b"|u1", b"|i1"))


def exchange_height_and_width(entry):
    content = (entry / "images.npy").read_bytes()
    (entry / "images.npy").write_bytes(content.replace(b"(300, 3, 4, 5)", b"(3, 300, 4, 5)"))


def lose_the_labels(entry):
    (entry / "labels.npy").unlink()


def empty_the_images(entry):
    (entry / "images.npy").write_bytes(b"")


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        flip_a_pixel,
        change_a_label,
        leave_the_header_open,
        call_the_pixels_signed,
        exchange_height_and_width,
        cut_the_information,
        empty_the_information,
        lose_the_labels,
        empty_the_images,
    ],
)
def test_damaged_entry_is_made_again(tmp_path, damage):
    make = Maker()
    cache.fetch(tmp_path / "entry", make)
    damage(tmp_path / "entry")
    check(cache.fetch(tmp_path / "entry", make))
    assert make.calls == 2


def test_failure_leaves_no_entry(tmp_path):
    def chunks():
        yield IMAGES[:128]
        raise InputError("row 128 cannot be decoded")

    with pytest.raises(InputError, match="row 128"):
        cache.fetch(tmp_path / "entry", lambda: cache.Content(IMAGES.shape, chunks(), LABELS, NAMES))
    assert [path.name for path in tmp_path.iterdir()] == ["entry.lock"]


def test_unusable_cache_folder_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"^cannot write the cache .*entry: File exists; set RESLESS_CACHE"):
        cache.fetch(tmp_path / "file" / "entry", Maker())


SLOW_PROCESS = """
import pathlib, sys, time
import numpy as np
from resless.data import cache

folder = pathlib.Path(sys.argv[1])

def chunks():
    with (folder / "made").open("a") as file:
        file.write("x")
    for start in range(20):
        time.sleep(float(sys.argv[2]))
        yield np.full((1, 1, 2, 2), start, dtype=np.uint8)

def make():
    return cache.Content((20, 1, 2, 2), chunks(), np.arange(20), tuple(map(str, range(20))))

images, labels, names = cache.fetch(folder / "entry", make)
print(images.sum(), labels.sum(), len(names))
"""


def start_slow_process(folder, seconds_a_chunk):
    command = [sys.executable, "-c", SLOW_PROCESS, str(folder), str(seconds_a_chunk)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_of_several_processes_one_makes_and_the_others_wait(tmp_path):
    processes = [start_slow_process(tmp_path, 0.03) for _ in range(4)]
    outputs = [process.communicate(timeout=60)[0].split() for process in processes]
    assert outputs == [[str(4 * 190), "190", "20"]] * 4
    assert (tmp_path / "made").read_text() == "x"


def test_process_killed_while_writing_leaves_nothing_in_the_way(tmp_path):
    killed = start_slow_process(tmp_path, 10)
    deadline = time.monotonic() + 30
    made = tmp_path / "made"
    while not (made.exists() and made.read_text()) and time.monotonic() < deadline:  # it is there before it is written
        time.sleep(0.02)
    assert (tmp_path / "entry.partial").is_dir()
    killed.kill()
    killed.communicate()
    after = start_slow_process(tmp_path, 0)
    assert after.communicate(timeout=60)[0].split() == [str(4 * 190), "190", "20"]
    assert made.read_text() == "xx"
    assert not (tmp_path / "entry.partial").exists()
