"""Model folders, and strict loading of checkpoints from elsewhere.

A model folder holds `config.json` (what the network is), `model.safetensors` (its tensors) and `README.md` (a model
card). `from_pretrained` rebuilds exactly that network or raises InputError. `tensors_sha256` in config.json tells
damaged tensors from good ones; in a folder without it any that fit are taken. No file is unpickled into anything but
tensors.
"""

from __future__ import annotations

import errno
import glob
import json
import re
import reprlib
import shutil
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from resless import costs, models
from resless.errors import InputError, check
from resless.files import read_json, sha256, sync
from resless.models.options import MAX_IMAGE_SIZE, choice, whole_number

FORMAT_VERSION = 1
CONFIG_NAME = "config.json"
TENSORS_NAME = "model.safetensors"
CARD_NAME = "README.md"
SHA256_FIELD = "tensors_sha256"
NAMES_FIELD = "class_names"
MAX_CONFIG_BYTES = 16 * 2**20
MAX_CLASSES_SHOWN = 10
_REPLACED = "-replaced"

WRAPPER_KEYS = ("state_dict", "model_state_dict", "model", "net", "network")
"""Under which training scripts put the state dict in their checkpoints."""
MAX_WRAPPERS = 8
"""How many dicts are opened to find it: a dict of a torch file can hold itself."""

_CONFIG_FIELDS = {
    "format_version": int,
    "model": dict,
    "preprocessing": dict,
    "metrics": dict,
    "costs": dict,
    "description": str,
}
_MODEL_FIELDS = {"name": str, "num_classes": int, "in_channels": int, "options": dict}
_SAFETENSORS_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_SAFETENSORS_DTYPES |= {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8}
_SAFETENSORS_DTYPES |= {"U8": torch.uint8, "BOOL": torch.bool}


