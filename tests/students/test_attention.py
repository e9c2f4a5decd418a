"""Attention with the cheap dropout on a CPU."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ckd.nn.transformer import attention, attention_mask


def parts() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=generator) for _ in range(3))
    sequences = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 0, 0, 0]])
    return q, k, v, attention_mask(sequences, causal=True, dtype=torch.float64)


def test_where_nothing_happens_to_be_dropped_it_is_plain_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v, mask = parts()
    shares = []
    monkeypatch.setattr("ckd.nn.transformer.dropout", lambda x, p: shares.append(p) or x)
    torch.testing.assert_close(attention(q, k, v, mask, 0.5), F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
    assert shares == [0.5]
    attention(q, k, v, mask)
    assert shares == [0.5]


def test_dropped_weights_leave_the_mean_as_it_is() -> None:
    q, k, v, mask = parts()
    torch.manual_seed(0)
    mean = torch.stack([attention(q, k, v, mask, 0.3) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, attention(q, k, v, mask), atol=0.06, rtol=0)
    assert not torch.equal(attention(q, k, v, mask, 0.3), attention(q, k, v, mask, 0.3))
