"""No difficulty: every epoch is a random one over the full data (the paper's ablation "w/o CSS")."""

from __future__ import annotations

from ckd.distill.difficulty.samples import Samples


def none(samples: Samples) -> None:
    """No order, hence no curriculum."""
    return


DIFFICULTY = none
