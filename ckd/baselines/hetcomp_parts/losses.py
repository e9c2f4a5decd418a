"""The two losses of HetComp (Kang et al., WWW 2023): which items belong above the others, then in what order.

Shapes: B users, I items. A list holds columns of the score matrix, best first, and -1 behind its end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ckd.nn.chunks import block_rows, products, row_chunks

#: Scores are cut off here, so that their exponentials stay finite.
CLAMP = 40.0

#: Least value inside a logarithm.
FLOOR = 1e-5


class _RowLoss(torch.autograd.Function):
    """See `loss_by_rows`: the slopes are taken while a chunk's scores are at hand, so that none are kept."""

    @staticmethod
    def forward(
        ctx: Any, loss_of: Callable[[torch.Tensor, slice], torch.Tensor], users: torch.Tensor, items: torch.Tensor
    ) -> torch.Tensor:
        n = len(users)
        step = block_rows(len(items), items.device)
        total = torch.zeros((), dtype=torch.promote_types(users.dtype, torch.float32), device=users.device)
        grad_users, grad_items = torch.empty_like(users), torch.zeros_like(items)
        for start in range(0, n, step):
            block = users[start : start + step]
            slopes = products(block, items)
            for rows in row_chunks(slopes):
                with torch.enable_grad():
                    scores = slopes[rows].to(total.dtype, copy=True).requires_grad_()
                    loss = loss_of(scores, slice(start + rows.start, start + rows.stop))
                slopes[rows] = torch.autograd.grad(loss, scores)[0]
                total += loss.detach()
            torch.mm(slopes, items, out=grad_users[start : start + step])
            grad_items.addmm_(slopes.T, block)
        ctx.save_for_backward(grad_users, grad_items)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[None, torch.Tensor, torch.Tensor]:
        grad_users, grad_items = ctx.saved_tensors
        return None, grads[0] * grad_users, grads[0] * grad_items


def loss_by_rows(
    loss_of: Callable[[torch.Tensor, slice], torch.Tensor], users: torch.Tensor, items: torch.Tensor
) -> torch.Tensor:
    """The sum of a loss over rows of scores, which exist only block by block, so that memory does not grow with B * I.

    Args:
        loss_of: the sum over some rows, from their scores (r, I) and which rows they are.
        users: (B, d).
        items: (I, d).
    """
    loss: torch.Tensor = _RowLoss.apply(loss_of, users, items)
    return loss


def clamp_scores(scores: torch.Tensor) -> torch.Tensor:
    """Scores cut off at both ends, where no gradient passes."""
    return scores.clamp(-CLAMP, CLAMP)


def overall_loss(
    scores: torch.Tensor, observed: torch.Tensor, target: torch.Tensor, training: torch.Tensor
) -> torch.Tensor:
    """The loss while the curriculum lasts: listed items against everything unlisted, whatever their order.

    The sum over the items i of both lists of -(S_i - log max(exp(S_i) + Z, 1e-5)).

    Args:
        scores: (B, I) clamped.
        observed: (B, P) items that the user has.
        target: (B, T) the teachers' list, none of them a training item of the user.
        training: (B, I) bool, the user's training items.
    """
    rest = _rest(scores.exp(), target, training)
    items = torch.cat([observed, target], dim=1)
    chosen, valid = _take(scores, items)
    return _negative_log(chosen, chosen.exp() + rest, valid)


def rank_loss(
    scores: torch.Tensor, observed: torch.Tensor, target: torch.Tensor, training: torch.Tensor
) -> torch.Tensor:
    """The loss after the curriculum, in the manner of ListMLE: each item against those behind it and the unlisted.

    The observed list and the first half of the target list stand against what the half leaves; the first tenth of the
    target list stands against what the tenth leaves; the two parts of the target weigh one half each.

    Args:
        scores: (B, I) clamped.
        observed: (B, P) items that the user has.
        target: (B, T) the teachers' list, T from 10, none of them a training item of the user.
        training: (B, I) bool, the user's training items.
    """
    half, tenth = (target[:, : target.shape[1] // part] for part in (2, 10))
    exponentials = scores.exp()
    beyond_half, beyond_tenth = (_rest(exponentials, part, training) for part in (half, tenth))
    lists = _list_loss(scores, half, beyond_half) + _list_loss(scores, tenth, beyond_tenth)
    return _list_loss(scores, observed, beyond_half) + 0.5 * lists


def _list_loss(scores: torch.Tensor, items: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """The sum over k of -(S_k - log max(sum over j >= k of exp(S_j) + rest, 1e-5))."""
    chosen, valid = _take(scores, items)
    behind = (chosen.exp() * valid).flip(1).cumsum(1).flip(1)
    return _negative_log(chosen, behind + rest, valid)


def _rest(exponentials: torch.Tensor, target: torch.Tensor, training: torch.Tensor) -> torch.Tensor:
    """(B, 1) Z, the sum of exp(S), (B, I), over items that are neither training items nor listed.

    Published as a difference of two sums, which cancels where the list holds nearly all the mass.
    """
    # One column more takes the places behind a list's end.
    left_out = torch.nn.functional.pad(training, (0, 1))
    left_out = left_out.scatter(1, target.where(target >= 0, exponentials.shape[1]), True)
    return exponentials.masked_fill(left_out[:, :-1], 0.0).sum(1, keepdim=True)


def _take(scores: torch.Tensor, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return scores.gather(1, items.clamp_min(0)), items >= 0


def _negative_log(chosen: torch.Tensor, total: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    return ((total.clamp_min(FLOOR).log() - chosen) * valid).sum()
