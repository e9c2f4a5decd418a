"""The two-domain model that RecGURU trains: one encoder, and per domain an item table and two decoders."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from ckd.baselines.recguru_parts.layers import Decoder, Encoder, Sizes, sinusoids
from ckd.baselines.recguru_parts.losses import mean_bpr_loss, products, sampled_softmax_loss
from ckd.baselines.recguru_parts.sequences import Sequences

Side = Literal["a", "b"]
SIDES: tuple[Side, ...] = ("a", "b")


class RecGURUPair(nn.Module):
    """Both domains' models around the shared encoder; parameter names are those of the published checkpoints.

    Two habits of the published program are kept, because its numbers depend on them: the encoder hides keys that are
    end marks rather than padding (which is zero anyway), and in the two losses it runs under the outputs' mask, which
    blanks the first item. In the recommendation loss the decoder's output under a blank input is zero, so that the
    first item adds log 2 and no gradient.

    Args:
        config: sizes.
        vocab_a, vocab_b: the number of the end mark in each domain, one more than its items.
        width: L, positions of a sequence.
    """

    positions: torch.Tensor

    def __init__(self, config: Sizes, vocab_a: int, vocab_b: int, width: int) -> None:
        super().__init__()
        self.marks = {"a": vocab_a, "b": vocab_b}
        self.register_buffer("positions", sinusoids(width, config.d_model), persistent=False)
        self.encoder = Encoder(config)
        for side in SIDES:
            self.add_module(f"src_emb_{side}", nn.Embedding(self.marks[side] + 1, config.d_model))
            self.add_module(f"decoder_{side}", Decoder(config))
            self.add_module(f"recommend_{side}", Decoder(config))
        draw_tables(self)

    def table(self, side: Side) -> torch.Tensor:
        """(items + 2, D) the domain's item vectors, padding first and the end mark last."""
        embedding = self.get_submodule(f"src_emb_{side}")
        assert isinstance(embedding, nn.Embedding)
        return embedding.weight

    def states(self, side: Side, sequences: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, L, D) the encoder's output; the last position is the user vector.

        Args:
            sequences: (B, L) items and end mark.
            mask: (B, L) zero at what counts as padding; none: the sequences themselves.
        """
        table = self.table(side)
        return encode(self.encoder, self._embed(table, sequences), sequences, mask, self.marks[side])

    def users(self, side: Side, sequences: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, D) user vectors."""
        return self.states(side, sequences, mask)[:, -1]

    def reconstruct(self, side: Side, batch: Sequences, users: torch.Tensor) -> torch.Tensor:
        """(B, L, D) the reconstruction decoder's output."""
        return self._decode("decoder", side, batch.inputs, batch.encoder, users)

    def recommend(self, side: Side, batch: Sequences, users: torch.Tensor) -> torch.Tensor:
        """(B, L, D) the recommendation decoder's output, which no gradient leaves for the encoder."""
        return self._decode("recommend", side, batch.inputs, batch.inputs, users.detach())

    def reconstruction_loss(self, side: Side, batch: Sequences, negatives: torch.Tensor) -> torch.Tensor:
        """Sampled softmax over each position's item and its negatives (B, L, N)."""
        decoded = self.reconstruct(side, batch, self.users(side, batch.encoder, batch.outputs))
        # Most of a batch is padding: item vectors are looked up where something is predicted alone.
        valid = batch.outputs != 0
        items = torch.cat([batch.outputs[valid][:, None], negatives[valid]], dim=1)
        return sampled_softmax_loss(products(decoded[valid], self.table(side)[items]))

    def recommendation_loss(self, side: Side, batch: Sequences, negatives: torch.Tensor) -> torch.Tensor:
        """BPR against the mean of each position's negatives (B, L, N)."""
        decoded = self.recommend(side, batch, self.users(side, batch.encoder, batch.outputs))
        valid = batch.outputs != 0
        items = torch.cat([batch.outputs[valid][:, None], negatives[valid]], dim=1)
        scores = products(decoded[valid], self.table(side)[items])
        return mean_bpr_loss(scores[:, 0], scores[:, 1:])

    def _embed(self, table: torch.Tensor, sequences: torch.Tensor) -> torch.Tensor:
        return table[sequences] + self.positions

    def _decode(
        self, kind: str, side: Side, inputs: torch.Tensor, mask: torch.Tensor, users: torch.Tensor
    ) -> torch.Tensor:
        decoder = self.get_submodule(f"{kind}_{side}")
        assert isinstance(decoder, Decoder)
        return decode(decoder, self._embed(self.table(side), inputs), inputs, mask, users)


def draw_tables(model: nn.Module) -> None:
    """Draw item tables anew, N(0, 1 / D): of N(0, 1), torch's own, products are in the hundreds. Inferred."""
    for part in model.modules():
        if isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=part.embedding_dim**-0.5)


def encode(
    encoder: Encoder, embedded: torch.Tensor, sequences: torch.Tensor, mask: torch.Tensor | None, mark: int
) -> torch.Tensor:
    """(B, L, D) the encoder's output for embedded (B, L, D) `sequences` (B, L), blank where `mask` is zero."""
    keep = ((sequences if mask is None else mask) != 0)[..., None].to(embedded.dtype)
    return encoder(embedded, keep, (sequences == mark)[:, None, None, :])


def decode(
    decoder: Decoder, embedded: torch.Tensor, inputs: torch.Tensor, mask: torch.Tensor, users: torch.Tensor
) -> torch.Tensor:
    """(B, L, D) a decoder's output for embedded `inputs` (B, L): no padding and nothing later is read."""
    length = inputs.shape[1]
    later = torch.ones(length, length, dtype=torch.bool, device=inputs.device).triu(1)
    hidden = later | (inputs == 0)[:, None, None, :]
    return decoder(embedded, users, (mask != 0)[..., None].to(embedded.dtype), hidden)
