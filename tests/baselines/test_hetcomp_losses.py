"""HetComp's losses: the formulas item by item, exact gradients, and the same by rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ckd.baselines.hetcomp_parts.losses import clamp_scores, loss_by_rows, overall_loss, rank_loss
from ckd.nn import chunks


def case(seed: int = 0, users: int = 3, items: int = 40) -> tuple[torch.Tensor, ...]:
    """Scores, observed, target and training items of which the observed are the first three."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(users, items, generator=generator, dtype=torch.float64)
    order = torch.stack([torch.randperm(items, generator=generator) for _ in range(users)])
    training = torch.zeros(users, items, dtype=torch.bool).scatter(1, order[:, :5], True)
    return scores, order[:, :3], order[:, 5:25], training


def by_hand(scores: torch.Tensor, items: list[int], training: torch.Tensor, target: list[int], ordered: bool) -> float:
    """One user's list loss, item by item."""
    left = [i for i in range(len(scores)) if not training[i] and i not in target]
    rest = sum(float(scores[i].exp()) for i in left)
    total = 0.0
    for place, item in enumerate(items):
        behind = sum(float(scores[i].exp()) for i in (items[place:] if ordered else [item]))
        total -= float(scores[item]) - float(np.log(max(behind + rest, 1e-5)))
    return total


def test_losses_are_the_formulas() -> None:
    scores, observed, target, training = case()
    overall = ordered = 0.0
    for user, (seen, listed) in enumerate(zip(observed.tolist(), target.tolist(), strict=True)):
        mine = (scores[user], training[user])
        half, tenth = listed[:10], listed[:2]
        overall += by_hand(mine[0], seen + listed, mine[1], listed, ordered=False)
        ordered += by_hand(mine[0], seen, mine[1], half, ordered=True)
        ordered += 0.5 * by_hand(mine[0], half, mine[1], half, ordered=True)
        ordered += 0.5 * by_hand(mine[0], tenth, mine[1], tenth, ordered=True)
    assert float(overall_loss(scores, observed, target, training)) == pytest.approx(overall, rel=1e-12)
    assert float(rank_loss(scores, observed, target, training)) == pytest.approx(ordered, rel=1e-12)


@pytest.mark.parametrize("loss_of", [overall_loss, rank_loss])
def test_losses_have_exact_gradients(loss_of) -> None:
    scores, observed, target, training = case(users=2)
    scores.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss_of(s, observed, target, training), (scores,))


@pytest.mark.parametrize("loss_of", [overall_loss, rank_loss])
def test_what_stands_behind_the_end_of_a_list_counts_nothing(loss_of) -> None:
    scores, observed, target, training = case()
    ended = torch.cat([observed, torch.full((3, 2), -1)], dim=1)
    torch.testing.assert_close(
        loss_of(scores, ended, target, training), loss_of(scores, observed, target, training), rtol=1e-14, atol=0
    )


def test_only_the_rank_loss_looks_at_the_order() -> None:
    scores, observed, target, training = case()
    turned = target.flip(1)
    overall = [overall_loss(scores, observed, each, training) for each in (target, turned)]
    torch.testing.assert_close(overall[0], overall[1], rtol=1e-13, atol=0)
    best = scores.gather(1, target).argsort(dim=1, descending=True)
    ordered = target.gather(1, best)
    half = ordered[:, :10]
    worse = torch.cat([half.flip(1), ordered[:, 10:]], dim=1)
    assert rank_loss(scores, observed, ordered, training) < rank_loss(scores, observed, worse, training)


def test_clamped_scores_pass_no_gradient() -> None:
    scores = torch.tensor([-50.0, 1.0, 50.0], requires_grad=True)
    clamped = clamp_scores(scores)
    clamped.sum().backward()
    assert clamped.tolist() == [-40.0, 1.0, 40.0]
    assert scores.grad.tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("loss_of", [overall_loss, rank_loss])
@pytest.mark.parametrize(("block", "chunk"), [(1, 1), (80, 40), (1 << 24, 80), (1 << 24, 1 << 18)])
def test_losses_by_rows_are_those_of_the_whole_with_gradients(loss_of, block: int, chunk: int, monkeypatch) -> None:
    _, observed, target, training = case(users=7)
    generator = torch.Generator().manual_seed(1)
    users, items = (torch.randn(n, 4, generator=generator, dtype=torch.float64).requires_grad_() for n in (7, 40))
    whole = 0.01 * loss_of(clamp_scores(30.0 * users @ items.T), observed, target, training)
    monkeypatch.setattr(chunks, "BLOCK_ELEMENTS", block)
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", chunk)

    def of_rows(scores: torch.Tensor, rows: slice) -> torch.Tensor:
        return loss_of(clamp_scores(30.0 * scores), observed[rows], target[rows], training[rows])

    by_rows = 0.01 * loss_by_rows(of_rows, users, items)
    torch.testing.assert_close(by_rows, whole, rtol=1e-12, atol=0)
    expected, found = (torch.autograd.grad(each, [users, items]) for each in (whole, by_rows))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert all(float(grad.abs().max()) > 0 for grad in found)


def test_scores_by_rows_are_never_there_all_at_once(monkeypatch) -> None:
    monkeypatch.setattr(chunks, "BLOCK_ELEMENTS", 3 * 40)
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", 2 * 40)
    met: list[tuple[int, int]] = []

    def of_rows(scores: torch.Tensor, rows: slice) -> torch.Tensor:
        assert scores.shape == (rows.stop - rows.start, 40)
        met.append((rows.start, rows.stop))
        return scores.sum()

    loss_by_rows(of_rows, torch.ones(7, 2), torch.ones(40, 2))
    assert met == [(0, 2), (2, 3), (3, 5), (5, 6), (6, 7)]
