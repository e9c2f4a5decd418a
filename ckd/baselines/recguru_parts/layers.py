"""RecGURU's encoder, decoder and critic; module names are those of the published checkpoints.

Shapes: B sequences, L positions, D model size, H heads, K size of a head's queries and keys, V of its values.
"""

from __future__ import annotations

import itertools
import math
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional as F

from ckd.nn.dropout import Dropout, dropout

LAYER_NORM_EPS = 1e-8

#: Logit of a masked key. A row without any key left is a uniform mean, which is zeroed where it is padding.
MASKED = -1e9


class Sizes(Protocol):
    """What the layers take from a configuration."""

    @property
    def d_model(self) -> int: ...
    @property
    def d_ff(self) -> int: ...
    @property
    def d_k(self) -> int: ...
    @property
    def d_v(self) -> int: ...
    @property
    def n_heads(self) -> int: ...
    @property
    def n_blocks(self) -> int: ...
    @property
    def dropout(self) -> float: ...


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention with dropout on its weights, output projection, residual, LayerNorm."""

    def __init__(self, c: Sizes) -> None:
        super().__init__()
        self.n_heads, self.d_k, self.d_v, self.dropout = c.n_heads, c.d_k, c.d_v, c.dropout
        self.WQ = nn.Linear(c.d_model, c.n_heads * c.d_k)
        self.WK = nn.Linear(c.d_model, c.n_heads * c.d_k)
        self.WV = nn.Linear(c.d_model, c.n_heads * c.d_v)
        self.linear = nn.Linear(c.n_heads * c.d_v, c.d_model)
        self.layer_norm = nn.LayerNorm(c.d_model, eps=LAYER_NORM_EPS)

    def forward(self, query_BLD: torch.Tensor, key_BLD: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
        """Attend from `query_BLD` to `key_BLD`, never where `hidden` (broadcast to (B, 1, L, L)) is true."""
        B, L, _ = query_BLD.shape

        def heads(x: torch.Tensor, size: int) -> torch.Tensor:
            return x.view(B, -1, self.n_heads, size).transpose(1, 2)

        query, key = heads(self.WQ(query_BLD), self.d_k), heads(self.WK(key_BLD), self.d_k)
        logits = query @ key.transpose(-1, -2) / math.sqrt(self.d_k)
        if hidden is not None:
            logits = logits.masked_fill(hidden, MASKED)
        weights = dropout(torch.softmax(logits, dim=-1), self.dropout, self.training)
        mixed = (weights @ heads(self.WV(key_BLD), self.d_v)).transpose(1, 2).reshape(B, L, -1)
        return self.layer_norm(query_BLD + self.linear(mixed))


class FeedForward(nn.Module):
    """Two linear layers with GELU (tanh form), residual, LayerNorm."""

    def __init__(self, c: Sizes) -> None:
        super().__init__()
        self.l1 = nn.Linear(c.d_model, c.d_ff)
        self.l2 = nn.Linear(c.d_ff, c.d_model)
        self.layer_norm = nn.LayerNorm(c.d_model, eps=LAYER_NORM_EPS)

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        return self.layer_norm(x_BLD + self.l2(F.gelu(self.l1(x_BLD), approximate="tanh")))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward block."""

    def __init__(self, c: Sizes) -> None:
        super().__init__()
        self.enc_self_attn = MultiHeadAttention(c)
        self.pos_ffn = FeedForward(c)

    def forward(self, x_BLD: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        return self.pos_ffn(self.enc_self_attn(x_BLD, x_BLD, hidden))


class DecoderLayer(nn.Module):
    """Self-attention, attention over the user vector, feed-forward block."""

    def __init__(self, c: Sizes) -> None:
        super().__init__()
        self.dec_self_attn = MultiHeadAttention(c)
        self.dec_enc_attn = MultiHeadAttention(c)
        self.pos_ffn = FeedForward(c)

    def forward(self, x_BLD: torch.Tensor, user_BLD: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        return self.pos_ffn(self.dec_enc_attn(self.dec_self_attn(x_BLD, x_BLD, hidden), user_BLD, None))


class Encoder(nn.Module):
    """A stack of encoder layers; the output of each is zero at padding."""

    def __init__(self, c: Sizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(c) for _ in range(c.n_blocks))

    def forward(self, x_BLD: torch.Tensor, keep_BL1: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        x_BLD = x_BLD * keep_BL1
        for layer in self.layers:
            x_BLD = layer(x_BLD, hidden) * keep_BL1
        return x_BLD


class Decoder(nn.Module):
    """A stack of decoder layers; the output of each is zero at padding."""

    def __init__(self, c: Sizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(c) for _ in range(c.n_blocks))

    def forward(
        self, x_BLD: torch.Tensor, user_BD: torch.Tensor, keep_BL1: torch.Tensor, hidden: torch.Tensor
    ) -> torch.Tensor:
        x_BLD = x_BLD * keep_BL1
        # The user vector stands at every key, all alike: attention over L copies is attention over one, and its queries
        # and keys do nothing. Only dropout tells the copies apart.
        user_BLD = user_BD[:, None].expand(-1, x_BLD.shape[1] if self.training else 1, -1)
        for layer in self.layers:
            x_BLD = layer(x_BLD, user_BLD, hidden) * keep_BL1
        return x_BLD


class Critic(nn.Module):
    """Tells the user vectors of two domains apart: D -> 5 D -> 10 D -> 5 D -> 1, with ReLU and dropout."""

    def __init__(self, d_model: int, dropout_p: float = 0.2) -> None:
        super().__init__()
        sizes = (d_model, 5 * d_model, 10 * d_model, 5 * d_model)
        parts: list[nn.Module] = []
        for size_in, size_out in itertools.pairwise(sizes):
            parts += [nn.Linear(size_in, size_out), nn.ReLU(), Dropout(dropout_p)]
        self.main = nn.Sequential(*parts, nn.Linear(sizes[-1], 1))

    def forward(self, user_BD: torch.Tensor) -> torch.Tensor:
        """(B,) how much each user vector looks like one of the second domain."""
        return self.main(user_BD)[:, 0]


def sinusoids(length: int, d_model: int) -> torch.Tensor:
    """(length, D) fixed positions (Vaswani et al., NeurIPS 2017, 3.5), computed in double and rounded once."""
    angle = torch.arange(length, dtype=torch.float64)[:, None] * torch.exp(
        torch.arange(0, d_model, 2, dtype=torch.float64) * (-math.log(10000.0) / d_model)
    )
    table = torch.empty(length, d_model, dtype=torch.float64)
    table[:, 0::2] = angle.sin()
    table[:, 1::2] = angle.cos()[:, : d_model // 2]
    return table.float()
