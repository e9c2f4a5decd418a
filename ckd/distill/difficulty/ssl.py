"""Sequence sample difficulty: long sequences of unpopular items are hard (paper 3.4.1)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ckd.distill.difficulty.samples import Samples


def ssl(samples: Samples) -> npt.NDArray[np.float64]:
    """(n,) N / N_max - alpha * mean popularity, Eq. (1)."""
    lengths = samples.lengths
    return lengths / int(lengths.max()) - samples.alpha * samples.popularity


DIFFICULTY = ssl
