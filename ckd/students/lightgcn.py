"""LightGCN (He et al., SIGIR 2020): user and item vectors smoothed over the graph of interactions."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from ckd.data.batch import Batch
from ckd.data.domain import Domain
from ckd.nn.recommender import ModelConfig, Recommender
from ckd.nn.remembered import Remembered
from ckd.students.common.losses import bpr_loss
from ckd.students.common.negatives import NegativeSampler


class LightGCNConfig(ModelConfig):
    """Vector size of the paper's section 4.1.4; the rest as RecBole's defaults."""

    embedding_size: int = Field(300, ge=1)
    n_layers: int = Field(2, ge=0)
    reg_weight: float = Field(1e-5, ge=0, description="weight of the squared norm of the vectors in a batch")
    require_pow: bool = Field(True, description="square the norms, as LightGCN's Eq. 15; false: RecBole's plain norms")


class Graph(nn.Module):
    """The normalised adjacency D^-1/2 A D^-1/2 of users and items (Eq. 7). A duplicated edge counts once.

    Nodes are the users, then the items, padding included. Nothing of this is a weight; checkpoints leave it out.

    Args:
        users: (m,) users of the interactions, from 0.
        items: (m,) their items.
        n_users: number of users.
        n_items: number of items, padding not counted.
    """

    neighbours: torch.Tensor
    offsets: torch.Tensor
    scale: torch.Tensor

    def __init__(self, users: torch.Tensor, items: torch.Tensor, n_users: int, n_items: int) -> None:
        super().__init__()
        n = n_users + n_items + 1
        users, items = users.long(), items.long() + n_users
        edges = torch.unique(torch.cat([users * n + items, items * n + users]))
        degrees = torch.bincount(edges // n, minlength=n)
        self.register_buffer("neighbours", edges % n, persistent=False)
        self.register_buffer("offsets", F.pad(degrees.cumsum(0), (1, 0)), persistent=False)
        self.register_buffer("scale", (degrees.double() + 1e-7).rsqrt()[:, None], persistent=False)

    @classmethod
    def of(cls, domain: Domain) -> Self:
        """The graph of a domain's training part."""
        part = np.flatnonzero(domain.training_part)
        users, items = torch.from_numpy(domain.user_of[part]), torch.from_numpy(domain.items[part])
        return cls(users, items, domain.n_users, domain.n_items)

    def forward(self, x_ND: torch.Tensor, n_layers: int) -> torch.Tensor:
        """(N, D) the mean of `x_ND` and its products with the adjacency's first `n_layers` powers (Eqs. 4 and 8)."""
        return _Smoothing.apply(x_ND, n_layers, self.neighbours, self.offsets, self.scale.to(x_ND.dtype))


def _neighbours_sum(x_ND: torch.Tensor, neighbours: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """A plain sum, which is torch's fastest: what the edges weigh is put on the nodes before and after."""
    return F.embedding_bag(neighbours, x_ND, offsets, mode="sum", include_last_offset=True)


def _smooth(
    x_ND: torch.Tensor, n_layers: int, neighbours: torch.Tensor, offsets: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """The adjacency is S P S, with P the sum over neighbours: its k-th power is S (P S²)ᵏ⁻¹ P S."""
    if n_layers == 0:
        return x_ND
    total = part = _neighbours_sum(x_ND * scale, neighbours, offsets)
    for _ in range(n_layers - 1):
        part = _neighbours_sum(part * scale.square(), neighbours, offsets)
        total = total + part
    return total.mul_(scale).add_(x_ND).div_(n_layers + 1)


class _Smoothing(torch.autograd.Function):
    """A symmetric map: the gradient is smoothed as the vectors are."""

    @staticmethod
    def forward(ctx: Any, x_ND: torch.Tensor, n_layers: int, *graph: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*graph)
        ctx.n_layers = n_layers
        return _smooth(x_ND, n_layers, *graph)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return _smooth(grads[0], ctx.n_layers, *ctx.saved_tensors), None, None, None, None


class LightGCN(Recommender):
    """LightGCN as RecBole ships it; parameter names are RecBole's.

    It knows users by their number, not by their history. The vectors of all users and items come out of one
    propagation, which a training step makes once, and evaluation once for the same weights.

    Args:
        config: sizes and regularisation.
        graph: the interactions of the training part.
        n_users: number of users.
        n_items: number of items without padding.
        negatives: draws the negative of each instance in `base_loss`.
    """

    Config = LightGCNConfig
    reads_users = True
    #: The loss has its own regularisation. Validation dips after the first epochs, takes up to thirty to come back, and
    #: then rises for a hundred more.
    TRAIN_DEFAULTS: ClassVar[dict[str, Any]] = {"weight_decay": 0.0, "patience": 50}

    def __init__(
        self,
        config: LightGCNConfig,
        graph: Graph,
        n_users: int,
        n_items: int,
        negatives: NegativeSampler | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.graph = graph
        self.negatives = negatives
        self.user_embedding = nn.Embedding(n_users, config.embedding_size)
        self.item_embedding = nn.Embedding(n_items + 1, config.embedding_size)
        nn.init.xavier_uniform_(self.user_embedding.weight)
        nn.init.xavier_uniform_(self.item_embedding.weight)
        self._remembered = Remembered()

    @classmethod
    def create(cls, config: LightGCNConfig, domain: Domain) -> Self:
        return cls(config, Graph.of(domain), domain.n_users, domain.n_items, NegativeSampler.of(domain))

    def vectors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(n_users, D) and (n_items + 1, D): the mean over all layers (Eqs. 4 and 8)."""
        own = [self.user_embedding.weight, self.item_embedding.weight]
        if torch.is_grad_enabled():
            smooth = self._smooth(own)
        else:
            smooth = self._remembered.get(own, self.graph.neighbours, lambda: self._smooth(own))
        users, items = torch.split(smooth, [len(part) for part in own])
        return users, items

    def _smooth(self, own: list[torch.Tensor]) -> torch.Tensor:
        smooth: torch.Tensor = self.graph(torch.cat(own), self.config.n_layers)
        return smooth

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        users, items = self.vectors()
        return F.embedding(batch.users, users), items

    def encode(self, batch: Batch) -> torch.Tensor:
        return self.vectors()[0][batch.users]

    def item_table(self) -> torch.Tensor:
        return self.vectors()[1]

    def base_loss(self, batch: Batch, encoded: torch.Tensor, table: torch.Tensor | None) -> torch.Tensor:
        """BPR against one sampled negative, and the norm of the batch's own vectors (Eq. 15)."""
        assert self.negatives is not None
        return self.pair_loss(batch, encoded, table, self.negatives(batch.users)[:, 0])

    def pair_loss(
        self, batch: Batch, encoded: torch.Tensor, table: torch.Tensor | None, negatives: torch.Tensor
    ) -> torch.Tensor:
        """The loss for given `negatives` (B,)."""
        assert table is not None
        # Looked up together: each gradient of a table is as large as the table.
        items = torch.cat([batch.targets, negatives])
        positive, negative = (encoded * F.embedding(items, table).view(2, *encoded.shape)).sum(-1)
        own = [self.user_embedding(batch.users), *self.item_embedding(items).view(2, *encoded.shape)]
        if self.config.require_pow:
            norm = torch.stack([part.square().sum() for part in own]).sum() / 2
        else:
            norm = torch.stack([part.norm() for part in own]).sum()
        return bpr_loss(positive, negative) + self.config.reg_weight * norm / len(batch)


STUDENT = LightGCN
