"""Data-parallel training: processes that `torchrun` has started, each with a share of every batch's rows.

Every process holds the whole model. After the backward pass gradients are summed over the processes, each weighted by
its share of the batch, so that all take the step that one process would take with all rows.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from torch import distributed
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from ckd.errors import CkdError, ConfigError

T = TypeVar("T")

#: Elements from which on a gradient is summed where it is; smaller ones travel together in a copy.
LARGE = 1 << 20

#: How long a process waits for the others, which may be writing a checkpoint or reading slowly.
PATIENCE = timedelta(hours=1)


@dataclass(frozen=True)
class Share:
    """The rows of a batch that one process computes.

    Attributes:
        rows: which; never empty.
        size: rows of the whole batch.
        weight: what the mean over these rows counts in the mean over the batch.
    """

    rows: slice
    size: int
    weight: float


@dataclass(frozen=True)
class Parallel:
    """One of the processes that train a model together; by default the only one.

    Every method that exchanges something must be called by all processes, in the same order.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        device: this process's own, where the configured one does not tell.
    """

    rank: int = 0
    size: int = 1
    device: str | None = None

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes, decides and reports."""
        return self.rank == 0

    def share(self, n: int) -> Share:
        """This process's part of `n` rows, equal to the others' up to one row.

        Where there are fewer rows than processes, those without a row compute one of another's, with weight 0: they
        take part in every exchange and change nothing.
        """
        start, stop = self.rank * n // self.size, (self.rank + 1) * n // self.size
        if start == stop:
            return Share(slice(0, 1), n, 0.0)
        return Share(slice(start, stop), n, (stop - start) / n)

    def seed(self, seed: int) -> int:
        """The seed of what this process draws: the given one in the first, others of their own."""
        if self.first:
            return seed
        return int(np.random.SeedSequence([seed, self.rank]).generate_state(1, np.uint64)[0])

    def gather(self, value: T) -> list[T]:
        """Everybody's value, by rank; a process returns when all have got here."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _together():
            distributed.all_gather_object(values, value)
        return values

    def from_first(self, value: T) -> T:
        """The first process's value."""
        if self.size == 1:
            return value
        values: list[Any] = [value]
        with _together():
            distributed.broadcast_object_list(values, src=0)
        return values[0]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor, summed over the processes in place; every process has the same bits."""
        if self.size > 1:
            with _together():
                distributed.all_reduce(tensor)
        return tensor

    def copy_first(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite the tensors with the first process's."""
        if self.size > 1:
            with _together(), torch.no_grad():
                for tensor in tensors:
                    distributed.broadcast(tensor, src=0)

    def sum_gradients(
        self, parameters: Sequence[torch.nn.Parameter], parts: Mapping[str, torch.Tensor], weight: float
    ) -> dict[str, torch.Tensor]:
        """Sum the gradients over the processes in place; a parameter that has none in any process keeps none.

        Args:
            parameters: the model's, in the same order everywhere.
            parts: scalars of the same names everywhere, means over this process's rows.
            weight: of this process's share.

        Returns:
            The scalars as means over the whole batch.
        """
        if self.size == 1:
            return dict(parts)
        device = parameters[0].device
        values = torch.stack([value.detach().to(device, torch.float32) for value in parts.values()]) * weight
        present = torch.tensor([float(p.grad is not None) for p in parameters], device=device)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad.contiguous() for p in parameters]
        small = [gradient for gradient in gradients if gradient.numel() < LARGE]
        together = self.sum(torch.cat([values, present, *(gradient.flatten() for gradient in small)]))
        for gradient in gradients:
            if gradient.numel() >= LARGE:
                self.sum(gradient)
        sizes = [len(values), len(present), *(gradient.numel() for gradient in small)]
        values, present, *sums = torch.split(together, sizes)
        for gradient, total in zip(small, sums, strict=True):
            gradient.copy_(total.view_as(gradient))
        for parameter, gradient, count in zip(parameters, gradients, present.tolist(), strict=True):
            parameter.grad = gradient if count else None
        return dict(zip(parts, values, strict=True))


#: The only process.
ALONE = Parallel()


def launched() -> bool:
    """Whether `torchrun` has started this process together with others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1


@contextmanager
def joined(device: str) -> Iterator[Parallel]:
    """This process among those that `torchrun` has started, connected to them; without it, the only one.

    Args:
        device: as configured; decides how the processes talk.

    Raises:
        ConfigError: more processes on this machine than GPUs, or one GPU named for several processes.
    """
    if not launched():
        yield ALONE
        return
    name = _own_device(device)
    cuda = name.startswith("cuda")
    if cuda:
        torch.cuda.set_device(name)
    with _together():
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        distributed.init_process_group(backend, store=_store(), rank=rank, world_size=size, timeout=PATIENCE)
    yield Parallel(distributed.get_rank(), distributed.get_world_size(), name)
    # After an error the others may be gone: then the connections end with the process.
    distributed.destroy_process_group()


def _own_device(name: str) -> str:
    """The configured device; of `auto` and `cuda`, the GPU of this process's number on its machine."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return "cpu"
    here, local = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    if name not in ("auto", "cuda"):
        raise ConfigError(f"train.device={name!r}: {here} processes need a device each. Use auto, cpu or cuda.")
    if torch.cuda.device_count() < here:
        raise ConfigError(
            f"train.device={name!r}: {here} processes on a machine with {torch.cuda.device_count()} GPUs. Start one "
            "process for each GPU, or use train.device=cpu."
        )
    return f"cuda:{local}"


def _store() -> Store:
    """What the processes find each other by.

    The one of `torchrun` outlives a restart, and what processes before have left there would lead to where they were.
    """
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, is_master=not agents and os.environ["RANK"] == "0", timeout=PATIENCE)
    return PrefixStore(f"ckd/attempt/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def fails_first() -> bool:
    """Whether no other process of this launch has failed before this one: it is the one to say why."""
    if not launched():
        return True
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=10))
        return store.add(f"ckd/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", 1) == 1
    except (RuntimeError, ValueError):  # nobody is left who could tell
        return True


@contextmanager
def _together() -> Iterator[None]:
    """An exchange; the end of another process in the midst of it becomes a user's error, of which it has said why."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise CkdError(
            f"process {os.environ.get('RANK', '0')} lost the others it trains with ({reason}). "
            "Start the command again; it goes on at the last checkpoint."
        ) from error
