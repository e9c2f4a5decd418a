"""FM (Rendle, ICDM 2010): a factorization machine over user, item, history and item attributes."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from ckd.data.batch import Batch
from ckd.data.domain import Domain
from ckd.nn.recommender import Recommender
from ckd.students.common.fields import Fields, FieldSpec, HistoryBag, Side, Values
from ckd.students.common.item_fields import ItemFields, ItemFieldsConfig
from ckd.students.common.negatives import NegativeSampler


class FMConfig(ItemFieldsConfig):
    """Vector size of the paper's section 4.1.4."""

    embedding_size: int = Field(300, ge=1)


def initialise(module: nn.Module) -> None:
    """The published initialisation: weights Xavier-normal, biases zero."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.xavier_normal_(part.weight)
        if isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)


class FirstOrder(nn.Module):
    """The bias and the weight of each value; parameter names are RecBole's."""

    def __init__(self, fields: Fields) -> None:
        super().__init__()
        fields.add_tables(self, 1)
        self.bias = nn.Parameter(torch.zeros(1))


class FM(Recommender):
    """FM as RecBole ships it; parameter names are RecBole's.

    With s and w the sum and the first-order sum of a side's fields, and c = w + (|s|^2 - sum |v|^2) / 2 what a side
    contributes alone, the score of a user and an item is bias + c_user + c_item + s_user . s_item: a product of the
    vectors (s_user, bias + c_user, 1) and (s_item, 1, c_item).

    Args:
        config: vector size and attributes.
        fields: user and item fields.
        items: the values of all items.
        negatives: draws the negative of each instance in `base_loss`.
    """

    Config = FMConfig
    reads_users = True
    #: Validation rests for tens of epochs at two thirds of what it comes to.
    TRAIN_DEFAULTS: ClassVar[dict[str, Any]] = {"patience": 50}

    def __init__(
        self,
        config: FMConfig,
        fields: Fields,
        items: ItemFields | None = None,
        negatives: NegativeSampler | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.fields = fields
        self.items = items
        self.negatives = negatives
        fields.add_tables(self, config.embedding_size)
        self.first_order_linear = FirstOrder(fields)
        initialise(self)

    @classmethod
    def create(cls, config: FMConfig, domain: Domain) -> Self:
        items = ItemFields.of(domain, config)
        user = [
            FieldSpec("history", "list", "user", domain.n_items + 1),
            FieldSpec("user_id", "token", "user", domain.n_users),
        ]
        return cls(config, Fields([*user, *items.specs]), items, NegativeSampler.of(domain))

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """User vectors, and no table: a training step needs the vectors of few items, and makes only those."""
        return self.encode(batch), None

    def encode(self, batch: Batch) -> torch.Tensor:
        tokens = batch.users[:, None]
        return self.user_vectors(Values((HistoryBag(batch),), tokens, tokens.new_zeros(len(batch), 0, 2)))

    def item_table(self) -> torch.Tensor:
        return self.item_vectors(self.item_values())

    def score_items(self, encoded: torch.Tensor, items: torch.Tensor | None = None) -> torch.Tensor:
        return encoded @ self.item_vectors(self.item_values(items)).T

    def item_values(self, items: torch.Tensor | None = None) -> Values:
        """The values of `items` (n,), or of all."""
        assert self.items is not None
        values: Values = self.items(items)
        return values

    def user_vectors(self, values: Values) -> torch.Tensor:
        """(B, D + 2) the user's side of the score."""
        total, own = self.alone(self.fields.embed(self, "user", values), "user", values)
        return torch.cat([total, own + self.first_order_linear.bias, torch.ones_like(own)], dim=1)

    def item_vectors(self, values: Values) -> torch.Tensor:
        """(n, D + 2) the item's side of the score."""
        total, own = self.alone(self.fields.embed(self, "item", values), "item", values)
        return torch.cat([total, torch.ones_like(own), own], dim=1)

    def alone(self, vectors: torch.Tensor, side: Side, values: Values) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, D) sum of a side's vectors (n, F, D), and (n, 1) what the side contributes without the other."""
        total = vectors.sum(1)
        pairs = (total.square() - vectors.square().sum(1)).sum(1, keepdim=True) / 2
        return total, self.fields.total(self.first_order_linear, side, values) + pairs

    def pair_logits(self, encoded: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """(B,) the score of one item for each row, from (B,) `items`."""
        return (encoded * self.item_vectors(self.item_values(items))).sum(1)

    def base_loss(self, batch: Batch, encoded: torch.Tensor, table: torch.Tensor | None) -> torch.Tensor:
        """Binary cross-entropy of the target, labelled 1, and of one sampled negative, labelled 0."""
        assert self.negatives is not None
        positive = self.pair_logits(encoded, batch.targets).float()
        negative = self.pair_logits(encoded, self.negatives(batch.users)[:, 0]).float()
        logits = torch.cat([positive, negative])
        labels = torch.cat([torch.ones_like(positive), torch.zeros_like(negative)])
        return F.binary_cross_entropy_with_logits(logits, labels)


STUDENT = FM
