"""DeepFM (Guo et al., IJCAI 2017): a factorization machine and a multi-layer network over the same fields."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from ckd.nn.dropout import Dropout
from ckd.students.common.fields import SIDES, Fields, Side, Values
from ckd.students.common.item_fields import ItemFields
from ckd.students.common.negatives import NegativeSampler
from ckd.students.fm import FM, FMConfig, initialise

#: Pairs whose hidden units are held at a time: on a CPU few enough for its cache, on other devices many enough to fill
#: them.
CPU_PAIRS, DEVICE_PAIRS = 1 << 12, 1 << 17


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

    @property
    def later(self) -> list[nn.Linear]:
        """The layers behind the first."""
        return [layer for layer in self.mlp_layers[2:] if isinstance(layer, nn.Linear)]


class DeepFM(FM):
    """DeepFM as RecBole ships it; parameter names are RecBole's.

    The network's first layer is linear in the fields, so it is computed once for each user and each item (`item_side`,
    which serving keeps), and only what follows for each pair, a block of pairs at a time. The score does not factor:
    `encode` returns FM's vector of the user and the user's fields.
    When many pairs are scored in training, the dropout on the fields is drawn once for each user and each item.

    Args:
        config: sizes, dropout and attributes.
        fields: user and item fields.
        items: the values of all items.
        negatives: draws the negative of each instance in `base_loss`.
    """

    Config = DeepFMConfig
    factored = False
    #: Not FM's patience: an epoch costs several times FM's.
    TRAIN_DEFAULTS: ClassVar[dict[str, Any]] = {}

    config: DeepFMConfig
    field_order: torch.Tensor

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
        # Among all fields: where those of a side are, and of users' before items' which comes where.
        places = {side: torch.tensor(fields.positions(side), dtype=torch.int64) for side in SIDES}
        for side, own in places.items():
            self.register_buffer(f"{side}_places", own, persistent=False)
        self.register_buffer("field_order", torch.cat(list(places.values())).argsort(), persistent=False)
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
        return self._score(self._user_side(encoded), self.item_side(items))

    def score_side(self, encoded: torch.Tensor, side: torch.Tensor) -> torch.Tensor:
        return self._score(self._user_side(encoded), side)

    def item_side(self, items: torch.Tensor | None = None) -> torch.Tensor:
        """(n, D + 2 + H) FM's item vectors, and the items' share of the first layer's outputs."""
        fm, fields = self._sides(self.item_vectors(self.item_values(items)))
        return torch.cat([fm, F.linear(self._drop(fields), self._first_weight("item"))], dim=1)

    def _user_side(self, encoded: torch.Tensor) -> torch.Tensor:
        """(B, D + 2 + H) the same of users, the first layer's bias included."""
        fm, fields = self._sides(encoded)
        share = F.linear(self._drop(fields), self._first_weight("user"), self.mlp_layers.first.bias)
        return torch.cat([fm, share], dim=1)

    def _score(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """(B, n) scores of all pairs; the network sees a block of pairs at a time."""
        (fm_users, users), (fm_items, items) = self._sides(users), self._sides(items)
        pairs = CPU_PAIRS if users.device.type == "cpu" else DEVICE_PAIRS
        blocks = torch.chunk(items, -(-len(items) // pairs))
        step = max(1, pairs // len(blocks[0]))
        deep = self._deep_without_gradient() if self._plain(users) else self._deep
        rows = [torch.cat([deep(part[:, None] + block) for block in blocks], 1) for part in torch.split(users, step)]
        return fm_users @ fm_items.T + torch.cat(rows)

    def _plain(self, users: torch.Tensor) -> bool:
        """Whether oneDNN's own linear layers can be used: they know no gradient, and float32 alone."""
        return (
            not (torch.is_grad_enabled() or self.training)
            and users.device.type == "cpu"
            and users.dtype == torch.float32
            and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
            and bool(torch.backends.mkldnn.enabled)
        )

    def _deep_without_gradient(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """`_deep` by oneDNN, which on many processors multiplies faster than torch's default library does."""
        layers = [(layer.weight.to_mkldnn(), layer.bias.to_mkldnn()) for layer in self.mlp_layers.later]
        last = self.deep_predict_layer

        def deep(first: torch.Tensor) -> torch.Tensor:
            x = first.relu_().flatten(0, 1)
            if layers:
                x = x.to_mkldnn()
                for weight, bias in layers:
                    x = F.linear(x, weight, bias).relu_()
                x = x.to_dense()
            return torch.addmv(last.bias.expand(len(x)), x, last.weight[0]).view(first.shape[:2])

        return deep

    def pair_logits(self, encoded: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        return self.logits(encoded, self.item_vectors(self.item_values(items)))

    def logits(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """(B,) the score of each pair of a row of user vectors and a row of item vectors."""
        (user, user_fields), (item, item_fields) = self._sides(users), self._sides(items)
        d = self.config.embedding_size
        fields = torch.cat([side.reshape(len(side), -1, d) for side in (user_fields, item_fields)], dim=1)
        fields = fields.index_select(1, self.field_order)
        return (user * item).sum(1) + self._deep(
            self.mlp_layers.first(self.mlp_layers.mlp_layers[0](fields.flatten(1)))
        )

    def _sides(self, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """FM's part of a vector, and the fields."""
        size = self.config.embedding_size + 2
        return vectors[:, :size], vectors[:, size:]

    def _drop(self, fields: torch.Tensor) -> torch.Tensor:
        dropped: torch.Tensor = self.mlp_layers.mlp_layers[0](fields)
        return dropped

    def _first_weight(self, side: Side) -> torch.Tensor:
        """(H, F * D) what the first layer's weight has for the fields of a side."""
        weight = self.mlp_layers.first.weight
        places = self.get_buffer(f"{side}_places")
        return weight.view(len(weight), len(self.fields), -1).index_select(1, places).flatten(1)

    def _deep(self, first: torch.Tensor) -> torch.Tensor:
        """(...) the network's logit from the (..., size) outputs of its first linear layer."""
        return self.deep_predict_layer(self.mlp_layers.after_first(first))[..., 0]


STUDENT = DeepFM
