"""BERT4Rec (Sun et al., CIKM 2019): self-attention in both directions, trained to fill in masked items."""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from ckd.data.batch import Batch, Packed
from ckd.data.domain import Domain
from ckd.distill.losses import full_softmax_loss
from ckd.nn.dropout import Dropout
from ckd.nn.recommender import Recommender
from ckd.nn.transformer import TransformerEncoder, hidden_states, initialise
from ckd.students.common.transformer_config import TransformerConfig


class BERT4RecConfig(TransformerConfig):
    """Sizes and dropout, and masking as RecBole trains it."""

    mask_ratio: float = Field(0.2, gt=0, le=1, description="share of the items that a cloze masks")
    last_share: float = Field(
        0.5, ge=0, le=1, description="share of the instances whose last item alone is masked, as when serving"
    )
    drop_first: Literal["full", "always"] = Field(
        "full", description="drop the oldest item for the mask: only from a full history, or always as RecBole does"
    )


class BERT4Rec(Recommender):
    """BERT4Rec as RecBole ships it; parameter names are RecBole's.

    A history is encoded with a mask after its last item, whose hidden state is the user's vector. The last entry of a
    vector multiplies the items' output biases, so that the score is a plain product.

    Args:
        config: sizes, dropout and masking.
        n_items: number of items without padding.
        max_length: longest sequence, in items, a mask counted in.
    """

    Config = BERT4RecConfig
    causal = False

    def __init__(self, config: BERT4RecConfig, n_items: int, max_length: int) -> None:
        super().__init__()
        self.config = config
        c = config
        self.mask_item = n_items + 1
        self.max_length = max_length
        self.item_embedding = nn.Embedding(n_items + 2, c.hidden_size, padding_idx=0)
        self.position_embedding = nn.Embedding(max_length, c.hidden_size)
        self.trm_encoder = TransformerEncoder(c)
        self.LayerNorm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.dropout = Dropout(c.hidden_dropout)
        self.output_ffn = nn.Linear(c.hidden_size, c.hidden_size)
        self.output_ln = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.output_bias = nn.Parameter(torch.zeros(n_items + 1))
        initialise(self, c.initializer_range)

    @classmethod
    def create(cls, config: BERT4RecConfig, domain: Domain) -> Self:
        return cls(config, domain.n_items, domain.history_cap)

    def encode(self, batch: Batch) -> torch.Tensor:
        packed = Packed.of(*self.append(batch.histories(), batch.lengths, self.mask_item))
        return self.head(packed.take(self.hidden(packed, packed.items)))

    def item_table(self) -> torch.Tensor:
        return torch.cat([self.item_embedding.weight[: self.mask_item], self.output_bias[:, None]], dim=1)

    def append(
        self, histories: torch.Tensor, lengths: torch.Tensor, items: torch.Tensor | int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, L') histories with one more item each, and their (B,) lengths; the oldest item is dropped if need be.

        Args:
            histories: (B, L) items, right-padded with 0.
            lengths: (B,) from 1.
            items: (B,) or the same for all.
        """
        dropped = (lengths + 1 - self.max_length).clamp(min=1 if self.config.drop_first == "always" else 0)
        lengths = lengths + 1 - dropped
        steps = torch.arange(min(histories.shape[1] + 1, self.max_length), device=histories.device)
        source = (steps + dropped[:, None]).clamp(max=histories.shape[1] - 1)
        last = items[:, None] if isinstance(items, torch.Tensor) else items
        old = histories.gather(1, source) * (steps < lengths[:, None] - 1)
        return torch.where(steps == lengths[:, None] - 1, last, old), lengths

    def hidden(self, packed: Packed, items: torch.Tensor) -> torch.Tensor:
        """(P, W, D) hidden states of `items` (P, W), which replace those of `packed`."""
        return hidden_states(self, self.item_embedding(items), packed, causal=False)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """(n, D + 1) vectors to multiply with the item table, from (n, D) hidden states."""
        return F.pad(self.output_ln(F.gelu(self.output_ffn(hidden))), (0, 1), value=1.0)

    def base_loss(self, batch: Batch, encoded: torch.Tensor, table: torch.Tensor | None) -> torch.Tensor:
        """Cross-entropy over the catalogue, mean over the masked items (section 3.6, Eq. 8).

        Each instance's sequence is its history and target. A share of the instances has its target masked alone, which
        is what `encoded` answers; in the others every item is masked with the same probability.
        """
        assert table is not None
        only_last = torch.rand(len(batch), device=encoded.device) < self.config.last_share
        # Numbers of rows, each found once: a device is waited for whenever it is asked how many there are.
        last, cloze = places(only_last), places(~only_last)
        vectors, labels = [encoded.index_select(0, last)], [batch.targets[last]]
        sequences, lengths = self.append(batch.histories(), batch.lengths, batch.targets)
        if len(cloze):
            packed = Packed.of(sequences[cloze], lengths[cloze])
            masked = (torch.rand(packed.items.shape, device=encoded.device) < self.config.mask_ratio) & (
                packed.items != 0
            )
            hidden = self.hidden(packed, packed.items.masked_fill(masked, self.mask_item))
            chosen = places(masked.flatten())
            vectors.append(self.head(hidden.flatten(0, 1).index_select(0, chosen)))
            labels.append(packed.items.flatten()[chosen])
        answers = torch.cat(labels)
        if not len(answers):
            return encoded.sum() * 0.0
        return full_softmax_loss(torch.cat(vectors), table, answers, pad_in_softmax=self.pad_in_softmax)[0]


def places(chosen: torch.Tensor) -> torch.Tensor:
    """Where the (n,) bools are true."""
    return chosen.nonzero()[:, 0]


STUDENT = BERT4Rec