# --- model folders ---------------------------------------------------------------------------------------------------


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    *,
    preprocessing: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    description: str = "",
    example: Tensor | None = None,
    class_names: Sequence[str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a model folder, whole or not at all.

    Args:
        model: a network made by `resless.models.create` or `from_pretrained`, not wrapped, in float32.
        folder: where to; its parent is made if it is missing.
        preprocessing: what images need before they enter, such as `{"mean": [...], "std": [...], "image_size": 32}`.
        metrics: what was measured, such as `{"test accuracy %": 91.73}`.
        description: Markdown for the model card.
        example: images [N, C, H, W] of the size the network is meant for; with it the card states the MACs per image.
        class_names: what each logit stands for, in order.
        overwrite: replace an existing model folder.

    Raises:
        InputError: the folder exists (or, with `overwrite`, is not a model folder), the model cannot be rebuilt from
            its spec, something given is not JSON, or there are more or fewer class names than logits.
        OSError: nothing can be written there; the folder is its `filename`.
    """
    folder = Path(folder)
    check_target(folder, overwrite)
    spec = models.spec_of(model)
    state = model.state_dict()
    _check_match(_blank(spec), _signature(state), "the model to save")

    config = {
        "format_version": FORMAT_VERSION,
        "model": {**vars(spec)},
        "preprocessing": dict(preprocessing or {}),
        "metrics": dict(metrics or {}),
        "costs": _costs(model, example),
        "description": description,
    }
    if class_names is not None:
        config[NAMES_FIELD] = list(class_names)
        _check_class_names(config, "the model to save")
    try:
        _json(config)  # before anything is written
    except (TypeError, ValueError) as error:
        raise InputError(f"preprocessing and metrics must be finite JSON values: {error}") from error
    # Clones: tensors that share memory (tied weights) are written once each, which safetensors asks for.
    tensors = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in state.items()}

    folder = folder.resolve()  # of a link, the folder that it leads to
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    staging.mkdir()
    try:
        save_file(tensors, staging / TENSORS_NAME, metadata={"format": "pt"})
        config[SHA256_FIELD] = sha256(staging / TENSORS_NAME)
        (staging / CONFIG_NAME).write_text(_json(config) + "\n", encoding="utf-8")
        (staging / CARD_NAME).write_text(_model_card(folder.name, config), encoding="utf-8")
        # safetensors lets nobody else read it; the folder is for everybody whom the user's umask lets.
        (staging / TENSORS_NAME).chmod((staging / CONFIG_NAME).stat().st_mode)
        for path in staging.iterdir():
            sync(path)
        _replace_folder(staging, folder)
    except (SafetensorError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)  # safetensors has an error of its own for a full disk
        raise OSError(getattr(error, "errno", None) or errno.EIO, reason, str(folder)) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_holds(model: str, folder: str | Path) -> None:
    """Raise InputError unless a model folder holds the network of this name, or what became of it."""
    names = [str(spec.name) for spec in models.lineage(models.Spec(**read_config(folder)["model"]))]
    if model not in names:
        raise InputError(f"--model is {model}, but {folder} holds a {' made of a '.join(names)}")


def from_pretrained(folder: str | Path) -> nn.Module:
    """The network of a model folder, in eval mode on the CPU.

    Its config and the header of its tensor file are checked against each other before memory is allocated, and the
    SHA-256 of the file, if the config records it, before a tensor is used.

    Raises:
        InputError: naming the file, and the field, keys or shapes that are wrong.
    """
    folder = Path(folder)
    config = read_config(folder)
    spec = models.Spec(**config["model"])
    try:
        expected = _blank(spec)
    except InputError as error:
        hint = "" if models.is_known(spec.name) else "; if it comes with another package, install that"
        raise InputError(f"{folder / CONFIG_NAME}: {error}{hint}") from error
    path = folder / TENSORS_NAME
    _check_match(expected, _safetensors_signature(path), str(path))
    with torch.random.fork_rng(devices=[]):  # loading must not move the caller's random numbers
        model = models.build(spec)
    _fill(model, _load_safetensors(path, config.get(SHA256_FIELD)))
    return model.eval()


def preprocessing_of(source: str | Path | None) -> dict[str, Any]:
    """What the network to start from expects of its images: as its model folder says; {} for a file, or for none.

    Raises:
        InputError: a folder without a valid config.json.
    """
    return read_config(source)["preprocessing"] if source is not None and Path(source).is_dir() else {}


def expected_of(source: str | Path | None) -> dict[str, Any]:
    """Both of what a `Pipeline` is to know of a network: `preprocessing` and `class_names`, of `preprocessing_of` and
    `class_names_of`, by these names."""
    return {"preprocessing": preprocessing_of(source), "class_names": class_names_of(source)}


def class_names_of(source: str | Path | None) -> tuple[str, ...] | None:
    """What the logits of a network stand for: the names in its model folder, or numbers where that has none; None for a
    file, or for none.

    Raises:
        InputError: a folder without a valid config.json, or one with more classes than a network can have.
    """
    if source is None or not Path(source).is_dir():
        return None
    config = read_config(source)
    count = whole_number(f"num_classes in {source}/{CONFIG_NAME}", config["model"]["num_classes"])
    return tuple(config.get(NAMES_FIELD) or map(str, range(count)))


def read_config(folder: str | Path) -> dict[str, Any]:
    """The checked content of a model folder's config.json.

    Keys: format_version; model (name, num_classes, in_channels, options); preprocessing; metrics; costs; description;
    class_names and tensors_sha256, which older folders and those written by hand may lack.

    Raises:
        InputError: the folder or file is missing, not JSON, of another version, or a field is unknown, missing or of
            the wrong type. Options are checked only when the network is built.
    """
    folder = Path(folder)
    path = folder / CONFIG_NAME
    if not folder.is_dir():
        before = [path for path in _leftovers(folder) if path.name.endswith(_REPLACED)]
        hint = f"; what a killed command was replacing there is in {before[0]}" if before else ""
        raise InputError(
            f"{folder} is not a folder: a model folder with {CONFIG_NAME} and {TENSORS_NAME} is needed{hint}"
        )
    if (folder / "model" / CONFIG_NAME).is_file():
        raise InputError(f"{folder} is a run folder: give the model folder in it, {folder / 'model'}")
    if not path.is_file():
        raise InputError(f"{folder} is not a model folder: it has no {CONFIG_NAME}")
    config = _read_json(path)
    _check_fields(config, _CONFIG_FIELDS, str(path), optional=(NAMES_FIELD, SHA256_FIELD))
    version = config["format_version"]
    check(version == FORMAT_VERSION, f"format_version in {path}", version, f"{FORMAT_VERSION} for this resless")
    _check_fields(config["model"], _MODEL_FIELDS, f"model in {path}")
    _check_image_shape(config["costs"].get("image_shape"), config["model"]["in_channels"], path)
    _check_preprocessing(config["preprocessing"], path)
    _check_class_names(config, str(path))
    _check_sha256(config, path)
    return config


def _read_json(path: Path) -> Any:
    check(path.stat().st_size <= MAX_CONFIG_BYTES, f"the size of {path}", path.stat().st_size, "16 MiB at most")
    return read_json(path)


def _recorded_sha256(path: Path) -> str | None:
    """What a model folder's config.json records of its tensor file; None where it does not, and of any other file."""
    config_path = path.with_name(CONFIG_NAME)
    if path.name != TENSORS_NAME or not config_path.is_file():
        return None
    config = _read_json(config_path)
    if not isinstance(config, dict):  # nor are other fields checked: other libraries write files of these names
        return None
    _check_sha256(config, config_path)
    return config.get(SHA256_FIELD)


# --- checkpoints from elsewhere --------------------------------------------------------------------------------------


def load(model: nn.Module, path: str | Path, key_map: Mapping[str, str | None] | None = None) -> None:
    """Load all tensors of `model` from a checkpoint file or a model folder, every key of both sides matched.

    Nested dicts (`state_dict`, `model`, `net`, ...) are opened and `module.` prefixes dropped. The counters
    `num_batches_tracked`, of which no output depends, may be missing as a whole: old torch did not write them.
    On any error the model is unchanged.

    Args:
        model: the network to fill.
        path: `.safetensors`, a torch file of any suffix (`.th`, `.pth`, `.pt`), or a model folder.
        key_map: name in the file (without `module.`) -> name in the model, or None to leave that tensor out; names
            that are not in the map stay.

    Raises:
        InputError: a missing or damaged file, a pickle that holds anything but tensors and plain values, keys or
            shapes that do not match.
    """
    load_state(model, unwrapped(read_checkpoint(path), path), path, key_map)


def read_checkpoint(path: str | Path) -> Any:
    """The content of a checkpoint file or model folder: tensors, in dicts and lists with plain values.

    Raises:
        InputError: a missing or damaged file, a pickle that holds anything else, tensors other than those whose SHA-256
            the model folder records.
    """
    path = Path(path)
    if path.is_dir():
        path = path / TENSORS_NAME
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    return _load_safetensors(path, _recorded_sha256(path)) if path.suffix == ".safetensors" else _load_torch(path)


def load_state(
    model: nn.Module, state: Mapping[str, Tensor], source: str | Path, key_map: Mapping[str, str | None] | None = None
) -> None:
    """Load a state dict that came from `source`, as `load` does; its keys are taken as they are, see `unwrapped`."""
    state = _renamed(state, key_map or {}, source)
    own = model.state_dict()
    counters = {key for key in own if key.endswith("num_batches_tracked")}
    if not counters & state.keys():
        state |= {key: torch.zeros_like(own[key]) for key in counters}
    if unusual := [key for key, tensor in state.items() if tensor.layout != torch.strided or tensor.is_meta]:
        raise InputError(f"{source} holds {_listed(unusual)} in sparse form or without numbers: save plain tensors")
    # Floating-point numbers of any precision are converted; numbers of another kind would mean something else.
    found = {
        key: (tuple(tensor.shape), own[key].dtype if key in own and _are_floats(tensor, own[key]) else tensor.dtype)
        for key, tensor in state.items()
    }
    _check_match(_signature(own), found, str(source))
    _fill(model, state)


def unwrapped(content: Any, source: str | Path) -> dict[str, Tensor]:
    """The state dict inside a checkpoint's nested dicts, without the `module.` that DataParallel puts before all keys.

    Raises:
        InputError: there is none, or more than one.
    """
    for _ in range(MAX_WRAPPERS):
        if not isinstance(content, Mapping):
            raise InputError(f"{source} holds a {type(content).__name__}, but a dict of tensors is needed")
        if content and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
            wrapped = all(key.startswith("module.") for key in content)
            return {key.removeprefix("module.") if wrapped else key: tensor for key, tensor in content.items()}
        wrappers = [key for key in WRAPPER_KEYS if isinstance(content.get(key), Mapping)]
        if len(wrappers) != 1:
            raise InputError(
                f"{source} holds no state dict that can be told apart: its keys are {_listed(map(str, content))}, but "
                f"either all values must be tensors or exactly one of {', '.join(WRAPPER_KEYS)} must hold a dict"
            )
        content = content[wrappers[0]]
    raise InputError(f"{source} holds dicts in dicts, more than {MAX_WRAPPERS}: save its state dict alone")


def _load_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything: struct.error, AssertionError, TypeError, ...
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            raise InputError(
                f"{path} asks for more memory than there is: it is too large for this machine, or it is damaged"
            ) from error
        raise InputError(
            f"{path} is damaged, or holds Python objects other than tensors, which are refused because loading them "
            "can run code: save only its state_dict and load that"
        ) from error


def _load_safetensors(path: Path, recorded_sha256: str | None) -> dict[str, Tensor]:
    try:
        if recorded_sha256 is not None and sha256(path) != recorded_sha256.lower():
            raise InputError(
                f"{path} is damaged or was changed, for it does not match {SHA256_FIELD} in {CONFIG_NAME} beside it: "
                "take a good copy of the folder or, if the weights were changed on purpose, remove that entry"
            )
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file: {error}") from error


def _renamed(state: Mapping[str, Tensor], key_map: Mapping[str, str | None], path: str | Path) -> dict[str, Tensor]:
    if absent := [key for key in key_map if key not in state]:
        raise InputError(f"{path} does not hold {_listed(absent)}, named in the key map")
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        target = key_map.get(key, key)
        if target is None:
            continue
        if target in renamed:
            raise InputError(f"two tensors of {path} are both named {target} after the key map")
        renamed[target] = tensor
    return renamed


# --- checks ----------------------------------------------------------------------------------------------------------

Signature = dict[str, tuple[tuple[int, ...], torch.dtype]]


def _blank(spec: models.Spec) -> Signature:
    """Shapes and dtypes of the network, without allocating it."""
    try:
        with torch.device("meta"):
            return _signature(models.build(spec).state_dict())
    except RecursionError as error:
        raise InputError("the network is described as made of networks made of networks, without end") from error


def _fill(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load tensors that match, with the versions of this torch's layers, which no file holds and MNASNet insists on."""
    versioned = OrderedDict(state)
    versioned._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    model.load_state_dict(versioned, strict=True)


def _are_floats(*tensors: Tensor) -> bool:
    return all(tensor.is_floating_point() for tensor in tensors)


def _signature(state: Mapping[str, Tensor]) -> Signature:
    return {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in state.items()}


def _safetensors_signature(path: Path) -> Signature:
    """Shapes and dtypes from a file's header; the library checks that the file is as long as its header says."""
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    signature: Signature = {}
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (it is not a mapping)
                header = file.get_slice(key)
                dtype = header.get_dtype()
                check(dtype in _SAFETENSORS_DTYPES, f"the dtype of {key} in {path}", dtype, "a number type of torch")
                signature[key] = (tuple(header.get_shape()), _SAFETENSORS_DTYPES[dtype])
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file: {error}") from error
    return signature


def _check_match(expected: Signature, found: Signature, source: str) -> None:
    """Raise InputError naming every kind of difference between the tensors of a network and those of `source`."""
    differences = []
    if missing := expected.keys() - found.keys():
        differences.append(f"lacks {_listed(sorted(missing))}")
    if unexpected := found.keys() - expected.keys():
        differences.append(f"has {_listed(sorted(unexpected))}, unknown to the network")
    unequal = [
        f"{key} {_described(found[key])} where the network has {_described(expected[key])}"
        for key in expected
        if key in found and found[key] != expected[key]
    ]
    if unequal:
        differences.append(f"has {_listed(unequal)}")
    if differences:
        raise InputError(f"{source} does not match the network: it {'; it '.join(differences)}")


def _described(entry: tuple[tuple[int, ...], torch.dtype]) -> str:
    shape, dtype = entry
    return f"{list(shape)} {str(dtype).removeprefix('torch.')}"


def _listed(items: Iterable[str], limit: int = 6) -> str:
    items = list(items)
    return ", ".join(items[:limit]) + (f" and {len(items) - limit} more" if len(items) > limit else "")


def _check_fields(value: Any, fields: Mapping[str, type], source: str, optional: Iterable[str] = ()) -> None:
    """Raise InputError unless `value` is a dict with exactly these fields of these types, and maybe `optional` ones."""
    known = [*fields, *optional]
    if not isinstance(value, dict):
        raise InputError(f"{source} holds a {type(value).__name__}, but must hold an object")
    if missing := fields.keys() - value.keys():
        raise InputError(f"{source} lacks {_listed(sorted(missing))}")
    if unknown := value.keys() - set(known):
        raise InputError(f"{source} has the unknown field {_listed(sorted(unknown))}: known are {', '.join(known)}")
    for name, kind in fields.items():
        # type() rather than isinstance(): true is no number here.
        check(type(value[name]) is kind, f"{name} in {source}", value[name], f"of type {kind.__name__}")


def _check_image_shape(shape: Any, in_channels: int, path: Path) -> None:
    """Raise InputError unless it is left out, or (C, H, W) of images that the network takes."""
    sizes = isinstance(shape, list) and all(type(size) is int and 0 < size <= MAX_IMAGE_SIZE for size in shape)
    fits = shape is None or (sizes and len(shape) == 3 and shape[0] == in_channels)
    check(fits, f"image_shape in {path}", shape, "[channels of the network, height, width]")


def _check_preprocessing(given: Mapping[str, Any], path: Path) -> None:
    """Raise InputError unless what is known of it can be: mean and standard deviation belong together."""
    if given.keys() & {"mean", "std"}:
        mean, std = given.get("mean"), given.get("std")
        if not _are_statistics(mean, std):
            raise InputError(
                f"mean in {path} is {reprlib.repr(mean)}, std {reprlib.repr(std)}, but they must be finite numbers, as "
                "many as channels each, and std above 0"
            )
    if (sides := given.get("image_size")) is not None:
        for side in sides if isinstance(sides, list) and len(sides) == 2 else [sides]:
            whole_number(f"image_size in {path}", side, 1, MAX_IMAGE_SIZE)
    if (resize := given.get("val_resize_size")) is not None:
        whole_number(f"val_resize_size in {path}", resize, 1, MAX_IMAGE_SIZE)
    if (interpolation := given.get("interpolation")) is not None:
        choice(f"interpolation in {path}", interpolation, ("bilinear", "bicubic"))


def _are_statistics(mean: Any, std: Any) -> bool:
    """Whether these are a mean [C] or [C, H, W] and a standard deviation [C] to normalise images with."""
    try:
        means, deviations = torch.as_tensor(mean, dtype=torch.float64), torch.as_tensor(std, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return False
    if means.dim() not in (1, 3) or deviations.dim() != 1 or not 0 < len(means) == len(deviations):
        return False
    return bool(means.isfinite().all() and deviations.isfinite().all() and (deviations > 0).all())


def _check_class_names(config: Mapping[str, Any], source: str) -> None:
    """Raise InputError unless class names are left out, or there is one for each logit."""
    count, names = config["model"]["num_classes"], config.get(NAMES_FIELD)
    named = isinstance(names, list) and len(names) == count and all(isinstance(name, str) for name in names)
    check(names is None or named, f"{NAMES_FIELD} of {source}", names, f"{count} texts, one for each logit")


def _check_sha256(config: Mapping[str, Any], path: Path) -> None:
    """Raise InputError unless the SHA-256 of the tensor file is left out, or can be one."""
    recorded = config.get(SHA256_FIELD, "0" * 64)
    possible = isinstance(recorded, str) and re.fullmatch("[0-9a-fA-F]{64}", recorded) is not None
    check(possible, f"{SHA256_FIELD} in {path}", recorded, "64 hexadecimal digits, or be left out")


# --- writing ---------------------------------------------------------------------------------------------------------


def check_target(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that `save_pretrained` would not write to, before the work whose result it is to hold."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file, but a model folder is to be written there: choose another place")
    content = {path.name for path in folder.iterdir()}
    if content and not overwrite:
        raise InputError(
            f"{folder} exists and is not empty: choose another folder, or overwrite it explicitly, with --overwrite"
        )
    if content and not content <= {CONFIG_NAME, TENSORS_NAME, CARD_NAME}:
        raise InputError(f"{folder} is not a model folder, for it holds other files: it is not overwritten")


def _replace_folder(staging: Path, folder: Path) -> None:
    """Move a finished folder to its place; what was there is put back if that fails.

    A kill between the two moves leaves both beside their place, where `read_config` finds them, and the next write
    takes away what a kill left.
    """
    if folder.exists():
        replaced = staging.with_name(staging.name + _REPLACED)
        folder.rename(replaced)
        try:
            staging.rename(folder)
        except OSError:
            replaced.rename(folder)
            raise
    else:
        staging.rename(folder)
    for left in _leftovers(folder):
        shutil.rmtree(left, ignore_errors=True)


def _leftovers(folder: Path) -> list[Path]:
    """What writes of a model folder left beside it, finished or not."""
    pattern = re.compile(rf"\.{re.escape(folder.name)}-[0-9a-f]{{32}}({_REPLACED})?")
    return [path for path in folder.parent.glob(f".{glob.escape(folder.name)}-*") if pattern.fullmatch(path.name)]


def _costs(model: nn.Module, example: Tensor | None) -> dict[str, Any]:
    counted: dict[str, Any] = {"parameters": costs.count_parameters(model)}
    if example is not None:
        counted["macs_per_image"] = costs.macs(model, example[:1])
        counted["image_shape"] = list(example.shape[1:])
    return counted


def _json(config: Mapping[str, Any]) -> str:
    """The text of config.json; a list of numbers is one line, or the mean of each pixel would be thousands of them."""
    text = json.dumps(config, indent=2, allow_nan=False)
    # In JSON no string holds a line break, so none looks like this.
    return re.sub(r"\[\n[-+.,\deE\s]*\]", lambda numbers: f"[{' '.join(numbers[0][1:-1].split())}]", text)


def _model_card(title: str, config: Mapping[str, Any]) -> str:
    """The README.md of a model folder, in Markdown."""
    model, counted = config["model"], config["costs"]
    cost_lines = [f"- Parameters: {counted['parameters']:,}"]
    if "macs_per_image" in counted:
        size = " x ".join(map(str, counted["image_shape"]))
        cost_lines.append(f"- MACs per image of {size}: {counted['macs_per_image']:,} (1 multiply-add = 1)")
    sections = [
        "---\nlibrary_name: resless\npipeline_tag: image-classification\n---",
        f"# {title}",
        f"`{model['name']}`: images [N, {model['in_channels']}, H, W] -> logits [N, {model['num_classes']}].",
        config["description"],
        _classes(config.get(NAMES_FIELD) or []),
        "## Load it\n\n```python\nimport torch\nfrom resless.weights import from_pretrained\n\n"
        f'model = from_pretrained("{title}")  # eval mode, strict, no pickle\n'
        "with torch.inference_mode():\n    logits = model(images)  # (x / 255 - mean) / std, see below\n```",
        "## Costs\n\n" + "\n".join(cost_lines),
        "## Preprocessing\n\n" + (_table("setting", config["preprocessing"]) or "None recorded."),
        "## Metrics\n\n" + (_table("metric", config["metrics"]) or "None recorded."),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _classes(names: Sequence[str]) -> str:
    """The first classes, and how many there are; nothing where they are only numbers."""
    if all(name.isdecimal() for name in names):
        return ""
    rest = f" and {len(names) - MAX_CLASSES_SHOWN} more" if len(names) > MAX_CLASSES_SHOWN else ""
    return f"Classes, in the order of the logits: {', '.join(names[:MAX_CLASSES_SHOWN])}{rest}; see {CONFIG_NAME}."


def _table(heading: str, values: Mapping[str, Any]) -> str:
    if not values:
        return ""
    rows = (f"| {name} | {_cell(value)} |" for name, value in values.items())
    return "\n".join([f"| {heading} | value |", "|---|---|", *rows])


def _cell(value: Any) -> str:
    if isinstance(value, list) and any(isinstance(item, list) for item in value):
        return f"see {CONFIG_NAME}"  # a mean of each pixel
    return value if isinstance(value, str) else json.dumps(value)
