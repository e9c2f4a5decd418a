"""Which layers of a deeper model to keep."""

from __future__ import annotations

import re

import torch

_LAYER = re.compile(r"(.*\bencoder\.layer\.)(\d+)(\..*)")


def kept_layers(depth: int, count: int | None) -> list[int]:
    """The layers to keep of `depth`: all, or the lowest `count - 1` and the top one.

    The top layer is what turns hidden states into the first token's vector. Of a six-layer sentence encoder cut to
    three, the lowest two with the top one rank unseen items several times better than the lowest three.
    """
    return list(range(depth)) if count is None else [*range(count - 1), depth - 1]


def cut_layers(tensors: dict[str, torch.Tensor], kept: list[int]) -> dict[str, torch.Tensor]:
    """The tensors without the layers that are not kept; those that are, numbered anew."""
    number = {old: new for new, old in enumerate(kept)}
    result = {}
    for name, tensor in tensors.items():
        found = _LAYER.fullmatch(name)
        if found is None:
            result[name] = tensor
        elif int(found[2]) in number:
            result[f"{found[1]}{number[int(found[2])]}{found[3]}"] = tensor
    return result


def layer_of(name: str) -> int:
    """The number of the layer that a tensor belongs to, -1 for none."""
    found = _LAYER.fullmatch(name)
    return -1 if found is None else int(found[2])
