"""A teacher's temperature by maximum likelihood (temperature scaling; Guo et al., ICML 2017)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ckd.errors import DataError
from ckd.nn.chunks import block_rows

#: Scores that are looked at, as a number of elements; of more, evenly spaced instances are taken.
SCORES = 1 << 30

#: The temperature is looked for within this factor of the scores' standard deviation, either way.
RANGE = 1e3

#: Scores that differ less than this do not differ.
LEAST = 1e-30

#: Precision of log tau. The result is rounded to as many digits, so that the order of sums does not show.
PRECISION = 1e-5


@dataclass(frozen=True)
class Calibrated:
    """The likeliest temperature.

    Attributes:
        temperature: tau.
        nll: mean negative log-likelihood of the targets at tau, in nats.
        instances: how many targets were looked at.
    """

    temperature: float
    nll: float
    instances: int


def likeliest_temperature(
    users: torch.Tensor, items: torch.Tensor, targets: torch.Tensor, where: str = "teacher"
) -> Calibrated:
    """The tau that minimises the mean of -log softmax(u . e / tau) at the targets, every item a candidate (Eq. 2).

    The mean is convex in b = 1 / tau; its slope, the mean of E_softmax[s] - s_target, has one root, which is bracketed.

    Args:
        users: (n, d) vectors of the instances, of length one for a cosine teacher.
        items: (N + 1, d) vectors of the items, row 0 padding, which is no candidate.
        targets: (n,) items.
        where: the teacher, for messages.

    Raises:
        DataError: there are no targets, or they score no higher than the average item: any tau is too sharp.
    """
    if not len(users):
        raise DataError(f"{where}: no validation targets to calibrate a temperature on. Give distill.temperature.")
    most = max(1024, SCORES // len(items))
    if len(users) > most:
        chosen = torch.from_numpy(np.linspace(0, len(users) - 1, most).astype(np.int64)).to(users.device)
        users, targets = users[chosen], targets[chosen]
    scores = _Scores(users.float(), items.float()[1:], targets.long() - 1)
    spread = scores.spread()
    if not math.isfinite(spread):
        raise DataError(f"{where}: scores of validation targets are no finite numbers. It diverged; train it again.")
    low, high = (math.log(spread * factor) if spread > LEAST else 0.0 for factor in (1 / RANGE, RANGE))
    if spread <= LEAST or scores.slope(high) >= 0:
        raise DataError(
            f"{where}: validation targets score no higher than the average item, so that no temperature is likeliest. "
            "Give a number as distill.temperature, or leave this teacher out."
        )
    from scipy.optimize import brentq  # 40 MB, which training does without

    found = low if scores.slope(low) <= 0 else float(brentq(scores.slope, low, high, xtol=PRECISION / 10, rtol=1e-12))
    tau = float(f"{math.exp(found):.{round(-math.log10(PRECISION))}g}")
    return Calibrated(tau, scores.nll(tau), len(users))


class _Scores:
    """Means over the scores of (n, d) users for (N, d) items, a block of rows at a time."""

    def __init__(self, users: torch.Tensor, items: torch.Tensor, targets: torch.Tensor) -> None:
        self.users = users
        self.items = items
        self.targets = targets

    def _blocks(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(r, N) scores and the (r, 1) target's own."""
        step = block_rows(len(self.items), self.items.device)
        for start in range(0, len(self.users), step):
            scores = self.users[start : start + step] @ self.items.T
            yield scores, scores.gather(1, self.targets[start : start + step, None])

    def spread(self) -> float:
        """Mean standard deviation of a row."""
        total = sum(float(scores.std(dim=1, correction=0).double().sum()) for scores, _ in self._blocks())
        return total / len(self.users)

    def slope(self, log_tau: float) -> float:
        """Slope of the mean negative log-likelihood along 1 / tau, at the given log tau."""
        total = 0.0
        for scores, own in self._blocks():
            p = (scores / math.exp(log_tau)).softmax(dim=1)
            # The differences, not the scores, so that what all have in common cancels before it is summed.
            total += float((p * scores.sub_(own)).sum(dim=1).double().sum())
        return total / len(self.users)

    def nll(self, tau: float) -> float:
        """The mean negative log-likelihood."""
        total = 0.0
        for scores, own in self._blocks():
            total += float((scores.sub_(own) / tau).logsumexp(dim=1).double().sum())
        return total / len(self.users)
