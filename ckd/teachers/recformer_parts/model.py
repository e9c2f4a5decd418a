"""Recformer's network: four embeddings under the Longformer encoder of transformers (Recformer section 3.2).

The parameters are those of transformers' own modules, under the names of the published checkpoints. The forward pass
computes the same attention with less work; `tests/teachers/test_recformer_golden.py` holds it to the recorded numbers,
and to transformers' own forward pass:

- Sequences shorter than a few windows attend densely under a mask, longer ones block by block, both through PyTorch's
  fused attention; transformers pads every sequence to a multiple of the window and slides in chunks.
- Only the first token is global. Its query is folded into the key projection, and its attention averages hidden
  states before they are projected, so that the global keys and values of all other tokens are never formed.
- Where only the first token's vector is wanted, the last layer computes nothing else.

Legend: B sequences, L tokens, D hidden size, H heads, E size of a head, C block size, N blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn
from torch.nn import functional as F
from transformers import LongformerConfig
from transformers.models.longformer.modeling_longformer import LongformerEncoder, LongformerLMHead

from ckd.teachers.recformer_parts.tokenise import N_TOKEN_TYPES, SpecialTokens, TokenBatch

#: Dense attention up to this many windows; beyond, forming blocks pays for itself.
DENSE_WINDOWS = 4


class Architecture(BaseModel):
    """All that the network's shape depends on.

    Attributes:
        windows: width of the attention window of each layer, in tokens, even; half lies on each side.
        max_positions: rows of the position table, those below the first position included.
        max_item_positions: rows of the item position table: most items of a sequence and one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocab_size: int
    hidden_size: int
    n_layers: int
    n_heads: int
    inner_size: int
    activation: str
    hidden_dropout: float
    attention_dropout: float
    layer_norm_eps: float
    initializer_range: float
    windows: tuple[int, ...]
    max_positions: int
    max_item_positions: int
    first_token: int
    pad_token: int
    mask_token: int

    @property
    def special(self) -> SpecialTokens:
        return SpecialTokens(self.first_token, self.pad_token, self.mask_token)

    def longformer(self) -> LongformerConfig:
        """The configuration of transformers' Longformer of this shape."""
        return LongformerConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.n_layers,
            num_attention_heads=self.n_heads,
            intermediate_size=self.inner_size,
            hidden_act=self.activation,
            hidden_dropout_prob=self.hidden_dropout,
            attention_probs_dropout_prob=self.attention_dropout,
            layer_norm_eps=self.layer_norm_eps,
            initializer_range=self.initializer_range,
            attention_window=list(self.windows),
            max_position_embeddings=self.max_positions,
            type_vocab_size=N_TOKEN_TYPES,
            bos_token_id=self.first_token,
            pad_token_id=self.pad_token,
        )


class Embeddings(nn.Module):
    """Word, position, token type and item position embeddings, summed; LayerNorm; dropout."""

    def __init__(self, shape: Architecture) -> None:
        super().__init__()
        size, self.pad = shape.hidden_size, shape.pad_token
        self.word_embeddings = nn.Embedding(shape.vocab_size, size, padding_idx=self.pad)
        self.position_embeddings = nn.Embedding(shape.max_positions, size, padding_idx=self.pad)
        self.token_type_embeddings = nn.Embedding(N_TOKEN_TYPES, size)
        self.item_position_embeddings = nn.Embedding(shape.max_item_positions, size)
        self.LayerNorm = nn.LayerNorm(size, eps=shape.layer_norm_eps)
        self.dropout = nn.Dropout(shape.hidden_dropout)

    def positions(self, tokens: TokenBatch) -> torch.Tensor:
        """(B, L) position ids: the first token's is one past the padding's."""
        steps = torch.arange(1, tokens.ids.shape[1] + 1, device=tokens.ids.device)
        return self.pad + steps * tokens.mask

    def forward(self, tokens: TokenBatch) -> torch.Tensor:
        x = self.word_embeddings(tokens.ids) + self.position_embeddings(self.positions(tokens))
        x = x + self.token_type_embeddings(tokens.types) + self.item_position_embeddings(tokens.items)
        return self.dropout(self.LayerNorm(x))


class Longformer(nn.Module):
    """Embeddings and encoder; `forward` gives hidden states, `pooled` those of the first tokens alone."""

    def __init__(self, shape: Architecture) -> None:
        super().__init__()
        self.shape = shape
        self.embeddings = Embeddings(shape)
        self.encoder = LongformerEncoder(shape.longformer())

    def states(self, tokens: TokenBatch, n_layers: int | None = None) -> Iterator[torch.Tensor]:
        """(B, L, D) after the embeddings and after each of the first `n_layers` layers (all by default).

        What stands at padding is undefined.
        """
        x = self.embeddings(tokens)
        yield x
        local = LocalAttention(tokens)
        for layer in self.encoder.layer[:n_layers]:
            attention = layer.attention.self
            mixed = torch.cat([global_attention(attention, x, tokens)[:, None], local(attention, x)[:, 1:]], dim=1)
            x = _finish_layer(layer, mixed, x)
            yield x

    def forward(self, tokens: TokenBatch) -> torch.Tensor:
        """(B, L, D) the last hidden states."""
        *_, last = self.states(tokens)
        return last

    def pooled(self, tokens: TokenBatch) -> torch.Tensor:
        """(B, D) the last hidden state of each first token: `forward(tokens)[:, 0]` at less cost."""
        *_, x = self.states(tokens, len(self.encoder.layer) - 1)
        layer = self.encoder.layer[-1]
        mixed = global_attention(layer.attention.self, x, tokens)
        return _finish_layer(layer, mixed[:, None], x[:, :1])[:, 0]


