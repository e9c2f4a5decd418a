"""What every trainable model offers: vectors of users and items whose product ranks the catalogue."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from ckd.data.batch import Batch
from ckd.data.domain import Domain


class ModelConfig(BaseModel):
    """Base of every model's own configuration: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Recommender(nn.Module):
    """A model that scores items for histories.

    A model whose score is a product of a user vector and an item vector implements `encode` and `item_table`. One that
    does not factor sets `factored = False` and implements `encode` (whatever it needs of the user side) and
    `score_items`.

    Attributes:
        Config: the model's configuration class.
        factored: whether the score is `encode(batch) @ item_table().T`.
        causal: whether the hidden state at a position depends on no later item, so that the prefixes of one sequence
            share a forward pass.
        reads_users: whether the score depends on the user's number besides the history, so that nobody but the domain's
            own users can be served.
        logit_scale: what a score is multiplied by before the softmax of the training loss (1 / temperature of a model
            that scores by cosine); rankings do not depend on it.
        pad_in_softmax: whether the training softmax keeps row 0, padding, among the candidates, as the published models
            of RecBole's lineage (SASRec, GRU4Rec, UniSRec) do.
        TRAIN_DEFAULTS: training settings that this model's paper chooses otherwise than `TrainConfig`.
    """

    Config: ClassVar[type[ModelConfig]]
    factored: ClassVar[bool] = True
    causal: ClassVar[bool] = True
    reads_users: ClassVar[bool] = False
    logit_scale: float = 1.0
    pad_in_softmax: ClassVar[bool] = True
    TRAIN_DEFAULTS: ClassVar[dict[str, Any]] = {}

    @classmethod
    def create(cls, config: Any, domain: Domain) -> Self:
        """A freshly initialised model for this domain, drawn from torch's global generator."""
        raise TypeError(f"{cls.__name__} must implement create(config, domain)")

    def encode(self, batch: Batch) -> torch.Tensor:
        """(B, d) one vector for each instance's history."""
        raise TypeError(f"{type(self).__name__} must implement encode(batch)")

    def item_table(self) -> torch.Tensor:
        """(n_items + 1, d) one vector for each item; row 0 is padding and never ranked."""
        raise TypeError(f"{type(self).__name__} must implement item_table()")

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, d) user vectors and the (n_items + 1, d) item table.

        None in place of the table where the model does not factor, or where it makes item vectors only as `score_items`
        asks for them.
        """
        return self.encode(batch), self.item_table() if self.factored else None

    def score_items(self, encoded: torch.Tensor, items: torch.Tensor | None = None) -> torch.Tensor:
        """(B, n) scores of `items` (n,), or (B, n_items + 1) of the whole table, from what `encode` returned."""
        table = self.item_table()
        return encoded @ (table if items is None else table[items]).T

    def item_side(self, items: torch.Tensor) -> torch.Tensor:
        """(n, ...) what `score_side` needs of `items` (n,), made once for many calls; by default their numbers."""
        return items

    def score_side(self, encoded: torch.Tensor, side: torch.Tensor) -> torch.Tensor:
        """(B, n) scores of the items that these rows of `item_side` are of."""
        return self.score_items(encoded, side)

    def base_loss(self, batch: Batch, encoded: torch.Tensor, table: torch.Tensor | None) -> torch.Tensor | None:
        """The model's own training loss (mean over instances); None means cross-entropy as the run configures it."""
        return None
