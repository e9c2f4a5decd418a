"""The training losses as pure functions of tensors (paper Eqs. 6, 8, 9, 10).

Shapes: B instances of a batch, which are also its B in-batch items; N rows of the item table; d vector size.
Everything is computed in log space, and in float32 but for `full_softmax_loss`, whose products over the catalogue
(logits, and the gradients that are made of them) have the precision of the vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ckd.nn.chunks import block_rows, even_rows, row_chunks

Direction = Literal["student", "teacher"]


@dataclass(frozen=True)
class InBatchTarget:
    """What the student's in-batch distribution is pulled towards, and how strongly.

    Attributes:
        log_q: (B, B) log of the target q (Eq. 7), minus infinity at masked columns.
        mask: (B, B) bool, True where the column counts for the row.
        weight: lambda of Eq. (10).
        direction: which way round the divergence is.
        items: (B,) the columns' items; none: the rows' own targets. Of a batch whose rows are shared out among
            processes, `log_q` and `mask` are this process's rows, with the columns of the whole batch.
    """

    log_q: torch.Tensor
    mask: torch.Tensor
    weight: float
    direction: Direction = "student"
    items: torch.Tensor | None = None


@dataclass(frozen=True)
class CatalogueTarget:
    """The same over all items, whose target is made for a block of rows whenever it is needed and never kept.

    Attributes:
        block: for a slice of the rows, what gives for a slice of these (r, N) log q and (r, N) mask, True where the
            item counts for the row: a block of products, in chunks that stay in the processor's cache.
        step: most rows of a block.
        weight: lambda of Eq. (10).
        direction: which way round the divergence is.
    """

    block: Callable[[slice], Callable[[slice], tuple[torch.Tensor, torch.Tensor]]]
    step: int
    weight: float
    direction: Direction = "student"


DistillationTarget = InBatchTarget | CatalogueTarget


class _FullSoftmaxLoss(torch.autograd.Function):
    """CE + lambda * KL whose logits over the whole table exist only block by block.

    Both losses are functions of the same logits: the in-batch ones are columns of them. So their slopes are added
    before the two products of the backward pass, which distillation then does not make dearer; and the slopes are taken
    while a block's logits are at hand, so that none are kept and memory does not grow with B * N. Without `targets`
    there is no CE.

    A block is as many rows as make the products efficient; between them it is worked on in chunks that stay in the
    processor's cache, in one buffer, because fresh pages cost more than the arithmetic that fills them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        encoded: torch.Tensor,
        table: torch.Tensor,
        targets: torch.Tensor | None,
        scale: float,
        first_row: int,
        distill: DistillationTarget | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        n, count = len(encoded), len(table)
        in_batch = distill if isinstance(distill, InBatchTarget) else None
        catalogue = distill if isinstance(distill, CatalogueTarget) else None
        items = targets if in_batch is None or in_batch.items is None else in_batch.items
        step = min(n, block_rows(count, table.device))
        if catalogue is not None:
            step = min(step, catalogue.step)
        ce = torch.zeros((), dtype=torch.promote_types(table.dtype, torch.float32), device=table.device)
        kd = torch.zeros_like(ce)
        need_encoded, need_table = ctx.needs_input_grad[:2]
        grad_encoded = torch.empty_like(encoded) if need_encoded else None
        grad_table: torch.Tensor | None = None
        buffer = even_rows(step, count, table)
        # The slopes are those of sums by scaled logits. What makes them those of means is left to the smaller factors
        # of their products.
        mean = scale / n
        for start in range(0, n, step):
            here = slice(start, min(start + step, n))
            block = encoded[here]
            logits = torch.mm(block, table.T, out=buffer[: len(block)])
            wanted = None if targets is None else targets[here, None]
            target_of = None if catalogue is None else catalogue.block(here)
            if in_batch is not None:
                assert items is not None
                columns = items.expand(len(block), -1)
                own = logits.gather(1, columns).to(ce.dtype) * scale
                part, pulls = _divergence_and_slope(own, in_batch.log_q[here], in_batch.mask[here], in_batch.direction)
                kd += part
                pulls *= in_batch.weight
            for rows in row_chunks(logits):
                slope = logits[rows].to(ce.dtype)
                if catalogue is not None and target_of is not None:
                    part, pull = _divergence_and_slope(slope * scale, *target_of(rows), catalogue.direction)
                    kd += part
                    pull *= catalogue.weight
                if wanted is None:
                    slope.zero_()
                else:
                    ce += _cross_entropy_and_slope(slope, wanted[rows], scale, first_row)
                if in_batch is not None:
                    slope.scatter_add_(1, columns[rows], pulls[rows])
                elif catalogue is not None:
                    slope += pull
                if slope.dtype != logits.dtype:
                    logits[rows] = slope
            if grad_encoded is not None:
                torch.mm(logits, table, out=grad_encoded[here])
            if need_table:
                block = block * mean
                grad_table = logits.T @ block if grad_table is None else grad_table.addmm_(logits.T, block)
        if grad_encoded is not None:
            grad_encoded *= mean
        ctx.save_for_backward(grad_encoded, grad_table)
        ce, kd = ce / n, kd / n
        loss = ce if distill is None else ce + distill.weight * kd
        ctx.mark_non_differentiable(ce, kd)
        return loss.clone(), ce, kd

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_encoded, grad_table = ctx.saved_tensors
        factor = grads[0]
        # To ask a GPU would be to wait for it.
        as_it_is = factor.device.type == "cpu" and factor.item() == 1.0

        def scaled(grad: torch.Tensor | None) -> torch.Tensor | None:
            return grad if grad is None or as_it_is else grad.mul(factor.to(grad.dtype))

        return scaled(grad_encoded), scaled(grad_table), None, None, None, None


