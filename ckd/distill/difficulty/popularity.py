"""Popularity alone: the second term of the paper's Eq. (1)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ckd.distill.difficulty.samples import Samples


def popularity(samples: Samples) -> npt.NDArray[np.float64]:
    """(n,) minus the mean popularity of the sample's items: less popular is harder."""
    return -samples.popularity


DIFFICULTY = popularity
