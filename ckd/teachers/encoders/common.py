"""What the text and the image encoder share: their device, and the hash of the files they were loaded from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import torch

from ckd.errors import ConfigError, DataError

#: Told how many more contents are encoded, after every forward pass.
Report = Callable[[int], None]

Precision = Literal["fp32", "bf16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def unreported(count: int) -> None:
    """Reports nothing."""


def encoder_device(name: str) -> torch.device:
    """The device of that name; `auto` is a GPU where there is one.

    Raises:
        ConfigError: torch knows no such device, or this machine has none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r}: {first_line(error)}. Use auto, cpu or a GPU of this machine.") from None
    return device


def files_hash(paths: Iterable[Path]) -> str:
    """Hash over the names and contents of files, in this order."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest())
    return digest.hexdigest()


def json_hash(value: Any) -> str:
    """Hash of a JSON-like value, whatever the order of its keys."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without its full stop, for a message of one line."""
    text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return text.strip().rstrip(".")


def hub_snapshot(name: str, patterns: list[str]) -> Path:
    """The folder with those files of a hub repository's top level, from the local cache where they are already there.

    Raises:
        DataError: there is no such repository, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=["*/*"]))
    # The client raises OSError, ValueError and its HTTP library's own errors, whichever that is.
    except Exception as error:
        why = "not the form of a hub id" if isinstance(error, HFValidationError) else first_line(error)
        raise DataError(f"{name}: no such folder, and not to be had from the hub ({why}).") from None
