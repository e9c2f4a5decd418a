"""The parts below UniSRec: adaptor, dropout, frozen table, remembered tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ckd.nn.dropout import Dropout, dropout
from ckd.nn.evaluating import evaluating
from ckd.nn.frozen import FrozenTable
from ckd.nn.moe_adaptor import NOISE_FLOOR, MoEAdaptor
from ckd.nn.remembered import Remembered

# --- dropout -------------------------------------------------------------------------------------------------------


@given(st.integers(0, 40), st.floats(0, 0.99), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_dropout_keeps_scaled_or_zeroes(n: int, p: float, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.arange(1, n + 1, dtype=torch.double).view(n, 1)
    found = dropout(x, p) / x
    kept = 1 / (1 - round(p * 65536) / 65536)
    assert all(value == 0 or abs(value - kept) < 1e-12 * kept for value in found.flatten().tolist())


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.9])
def test_dropout_drops_its_share_independently_and_keeps_the_mean(p: float) -> None:
    torch.manual_seed(0)
    kept = dropout(torch.ones(400, 1000), p)
    n = kept.numel()
    spread = (p * (1 - p) / n) ** 0.5
    assert abs(float((kept == 0).double().mean()) - p) < 5 * spread
    assert abs(float(kept.double().mean()) - 1) < 5 * spread / (1 - p)
    # Four neighbours share one draw of the generator: they must not be alike all the same.
    zero = (kept == 0).double().flatten() - p
    for lag in (1, 2, 3, 4):
        assert abs(float((zero[:-lag] * zero[lag:]).mean())) < 5 * p * (1 - p) / n**0.5


def test_dropout_passes_the_gradient_of_what_it_keeps() -> None:
    torch.manual_seed(0)
    x = torch.ones(50, 7, requires_grad=True)
    found = dropout(x, 0.4)
    found.sum().backward()
    assert torch.equal(x.grad, found.detach())


def test_dropout_is_seeded_fresh_each_time_and_off_in_evaluation() -> None:
    module, x = Dropout(0.5), torch.ones(100)
    torch.manual_seed(1)
    first, second = module(x), module(x)
    torch.manual_seed(1)
    assert torch.equal(module(x), first)
    assert not torch.equal(first, second)
    assert module.eval()(x) is x
    assert Dropout(0.0)(x) is x
    assert "p=0.5" in repr(module)


@pytest.mark.parametrize("p", [-0.1, 1.0, 2.0])
def test_dropout_refuses_what_is_no_probability(p: float) -> None:
    with pytest.raises(ValueError, match="not in"):
        dropout(torch.ones(3), p)


# --- adaptor -------------------------------------------------------------------------------------------------------


def randomised(size: int = 6, hidden: int = 5, experts: int = 3, p: float = 0.0) -> MoEAdaptor:
    torch.manual_seed(0)
    adaptor = MoEAdaptor(size, hidden, experts, p).double()
    for parameter in adaptor.parameters():
        nn.init.normal_(parameter)
    return adaptor


def test_adaptor_is_the_gated_sum_of_whitened_projections() -> None:
    adaptor = randomised().eval()
    x = torch.randn(9, 6, dtype=torch.double)
    gates = torch.softmax(x @ adaptor.w_gate, dim=1)
    expected = sum(gates[:, e, None] * ((x - m.bias) @ m.lin.weight.T) for e, m in enumerate(adaptor.experts))
    torch.testing.assert_close(adaptor(x), expected)


def test_adaptor_gates_start_uniform_and_are_noisy_only_while_training() -> None:
    adaptor, x = MoEAdaptor(6, 5, 4, 0.2), torch.randn(2000, 6)
    adaptor.eval()
    torch.testing.assert_close(adaptor.gates(x), torch.full((2000, 4), 0.25))
    adaptor.train()
    torch.manual_seed(0)
    logs = adaptor.gates(x).log()
    # Differences of two experts' logits: the gates' noise of standard deviation softplus(0) plus the floor, twice.
    spread = (logs[:, 0] - logs[:, 1]).std()
    expected = 2**0.5 * (torch.log(torch.tensor(2.0)) + NOISE_FLOOR)
    torch.testing.assert_close(spread, expected, rtol=0.06, atol=0)
    torch.testing.assert_close(adaptor.gates(x).sum(dim=1), torch.ones(2000))


def test_adaptor_experts_draw_their_own_dropout() -> None:
    adaptor = randomised(p=0.5)
    weight = adaptor.experts[0].lin.weight.detach().clone()
    with torch.no_grad():
        for expert in adaptor.experts:
            expert.lin.weight.copy_(weight)
            expert.bias.zero_()
        adaptor.w_gate.zero_()
        adaptor.w_noise.fill_(-1e9)
    # Gates all but uniform, experts alike: with one mask for all, each value would be about 0 or 6.
    x = torch.eye(6, dtype=torch.double)[:1].expand(200, 6)
    found = adaptor(x) / (weight[:, 0] / 3)
    assert {round(value) for value in found[:, 0].tolist()} == {0, 2, 4, 6}


# --- small parts ---------------------------------------------------------------------------------------------------


def test_frozen_table_is_read_and_never_stored() -> None:
    table = FrozenTable(torch.arange(6.0).view(3, 2))
    assert table(torch.tensor([[2, 0]])).tolist() == [[[4, 5], [0, 1]]]
    assert list(table.parameters()) == []
    assert table.state_dict() == {}
    table.load_state_dict({})
    table.load_state_dict({"weight": torch.ones(3, 2)})
    assert bool((table.weight == 1).all())


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_restores_the_mode_even_after_an_error(training: bool) -> None:
    model = nn.Linear(2, 2).train(training)
    with evaluating(model):
        assert not model.training
        assert not model(torch.ones(2)).requires_grad
    assert model.training is training
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert model.training is training
    assert torch.is_grad_enabled()


def test_remembered_computes_again_exactly_when_an_input_changes() -> None:
    calls: list[int] = []

    def compute() -> torch.Tensor:
        calls.append(1)
        return torch.zeros(1)

    remembered, weight, constant = Remembered(), torch.ones(3), torch.ones(4)

    def get(weights: Any = None, other: Any = None) -> int:
        remembered.get(weights or [weight], constant if other is None else other, compute)
        return len(calls)

    assert get() == 1
    assert get() == 1
    assert get([weight.clone()]) == 1, "the same content is the same"
    weight.data[0] = 2
    assert get() == 2, "changes past autograd are seen"
    assert get([weight, weight]) == 3
    assert get() == 4
    constant[0] = 5
    assert get() == 5
    assert get(other=constant.clone()) == 6, "a constant is compared by identity"
    assert get() == 7
    with torch.autocast("cpu", torch.bfloat16):
        assert get() == 8
    assert get([weight.double()]) == 9
    remembered.forget()
    assert get([weight.double()]) == 10
