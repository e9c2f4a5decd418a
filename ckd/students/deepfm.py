"""DeepFM (Guo et al., IJCAI 2017): a factorization machine and a multi-layer network over the same fields."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from ckd.nn.dropout import Dropout
from ckd.students.common.fields import Fields, Values
from ckd.students.common.item_fields import ItemFields
from ckd.students.common.negatives import NegativeSampler
from ckd.students.fm import FM, FMConfig, initialise

#: Hidden units of pairs that are held at a time while scoring every item, as a number of elements: 64 MiB in float32.
BLOCK_ELEMENTS = 1 << 24


class DeepFMConfig(FMConfig):
    """Vector size and dropout of the paper's section 4.1.4; hidden layers as RecBole's default."""

    mlp_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (128, 128, 128), min_length=1, description="sizes of the hidden layers"
    )
    dropout: float = Field(0.1, ge=0, lt=1)


class MLP(nn.Module):
    """Dropout, linear and ReLU in turn; parameter names are RecBole's."""

    def __init__(self, sizes: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            parts += [Dropout(dropout), nn.Linear(inputs, outputs), nn.ReLU()]
        self.mlp_layers = nn.Sequential(*parts)

    @property
    def first(self) -> nn.Linear:
        """The layer that reads the fields."""
        layer = self.mlp_layers[1]
        assert isinstance(layer, nn.Linear)
        return layer

    def after_first(self, x: torch.Tensor) -> torch.Tensor:
        """(..., last size) from the (..., first size) outputs of the first linear layer."""
        return self.mlp_layers[2:](x)


class DeepFM(FM):
    """DeepFM as RecBole ships it; parameter names are RecBole's.

    The network's first layer is linear in the fields, so it is computed once for each user and each item, and only what
    follows for each pair. The score does not factor: `encode` returns FM's vector of the user and the user's fields.
    When many pairs are scored in training, the dropout on the fields is drawn once for each user and each item.

    Args:
        config: sizes, dropout and attributes.
        fields: user and item fields.
        items: the values of all items.
        negatives: draws the negative of each instance in `base_loss`.
    """

    Config = DeepFMConfig
    factored = False

    config: DeepFMConfig

    def __init__(
        self,
        config: DeepFMConfig,
        fields: Fields,
        items: ItemFields | None = None,
        negatives: NegativeSampler | None = None,
    ) -> None:
        super().__init__(config, fields, items, negatives)
        self.mlp_layers = MLP((len(fields) * config.embedding_size, *config.mlp_sizes), config.dropout)
        self.deep_predict_layer = nn.Linear(config.mlp_sizes[-1], 1)
        initialise(self.mlp_layers)
        initialise(self.deep_predict_layer)

    def user_vectors(self, values: Values) -> torch.Tensor:
        """(B, D + 2 + F * D) FM's user vector, and the vectors of the user's fields."""
        vectors = self.fields.embed(self, "user", values)
        total, own = self.alone(vectors, "user", values)
        own = own + self.first_order_linear.bias
        return torch.cat([total, own, torch.ones_like(own), vectors.flatten(1)], dim=1)

    def item_vectors(self, values: Values) -> torch.Tensor:
        """(n, D + 2 + F * D) FM's item vector, and the vectors of the item's fields."""
        vectors = self.fields.embed(self, "item", values)
        total, own = self.alone(vectors, "item", values)
        return torch.cat([total, torch.ones_like(own), own, vectors.flatten(1)], dim=1)

    def score_items(self, encoded: torch.Tensor, items: torch.Tensor | None = None) -> torch.Tensor:
        users, items_ = self._sides(encoded), self._sides(self.item_vectors(self.item_values(items)))
        layer = self.mlp_layers.first
        weight = layer.weight.view(len(layer.weight), len(self.fields), -1)
        drop = self.mlp_layers.mlp_layers[0]
        user = F.linear(drop(users[1]), weight[:, self.fields.positions("user")].flatten(1), layer.bias)
        item = F.linear(drop(items_[1]), weight[:, self.fields.positions("item")].flatten(1))
        step = max(1, BLOCK_ELEMENTS // (len(item) * max(self.config.mlp_sizes)))
        deep = [self._deep(part[:, None] + item) for part in torch.split(user, step)]
        return users[0] @ items_[0].T + torch.cat(deep)

    def pair_logits(self, encoded: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        return self.logits(encoded, self.item_vectors(self.item_values(items)))

    def logits(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """(B,) the score of each pair of a row of user vectors and a row of item vectors."""
        (user, user_fields), (item, item_fields) = self._sides(users), self._sides(items)
        d = self.config.embedding_size
        fields = user.new_empty(len(users), len(self.fields), d)
        fields[:, self.fields.positions("user")] = user_fields.reshape(len(users), -1, d)
        fields[:, self.fields.positions("item")] = item_fields.reshape(len(items), -1, d)
        return (user * item).sum(1) + self._deep(
            self.mlp_layers.first(self.mlp_layers.mlp_layers[0](fields.flatten(1)))
        )

    def _sides(self, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """FM's part of a vector, and the fields."""
        size = self.config.embedding_size + 2
        return vectors[:, :size], vectors[:, size:]

    def _deep(self, first: torch.Tensor) -> torch.Tensor:
        """(...) the network's logit from the (..., size) outputs of its first linear layer."""
        return self.deep_predict_layer(self.mlp_layers.after_first(first))[..., 0]


STUDENT = DeepFM
