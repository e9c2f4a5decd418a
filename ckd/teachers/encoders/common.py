"""What the text and the image encoder share: their device, and the hash of the files they were loaded from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from ckd.errors import DataError, first_line

#: Told how many more contents are encoded, after every forward pass.
Report = Callable[[int], None]

Precision = Literal["fp32", "bf16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def unreported(count: int) -> None:
    """Reports nothing."""


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' and the hub's progress bars and load reports: what matters of them is checked."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    level, bars, hub_bars = logging.get_verbosity(), logging.is_progress_bar_enabled(), are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
        # transformers' switch turns the hub's bars, too.
        (disable_progress_bars if hub_bars else enable_progress_bars)()


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
