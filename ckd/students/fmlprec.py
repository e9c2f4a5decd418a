"""FMLP-Rec (Zhou et al., WWW 2022): learnable filters over the frequencies of a user's sequence."""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import nn

from ckd.data.batch import Batch
from ckd.data.domain import Domain
from ckd.nn.dropout import Dropout
from ckd.nn.recommender import ModelConfig, Recommender
from ckd.nn.transformer import FeedForward, MultiHeadAttention, attention_mask, initialise
from ckd.students.common.losses import pairwise_bce
from ckd.students.common.negatives import NegativeSampler
from ckd.students.common.transformer_config import heads_divide


class FMLPRecConfig(ModelConfig):
    """The published defaults; `filters: false` puts self-attention in place of the filters, the authors' ablation."""

    hidden_size: int = Field(64, ge=1)
    n_layers: int = Field(2, ge=1)
    dropout: float = Field(0.5, ge=0, lt=1)
    initializer_range: float = Field(0.02, gt=0)
    layer_norm_eps: float = Field(1e-12, gt=0)
    filters: bool = True
    n_heads: int = Field(2, ge=1, validate_default=True, description="heads of the attention, where filters is false")
    attention_dropout: float = Field(0.5, ge=0, lt=1, description="of the attention, where filters is false")

    @field_validator("n_heads")
    @classmethod
    def _heads_divide(cls, n_heads: int, info: ValidationInfo) -> int:
        return n_heads if info.data.get("filters") else heads_divide(n_heads, info.data.get("hidden_size", 0))


class FilterLayer(nn.Module):
    """Each hidden dimension's sequence times a complex weight a frequency, dropout, residual, LayerNorm (Eqs. 3 to 5).

    Args:
        length: number of positions L; the filter has L // 2 + 1 frequencies.
    """

    def __init__(self, length: int, hidden: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.complex_weight = nn.Parameter(torch.randn(1, length // 2 + 1, hidden, 2) * 0.02)
        self.out_dropout = Dropout(dropout)
        self.LayerNorm = nn.LayerNorm(hidden, eps=eps)

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x_BLD.device.type, enabled=False):  # there are no half-precision transforms on a CPU
            x_BLD = x_BLD.to(self.complex_weight.dtype)
            weight = torch.view_as_complex(self.complex_weight)
            spectrum = torch.fft.rfft(x_BLD, dim=1, norm="ortho")
            filtered = torch.fft.irfft(spectrum * weight, n=x_BLD.shape[1], dim=1, norm="ortho")
        return self.LayerNorm(self.out_dropout(filtered) + x_BLD)

    def last(self, x_BLD: torch.Tensor) -> torch.Tensor:
        """(B, 1, D) what `forward` gives at the last position, which is one inner product with the filter's kernel."""
        with torch.autocast(x_BLD.device.type, enabled=False):
            x_BLD = x_BLD.to(self.complex_weight.dtype)
            kernel = torch.fft.irfft(torch.view_as_complex(self.complex_weight), n=x_BLD.shape[1], dim=1)
            filtered = (x_BLD * kernel.flip(1)).sum(1, keepdim=True)
        return self.LayerNorm(self.out_dropout(filtered) + x_BLD[:, -1:])


class Layer(nn.Module):
    """Filter, or attention in its place, and feed-forward block; names are those of the published checkpoints."""

    def __init__(self, config: FMLPRecConfig, length: int) -> None:
        super().__init__()
        c = config
        if c.filters:
            self.filterlayer = FilterLayer(length, c.hidden_size, c.dropout, c.layer_norm_eps)
        else:
            self.attention = MultiHeadAttention(
                c.n_heads, c.hidden_size, c.dropout, c.attention_dropout, c.layer_norm_eps
            )
        self.filters = c.filters
        self.intermediate = FeedForward(c.hidden_size, 4 * c.hidden_size, c.dropout, c.layer_norm_eps)

    def forward(self, x_BLD: torch.Tensor, mask: torch.Tensor | None, only_last: bool = False) -> torch.Tensor:
        """(B, L, D), or (B, D) at the last position only; `mask` (B, 1, L, L) is the attention's."""
        if mask is not None:
            mixed = self.attention(x_BLD, mask)
        else:
            mixed = self.filterlayer.last(x_BLD) if only_last else self.filterlayer(x_BLD)
        return self.intermediate(mixed[:, -1]) if only_last else self.intermediate(mixed)


class Encoder(nn.Module):
    """A stack of layers."""

    def __init__(self, config: FMLPRecConfig, length: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config, length) for _ in range(config.n_layers))

    def forward(self, x_BLD: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """(B, D) at the last position."""
        *before, last = self.layer
        for layer in before:
            x_BLD = layer(x_BLD, mask)
        return last(x_BLD, mask, only_last=True)


class FMLPRec(Recommender):
    """FMLP-Rec as its authors published it; parameter names are theirs.

    A filter is a circular convolution over all positions, padding included. So histories are padded on the left to the
    full length, no two prefixes share a pass, and nothing can be trimmed: the model is not causal. Only the last
    position is read, and the last layer computes nothing else.

    Args:
        config: sizes and dropout.
        n_items: number of items without padding.
        max_length: number of positions.
        negatives: draws the negative of each instance in `base_loss`.
    """

    Config = FMLPRecConfig
    causal = False

    def __init__(
        self, config: FMLPRecConfig, n_items: int, max_length: int, negatives: NegativeSampler | None = None
    ) -> None:
        super().__init__()
        self.config = config
        c = config
        self.max_length = max_length
        self.negatives = negatives
        self.item_embeddings = nn.Embedding(n_items + 1, c.hidden_size, padding_idx=0)
        self.position_embeddings = nn.Embedding(max_length, c.hidden_size)
        self.item_encoder = Encoder(c, max_length)
        self.LayerNorm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.dropout = Dropout(c.dropout)
        initialise(self, c.initializer_range)

    @classmethod
    def create(cls, config: FMLPRecConfig, domain: Domain) -> Self:
        return cls(config, domain.n_items, domain.history_cap, NegativeSampler.of(domain))

    def encode(self, batch: Batch) -> torch.Tensor:
        items = self.left_padded(batch)
        return self.item_encoder(self.embed(items), self.mask(items))

    def left_padded(self, batch: Batch) -> torch.Tensor:
        """(B, max_length) every instance's last items, padded with 0 on the left."""
        steps = torch.arange(-self.max_length, 0, device=batch.lengths.device) + batch.lengths[:, None]
        return batch.sequences[batch.rows[:, None], steps.clamp(min=0)] * (steps >= 0)

    def embed(self, items: torch.Tensor) -> torch.Tensor:
        """(B, L, D) what enters the first layer, from (B, L) left-padded items."""
        return self.dropout(self.LayerNorm(self.item_embeddings(items) + self.position_embeddings.weight))

    def mask(self, items: torch.Tensor) -> torch.Tensor | None:
        """(B, 1, L, L) the attention's mask; none for filters."""
        return None if self.config.filters else attention_mask(items, causal=True)

    def item_table(self) -> torch.Tensor:
        return self.item_embeddings.weight

    def base_loss(self, batch: Batch, encoded: torch.Tensor, table: torch.Tensor | None) -> torch.Tensor:
        """Binary cross-entropy of the target against one sampled negative."""
        assert table is not None
        assert self.negatives is not None
        others = self.negatives(batch.users)[:, 0]
        positive, negative = ((encoded * table[items]).sum(1) for items in (batch.targets, others))
        return pairwise_bce(positive, negative)


STUDENT = FMLPRec
