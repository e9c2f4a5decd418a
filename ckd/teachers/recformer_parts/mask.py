"""Whole words masked for prediction (Recformer section 3.3.1; BERT's 80/10/10).

Shapes: B sequences, L tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from ckd.teachers.recformer_parts.losses import IGNORED
from ckd.teachers.recformer_parts.tokenise import Ints, TokenBatch

#: Of the chosen tokens, this share becomes the mask, and this share any token; the rest stays as it is.
MASKED, RANDOM = 0.8, 0.1


def mask_words(
    tokens: TokenBatch,
    starts: npt.NDArray[np.bool_],
    mask_token: int,
    probability: float,
    generator: np.random.Generator,
) -> tuple[TokenBatch, torch.Tensor]:
    """Masked copy of `tokens`, and the (B, L) labels: the original id of chosen tokens, `IGNORED` elsewhere.

    In every sequence words are chosen in random order as long as they fit into `probability` of its tokens. A
    sequence with any text has at least one chosen token, the first token and padding are never chosen. The name and
    the value of an attribute each begin a new word.

    Args:
        tokens: on the CPU.
        starts: (V,) whether a token begins a word.
    """
    ids, lengths = tokens.ids.numpy(), tokens.lengths.numpy()
    begins = starts[ids]
    for parts in (tokens.types.numpy(), tokens.items.numpy()):
        begins[:, 1:] |= parts[:, 1:] != parts[:, :-1]
    chosen = np.zeros(ids.shape, dtype=np.bool_)
    for row, length in enumerate(lengths):
        for low, high in _draw(begins[row, :length], probability, generator):
            chosen[row, low:high] = True
    draw = generator.random(ids.shape)
    masked = np.where(chosen & (draw < MASKED), mask_token, ids)
    swapped = chosen & (draw >= MASKED) & (draw < MASKED + RANDOM)
    masked = np.where(swapped, generator.integers(len(starts), size=ids.shape), masked)
    return replace(tokens, ids=torch.from_numpy(masked)), torch.from_numpy(np.where(chosen, ids, IGNORED))


def _draw(begins: npt.NDArray[np.bool_], probability: float, generator: np.random.Generator) -> Iterator[Ints]:
    """The chosen words of one sequence, as pairs of first position and one past the last."""
    length = len(begins)
    if length < 2:
        return
    # Position 0 is the first token; what follows begins a word even where the vocabulary says otherwise.
    inner = np.flatnonzero(begins[2:]) + 2
    words = np.stack([np.r_[1, inner], np.r_[inner, length]], axis=1)
    room = max(1, round(length * probability))
    order = generator.permutation(len(words))
    taken = 0
    for low, high in words[order]:
        if taken + high - low <= room:
            taken += high - low
            yield np.array([low, high])
        if taken == room:
            return
    if not taken:
        # Every word is longer than what may be masked: the shortest one it is.
        yield words[np.argmin(words[:, 1] - words[:, 0])]
