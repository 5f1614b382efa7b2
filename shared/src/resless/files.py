"""Files that are whole or not there, and the checksums that tell. Free of torch."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from resless.errors import InputError

WRITING = ".writing-"
"""What the name of a file begins with that is not whole yet; a kill leaves it behind."""


def write_text(path: Path, text: str) -> None:
    """Write a small file as UTF-8, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a small file atomically: temporary file, synchronised, renamed. Of a link, the file that it leads to.

    Raises:
        OSError: it cannot be written; `filename` is set, which a full disk alone does not tell.
    """
    path = path.resolve()
    temporary = path.with_name(f"{WRITING}{path.name}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        error.filename = str(path)
        raise
    sync(path.parent)


def read_json(path: Path, kind: type | None = None) -> Any:
    """The content of a JSON file; with `kind`, such as dict, of that type.

    Raises:
        InputError: it is no file, not JSON, or of another type.
    """
    check_is_file(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    if kind is not None and not isinstance(content, kind):
        raise InputError(f"{path} is damaged: it holds a {type(content).__name__}, but must hold a {kind.__name__}")
    return content


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_is_file(path: Path) -> None:
    """Raise InputError unless a regular file is there: a folder has no content, that of a device or a pipe no end."""
    if not path.is_file():
        raise InputError(f"{path} cannot be read: it is missing, or no regular file")


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
