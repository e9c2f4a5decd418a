"""Weights read from files, and put into a model key by key."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ckd.data.atomic import replace_file
from ckd.errors import DataError, first_line

Tensors = dict[str, torch.Tensor]

#: Entries under which training programs nest a model's weights in a checkpoint.
NESTS = ("state_dict", "model_state_dict", "model")


def read_weights(path: Path) -> Tensors:
    """The tensors of a safetensors file.

    Raises:
        DataError: there is no such file, or it is damaged or no safetensors file.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. The folder must hold the weights as safetensors.") from None
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: not a readable safetensors file ({error}). Write it again.") from None


def write_weights(path: Path, model: nn.Module) -> None:
    """Write the model's state as safetensors, atomically; the same weights give the same bytes."""
    write_tensors(path, {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()})


def write_tensors(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, atomically.

    Raises:
        OSError: the disk is full; what was there before is kept.
    """
    with replace_file(path) as partial:
        save_file(tensors, partial, metadata)


def read_checkpoint(path: Path) -> Tensors:
    """The tensors of a published checkpoint: safetensors, or a torch file, of which nothing but tensors is unpickled.

    Raises:
        DataError: there is no such file, it holds pickled objects besides tensors, or no weights at all.
    """
    if path.suffix == ".safetensors":
        return read_weights(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols; what matters is whether tensors come out
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except pickle.UnpicklingError:
        raise DataError(
            f"{path}: holds pickled objects besides tensors, and ckd never executes pickles. If you trust the file, "
            "keep its tensors alone: python -c \"import torch; torch.save(torch.load('IN', weights_only=False)"
            "['state_dict'], 'OUT')\""
        ) from None
    except Exception as error:  # a damaged file can fail anywhere in torch's reader
        raise DataError(f"{path}: not a readable torch or safetensors file ({first_line(error)}).") from None
    nest = next((key for key in NESTS if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping)), None)
    tensors = loaded if nest is None else loaded[nest]
    if isinstance(tensors, Mapping):
        found = {str(name): value for name, value in tensors.items() if isinstance(value, torch.Tensor)}
        if found:
            return found
    raise DataError(f"{path}: holds a {type(loaded).__name__} without any tensors, expected a model's state dict.")


def put_weights(
    model: nn.Module, tensors: Mapping[str, torch.Tensor], where: str, may_lack: Callable[[str], bool] | None = None
) -> None:
    """Copy `tensors` into `model`, all of them or none.

    Args:
        where: the file, for messages.
        may_lack: keys of the model that need not be there and keep their values; none by default.

    Raises:
        DataError: in one line all keys that are missing, unknown, or of the wrong shape.
    """
    expected = model.state_dict()
    missing = sorted(name for name in expected if name not in tensors and not (may_lack and may_lack(name)))
    unknown = sorted(name for name in tensors if name not in expected)
    wrong = [
        f"{name} {tuple(tensors[name].shape)} where {tuple(expected[name].shape)} is needed"
        for name in sorted(expected)
        if name in tensors and tensors[name].shape != expected[name].shape
    ]
    faults = [("missing", missing), ("unknown", unknown), ("of the wrong shape", wrong)]
    if missing or unknown or wrong:
        raise DataError(
            f"{where}: the weights do not fit: "
            + "; ".join(f"{what}: {', '.join(names)}" for what, names in faults if names)
            + "."
        )
    model.load_state_dict(dict(tensors), strict=False)
