"""torch's Adam and recomputation as they are, without the compiler."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ckd.nn.uncompiled import Adam, recomputed


@pytest.mark.parametrize("settings", [{"fused": True}, {"weight_decay": 0.1}])
def test_steps_and_states_are_those_of_torch(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    other = copy.deepcopy(model)
    pair = [
        (model, Adam(model.parameters(), lr=0.1, **settings)),
        (other, torch.optim.Adam(other.parameters(), lr=0.1, **settings)),
    ]
    for step in range(4):
        x = torch.randn(5, 3)
        for i, (m, optimizer) in enumerate(pair):
            if step == 2:  # as when a run is resumed
                fresh = type(optimizer)(m.parameters(), lr=0.5, **settings)
                fresh.load_state_dict(optimizer.state_dict())
                pair[i] = m, fresh
                optimizer = fresh
            optimizer.zero_grad(set_to_none=True)
            assert all(p.grad is None for p in m.parameters())
            torch.autograd.backward(m(x).square().sum())
            optimizer.step()
        for found, expected in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(found, expected)
    states = [optimizer.state_dict() for _, optimizer in pair]
    torch.testing.assert_close(states[0]["state"], states[1]["state"], atol=0, rtol=0)
    assert states[0]["param_groups"] == states[1]["param_groups"]


@pytest.mark.parametrize("precision", ["float64", "bfloat16 under autocast"])
def test_recomputed_has_the_gradients_of_a_checkpoint(precision: str) -> None:
    under_autocast = precision != "float64"
    dtype = torch.float32 if under_autocast else torch.float64
    torch.manual_seed(0)
    table = nn.Embedding(7, 4, dtype=dtype)
    layers = nn.Sequential(nn.Linear(4, 4, dtype=dtype), nn.Dropout(0.5), nn.LayerNorm(4, dtype=dtype))
    x = torch.randn(3, 4, dtype=dtype, requires_grad=True)
    ids = torch.tensor([1, 6, 1])
    leaves = [x, *table.parameters(), *layers.parameters()]

    def function(x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return layers(x + table(ids))  # type: ignore[no-any-return]

    def outcome(run: Any) -> list[torch.Tensor]:
        for leaf in leaves:
            leaf.grad = None
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=under_autocast):
            given = run(function, x, ids)
        drawn = torch.rand(2)  # between forward and backward
        torch.autograd.backward((given * torch.arange(4)).sum())
        found = [given.detach(), drawn, torch.rand(2), *(leaf.grad for leaf in leaves if leaf.grad is not None)]
        assert len(found) == 3 + len(leaves)
        return found

    expected = outcome(lambda *given: checkpoint(*given, use_reentrant=False))
    for ours, theirs in zip(outcome(recomputed), expected, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs)


def test_of_ids_alone_leaves_get_gradients() -> None:
    table = nn.Embedding(5, 2)
    torch.autograd.backward(recomputed(table, torch.tensor([1, 1, 3])).sum())
    assert table.weight.grad is not None
    assert table.weight.grad[:, 0].tolist() == [0, 2, 0, 1, 0]


def test_nothing_here_loads_the_compiler() -> None:
    script = """
import sys
import torch
from torch import nn
from ckd.nn.uncompiled import Adam, recomputed
layer = nn.Linear(2, 2)
optimizer = Adam(layer.parameters(), fused=True)
optimizer.zero_grad(set_to_none=True)
recomputed(layer, torch.ones(3, 2)).sum().backward()
nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"
