"""UniM²Rec's alignment of texts and pictures: which items it counts, and what it is where none has both."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ckd.teachers.unim2rec_parts.pretraining import alignment_loss


def random_pairs(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    text, image = (F.normalize(torch.randn(n, 8), dim=1) for _ in range(2))
    return text.requires_grad_(), image.requires_grad_()


def test_alignment_counts_an_item_once() -> None:
    text, image = random_pairs(5)
    items = torch.tensor([3, 1, 4, 9, 5])
    twice = torch.tensor([0, 1, 2, 3, 4, 2, 0, 2])
    once = alignment_loss(text, image, items, 0.07)
    torch.testing.assert_close(alignment_loss(text[twice], image[twice], items[twice], 0.07), once)


def test_alignment_leaves_out_items_that_lack_one_of_the_two() -> None:
    text, image = random_pairs(6)
    there = torch.tensor([True, True, False, True, False, True])
    masked = image.detach() * there[:, None]
    whole = alignment_loss(text[there], image[there], torch.arange(4), 0.07)
    found = alignment_loss(text, masked, torch.arange(6), 0.07)
    torch.testing.assert_close(found, whole)
    found.backward()
    assert text.grad is not None
    assert not text.grad[~there].any()


def test_alignment_is_zero_with_a_gradient_where_no_item_has_both() -> None:
    text, image = random_pairs(4)
    loss = alignment_loss(text, image * 0.0, torch.arange(4), 0.07)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert text.grad is not None
    assert not text.grad.any()


def test_aligned_pairs_have_the_lower_loss_and_the_two_sides_are_equal() -> None:
    text, image = random_pairs(12)
    items = torch.arange(12)
    with torch.no_grad():
        assert float(alignment_loss(text, text, items, 0.07)) < 0.1 < float(alignment_loss(text, image, items, 0.07))
    torch.testing.assert_close(alignment_loss(text, image, items, 0.07), alignment_loss(image, text, items, 0.07))
