"""Input fields of the feature-interaction students, and their tables, laid out as RecBole's.

A *token* field has one value a row, a *list* field any number, a *number* field a measure. Fields stand in the order
lists, tokens, numbers. All token fields share one table, each with an offset of its own, and so do all number fields.
Each field belongs to the user's or to the item's side; no interaction of a pair is needed to read either.

Shapes: n rows (users or items), F fields of a side, D vector size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, Protocol

import torch
from torch import nn

from ckd.data.batch import Batch

Side = Literal["user", "item"]
SIDES: tuple[Side, ...] = ("user", "item")
Kind = Literal["list", "token", "number"]
KINDS: tuple[Kind, ...] = ("list", "token", "number")


@dataclass(frozen=True)
class FieldSpec:
    """One field: its name, kind and side, and how many values it takes (a number field: 2, missing and present)."""

    name: str
    kind: Kind
    side: Side
    size: int


class Bag(Protocol):
    """The values of a list field for n rows."""

    @property
    def counts(self) -> torch.Tensor:
        """(n, 1) how many values a row has."""
        ...

    def sums(self, table: nn.Embedding) -> torch.Tensor:
        """(n, D) sum of the rows' vectors."""
        ...


@dataclass(frozen=True)
class PaddedBag:
    """Lists as (n, K) numbers, padded with 0."""

    values: torch.Tensor

    @property
    def counts(self) -> torch.Tensor:
        return (self.values != 0).sum(1, keepdim=True)

    def sums(self, table: nn.Embedding) -> torch.Tensor:
        return (table(self.values) * (self.values != 0)[..., None]).sum(1)


@dataclass(frozen=True)
class HistoryBag:
    """A batch's histories. Prefixes of one sequence share its running sum."""

    batch: Batch

    @property
    def counts(self) -> torch.Tensor:
        return self.batch.lengths[:, None]

    def sums(self, table: nn.Embedding) -> torch.Tensor:
        return self.batch.take(table(self.batch.sequences).cumsum(1))


@dataclass(frozen=True)
class Values:
    """The values of one side's fields, in the fields' order.

    Attributes:
        lists: one bag a list field.
        tokens: (n, number of token fields) int64.
        numbers: (n, number of number fields, 2): value and 1, or 1 and 0 where it is missing.
    """

    lists: tuple[Bag, ...]
    tokens: torch.Tensor
    numbers: torch.Tensor


class OffsetTable(nn.Module):
    """The shared table of all fields of a kind.

    Args:
        specs: these fields, in order.
        size: D.
    """

    def __init__(self, specs: Sequence[FieldSpec], size: int) -> None:
        super().__init__()
        ends = list(accumulate(spec.size for spec in specs))
        self.embedding = nn.Embedding(ends[-1], size)
        for side in SIDES:
            starts = [end - spec.size for spec, end in zip(specs, ends, strict=True) if spec.side == side]
            self.register_buffer(f"{side}_offsets", torch.tensor(starts, dtype=torch.int64), persistent=False)

    def forward(self, side: Side, values: torch.Tensor) -> torch.Tensor:
        """(n, f, D) vectors of the (n, f) values of a side's fields, each counted from 0."""
        found: torch.Tensor = self.embedding(values + self.get_buffer(f"{side}_offsets"))
        return found


class Fields:
    """The fields of a model.

    Args:
        specs: in any order of kinds; within a kind the order given.
    """

    def __init__(self, specs: Iterable[FieldSpec]) -> None:
        given = list(specs)
        self.specs = [spec for kind in KINDS for spec in given if spec.kind == kind]

    def __len__(self) -> int:
        return len(self.specs)

    def positions(self, side: Side) -> list[int]:
        """Places of a side's fields among all."""
        return [i for i, spec in enumerate(self.specs) if spec.side == side]

    def add_tables(self, module: nn.Module, size: int) -> None:
        """Give `module` the tables of vectors of `size`, under RecBole's names."""
        lists, tokens, numbers = ([spec for spec in self.specs if spec.kind == kind] for kind in KINDS)
        if tokens:
            module.token_embedding_table = OffsetTable(tokens, size)
        if numbers:
            module.float_embedding_table = OffsetTable(numbers, size)
        module.token_seq_embedding_table = nn.ModuleList(nn.Embedding(spec.size, size) for spec in lists)

    def embed(self, module: nn.Module, side: Side, values: Values) -> torch.Tensor:
        """(n, F, D) a vector for each field of a side: the mean of a list, the value times the vector of a number."""
        means = [sums / (bag.counts + 1e-8) for bag, sums in self._lists(module, side, values)]
        return torch.cat([*(mean[:, None] for mean in means), *self._others(module, side, values)], dim=1)

    def total(self, module: nn.Module, side: Side, values: Values) -> torch.Tensor:
        """(n, D) sum of a side's vectors, in which a list counts as its sum and not its mean (the first-order term)."""
        sums = [sums for _, sums in self._lists(module, side, values)]
        others = torch.cat(self._others(module, side, values), dim=1).sum(1)
        return torch.stack([*sums, others]).sum(0)

    def _lists(self, module: nn.Module, side: Side, values: Values) -> list[tuple[Bag, torch.Tensor]]:
        tables = getattr(module, "token_seq_embedding_table")  # noqa: B009 (no attribute that a type checker knows)
        sides = [spec.side for spec in self.specs if spec.kind == "list"]
        own = [table for table, other in zip(tables, sides, strict=True) if other == side]
        return [(bag, bag.sums(table)) for bag, table in zip(values.lists, own, strict=True)]

    def _others(self, module: nn.Module, side: Side, values: Values) -> list[torch.Tensor]:
        """(n, f, D) vectors of the token and the number fields."""
        found = []
        if values.tokens.shape[1]:
            found.append(module.get_submodule("token_embedding_table")(side, values.tokens))
        if values.numbers.shape[1]:
            vectors = module.get_submodule("float_embedding_table")(side, values.numbers[..., 1].long())
            found.append(vectors * values.numbers[..., :1].to(vectors.dtype))
        return found
