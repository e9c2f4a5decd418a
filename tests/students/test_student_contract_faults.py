"""The contract's tests fail for students that break it, one fault each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from ckd.data.batch import Batch
from ckd.data.domain import Domain
from ckd.nn.recommender import ModelConfig, Recommender
from ckd.testing.student_contract import StudentContract


class Mean(Recommender):
    """The mean of a history's item vectors: a student without fault."""

    Config = ModelConfig
    causal = False

    def __init__(self, n_items: int) -> None:
        super().__init__()
        self.items = nn.Embedding(n_items + 1, 8)

    def encode(self, batch: Batch) -> torch.Tensor:
        histories = batch.histories()
        return (self.items(histories) * (histories != 0)[..., None]).sum(1) / batch.lengths[:, None]

    def item_table(self) -> torch.Tensor:
        return self.items.weight


class ReadsPadding(Mean):
    def encode(self, batch: Batch) -> torch.Tensor:
        return self.items(batch.histories()).mean(1)


class ReadsTheFuture(Mean):
    def encode(self, batch: Batch) -> torch.Tensor:
        sequences = batch.sequences[batch.rows]
        return (self.items(sequences) * (sequences != 0)[..., None]).sum(1) / batch.lengths[:, None]


class ReadsTheTarget(Mean):
    def encode(self, batch: Batch) -> torch.Tensor:
        return super().encode(batch) + self.items(batch.targets)


class ReadsBatchMates(Mean):
    def encode(self, batch: Batch) -> torch.Tensor:
        encoded = super().encode(batch)
        return encoded - encoded.mean(0) if len(encoded) > 1 else encoded


class ReadsTheOrder(Mean):
    def encode(self, batch: Batch) -> torch.Tensor:
        return super().encode(batch) * (1 + torch.arange(len(batch)))[:, None]


class ReadsUsers(Mean):
    def encode(self, batch: Batch) -> torch.Tensor:
        return super().encode(batch) * (1 + batch.users)[:, None]


class SaysItReadsUsers(Mean):
    reads_users = True


class HasAnIdleWeight(Mean):
    def __init__(self, n_items: int) -> None:
        super().__init__(n_items)
        self.idle = nn.Parameter(torch.zeros(3))


class SavesItsGraph(Mean):
    def __init__(self, n_items: int) -> None:
        super().__init__(n_items)
        self.register_buffer("graph", torch.zeros(n_items + 1, n_items + 1))


class ForgetsAWeight(Mean):
    def state_dict(self, *args: object, **kwargs: object) -> dict[str, torch.Tensor]:
        return {name: torch.zeros_like(value) for name, value in super().state_dict(*args, **kwargs).items()}


class DoesNotLearn(Mean):
    def base_loss(self, batch: Batch, encoded: torch.Tensor, table: torch.Tensor | None) -> torch.Tensor:
        return 5.0 + 0.0 * encoded.sum()


class IgnoresTheSeed(Mean):
    def __init__(self, n_items: int) -> None:
        super().__init__(n_items)
        nn.init.constant_(self.items.weight, 0.1)


class ScoresChosenItemsOtherwise(Mean):
    def score_items(self, encoded: torch.Tensor, items: torch.Tensor | None = None) -> torch.Tensor:
        scores = super().score_items(encoded, items)
        return scores if items is None else scores * 2


class DrawsInSecret(Mean):
    """Noise from a generator of its own, which no seed reaches."""

    noise = torch.Generator()

    def base_loss(self, batch: Batch, encoded: torch.Tensor, table: torch.Tensor | None) -> torch.Tensor:
        assert table is not None
        noise = torch.randn(encoded.shape, generator=self.noise)
        return nn.functional.cross_entropy((encoded + noise) @ table.T, batch.targets)


def contract(make: Callable[[int], Recommender]) -> StudentContract:
    class Contract(StudentContract):
        def make_student(self, domain: Domain) -> Recommender:
            return make(domain.n_items)

    return Contract()


FAULTS = [
    (ReadsPadding, "padding_does_not_matter"),
    (ReadsTheFuture, "shared_prefixes_do_not_matter"),
    (ReadsTheTarget, "the_target_is_not_looked_at"),
    (ReadsBatchMates, "batch_mates_do_not_matter"),
    (ReadsTheOrder, "the_order_of_a_batch_does_not_matter"),
    (ReadsUsers, "users_are_told_apart_only_by_a_student_that_says_so"),
    (SaysItReadsUsers, "users_are_told_apart_only_by_a_student_that_says_so"),
    (HasAnIdleWeight, "every_weight_learns"),
    (SavesItsGraph, "a_checkpoint_holds_little_but_weights"),
    (ForgetsAWeight, "it_survives_saving_and_loading"),
    (DoesNotLearn, "base_training_lowers_the_loss"),
    (IgnoresTheSeed, "the_same_seed_gives_the_same_weights"),
    (ScoresChosenItemsOtherwise, "chosen_items_score_as_in_the_whole"),
    (DrawsInSecret, "training_twice_gives_the_same_weights"),
]


def run(held: StudentContract, test: str, tmp_path: Path) -> None:
    domain = held.make_domain()
    given = {"student": held.seeded(domain).eval(), "domain": domain, "tmp_path": tmp_path}
    method = getattr(held, f"test_{test}")
    names = method.__code__.co_varnames[1 : method.__code__.co_argcount]
    method(**{name: given[name] for name in names})


@pytest.mark.parametrize(("fault", "test"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
def test_the_contract_finds_a_fault(fault: type[Mean], test: str, tmp_path: Path) -> None:
    for folder in ("without", "with"):
        (tmp_path / folder).mkdir()
    run(contract(Mean), test, tmp_path / "without")
    with pytest.raises(AssertionError):
        run(contract(fault), test, tmp_path / "with")
