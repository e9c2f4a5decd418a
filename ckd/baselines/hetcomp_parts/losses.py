"""The two losses of HetComp (Kang et al., WWW 2023): which items belong above the others, then in what order.

Shapes: B users, I items. A list holds columns of the score matrix, best first, and -1 behind its end.
"""

from __future__ import annotations

import torch

#: Scores are cut off here, so that their exponentials stay finite.
CLAMP = 40.0

#: Least value inside a logarithm.
FLOOR = 1e-5


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
    rest = _rest(scores, target, training)
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
    beyond_half, beyond_tenth = (_rest(scores, part, training) for part in (half, tenth))
    lists = _list_loss(scores, half, beyond_half) + _list_loss(scores, tenth, beyond_tenth)
    return _list_loss(scores, observed, beyond_half) + 0.5 * lists


def _list_loss(scores: torch.Tensor, items: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """The sum over k of -(S_k - log max(sum over j >= k of exp(S_j) + rest, 1e-5))."""
    chosen, valid = _take(scores, items)
    behind = (chosen.exp() * valid).flip(1).cumsum(1).flip(1)
    return _negative_log(chosen, behind + rest, valid)


def _rest(scores: torch.Tensor, target: torch.Tensor, training: torch.Tensor) -> torch.Tensor:
    """(B, 1) Z, the sum of exp(S) over items that are neither training items nor listed.

    Published as a difference of two sums, which cancels where the list holds nearly all the mass.
    """
    # One column more takes the places behind a list's end.
    left_out = torch.nn.functional.pad(training, (0, 1))
    left_out = left_out.scatter(1, target.where(target >= 0, scores.shape[1]), True)
    return scores.exp().masked_fill(left_out[:, :-1], 0.0).sum(1, keepdim=True)


def _take(scores: torch.Tensor, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return scores.gather(1, items.clamp_min(0)), items >= 0


def _negative_log(chosen: torch.Tensor, total: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    return ((total.clamp_min(FLOOR).log() - chosen) * valid).sum()
