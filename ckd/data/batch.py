"""Instances as tensors.

Instances of one user whose histories begin at the same item are prefixes of one sequence. A batch holds that sequence
once; a causal encoder runs over it once and reads each instance's vector at its own position. For attention encoders
the distinct sequences are also *packed*: several lie end to end in one row, so that almost no padding is computed.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from ckd.data.domain import Domain, Instances

#: Positions in a packed row. Attention costs grow with it, padding shrinks; longer sequences widen the row.
PACK_WIDTH = 128


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on `device`; to a GPU through pinned memory, so that nobody waits for the copy."""
    cuda = device.type == "cuda"
    return (tensor.pin_memory() if cuda else tensor).to(device, non_blocking=cuda)


def _rows(hidden: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
    """(B, d) from (R, L, d): the states at (B,) indices into the flattened R * L.

    As an embedding, whose gradient takes a fraction of the time that an index's takes, and is as deterministic.
    """
    return F.embedding(flat, hidden.flatten(0, 1))


@dataclass(frozen=True)
class Packed:
    """The distinct sequences of a batch, end to end in P rows of width W.

    Attributes:
        items: (P, W) int64, 0 where a row's end is empty.
        positions: (P, W) int64, position within the item's own sequence.
        segments: (P, W) int64, number of the sequence within the row from 1, 0 where empty.
        last: (B,) int64, index into the flattened P * W of the last item of each instance's history.
    """

    items: torch.Tensor
    positions: torch.Tensor
    segments: torch.Tensor
    last: torch.Tensor

    @classmethod
    def of(cls, sequences: torch.Tensor, lengths: torch.Tensor) -> Packed:
        """Pack the sequences of a model that changes them first, each an instance of its own.

        On a GPU every sequence keeps a row to itself, because to pack them would be to wait for the device; so does it
        in a model that is being exported, whose graph must hold for any lengths.

        Args:
            sequences: (B, L) int64 items, right-padded with 0.
            lengths: (B,) int64 from 1.
        """
        if sequences.device.type == "cpu" and not torch.compiler.is_exporting():
            numbers = np.arange(len(sequences))
            return _pack(sequences.numpy(), lengths.numpy(), numbers, lengths.numpy())
        return cls.unpacked(sequences, lengths)

    @classmethod
    def unpacked(cls, sequences: torch.Tensor, lengths: torch.Tensor) -> Packed:
        """The same with a row for each sequence."""
        count, width = sequences.shape  # not len(), which would fix the size of a batch in an exported graph
        first = torch.arange(count, device=sequences.device) * width
        positions = torch.arange(width, device=sequences.device).expand_as(sequences)
        segments = (positions < lengths[:, None]).long()
        return cls(sequences, positions * segments, segments, first + lengths - 1)

    def take(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, d) from (P, W, d): the hidden state at the last item of each history."""
        return _rows(hidden, self.last)


@dataclass(frozen=True)
class Batch:
    """B instances over R distinct sequences, right-padded with item 0 to the longest, L.

    Attributes:
        users: (B,) int64.
        targets: (B,) int64 items.
        sequences: (R, L) int64 items, oldest first.
        rows: (B,) int64, the sequence that each instance's history is a prefix of.
        lengths: (B,) int64 in [1, L], how much of that sequence is the history.
        packed: the same sequences packed.
    """

    users: torch.Tensor
    targets: torch.Tensor
    sequences: torch.Tensor
    rows: torch.Tensor
    lengths: torch.Tensor
    packed: Packed

    def __len__(self) -> int:
        return len(self.users)

    @classmethod
    def from_histories(
        cls, histories: torch.Tensor, lengths: torch.Tensor, targets: torch.Tensor, users: torch.Tensor | None = None
    ) -> Batch:
        """A batch in which each instance has a row of its own.

        Args:
            histories: (B, L) items, oldest first, right-padded with 0.
            lengths: (B,) from 1.
            targets: (B,) items.
            users: (B,), or none for models that do not look at the user.
        """
        rows = torch.arange(len(histories))
        packed = _pack(histories.numpy(), lengths.numpy(), rows.numpy(), lengths.numpy())
        return cls(torch.zeros_like(targets) if users is None else users, targets, histories, rows, lengths, packed)

    def histories(self) -> torch.Tensor:
        """(B, L) every instance's own history, padded with 0: for encoders that are not causal."""
        steps = torch.arange(self.sequences.shape[1], device=self.sequences.device)
        return self.sequences[self.rows] * (steps < self.lengths[:, None])

    def take(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, d) from (R, L, d): the hidden state at the last item of each history."""
        return _rows(hidden, self.rows * hidden.shape[1] + self.lengths - 1)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`, copied asynchronously from pinned memory where that helps."""
        device = torch.device(device)
        if device.type == self.users.device.type:
            return self
        return Batch(
            users=to_device(self.users, device),
            targets=to_device(self.targets, device),
            sequences=to_device(self.sequences, device),
            rows=to_device(self.rows, device),
            lengths=to_device(self.lengths, device),
            packed=Packed(*(to_device(getattr(self.packed, field.name), device) for field in fields(Packed))),
        )


class Batches:
    """Builds batches of the instances of one split.

    Args:
        domain: where the sequences are.
        instances: the split's instances; an id is a row of it.
        share_prefixes: hold each user's common sequence once. Without, every instance has a row of its own.
    """

    def __init__(self, domain: Domain, instances: Instances, share_prefixes: bool = True) -> None:
        self.items = domain.items
        self.instances = instances
        self.share_prefixes = share_prefixes

    def __call__(self, ids: npt.NDArray[np.integer]) -> Batch:
        """The batch of the instances `ids`, in this order."""
        found = self.instances
        starts, stops = found.starts[ids], found.stops[ids]
        if self.share_prefixes:
            # The start of a window identifies its user too: sequences do not overlap in the flat array.
            firsts, rows = np.unique(starts, return_inverse=True)
            ends = np.zeros(len(firsts), dtype=np.int64)
            np.maximum.at(ends, rows, stops)
        else:
            firsts, rows, ends = starts, np.arange(len(ids)), stops
        widths, lengths = ends - firsts, stops - starts
        steps = np.arange(int(widths.max()))
        at = np.minimum(firsts[:, None] + steps, len(self.items) - 1)
        sequences = np.where(steps < widths[:, None], self.items[at], 0).astype(np.int64)
        return Batch(
            users=torch.from_numpy(found.users[ids].astype(np.int64)),
            targets=torch.from_numpy(found.targets[ids].astype(np.int64)),
            sequences=torch.from_numpy(sequences),
            rows=torch.from_numpy(rows.astype(np.int64)),
            lengths=torch.from_numpy(lengths),
            packed=_pack(sequences, widths, rows, lengths),
        )


def _pack(
    sequences: npt.NDArray[np.int64],
    widths: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
) -> Packed:
    """Put the sequences, longest first, each into the first row that has room: those of one length at once."""
    width = min(max(PACK_WIDTH, sequences.shape[1]), int(widths.sum()))
    bins, offsets, numbers = np.empty((3, len(widths)), dtype=np.int64)
    room = count = np.empty(0, dtype=np.int64)
    order = np.argsort(-widths, kind="stable")
    for alike in np.split(order, np.flatnonzero(np.diff(widths[order])) + 1):
        size = widths[alike[0]]
        missing = len(alike) - int((room // size).sum())
        if missing > 0:
            more = -(-missing // int(width // size))
            room, count = np.append(room, np.full(more, width)), np.append(count, np.zeros(more, dtype=np.int64))
        fitting = room // size
        upto = np.cumsum(fitting)
        number = np.arange(len(alike))
        at = np.searchsorted(upto, number, side="right")
        number -= (upto - fitting)[at]
        bins[alike], offsets[alike], numbers[alike] = at, width - room[at] + number * size, count[at] + number + 1
        taken = np.bincount(at, minlength=len(room))
        room, count = room - taken * size, count + taken
    inside = np.arange(sequences.shape[1]) < widths[:, None]
    source_row, source_column = np.nonzero(inside)
    flat = bins[source_row] * width + offsets[source_row] + source_column
    shape = (len(room), width)
    packed = np.zeros((3, len(room) * width), dtype=np.int64)
    packed[0, flat] = sequences[source_row, source_column]
    packed[1, flat] = source_column
    packed[2, flat] = numbers[source_row]
    items, positions, segments = (torch.from_numpy(part.reshape(shape)) for part in packed)
    last = bins[rows] * width + offsets[rows] + lengths - 1
    return Packed(items, positions, segments, torch.from_numpy(last))