def _cross_entropy_and_slope(logits: torch.Tensor, target: torch.Tensor, scale: float, first_row: int) -> torch.Tensor:
    """Sum over rows of the cross-entropy of `scale` * logits; the logits become its derivative by these.

    torch's softmax passes over a row while the cache holds it, but does not say what it has divided by: the greatest
    probability does, which is 1 over that.

    Args:
        logits: (r, N), overwritten.
        target: (r, 1) column of each row's positive.
        scale: what the logits are multiplied by.
        first_row: columns before this one are no candidates.
    """
    if scale != 1.0:
        logits *= scale
    if first_row:
        logits[:, :first_row] = -torch.inf
    positive = logits.gather(1, target) - logits.amax(dim=1, keepdim=True)
    torch.softmax(logits, dim=1, out=logits)
    greatest = logits.amax(dim=1, keepdim=True)
    logits.scatter_add_(1, target, logits.new_full((1, 1), -1.0).expand_as(target))
    return -(positive + greatest.log()).sum()


def _divergence_and_slope(
    logits: torch.Tensor, log_q: torch.Tensor, mask: torch.Tensor, direction: Direction
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum over rows of KL between softmax(logits) and q, and its derivative by the logits, 0 where masked."""
    hidden = ~mask
    log_p = logits.masked_fill(hidden, -torch.inf).log_softmax(dim=1)
    p = log_p.exp()
    difference = log_p.sub_(log_q).masked_fill_(hidden, 0.0)
    if direction == "student":
        rows = (p * difference).sum(dim=1, keepdim=True)
        return rows.sum(), difference.sub_(rows).mul_(p)
    q = log_q.exp()
    return -(q * difference).sum(), p.sub_(q)


def full_softmax_loss(
    encoded: torch.Tensor,
    table: torch.Tensor,
    targets: torch.Tensor | None,
    *,
    scale: float = 1.0,
    pad_in_softmax: bool = True,
    distill: DistillationTarget | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """L = CE + lambda * KL (Eq. 10), CE over the whole catalogue, KL over the target's items; means over instances.

    Args:
        encoded: (B, d) user vectors.
        table: (N, d) item vectors, row 0 padding.
        targets: (B,) rows of the positive items; none leaves lambda * KL alone, for students with a CE of their own.
        scale: what the dot product is multiplied by, 1 / temperature.
        pad_in_softmax: keep row 0 among the candidates of CE, as the published models do.
        distill: none leaves CE alone.

    Returns:
        The loss, and its two parts CE (Eq. 6) and KL (Eq. 9) without gradient.
    """
    if torch.is_autocast_enabled(encoded.device.type):
        dtype = torch.get_autocast_dtype(encoded.device.type)
        encoded, table = encoded.to(dtype), table.to(dtype)
    with torch.autocast(encoded.device.type, enabled=False):
        loss, ce, kd = _FullSoftmaxLoss.apply(encoded, table, targets, scale, 0 if pad_in_softmax else 1, distill)
    return loss, ce, kd


def unfactored_divergence(
    score: Callable[[torch.Tensor], torch.Tensor], encoded: torch.Tensor, distill: CatalogueTarget
) -> torch.Tensor:
    """KL over the catalogue (Eq. 9) of a student whose score is no product; mean over instances.

    A block's scores are computed again in the backward pass, so that memory does not grow with B * N.

    Args:
        score: (r, N) logits of all items from r rows of `encoded`.
        encoded: (B, d) user side of the score.
        distill: whose weight is left to the caller.
    """

    def divergence(block: torch.Tensor, rows: slice) -> torch.Tensor:
        log_q, mask = distill.block(rows)(slice(None))
        log_p = masked_log_softmax(score(block), mask)
        return distillation_loss(log_p, log_q, direction=distill.direction) * len(block)

    slices = [slice(start, min(start + distill.step, len(encoded))) for start in range(0, len(encoded), distill.step)]
    parts = [checkpoint(divergence, encoded[rows], rows, use_reentrant=False) for rows in slices]
    return torch.stack(parts).sum() / len(encoded)


def in_batch_cross_entropy(
    logits: torch.Tensor, mask: torch.Tensor, *, log_drawn: torch.Tensor | None = None, first: int = 0
) -> torch.Tensor:
    """Eq. (6) as the paper writes it: the batch's items are the candidates; mean over instances.

    Args:
        logits: (B, B) scores; the positives are on the diagonal. Or some rows of that, one after the other.
        mask: (B, B) bool, True where the column counts for the row.
        log_drawn: (B,) log of the probability that a column's item is drawn into a batch, see `log_inclusion`;
            subtracting it (logQ correction; Bengio and Senecal 2008, Yi et al. 2019) makes the result an estimate of
            the full softmax.
        first: column of the first row's positive.
    """
    logits = logits.float()
    if log_drawn is not None:
        logits = logits - log_drawn
    targets = torch.arange(first, first + len(logits), device=logits.device)
    return F.cross_entropy(logits.masked_fill(~mask, -torch.inf), targets)


def log_inclusion(share: torch.Tensor) -> torch.Tensor:
    """(B,) float32 log of the probability that an item is among the B targets of a batch: log(1 - (1 - share)^B).

    The mask leaves a popular item out where it comes again, so that it counts once for a row however often it is drawn:
    its share alone, which counts every draw, would make popular items' scores too low.

    Args:
        share: (B,) float64, of each column's item among all targets.
    """
    return (-torch.expm1(len(share) * torch.log1p(-share))).log().float()


def masked_log_softmax(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Log-softmax over the columns that count, minus infinity elsewhere; Eq. (8) for student logits.

    Args:
        logits: (..., B, B).
        mask: (B, B) bool; every row has at least one True.
    """
    return logits.float().masked_fill(~mask, -torch.inf).log_softmax(dim=-1)


def renormalise(log_scores: torch.Tensor, mask: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
    """Teacher log-scores over the columns that count, at another temperature: Eq. (2) again, exactly.

    log softmax(z / tau') = log softmax((tau / tau') * log softmax(z / tau)), because a softmax forgets constants.

    Args:
        log_scores: (..., B, B) stored log-softmax at temperature tau.
        mask: (B, B) bool.
        factor: tau / tau'.
    """
    log_scores = log_scores.float()
    return masked_log_softmax(log_scores if factor == 1.0 else log_scores * factor, mask)


def distillation_loss(log_p: torch.Tensor, log_q: torch.Tensor, *, direction: Direction = "student") -> torch.Tensor:
    """Mean over instances of KL(p || q), Eq. (9), or of KL(q || p) for `direction="teacher"`.

    Args:
        log_p: (B, B) the student's log-distribution, minus infinity at masked columns.
        log_q: (B, B) the target's, minus infinity at the same columns.
    """
    a, b = (log_p, log_q) if direction == "student" else (log_q, log_p)
    counted = ~torch.isneginf(a)
    difference = torch.where(counted, a - b, 0.0)
    # exp of minus infinity is 0, but its gradient times infinity is not: masked entries never enter the product.
    return (torch.where(counted, a, 0.0).exp() * difference).sum(dim=-1).mean()
