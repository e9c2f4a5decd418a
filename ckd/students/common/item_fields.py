"""A domain's item attributes as values of fields."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import nn

from ckd.data.domain import Domain
from ckd.errors import ConfigError, DataError, did_you_mean
from ckd.nn.recommender import ModelConfig
from ckd.students.common.fields import FieldSpec, PaddedBag, Values

#: Attributes taken when the configuration names none, where the domain has them.
USUAL = ("brand", "category")


class ItemFieldsConfig(ModelConfig):
    """Which item attributes a feature-interaction student reads."""

    attributes: tuple[str, ...] | None = Field(
        None, description="item attributes of one value; none: brand and category, where the domain has them"
    )
    lists: tuple[str, ...] = Field((), description="item attributes of several values")
    separator: str = Field(",", min_length=1, description="what stands between the values of lists")
    numbers: tuple[str, ...] = Field((), description="item attributes that are numbers, scaled to 0 to 1")


class ItemFields(nn.Module):
    """The values of all items, padding included, as buffers that checkpoints leave out.

    Args:
        specs: the item fields, `item_id` first among the tokens.
        lists: one (n_items + 1, K) padded tensor for each list field.
        tokens: (n_items + 1, token fields).
        numbers: (n_items + 1, number fields, 2).
    """

    tokens: torch.Tensor
    numbers: torch.Tensor

    def __init__(
        self, specs: Sequence[FieldSpec], lists: Sequence[torch.Tensor], tokens: torch.Tensor, numbers: torch.Tensor
    ) -> None:
        super().__init__()
        self.specs = tuple(specs)
        self.n_lists = len(lists)
        for index, values in enumerate(lists):
            self.register_buffer(f"list_{index}", values, persistent=False)
        self.register_buffer("tokens", tokens, persistent=False)
        self.register_buffer("numbers", numbers, persistent=False)

    @classmethod
    def of(cls, domain: Domain, config: ItemFieldsConfig) -> ItemFields:
        """Number the values of the domain's attributes; a missing value is number 0, and so is padding's.

        Raises:
            ConfigError: the domain has no attribute of a configured name.
            DataError: a number field holds something else.
        """
        usual = tuple(name for name in USUAL if name in domain.attributes)
        attributes = usual if config.attributes is None else config.attributes
        specs = [FieldSpec("item_id", "token", "item", domain.n_items + 1)]
        tokens, lists, numbers = [torch.arange(domain.n_items + 1)], [], []
        for name in attributes:
            coded, size = _numbered([[text] if text else [] for text in _texts(domain, name)])
            tokens.append(coded[:, 0])
            specs.append(FieldSpec(name, "token", "item", size))
        for name in config.lists:
            parts = [[part.strip() for part in text.split(config.separator)] for text in _texts(domain, name)]
            coded, size = _numbered([[part for part in dict.fromkeys(row) if part] for row in parts])
            lists.append(coded)
            specs.append(FieldSpec(name, "list", "item", size))
        for name in config.numbers:
            numbers.append(_measured(domain, name))
            specs.append(FieldSpec(name, "number", "item", 2))
        measures = torch.stack(numbers, dim=1) if numbers else torch.zeros(domain.n_items + 1, 0, 2)
        return cls(specs, lists, torch.stack(tokens, dim=1), measures)

    def forward(self, items: torch.Tensor | None = None) -> Values:
        """The values of `items` (n,), or of all."""
        pick = slice(None) if items is None else items
        bags = tuple(PaddedBag(self.get_buffer(f"list_{index}")[pick]) for index in range(self.n_lists))
        return Values(bags, self.tokens[pick], self.numbers[pick])


def _texts(domain: Domain, name: str) -> list[str]:
    """The attribute of the items 1, 2, ...; nothing is the empty string."""
    if name not in domain.attributes:
        raise ConfigError(
            f"student: {domain.name} has no item attribute {name!r}.{did_you_mean(name, domain.attributes)}"
        )
    return [str(value).strip() if value is not None else "" for value in domain.item_table[name].to_list()]


def _numbered(rows: list[list[str]]) -> tuple[torch.Tensor, int]:
    """(n + 1, K) numbers of the values from 1, in alphabetical order, row 0 being padding; and how many, 0 included."""
    known = {value: number for number, value in enumerate(sorted({v for row in rows for v in row}), start=1)}
    coded = torch.zeros(len(rows) + 1, max(1, *map(len, rows)), dtype=torch.int64)
    for index, row in enumerate(rows, start=1):
        coded[index, : len(row)] = torch.tensor([known[value] for value in row], dtype=torch.int64)
    return coded, len(known) + 1


def _measured(domain: Domain, name: str) -> torch.Tensor:
    """(n_items + 1, 2) the scaled number and 1; 1 and 0 where it is missing."""
    measures: list[float | None] = [None]
    for item, text in enumerate(_texts(domain, name), start=1):
        try:
            value = float(text) if text else None
        except ValueError:
            value = math.nan
        if value is not None and not math.isfinite(value):
            raise DataError(
                f"{domain.name}: {name} of item {item} is {text!r}, which is no number. Name it under "
                "student.attributes instead of student.numbers."
            )
        measures.append(value)
    present = [value for value in measures if value is not None]
    low, high = min(present, default=0.0), max(present, default=1.0)
    width = (high - low) or 1.0
    return torch.tensor([(1.0, 0.0) if value is None else ((value - low) / width, 1.0) for value in measures])
