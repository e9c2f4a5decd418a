"""The in-batch contrast that both pre-training tasks use (UniSRec, Eqs. 7 and 8)."""

from __future__ import annotations

from typing import Any

import torch

from ckd.nn.chunks import block_rows


class _InBatchContrast(torch.autograd.Function):
    """The loss whose logits exist only block by block; each block's gradient is taken while its logits are at hand."""

    @staticmethod
    def forward(
        ctx: Any, anchors: torch.Tensor, candidates: torch.Tensor, targets: torch.Tensor, scale: float
    ) -> torch.Tensor:
        n = len(anchors)
        step = block_rows(n, anchors.device)
        loss = torch.zeros((), dtype=torch.promote_types(anchors.dtype, torch.float32), device=anchors.device)
        grad_anchors, grad_candidates = torch.empty_like(anchors), torch.zeros_like(candidates)
        for start in range(0, n, step):
            block = anchors[start : start + step]
            rows = torch.arange(start, start + len(block), device=anchors.device)[:, None]
            same = targets[start : start + step, None] == targets
            same.scatter_(1, rows, False)
            logits = (block @ candidates.T).to(loss.dtype).mul_(scale).masked_fill_(same, 0.0)
            normaliser = logits.logsumexp(dim=1, keepdim=True)
            loss += (normaliser - logits.gather(1, rows)).sum()
            slope = logits.sub_(normaliser).exp_()
            slope.scatter_add_(1, rows, slope.new_full((1, 1), -1.0).expand_as(rows))
            slope = slope.masked_fill_(same, 0.0).mul_(scale / n).to(anchors.dtype)
            torch.mm(slope, candidates, out=grad_anchors[start : start + step])
            grad_candidates.addmm_(slope.T, block)
        ctx.save_for_backward(grad_anchors, grad_candidates)
        return loss / n

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_anchors, grad_candidates = ctx.saved_tensors
        factor = grads[0].to(grad_anchors.dtype)
        return grad_anchors * factor, grad_candidates * factor, None, None


def in_batch_contrast(
    anchors: torch.Tensor, candidates: torch.Tensor, targets: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Mean over the batch of -log of the softmax, over all candidates, of each anchor's own.

    As published, the logit of another instance with the same target counts as 0: it is neither a negative that is
    pushed away nor left out of the sum.

    Args:
        anchors: (B, d) of length one, the sequences.
        candidates: (B, d) of length one, row i the positive of anchor i.
        targets: (B,) target items.
        temperature: tau.
    """
    device = anchors.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        anchors, candidates = anchors.to(dtype), candidates.to(dtype)
    with torch.autocast(device, enabled=False):
        return _InBatchContrast.apply(anchors, candidates, targets, 1.0 / temperature)
