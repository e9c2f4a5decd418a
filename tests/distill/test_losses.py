"""Losses against plain float64 formulas, their gradients and their identities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from ckd.distill.losses import (
    InBatchTarget,
    distillation_loss,
    full_softmax_loss,
    in_batch_cross_entropy,
    log_inclusion,
    masked_log_softmax,
    renormalise,
)
from ckd.distill.masks import in_batch_mask
from ckd.nn import chunks


def random_mask(size: int, generator: torch.Generator) -> torch.Tensor:
    mask = torch.rand(size, size, generator=generator) < 0.7
    return mask | torch.eye(size, dtype=torch.bool)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("pad_in_softmax", [True, False])
@pytest.mark.parametrize(("block", "chunk"), [(1, 1), (50, 1), (50, 25), (1 << 24, 40), (1 << 24, 1 << 18)])
def test_full_cross_entropy_equals_the_plain_one_with_gradients(
    pad_in_softmax: bool, block: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "BLOCK_ELEMENTS", block)
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", chunk)
    g = generator(1)
    encoded = torch.randn(7, 5, generator=g, dtype=torch.float64, requires_grad=True)
    table = torch.randn(11, 5, generator=g, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(1, 11, (7,), generator=g)
    logits = 3.0 * encoded @ table.T
    if not pad_in_softmax:
        logits = logits[:, 1:]
    expected = F.cross_entropy(logits, targets if pad_in_softmax else targets - 1)
    expected_grads = torch.autograd.grad(expected, [encoded, table])
    value, ce, _ = full_softmax_loss(encoded, table, targets, scale=3.0, pad_in_softmax=pad_in_softmax)
    assert ce == value
    grads = torch.autograd.grad(2.0 * value, [encoded, table])
    torch.testing.assert_close(value, expected, atol=1e-12, rtol=0)
    for grad, reference in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, 2.0 * reference, atol=1e-12, rtol=0)


@pytest.mark.parametrize("direction", ["student", "teacher"])
@pytest.mark.parametrize(("block", "chunk"), [(1, 1), (40, 1), (40, 22), (1 << 24, 40), (1 << 24, 1 << 18)])
def test_the_fused_loss_equals_its_two_parts_with_gradients(
    direction: str, block: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "BLOCK_ELEMENTS", block)
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", chunk)
    g = generator(7)
    encoded = torch.randn(8, 5, generator=g, dtype=torch.float64, requires_grad=True)
    table = torch.randn(11, 5, generator=g, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(1, 11, (8,), generator=g)
    mask = random_mask(8, g)
    log_q = torch.randn(8, 8, generator=g, dtype=torch.float64).masked_fill(~mask, -torch.inf).log_softmax(1)
    in_batch = 2.0 * encoded @ table[targets].T
    log_p = in_batch.masked_fill(~mask, -torch.inf).log_softmax(1)
    ce = F.cross_entropy(2.0 * encoded @ table.T, targets)
    kd = distillation_loss(log_p, log_q, direction=direction)
    expected = torch.autograd.grad(ce + 3.0 * kd, [encoded, table])
    loss, *parts = full_softmax_loss(
        encoded, table, targets, scale=2.0, distill=InBatchTarget(log_q, mask, 3.0, direction)
    )
    torch.testing.assert_close(torch.stack(parts), torch.stack([ce, kd]).detach(), atol=1e-12, rtol=0)
    torch.testing.assert_close(loss, ce + 3.0 * kd, atol=1e-12, rtol=0)
    for grad, reference in zip(torch.autograd.grad(loss, [encoded, table]), expected, strict=True):
        torch.testing.assert_close(grad, reference, atol=1e-12, rtol=0)


def test_full_cross_entropy_under_autocast_stays_close() -> None:
    g = generator(2)
    encoded, table = torch.randn(16, 32, generator=g), torch.randn(40, 32, generator=g) * 0.1
    targets = torch.randint(0, 40, (16,), generator=g)
    exact = full_softmax_loss(encoded, table, targets)[0]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = full_softmax_loss(encoded, table, targets)[0]
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, atol=2e-2, rtol=0)
    assert rounded != exact


def test_a_second_backward_pass_finds_what_the_first_found() -> None:
    encoded, table = torch.randn(3, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    loss = full_softmax_loss(encoded, table, torch.tensor([1, 2, 3]))[0]
    first = [grad.clone() for grad in torch.autograd.grad(loss, [encoded, table], retain_graph=True)]
    for factor in (3.0, 1.0):
        loss.backward(torch.tensor(factor), retain_graph=True)
    for parameter, grad in zip((encoded, table), first, strict=True):
        torch.testing.assert_close(parameter.grad, 4.0 * grad)


def test_full_cross_entropy_takes_no_gradient_of_a_frozen_table() -> None:
    encoded = torch.randn(3, 4, requires_grad=True)
    table = torch.randn(6, 4)
    full_softmax_loss(encoded, table, torch.tensor([1, 2, 3]))[0].backward()
    assert encoded.grad is not None
    assert table.grad is None


def test_in_batch_cross_entropy_counts_only_unmasked_columns() -> None:
    g = generator(3)
    logits = torch.randn(6, 6, generator=g, dtype=torch.float64)
    mask = random_mask(6, g)
    expected = torch.stack([logits[i][mask[i]].logsumexp(0) - logits[i, i] for i in range(6)]).mean()
    torch.testing.assert_close(in_batch_cross_entropy(logits, mask).double(), expected, atol=1e-6, rtol=0)


def test_with_the_logq_correction_batches_estimate_the_full_softmax() -> None:
    """The mean gradient over many batches, of a model that scores all items alike: 1 / n less the share of targets."""
    draw, n_items, size, rounds = np.random.default_rng(0), 200, 64, 3000
    share = 1.0 / np.arange(1, n_items + 1)
    share /= share.sum()
    pushed = torch.zeros(n_items, dtype=torch.float64)
    for _ in range(rounds):
        targets = torch.from_numpy(draw.choice(n_items, size, p=share))
        scores = torch.zeros(n_items, requires_grad=True)
        # Every row is a user of its own: a column counts once, and where it is the row's target, on the diagonal.
        mask = torch.from_numpy(in_batch_mask(np.arange(size), targets.numpy()))
        log_drawn = log_inclusion(torch.from_numpy(share)[targets])
        in_batch_cross_entropy(scores[targets].expand(size, size), mask, log_drawn=log_drawn).backward()
        assert scores.grad is not None
        pushed += scores.grad.double() / rounds
    # Of the full softmax every item has 1 / n_items; its share among targets pulls the other way.
    found = pushed + torch.from_numpy(share)
    assert float(found[:10].mean()) * n_items == pytest.approx(1, abs=0.1)
    assert float(found[-100:].mean()) * n_items == pytest.approx(1, abs=0.1)


def test_the_probability_of_being_drawn() -> None:
    share = torch.tensor([1.0, 0.5, 1e-9], dtype=torch.float64)
    expected = [0.0, math.log(1 - 0.5**3), math.log(3e-9)]
    assert log_inclusion(share).tolist() == pytest.approx(expected, rel=1e-6)


def test_logq_correction_subtracts_the_log_probability_of_the_column() -> None:
    g = generator(4)
    logits, mask = torch.randn(5, 5, generator=g), torch.ones(5, 5, dtype=torch.bool)
    log_drawn = torch.randn(5, generator=g)
    torch.testing.assert_close(
        in_batch_cross_entropy(logits, mask, log_drawn=log_drawn),
        in_batch_cross_entropy(logits - log_drawn[None, :], mask),
    )


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(2, 12), sharpness=st.floats(0.01, 60.0))
def test_kl_is_zero_for_equal_distributions_and_else_positive(seed: int, size: int, sharpness: float) -> None:
    g = generator(seed)
    mask = random_mask(size, g)
    log_p = masked_log_softmax(torch.randn(size, size, generator=g) * sharpness, mask)
    log_q = masked_log_softmax(torch.randn(size, size, generator=g) * sharpness, mask)
    for direction in ("student", "teacher"):
        assert distillation_loss(log_p, log_p, direction=direction) == 0
        assert distillation_loss(log_p, log_q, direction=direction) >= -1e-5


@pytest.mark.parametrize("direction", ["student", "teacher"])
def test_kl_equals_the_sum_over_counted_columns(direction: str) -> None:
    g = generator(5)
    mask = random_mask(8, g)
    p = torch.where(mask, torch.rand(8, 8, generator=g, dtype=torch.float64), 0.0)
    q = torch.where(mask, torch.rand(8, 8, generator=g, dtype=torch.float64), 0.0)
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    a, b = (p, q) if direction == "student" else (q, p)
    expected = sum(float(a[i, j] * (a[i, j] / b[i, j]).log()) for i in range(8) for j in range(8) if mask[i, j]) / 8
    value = distillation_loss(p.log(), q.log(), direction=direction)
    assert float(value) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("direction", ["student", "teacher"])
def test_kl_gradient_is_exact_and_finite_with_masked_columns(direction: str) -> None:
    g = generator(6)
    mask = random_mask(5, g)
    log_q = torch.randn(5, 5, generator=g, dtype=torch.float64).masked_fill(~mask, -torch.inf).log_softmax(1)
    logits = torch.randn(5, 5, generator=g, dtype=torch.float64, requires_grad=True)

    def loss(z: torch.Tensor) -> torch.Tensor:
        return distillation_loss(z.masked_fill(~mask, -torch.inf).log_softmax(1), log_q, direction=direction)

    assert torch.autograd.gradcheck(loss, (logits,))
    loss(logits).backward()
    assert torch.all(logits.grad[~mask] == 0)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=st.integers(2, 12),
    stored=st.floats(0.02, 2.0),
    wanted=st.floats(0.02, 2.0),
)
def test_another_temperature_is_an_exact_renormalisation(seed: int, size: int, stored: float, wanted: float) -> None:
    g = generator(seed)
    cosines = torch.rand(size, size, generator=g, dtype=torch.float64) * 2 - 1
    mask = random_mask(size, g)
    log_scores = (cosines / stored).log_softmax(dim=1)
    direct = (cosines / wanted).masked_fill(~mask, -torch.inf).log_softmax(dim=1)
    again = renormalise(log_scores, mask, factor=stored / wanted).double()
    torch.testing.assert_close(again, direct, atol=1e-4, rtol=1e-5)
