"""What teachers' scores say about single instances: their loss and their disagreement, for difficulty measures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from ckd.data.domain import Domain
from ckd.distill.consistency import inconsistency
from ckd.distill.difficulty import TeacherScores
from ckd.distill.losses import renormalise
from ckd.distill.masks import in_batch_mask
from ckd.distill.plan import Plan
from ckd.errors import StoreError

#: Given batch ids, yields each with every teacher's (B, B) log-scores, in the order asked for.
Stream = Callable[[Sequence[int]], Iterable[tuple[int, Sequence[npt.NDArray[np.floating]]]]]


def measure_teachers(
    plan: Plan, domain: Domain, stream: Stream, source: str, on_batch: Callable[[int, int], None] | None = None
) -> TeacherScores:
    """Every training instance's teacher loss and disagreement, in the batches of the plan's last epoch.

    Args:
        plan: what was scored.
        domain: whose plan it is.
        stream: reads the stored log-scores of batches.
        source: fingerprint of the scores, kept with the result.
        on_batch: told of (batches read, batches in all).

    Returns:
        The loss is the mean over teachers of -log s at the target. The disagreement is the mean over pairs of teachers
        of sum_j (s_j - s'_j)^2, that is of Eq. (4)'s distance; NaN with one teacher.

    Raises:
        StoreError: the domain is another, or the plan ends before it has visited every instance.
    """
    plan.require_domain(domain)
    instances = domain.instances("train")
    loss = np.full(len(instances), np.nan)
    disagreement = np.full(len(instances), np.nan)
    _, order = plan.schedule_of(plan.epochs - 1)
    wanted = np.sort(order).tolist()
    for done, (batch_id, scores) in enumerate(stream(wanted), start=1):
        ids = plan.batch(batch_id)
        mask = torch.from_numpy(in_batch_mask(instances.users[ids], instances.targets[ids]))
        logs = [renormalise(torch.from_numpy(np.ascontiguousarray(s, dtype=np.float32)), mask, 1.0) for s in scores]
        stacked = torch.stack(logs)
        loss[ids] = -stacked.diagonal(dim1=1, dim2=2).double().mean(dim=0).numpy()
        if len(logs) > 1:
            pairs = len(logs) * (len(logs) - 1)
            disagreement[ids] = inconsistency(stacked.exp()).double().sum(dim=0).numpy() / pairs
        if on_batch is not None:
            on_batch(done, len(wanted))
    missing = int(np.isnan(loss).sum())
    if missing:
        raise StoreError(
            f"plan {plan.id} leaves {missing} of {len(loss)} training instances of {domain.name} unscored: "
            "score a plan whose last epoch is over the full data."
        )
    return TeacherScores(loss, disagreement, source)
