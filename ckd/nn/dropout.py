"""Dropout that is cheap on a CPU.

torch's own draws one Bernoulli number an element there, which costs more than the products around it. Sixteen random
bits an element are enough: four elements share one draw of the generator.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

#: Drop probabilities are rounded to a multiple of one over this; the rescaling uses the rounded one, so it is exact.
STEPS = 1 << 16


def dropout(x: torch.Tensor, p: float, training: bool = True) -> torch.Tensor:
    """`x` with each element zero with probability `p` and the others scaled by 1 / (1 - p), while `training`.

    Draws from torch's default generator; on the CPU the draw does not depend on the number of threads.
    """
    if not 0.0 <= p < 1.0:
        raise ValueError(f"dropout probability {p} is not in [0, 1)")
    if not training or p == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    dropped = min(round(p * STEPS), STEPS - 1)
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    bits = draws.view(torch.int16)[: x.numel()].view(x.shape)
    keep = (bits >= dropped - STEPS // 2).to(x.dtype)
    return x * keep.mul_(STEPS / (STEPS - dropped))


class Dropout(nn.Module):
    """`dropout` as a module, in place of `nn.Dropout`."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"