def _finish_layer(layer: Any, mixed: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """What follows attention: output projection, feed-forward, each with residual and LayerNorm."""
    x = layer.attention.output(mixed, x)
    return layer.output(layer.intermediate(x), x)


def global_attention(attention: Any, x_BLD: torch.Tensor, tokens: TokenBatch) -> torch.Tensor:
    """(B, D) what the first token takes from all tokens, through the global projections.

    q.(W h + b) = (W^T q).h + q.b and sum p (W h + b) = W (sum p h) + (sum p) b, head by head.
    """
    H, E = attention.num_heads, attention.head_dim
    B, _, D = x_BLD.shape
    query = attention.query_global(x_BLD[:, 0]).view(B, H, E) / math.sqrt(E)
    folded = torch.einsum("bhe,hed->bhd", query, attention.key_global.weight.view(H, E, D))
    constant = (query * attention.key_global.bias.view(H, E)).sum(-1, keepdim=True)
    logits = torch.einsum("bhd,bld->bhl", folded, x_BLD) + constant
    logits = logits.masked_fill(~tokens.mask[:, None], -math.inf)
    weights = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32)).to(logits.dtype)
    weights = F.dropout(weights, attention.dropout, attention.training)
    mean = torch.einsum("bhl,bld->bhd", weights, x_BLD)
    mixed = torch.einsum("bhd,hed->bhe", mean, attention.value_global.weight.view(H, E, D))
    mixed = mixed + weights.sum(-1, keepdim=True) * attention.value_global.bias.view(H, E)
    return mixed.reshape(B, D)


class LocalAttention:
    """Sliding-window attention of one batch: a token sees half a window on either side, and the first token.

    The first token's own row is the dense or blockwise one and is to be replaced by `global_attention`.
    """

    def __init__(self, tokens: TokenBatch) -> None:
        self.tokens = tokens
        self.length = tokens.ids.shape[1]
        self.masks: dict[int, torch.Tensor] = {}

    def __call__(self, attention: Any, x_BLD: torch.Tensor) -> torch.Tensor:
        """(B, L, D) through the local projections."""
        B, L, D = x_BLD.shape
        H, E, side = attention.num_heads, attention.head_dim, attention.one_sided_attn_window_size
        query, key, value = (
            project(x_BLD).view(B, L, H, E) for project in (attention.query, attention.key, attention.value)
        )
        dense = 2 * side * DENSE_WINDOWS >= L
        if side not in self.masks:
            self.masks[side] = self.dense_mask(side) if dense else self.block_mask(side)
        if not dense:
            query, key, value = _blocks(query, key, value, side=side)
        mixed = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=self.masks[side],
            dropout_p=attention.dropout if attention.training else 0.0,
        )
        return mixed.transpose(1, 2).reshape(B, -1, D)[:, :L]

    def dense_mask(self, side: int) -> torch.Tensor:
        """(B, 1, L, L) bool, True where the query may see the key."""
        at = torch.arange(self.length, device=self.tokens.ids.device)
        seen = ((at[:, None] - at).abs() <= side) | (at == 0)
        return (seen & self.tokens.mask[:, None])[:, None]

    def block_mask(self, side: int) -> torch.Tensor:
        """(B * N, 1, C, 1 + C + 2 side) bool: the first token, then the keys from `side` before to `side` after."""
        size = 2 * side
        device = self.tokens.ids.device
        blocks = torch.arange(math.ceil(self.length / size), device=device)
        query = torch.arange(size, device=device)
        key = torch.arange(-side, size + side, device=device)
        near = (query[:, None] - key).abs() <= side
        place = blocks[:, None] * size + key
        real = (place > 0) & (place < self.tokens.lengths[:, None, None])
        mask = real[:, :, None] & near
        return F.pad(mask, (1, 0), value=True).flatten(0, 1)[:, None]


def _blocks(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, side: int) -> list[torch.Tensor]:
    """(B * N, C, H, E) queries and (B * N, 1 + C + 2 side, H, E) keys and values, the first token leading each."""
    size = 2 * side
    B, L, H, E = query.shape
    n_blocks = math.ceil(L / size)
    extra = n_blocks * size - L
    result = [F.pad(query, (0, 0, 0, 0, 0, extra)).reshape(B * n_blocks, size, H, E)]
    for part in (key, value):
        near = F.pad(part, (0, 0, 0, 0, side, side + extra)).unfold(1, 2 * size, size).permute(0, 1, 4, 2, 3)
        first = part[:, :1, None].expand(B, n_blocks, 1, H, E)
        result.append(torch.cat([first.reshape(B, n_blocks, 1, H, E), near], dim=2).flatten(0, 1))
    return result


class PretrainingModel(nn.Module):
    """The network with the head that predicts masked tokens; names are those of the published checkpoints."""

    def __init__(self, shape: Architecture) -> None:
        super().__init__()
        self.longformer = Longformer(shape)
        self.lm_head = LongformerLMHead(shape.longformer())
        # A second name for the decoder's bias, which the forward pass does not read.
        self.lm_head.bias = None
