"""Everything a training run needs to go on as if it had never stopped, in one safetensors file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ckd.distill.averaging import Average
from ckd.errors import DataError
from ckd.nn.device import device_of
from ckd.nn.weights import write_tensors


@dataclass
class TrainState:
    """Where a run is.

    Attributes:
        epoch, step: the next step to take; step counts within the epoch.
        best, best_epoch: best validation NDCG@10 so far and the epoch that reached it.
        stale: validations since then that count towards early stopping.
        finished: early stopping or the last epoch was reached.
        rows: one log row for each finished epoch.
        sums: what the epoch in progress has summed up so far.
    """

    epoch: int = 0
    step: int = 0
    best: float = -1.0
    best_epoch: int = -1
    stale: int = 0
    finished: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)


def generator_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """This process's random generators, by kind of device: the CPU's, and that of the GPU that the model lies on."""
    found = {"cpu": torch.get_rng_state()}
    device = device_of(model)
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    return found


def save_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: TrainState,
    identity: dict[str, Any],
    others: Sequence[dict[str, torch.Tensor]] = (),
    average: Average | None = None,
) -> None:
    """Write model, optimizer, random generators and state, atomically.

    Args:
        identity: what the run is of (configuration and fingerprints); `load_checkpoint` compares it.
        others: `generator_state` of the further processes that train the model together, from rank 1.
        average: of the model's weights, where one is kept.
    """
    tensors = {f"model.{name}": value.detach().contiguous() for name, value in model.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
    for rank, generators in enumerate([generator_state(model), *others]):
        tensors |= {f"rng.{kind}{_of_rank(rank)}": value for kind, value in generators.items()}
    if average is not None:
        tensors |= {f"average.{name}": value for name, value in average.tensors().items()}
    metadata = {
        "state": json.dumps(asdict(state)),
        "identity": json.dumps(identity, sort_keys=True, default=str),
        "content": _content(tensors),
    }
    write_tensors(path, tensors, metadata)


def load_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: dict[str, Any],
    rank: int = 0,
    average: Average | None = None,
) -> TrainState:
    """Restore what `save_checkpoint` wrote into `model`, `optimizer`, `average` and the random generators.

    Args:
        rank: of this process, where several train the model together. The generators of one that there was not when
            the checkpoint was written stay as they are.

    Raises:
        DataError: the file is damaged, or belongs to a run with another configuration or other inputs.
    """
    remedy = "Delete it to train from the start."
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: not a readable checkpoint ({error}). {remedy}") from None
    if not metadata.keys() >= {"identity", "state", "content"}:
        raise DataError(f"{path}: holds weights, but is no checkpoint of a run. {remedy}")
    if metadata["content"] != (content := _content(tensors)):
        raise DataError(f"{path}: damaged: content hashes to {content}, expected {metadata['content']}. {remedy}")
    require_same_run(path, json.loads(metadata["identity"]), identity)
    model.load_state_dict(_part(tensors, "model."))
    saved = optimizer.state_dict()
    saved["state"] = {}
    for name, value in _part(tensors, "optimizer.").items():
        index, key = name.split(".", 1)
        saved["state"].setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(saved)
    if average is not None:
        average.restore(_part(tensors, "average."))
    generators = {kind: tensors.get(f"rng.{kind}{_of_rank(rank)}") for kind in ("cpu", "cuda")}
    if generators["cpu"] is not None:
        torch.set_rng_state(generators["cpu"])
    device = device_of(model)
    if generators["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(generators["cuda"], device)
    return TrainState(**json.loads(metadata["state"]))


def require_same_run(
    path: Path,
    found: dict[str, Any],
    identity: dict[str, Any],
    remedy: str = "Give another --run, or discard that folder.",
) -> None:
    """Refuse what another run has left.

    Args:
        path: where `found` was read, for the message.
        found: identity of the run that is there.
        identity: of the run that is to go on.
        remedy: ends the message.

    Raises:
        DataError: they differ; names the first key that does, sections and all, and both values.
    """
    expected = json.loads(json.dumps(identity, sort_keys=True, default=str))
    if found == expected:
        return
    key, theirs, ours = _first_difference(found, expected)
    raise DataError(f"{path}: belongs to a run with {key} = {_short(theirs)}, this one has {_short(ours)}. {remedy}")


def _first_difference(found: dict[str, Any], expected: dict[str, Any]) -> tuple[str, Any, Any]:
    for key in sorted({*found, *expected}):
        theirs, ours = found.get(key), expected.get(key)
        if isinstance(theirs, dict) and isinstance(ours, dict) and theirs != ours:
            inner, theirs, ours = _first_difference(theirs, ours)
            return f"{key}.{inner}", theirs, ours
        if theirs != ours or (key in found) != (key in expected):
            return key, theirs, ours
    raise AssertionError("nothing differs")


def _of_rank(rank: int) -> str:
    """Ends the name of a generator; nothing of the only or the first process's."""
    return f".{rank}" if rank else ""


def _content(tensors: dict[str, torch.Tensor]) -> str:
    """Hash over the values: safetensors has no checksum of its own, and training on would hide a flipped bit."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 120 else text[:117] + "..."
