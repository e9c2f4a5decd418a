"""The mixture-of-experts adaptor of UniSRec (Hou et al., KDD 2022, section 2.1.2): text vectors into the model's space.

Shapes: N rows, P size of the text encoder's vectors, D hidden size, E experts. Parameter names are the published ones.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ckd.nn.dropout import dropout

#: Least standard deviation of the gate noise while training.
NOISE_FLOOR = 1e-2

#: Rows adapted at a time where no gradient is needed, so that a catalogue of any size passes in bounded memory.
BLOCK_ROWS = 1 << 16


class WhiteningExpert(nn.Module):
    """Parametric whitening, Eq. (1): (x - b) W, the bias taken off before the projection."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(size))
        self.lin = nn.Linear(size, hidden, bias=False)

    def forward(self, x_NP: torch.Tensor) -> torch.Tensor:
        # (x - b) W = x W - b W: the bias costs one product of a vector, and none of the size of x.
        weight = self.lin.weight
        return F.linear(x_NP, weight, -(weight @ self.bias))


class MoEAdaptor(nn.Module):
    """A gate-weighted sum of all experts, Eqs. (2) to (4).

    Args:
        size: P.
        hidden: D.
        n_experts: E.
        dropout: of the experts' inputs, drawn for each expert anew.

    Gates and biases start at zero, so that all experts weigh the same; the experts' weights are left to the model's
    own initialisation.
    """

    def __init__(self, size: int, hidden: int, n_experts: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.w_gate = nn.Parameter(torch.zeros(size, n_experts))
        self.w_noise = nn.Parameter(torch.zeros(size, n_experts))
        self.experts = nn.ModuleList(WhiteningExpert(size, hidden) for _ in range(n_experts))

    def gates(self, x_NP: torch.Tensor) -> torch.Tensor:
        """(N, E) weights of the experts, summing to 1; noisy while training (Eq. 4)."""
        logits = x_NP @ self.w_gate
        if self.training:
            spread = F.softplus(x_NP @ self.w_noise) + NOISE_FLOOR
            logits = logits + torch.randn_like(logits) * spread
        return logits.softmax(dim=-1)

    def forward(self, x_NP: torch.Tensor) -> torch.Tensor:
        """(N, D) adapted vectors.

        Expert by expert: a block of inputs stays in the cache, and as the text vectors take no gradient, the backward
        pass is one product an expert.
        """
        if len(x_NP) > BLOCK_ROWS and not torch.is_grad_enabled():
            return torch.cat([self(block) for block in torch.split(x_NP, BLOCK_ROWS)])
        gates = self.gates(x_NP)
        total = None
        for number, expert in enumerate(self.experts):
            part = expert(dropout(x_NP, self.dropout, self.training)) * gates[:, number : number + 1]
            total = part if total is None else total + part
        assert total is not None
        return total
