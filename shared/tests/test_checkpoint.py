from __future__ import annotations

import errno
import json
import os
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from resless import checkpoint
from resless.errors import InputError
from resless.testing import disk, forked

CONFIG = {"model": "lenet5", "optim": {"lr": 0.1, "milestones": [81, 122]}, "run": {"resume": None}}


def save(root: Path, name: str, *, value: float = 1.0, keep: int = 2, world_size: int = 1, numbers: int = 4) -> Path:
    """A checkpoint, written by threads that stand for processes."""
    barrier = threading.Barrier(world_size)

    def process(rank: int) -> Path:
        return checkpoint.save(
            root,
            name,
            shared={"weight": torch.full((numbers,), value), "epoch": 3},
            own={"rank": rank},
            config=CONFIG,
            rank=rank,
            world_size=world_size,
            barrier=barrier.wait,
            keep=keep,
        )

    if world_size == 1:
        return process(0)
    with ThreadPoolExecutor(world_size) as pool:
        folders = list(pool.map(process, range(world_size)))
    assert len(set(folders)) == 1
    return folders[0]


def names(root: Path) -> list[str]:
    return [path.name for path in checkpoint.find(root)]


def read(folder: Path) -> float:
    shared, _ = checkpoint.load(folder, rank=0)
    return float(shared["weight"][0])


def flip_a_bit(path: Path, position: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 1
    path.write_bytes(content)


# --- what is written


def test_a_checkpoint_gives_back_what_was_saved(tmp_path):
    folder = save(tmp_path, "epoch_0003", value=2.5)
    assert folder == tmp_path / "epoch_0003"
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "state.pt", "rank_0.pt"}
    assert (tmp_path / "last").read_text() == "epoch_0003"
    assert checkpoint.damage(folder) is None
    shared, own = checkpoint.load(folder, rank=0)
    assert torch.equal(shared["weight"], torch.full((4,), 2.5))
    assert shared["epoch"] == 3
    assert own == {"rank": 0}


def test_each_process_has_its_own_state(tmp_path):
    folder = save(tmp_path, "epoch_0001", world_size=3)
    assert checkpoint.damage(folder) is None
    owns = [checkpoint.load(folder, rank=rank)[1] for rank in range(3)]
    assert owns == [{"rank": 0}, {"rank": 1}, {"rank": 2}]


def test_all_random_numbers_go_on_where_they_were():
    def draw() -> tuple:
        return random.random(), np.random.normal(), torch.rand(3).tolist()  # noqa: NPY002

    np.random.normal()  # noqa: NPY002 - leaves a second number cached, which belongs to the state
    state = checkpoint.rng_state()
    expected = [draw() for _ in range(3)]
    checkpoint.set_rng_state(state)
    assert [draw() for _ in range(3)] == expected


def test_the_newest_stay_and_the_order_is_that_of_numbers(tmp_path):
    for name in ("epoch_9998", "epoch_9999", "epoch_9999_step_000010", "epoch_10000"):
        save(tmp_path, name, keep=2)
    assert names(tmp_path) == ["epoch_10000", "epoch_9999_step_000010"]
    assert (tmp_path / "last").read_text() == "epoch_10000"


def test_going_back_to_an_earlier_checkpoint_drops_the_later_ones(tmp_path):
    for name in ("epoch_0002", "epoch_0003", "epoch_0004"):
        save(tmp_path, name, keep=3)
    save(tmp_path, "epoch_0002_step_000005", keep=1)
    assert names(tmp_path) == ["epoch_0002_step_000005"]
    assert (tmp_path / "last").read_text() == "epoch_0002_step_000005"


# --- a writer that dies


def killed_after(moments: int, root: Path) -> int:
    """Save epoch_0002 in a fork that is killed before its n-th file system operation; its exit code."""

    def task() -> None:
        left = [moments]

        def counted(operation):
            def do(*args, **kwargs):
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
                return operation(*args, **kwargs)

            return do

        os.fsync, os.mkdir, os.rename, os.replace = map(counted, (os.fsync, os.mkdir, os.rename, os.replace))
        os.unlink, os.rmdir, checkpoint._write = map(counted, (os.unlink, os.rmdir, checkpoint._write))
        save(root, "epoch_0002", value=2.0, keep=1)

    return forked(task)[0].code


def test_a_writer_killed_at_any_moment_leaves_the_old_checkpoint_or_the_new_one(tmp_path):
    codes, found = [], []
    while 0 not in codes:
        root = tmp_path / f"killed-{len(codes)}"
        save(root, "epoch_0001", value=1.0, keep=1)
        codes.append(killed_after(len(codes), root))
        good = checkpoint.newest_good(root, found.append)
        assert good is not None
        assert read(good) == {"epoch_0001": 1.0, "epoch_0002": 2.0}[good.name]
        assert [checkpoint.damage(folder) for folder in checkpoint.find(root)] in ([None], [None, None])
        found.append(good.name)
        # The next writer clears up and goes on.
        save(root, "epoch_0003", value=3.0, keep=1)
        assert {path.name for path in root.iterdir()} == {"epoch_0003", "last"}
        assert len(codes) < 100
    assert set(codes[:-1]) == {-signal.SIGKILL}
    assert len(codes) > 10, "too few moments to be all of them"
    assert found == sorted(found), "a later kill must not find an earlier checkpoint; nothing is damaged"
    assert set(found) == {"epoch_0001", "epoch_0002"}


