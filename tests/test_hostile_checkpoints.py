"""Checkpoints from strangers, the papers' own layouts too: all tensors find their place, or one sentence says why not.

A second for each case here; `./dev -s fuzz -- --minutes 60` goes on for an hour.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adn.model import create as adaptive
from adn.model import load_original as load_adaptive
from adn.model import load_plain
from adn.original import original_keys
from blockdrop.loading import load_backbone, load_policy_features
from blockdrop.model import BlockDropNet
from blockdrop.model import load_original as load_blockdrop
from blockdrop.original import agent_keys, resnet_keys
from fuzzing import Fuzz, broken, hostile, places
from resless import models, weights
from safetensors.torch import save_file
from torch import Tensor

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, about each odd kind of tensor

NAMES: list[Any] = [
    *("", "module.", "a\nb", "a" * 5000, "model", "state_dict", "resnet", "agent", "model_ema", "n_averaged"),
    *("blocks.0.0.conv9.weight", f"blocks.{'9' * 5000}.0.conv1.weight", "features.blocks.0.0.bn1.weight", "vnet."),
    *(0, None, 0.5, (1, 2), b"conv1.weight"),
]
TENSORS: list[Callable[[Tensor], Any]] = [
    *(lambda t: t.flatten(), lambda t: t[None], lambda t: t.reshape(-1)[:1], lambda t: torch.stack([t, t])),
    *(lambda t: t.double(), lambda t: t.half(), lambda t: t.to(torch.int64), lambda t: t.to(torch.complex64)),
    *(lambda t: t.to(torch.float8_e4m3fn), lambda t: t.to("meta"), lambda t: t.float().to_sparse(), lambda t: [t]),
    # Of one number each, but of many gigabytes once they are copied.
    *(lambda t: torch.zeros(1).expand(10**10), lambda t: torch.zeros(1, dtype=torch.float64).expand(10**5, 10**5)),
    *(lambda t: torch.nn.Parameter(t.float()), lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8)),
    *(lambda t: t.float() * float("nan"), lambda t: t.numpy(force=True).tolist()),
]


def changed(content: Any, chance: random.Random) -> Any:
    """A copy, of the same tensors, with one to three entries replaced, renamed, wrapped, left out or added."""
    content, replaced = copied(content), []
    for _ in range(chance.randint(1, 3)):
        container, key = chance.choice(list(places(content)) or [([0], 0)])
        value, action = container[key], chance.choice(["tensor", "tensor", "name", "value", "wrap", "drop", "loop"])
        if action == "tensor" and isinstance(value, Tensor) and not any(value is tensor for tensor in replaced):
            container[key] = chance.choice(TENSORS)(value)
            replaced.append(container[key])  # of these, torch itself cannot make any other
        elif action == "name" and isinstance(container, dict):
            container[chance.choice(NAMES)] = container.pop(key) if chance.random() < 0.7 else value
        elif action == "wrap":
            container[key] = {chance.choice(NAMES): value}
        elif action == "drop":
            del container[key]
        elif action == "loop":
            container[key] = container
            break
        else:
            container[key] = hostile(chance)
    return {chance.choice(["state_dict", "net", "x"]): content} if chance.random() < 0.1 else content


def copied(value: Any) -> Any:
    """The same in dicts of its own."""
    return {key: copied(item) for key, item in value.items()} if isinstance(value, dict) else value


def blockdrop_checkpoint() -> tuple[dict[str, Any], BlockDropNet]:
    """A checkpoint of BlockDrop's authors, and a network for it."""
    net = BlockDropNet("R32_C10")
    agent = {by_authors(key): tensor for key, tensor in net.policy.state_dict().items()}
    agent |= {"vnet.weight": torch.zeros(1, 64), "vnet.bias": torch.zeros(1)}
    resnet = {by_authors(key): tensor for key, tensor in net.resnet.net.state_dict().items()}
    assert len(resnet_keys(resnet)) > 100
    assert len(agent_keys(agent)) > 10
    return {"agent": agent, "resnet": resnet, "epoch": 3}, net


def by_authors(name: str) -> str:
    name = re.sub(r"layer(\d)\.", lambda stage: f"blocks.{int(stage[1]) - 1}.", name)
    return name.replace("linear.", "fc.")


def both_networks() -> tuple[Any, Callable[[Path], object]]:
    content, _ = blockdrop_checkpoint()
    return content, lambda file: load_blockdrop("R32_C10", file)


