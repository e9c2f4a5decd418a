"""The post-norm transformer of SASRec as RecBole ships it, shared by SASRec, UniSRec, UniM2Rec and BERT4Rec.

Shapes: B sequences, L positions, D hidden size, H heads. Module names are those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional as F

from ckd.data.batch import Packed
from ckd.nn.dropout import Dropout, dropout
from ckd.nn.uncompiled import recomputed

#: What the published models add to the logit of a masked key, in place of minus infinity.
MASKED = -10000.0

#: Hidden states, as a number of elements, beyond which a batch is encoded in parts while training: 2 MiB in float32, of
#: which a layer keeps some fifteen for its gradient.
MOST_STATES = 1 << 19
#: Elements of a part.
PART_STATES = 1 << 18


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention, output projection, dropout, residual, LayerNorm."""

    def __init__(self, n_heads: int, hidden: int, hidden_dropout: float, attention_dropout: float, eps: float) -> None:
        super().__init__()
        if hidden % n_heads:
            raise ValueError(f"hidden size {hidden} is no multiple of {n_heads} heads")
        self.n_heads = n_heads
        self.attention_dropout = attention_dropout
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.dense = nn.Linear(hidden, hidden)
        self.LayerNorm = nn.LayerNorm(hidden, eps=eps)
        self.out_dropout = Dropout(hidden_dropout)

    def forward(self, x_BLD: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Attend; `mask` (B, 1, L, L) is added to the logits."""
        B, L, D = x_BLD.shape

        def heads(x: torch.Tensor) -> torch.Tensor:
            return x.view(B, L, self.n_heads, D // self.n_heads).transpose(1, 2)

        mixed = attention(
            heads(self.query(x_BLD)),
            heads(self.key(x_BLD)),
            heads(self.value(x_BLD)),
            mask,
            self.attention_dropout if self.training else 0.0,
        )
        mixed = self.dense(mixed.transpose(1, 2).reshape(B, L, D))
        return self.LayerNorm(self.out_dropout(mixed) + x_BLD)


class FeedForward(nn.Module):
    """Two linear layers with GELU (erf form), dropout, residual, LayerNorm."""

    def __init__(self, hidden: int, inner: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.dense_1 = nn.Linear(hidden, inner)
        self.dense_2 = nn.Linear(inner, hidden)
        self.LayerNorm = nn.LayerNorm(hidden, eps=eps)
        self.dropout = Dropout(dropout)

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.dropout(self.dense_2(F.gelu(self.dense_1(x_BLD)))) + x_BLD)


class Sizes(Protocol):
    """What the encoder takes from a model's configuration."""

    @property
    def n_layers(self) -> int: ...
    @property
    def n_heads(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def inner_size(self) -> int: ...
    @property
    def hidden_dropout(self) -> float: ...
    @property
    def attention_dropout(self) -> float: ...
    @property
    def layer_norm_eps(self) -> float: ...


class TransformerLayer(nn.Module):
    """Attention and feed-forward block."""

    def __init__(self, c: Sizes) -> None:
        super().__init__()
        self.multi_head_attention = MultiHeadAttention(
            c.n_heads, c.hidden_size, c.hidden_dropout, c.attention_dropout, c.layer_norm_eps
        )
        self.feed_forward = FeedForward(c.hidden_size, c.inner_size, c.hidden_dropout, c.layer_norm_eps)

    def forward(self, x_BLD: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.feed_forward(self.multi_head_attention(x_BLD, mask))


class TransformerEncoder(nn.Module):
    """A stack of layers, of the sizes in a model's configuration."""

    def __init__(self, config: Sizes) -> None:
        super().__init__()
        self.layer = nn.ModuleList(TransformerLayer(config) for _ in range(config.n_layers))

    def forward(self, x_BLD: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        for layer in self.layer:
            x_BLD = layer(x_BLD, mask)
        return x_BLD


class SequenceModel(Protocol):
    """What the models that read packed sequences have in common."""

    training: bool
    position_embedding: nn.Embedding
    LayerNorm: nn.LayerNorm
    dropout: Dropout
    trm_encoder: TransformerEncoder


def hidden_states(model: SequenceModel, x_PWD: torch.Tensor, packed: Packed, *, causal: bool = True) -> torch.Tensor:
    """(P, W, D) the encoder's states of the packed sequences, from the (P, W, D) vectors of their items."""

    def encode(x_PWD: torch.Tensor, positions: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
        x_PWD = model.dropout(model.LayerNorm(x_PWD + model.position_embedding(positions)))
        states: torch.Tensor = model.trm_encoder(x_PWD, packed_mask(segments, causal=causal))
        return states

    return in_parts(encode, x_PWD, packed.positions, packed.segments, training=model.training)


def in_parts(
    encode: Callable[..., torch.Tensor], x_PWD: torch.Tensor, *rows: torch.Tensor, training: bool
) -> torch.Tensor:
    """(P, W, D) `encode(x_PWD, *rows)`; of exceptionally many positions in parts, computed anew for the gradient.

    While training on a CPU; what an accelerator holds of them is small beside its memory.

    Args:
        encode: treats every row by itself.
        x_PWD: embeddings: a table's gradient, which has the size of the table, is then computed once.
        rows: (P, W, ...) what else it takes.
        training: whether gradients will be asked for.
    """
    if not training or x_PWD.device.type != "cpu" or x_PWD.numel() <= MOST_STATES:
        return encode(x_PWD, *rows)
    step = max(1, PART_STATES // x_PWD[0].numel())
    parts = zip(*(torch.split(tensor, step) for tensor in (x_PWD, *rows)), strict=True)
    return torch.cat([recomputed(encode, *part) for part in parts])


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, dropout_p: float = 0.0
) -> torch.Tensor:
    """(B, H, L, D / H) scaled dot-product attention of queries, keys and values of that shape.

    Args:
        mask: (B, 1, L, L) is added to the logits.
        dropout_p: share of the attention weights that are dropped.
    """
    mask = mask.to(query.dtype)
    if dropout_p == 0.0 or query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout_p)
    # On a CPU torch has no fused attention with dropout, and its own dropout costs as much as the two products.
    weights = torch.softmax(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + mask, dim=-1)
    return dropout(weights, dropout_p) @ value


def attention_mask(sequences: torch.Tensor, causal: bool, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """(B, 1, L, L) additive mask of (B, L) item sequences: padding is never a key, the future only if not `causal`."""
    length = sequences.shape[1]
    allowed = (sequences != 0)[:, None, None, :]
    if causal:
        allowed = allowed & torch.ones(length, length, dtype=torch.bool, device=sequences.device).tril()
    else:
        allowed = allowed.expand(-1, 1, length, -1)
    return torch.zeros(allowed.shape, dtype=dtype, device=sequences.device).masked_fill_(~allowed, MASKED)


def packed_mask(segments: torch.Tensor, dtype: torch.dtype = torch.float32, causal: bool = True) -> torch.Tensor:
    """(P, 1, W, W) additive mask of packed rows: a position attends to its own sequence, up to itself if `causal`."""
    width = segments.shape[1]
    allowed = segments[:, :, None] == segments[:, None, :]
    if causal:
        allowed &= torch.ones(width, width, dtype=torch.bool, device=segments.device).tril()
    return torch.zeros(allowed.shape, dtype=dtype, device=segments.device).masked_fill_(~allowed, MASKED)[:, None]


def initialise(module: nn.Module, std: float) -> None:
    """The published initialisation: weights N(0, std), LayerNorm one and zero, other biases zero."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            part.weight.data.normal_(mean=0.0, std=std)
        elif isinstance(part, nn.LayerNorm):
            part.bias.data.zero_()
            part.weight.data.fill_(1.0)
        if isinstance(part, nn.Linear) and part.bias is not None:
            part.bias.data.zero_()
