"""Items in several modalities: an adaptor for each, and a gate over those that an item has.

Shapes: N items, M modalities, P size of a modality's frozen vectors, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ckd.data.features import ItemFeatures
from ckd.nn.moe_adaptor import MoEAdaptor
from ckd.nn.unit import single, unit


@dataclass(frozen=True)
class Content:
    """Items as their modalities show them.

    Attributes:
        fused: (N, D) one vector an item.
        parts: (M, N, D) adapted vectors, zero where the item lacks the modality.
        present: (M, N) bool, which item has which modality.
    """

    fused: torch.Tensor
    parts: torch.Tensor
    present: torch.Tensor


class Modality(nn.Module):
    """Frozen vectors of the items that have one, and the adaptor into the model's space.

    A vector that is all zero has no direction and counts as missing. Only vectors that are there are held and adapted,
    so what a file holds for the others can reach nothing.

    Args:
        features: (n_items + 1, P) vectors and which are real.
        hidden: D.
        n_experts: of the adaptor.
        dropout: of the adaptor.
    """

    vectors: torch.Tensor
    slots: torch.Tensor

    def __init__(self, features: ItemFeatures, hidden: int, n_experts: int, dropout: float) -> None:
        super().__init__()
        real = np.flatnonzero(features.present & features.vectors.any(axis=1))
        slots = np.full(len(features.present), -1, dtype=np.int64)
        slots[real] = np.arange(len(real))
        self.register_buffer("vectors", torch.from_numpy(features.vectors[real]), persistent=False)
        self.register_buffer("slots", torch.from_numpy(slots), persistent=False)
        self.adaptor = MoEAdaptor(features.dim, hidden, n_experts, dropout)

    def forward(self, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, D) adapted vectors, zero where missing, and (N,) bool whether there is one, of the items (N,)."""
        slots = self.slots[items]
        present = slots >= 0
        rows = present.nonzero()[:, 0]
        adapted = single(self.adaptor(self.vectors[slots[rows]]))
        return adapted.new_zeros(len(items), adapted.shape[1]).index_copy(0, rows, adapted), present


class ItemContent(nn.Module):
    """The fused content of items.

    An item's vector is the mean of its adapted modalities, weighed by a softmax of gates, which see directions, over
    the modalities that it has. With one modality the weight is exactly 1. Items with none share one learned vector.

    Args:
        features: by modality.
        hidden: D.
        n_experts: of each adaptor.
        adaptor_dropout: of each adaptor.
        modality_dropout: chance, while training, that an item with several modalities loses one of them, each of them
            equally likely. The last is never lost.
    """

    def __init__(
        self,
        features: Mapping[str, ItemFeatures],
        hidden: int,
        n_experts: int,
        adaptor_dropout: float,
        modality_dropout: float,
    ) -> None:
        super().__init__()
        self.modality_dropout = modality_dropout
        self.modalities = nn.ModuleDict(
            {name: Modality(found, hidden, n_experts, adaptor_dropout) for name, found in features.items()}
        )
        self.gates = nn.ModuleDict({name: nn.Linear(hidden, 1) for name in features})
        self.missing = nn.Parameter(torch.zeros(hidden))

    def reset(self) -> None:
        """All modalities weigh the same; the vector of items without any has length one on average."""
        for gate in self._gates():
            gate.weight.data.zero_()
            gate.bias.data.zero_()
        self.missing.data.normal_(0.0, len(self.missing) ** -0.5)

    def frozen(self) -> torch.Tensor:
        """A tensor that changes identity whenever the frozen vectors do: by moving to another device."""
        first = next(iter(self.modalities.values()))
        assert isinstance(first, Modality)
        return first.vectors

    def forward(self, items: torch.Tensor) -> Content:
        """The content of the items (N,)."""
        found = [modality(items) for modality in self.modalities.values()]
        parts, present = torch.stack([part for part, _ in found]), torch.stack([there for _, there in found])
        used = drop_modalities(present, self.modality_dropout) if self.training else present
        # A gate sees directions alone: with long vectors it would soon be all or nothing.
        logits = torch.stack([gate(unit(part))[:, 0].float() for gate, part in zip(self._gates(), parts, strict=True)])
        return Content(self._fuse(parts, logits, used), parts, present)

    def _fuse(self, parts: torch.Tensor, logits: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
        some = used.any(dim=0)
        # A column of nothing but minus infinity would make NaN, in the gradient too; such items do not use the result.
        weights = logits.masked_fill(~used & some, -torch.inf).softmax(dim=0)
        fused = (weights[..., None] * parts).sum(dim=0)
        return torch.where(some[:, None], fused, self.missing)

    def _gates(self) -> Iterator[nn.Linear]:
        for gate in self.gates.values():
            assert isinstance(gate, nn.Linear)
            yield gate


def drop_modalities(present: torch.Tensor, chance: float) -> torch.Tensor:
    """(M, N) `present` with one modality less for a share `chance` of the items that have several."""
    if chance == 0.0:
        return present
    several = present.sum(dim=0) > 1
    hit = several & (torch.rand(present.shape[1], device=present.device) < chance)
    victim = torch.rand(present.shape, device=present.device).masked_fill(~present, -1.0).argmax(dim=0)
    numbers = torch.arange(len(present), device=present.device)[:, None]
    return present & ~(hit & (numbers == victim))
