"""The key layout of published checkpoints: what the shapes tell about the sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from ckd.teachers.unisrec_parts.config import UniSRecSizes

_LAYER = re.compile(r"trm_encoder\.layer\.(\d+)\.")
_EXPERT = re.compile(r"moe_adaptor\.experts\.(\d+)\.")


def infer_sizes(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, Any], int, int]:
    """Sizes of the model, of the text vectors, and the longest history, as the shapes have them.

    A size whose tensor is missing or of the wrong rank gets its default: comparing key by key then names that tensor.
    """
    defaults = UniSRecSizes()

    def size(key: str, axis: int, rank: int, default: int) -> int:
        tensor = tensors.get(key)
        return tensor.shape[axis] if tensor is not None and tensor.ndim == rank and tensor.numel() else default

    def count(pattern: re.Pattern[str], default: int) -> int:
        numbers = [int(match[1]) for key in tensors if (match := pattern.match(key))]
        return max(numbers) + 1 if numbers else default

    hidden = size("LayerNorm.weight", 0, 1, defaults.hidden_size)
    sizes = {
        "hidden_size": hidden,
        "inner_size": size("trm_encoder.layer.0.feed_forward.dense_1.weight", 0, 2, defaults.inner_size),
        "n_layers": count(_LAYER, defaults.n_layers),
        "n_experts": count(_EXPERT, defaults.n_experts),
    }
    return sizes, size("moe_adaptor.w_gate", 0, 2, 768), size("position_embedding.weight", 0, 2, 50)
