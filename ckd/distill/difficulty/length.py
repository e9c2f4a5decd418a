"""Length alone: the first term of the paper's Eq. (1)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ckd.distill.difficulty.samples import Samples


def length(samples: Samples) -> npt.NDArray[np.float64]:
    """(n,) number of items in the sample: longer is harder."""
    return samples.lengths.astype(np.float64)


DIFFICULTY = length
