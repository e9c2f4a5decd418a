"""How badly the teachers predict a sample's targets."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ckd.distill.difficulty.samples import Samples, by_teachers, require_teachers


@by_teachers
def teacher_loss(samples: Samples) -> npt.NDArray[np.float64]:
    """(n,) in-batch cross-entropy of the teachers, mean over teachers and the sample's instances, in nats.

    Raises:
        ConfigError: no scores were given.
        StoreError: the scores do not cover every training instance.
    """
    return samples.mean_over_instances(require_teachers(samples, "teacher_loss").loss, "teacher loss")


DIFFICULTY = teacher_loss