# --- a disk that fails


def assert_survives_a_full_disk(root: Path, numbers: int) -> None:
    with pytest.raises(OSError, match="No space left") as failed:
        save(root, "epoch_0002", numbers=numbers)
    assert failed.value.errno == errno.ENOSPC
    assert names(root) == ["epoch_0001"]
    assert (root / "last").read_text() == "epoch_0001"
    assert checkpoint.damage(root / "epoch_0001") is None
    assert not list(root.glob(".writing-*")), "what was half written takes up room"


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    save(tmp_path, "epoch_0001")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert_survives_a_full_disk(tmp_path, numbers=4)


def test_a_disk_that_is_really_full_leaves_the_checkpoint_before(tmp_path):
    with disk(tmp_path, "size=1m"):
        save(tmp_path, "epoch_0001")
        assert_survives_a_full_disk(tmp_path, numbers=2**20)


# --- damage


def _rewrite(folder: Path, **changes: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    manifest["own_sha256"] = checkpoint._own_sha256(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


DAMAGE = {
    "bit of the state": (lambda f: flip_a_bit(f / "state.pt"), "state.pt does not match its checksum"),
    "cut off": (lambda f: os.truncate(f / "state.pt", 100), "state.pt does not match its checksum"),
    "empty": (lambda f: os.truncate(f / "rank_0.pt", 0), "rank_0.pt does not match its checksum"),
    "missing state": (lambda f: (f / "state.pt").unlink(), "state.pt is missing"),
    "missing rank": (lambda f: (f / "rank_1.pt").unlink(), "rank_1.pt is missing"),
    "rank not listed": (lambda f: _rewrite(f, world_size=3), "manifest.json does not list rank_2.pt"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "manifest.json cannot be read"),
    "half a manifest": (lambda f: os.truncate(f / "manifest.json", 200), "manifest.json cannot be read"),
    "manifest of another kind": (lambda f: (f / "manifest.json").write_text("[1]"), "manifest.json cannot be read"),
    "other format": (lambda f: _rewrite(f, format=2), "its format is 2, but this version reads 1"),
}


@pytest.mark.parametrize(("break_it", "fault"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_newest_checkpoint_is_named_and_skipped(tmp_path, break_it, fault):
    save(tmp_path, "epoch_0001", world_size=2)
    newest = save(tmp_path, "epoch_0002", world_size=2)
    break_it(newest)
    said: list[str] = []
    assert checkpoint.newest_good(tmp_path, said.append) == tmp_path / "epoch_0001"
    assert said == [f"checkpoint {newest} is damaged ({fault}): skipped"]
    with pytest.raises(InputError, match="is damaged"):
        checkpoint.check(newest, world_size=2, config=CONFIG)


def test_every_bit_of_a_manifest_counts(tmp_path):
    folder = save(tmp_path, "epoch_0001")
    intact = (folder / "manifest.json").read_bytes()
    # The first and the last byte that carry meaning, and a spread of those between.
    positions = [i for i, byte in enumerate(intact) if not chr(byte).isspace()]
    for position in positions[:: max(1, len(positions) // 60)]:
        changed = bytearray(intact)
        changed[position] ^= 1
        (folder / "manifest.json").write_bytes(changed)
        assert (checkpoint.damage(folder) or "").startswith("manifest.json"), f"byte {position}: {bytes(changed)!r}"
    (folder / "manifest.json").write_bytes(intact)
    assert checkpoint.damage(folder) is None


def test_without_a_good_checkpoint_there_is_none(tmp_path):
    assert checkpoint.newest_good(tmp_path / "nowhere", print) is None
    flip_a_bit(save(tmp_path, "epoch_0001") / "state.pt")
    assert checkpoint.newest_good(tmp_path, print) is None


def test_a_state_that_would_run_code_is_refused(tmp_path):
    (tmp_path / "rank_0.pt").write_bytes(b"")
    with (tmp_path / "state.pt").open("wb") as file:
        torch.save({"weight": os.system}, file)
    with pytest.raises(InputError, match=r"state\.pt is not a training state"):
        checkpoint.load(tmp_path, rank=0)


# --- another run


def test_another_number_of_processes_is_refused_with_both_numbers(tmp_path):
    folder = save(tmp_path, "epoch_0001", world_size=2)
    checkpoint.check(folder, world_size=2, config=CONFIG)
    with pytest.raises(InputError, match=r"written by 2 processes \(world size\), but this run has 1"):
        checkpoint.check(folder, world_size=1, config=CONFIG)


def test_another_configuration_is_refused_by_the_names_of_its_fields(tmp_path):
    folder = save(tmp_path, "epoch_0001")
    checkpoint.check(folder, world_size=1, config=CONFIG | {"run": {"resume": "auto"}})
    other = {"model": "lenet_300_100", "optim": {"lr": 0.2, "milestones": [81, 122]}, "run": {"resume": None}}
    with pytest.raises(InputError) as refused:
        checkpoint.check(folder, world_size=1, config=other)
    assert "trained with --model = 'lenet5' (now 'lenet_300_100'), --lr = 0.1 (now 0.2)" in str(refused.value)
    assert "milestones" not in str(refused.value)