def residual_network() -> tuple[Any, Callable[[Path], object]]:
    content, net = blockdrop_checkpoint()
    return content, lambda file: load_backbone(net.resnet.net, str(file))


def policy_features() -> tuple[Any, Callable[[Path], object]]:
    net = BlockDropNet("R32_C10", policy="resnet8")
    unused = {"layer1.1.conv1.weight": torch.zeros(1), "linear.weight": torch.zeros(1)}
    return net.policy.features.state_dict() | unused, lambda file: load_policy_features(net.policy, str(file))


def averaged_adaptive_network(ema: bool = True) -> tuple[Any, Callable[[Path], object]]:
    net = adaptive("resnet14", num_classes=3)
    own = net.state_dict()
    theirs = {name: own[key] for key, name in original_keys(net.net, own).items()}
    average = {f"module.{key}": tensor for key, tensor in theirs.items()} | {"n_averaged": torch.tensor(5)}
    content = {"model": theirs, "model_ema": average, "epoch": 145}
    return content, lambda file: load_adaptive(net, file, ema=ema)


def adaptive_network() -> tuple[Any, Callable[[Path], object]]:
    return averaged_adaptive_network(ema=False)


def plain_as_adaptive() -> tuple[Any, Callable[[Path], object]]:
    net = adaptive("resnet14", num_classes=3)
    return {"state_dict": net.net.state_dict()}, lambda file: load_plain(net, file)


def plain_network() -> tuple[Any, Callable[[Path], object]]:
    net = models.create("resnet8")
    content = {"net": {f"module.{key}": tensor for key, tensor in net.state_dict().items()}}
    return content, lambda file: weights.load(net, file)


LAYOUTS = [
    *(both_networks, residual_network, policy_features),
    *(adaptive_network, averaged_adaptive_network, plain_as_adaptive, plain_network),
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_content_is_loaded_or_refused_in_a_sentence(layout: Any, fuzz: Fuzz, tmp_path: Path) -> None:
    content, load = layout()
    file = tmp_path / "checkpoint.t7"
    torch.save(content, file)

    def damage(chance: random.Random) -> None:
        torch.save(changed(content, chance), file)

    fuzz(damage, lambda: load(file), least_refused=0.25)


@pytest.mark.parametrize("kind", ["zip", "pickle", "safetensors"])
def test_any_bytes_are_loaded_or_refused_in_a_sentence(kind: str, fuzz: Fuzz, tmp_path: Path) -> None:
    net, file = models.create("resnet8"), tmp_path / f"checkpoint.{kind}"
    if kind == "safetensors":
        save_file(net.state_dict(), file)
    else:
        torch.save(net.state_dict(), file, _use_new_zipfile_serialization=kind == "zip")
    whole = file.read_bytes()

    def damage(chance: random.Random) -> None:
        file.write_bytes(broken(whole, chance))

    fuzz(damage, lambda: weights.load(net, file), least_refused=0.1)


def test_any_header_is_loaded_or_refused_in_a_sentence(fuzz: Fuzz, tmp_path: Path) -> None:
    """Of a safetensors file: eight bytes of its length, a JSON object, and the numbers."""
    net, folder = models.create("resnet8"), tmp_path / "model"
    weights.save_pretrained(net, folder)
    file = (folder / weights.TENSORS_NAME).rename(tmp_path / "checkpoint.safetensors")
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header, numbers = json.loads(content[8:end]), content[end:]

    def damage(chance: random.Random) -> str:
        given = json.dumps(with_changed_entries(header, chance))
        file.write_bytes(len(given).to_bytes(8, "little") + given.encode() + numbers)
        return given

    fuzz(damage, lambda: weights.load(net, file), least_refused=0.25)


def with_changed_entries(header: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """A copy with the dtypes, shapes, places or names of one to three tensors changed."""
    header = json.loads(json.dumps(header))
    for _ in range(chance.randint(1, 3)):
        name = chance.choice([name for name in header if name != "__metadata__"])
        field = chance.choice(["dtype", "shape", "data_offsets", "name"])
        if field == "name":
            header[str(chance.choice(NAMES))] = header.pop(name)
        elif field == "dtype":
            header[name][field] = chance.choice(["F64", "F16", "BF16", "I32", "C64", "F8_E4M3", "F4", "BOOL", "U16"])
        else:
            old = header[name][field]  # of an earlier change it may be anything
            swapped = old[::-1] if isinstance(old, list) else old
            header[name][field] = chance.choice([hostile(chance), swapped, [10**5, 10**5], []])
    return header
