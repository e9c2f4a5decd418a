"""How far the teachers' distributions lie apart, the inconsistency of the consistency weights (paper 3.6)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ckd.distill.difficulty.samples import Samples, by_teachers, require_teachers


@by_teachers
def teacher_disagreement(samples: Samples) -> npt.NDArray[np.float64]:
    """(n,) squared distance between two teachers' scores, mean over pairs of teachers and the sample's instances.

    Raises:
        ConfigError: no scores were given.
        StoreError: the scores do not cover every training instance, or are of one teacher only.
    """
    scores = require_teachers(samples, "teacher_disagreement")
    return samples.mean_over_instances(scores.disagreement, "disagreement of two teachers")


DIFFICULTY = teacher_disagreement
