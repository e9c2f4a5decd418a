"""What every student must keep to, as a test class to inherit.

    from ckd.testing.student_contract import StudentContract

    class TestMyStudent(StudentContract):
        def make_student(self, domain):
            return MyStudent.create(MyStudent.Config(hidden_size=16), domain)

The tests run on a built-in domain of forty items and sixty users with titles, brands and categories; override
`make_domain` to run on another. A small configuration keeps them fast: they train for a few epochs.
Only this package needs pytest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ckd.config import DistillConfig, PlanConfig, TrainConfig, parse
from ckd.data.batch import Batch, Batches
from ckd.data.domain import Domain
from ckd.data.example import TINY, make_example
from ckd.distill.objective import Distillation
from ckd.distill.plan import Plan, build_plan
from ckd.distill.target import TargetBuilder
from ckd.distill.trainer import Trained, Trainer
from ckd.errors import ConfigError
from ckd.evaluation.ranks import rank_targets
from ckd.nn.recommender import ModelConfig, Recommender
from ckd.nn.weights import put_weights, read_weights, write_weights

#: A score of padding that no item reaches.
HUGE = 1e6


class StudentContract:
    """The contract; subclasses implement `make_student`.

    Attributes:
        tolerance: how far a score may move when only the company of an instance changes, over the largest score.
        gpu_tolerance: how far a score on a GPU may lie from the CPU's, likewise.
        instance_count: how many instances are scored.
        epochs, lr: how long and how fast the training tests train.
    """

    tolerance: float = 1e-5
    gpu_tolerance: float = 1e-4
    instance_count: int = 24
    epochs: int = 6
    lr: float = 1e-2
    _domain: ClassVar[Domain]

    def make_student(self, domain: Domain) -> Recommender:
        """A student for `domain`, the same whenever torch's generator stands at the same point."""
        raise NotImplementedError(f"{type(self).__name__} must implement make_student(domain)")

    def make_domain(self) -> Domain:
        """The domain that the tests run on."""
        return list(make_example(seed=7, size=TINY).values())[-1]

    # --- what the tests stand on -------------------------------------------------------------------------------

    @pytest.fixture
    def domain(self) -> Domain:
        cls = type(self)
        if "_domain" not in cls.__dict__:  # pytest makes a new instance for every test
            cls._domain = self.make_domain()
        return cls._domain

    @pytest.fixture
    def student(self, domain: Domain) -> Recommender:
        return self.seeded(domain).eval()

    def seeded(self, domain: Domain, seed: int = 5) -> Recommender:
        torch.manual_seed(seed)
        return self.make_student(domain)

    def ids(self, domain: Domain) -> np.ndarray:
        """Training instances of very different history lengths."""
        spread = np.argsort(domain.instances("train").lengths, kind="stable")
        chosen = np.linspace(0, len(spread) - 1, min(self.instance_count, len(spread))).astype(np.int64)
        return np.random.default_rng(0).permutation(spread[chosen])

    def batch(self, domain: Domain, ids: Sequence[int] | np.ndarray, share_prefixes: bool = False) -> Batch:
        return Batches(domain, domain.instances("train"), share_prefixes)(np.asarray(ids))

    def scores(self, student: Recommender, *batches: Batch) -> list[torch.Tensor]:
        """(B, n_items) scores of all items for each batch, over the largest of the first."""
        with torch.no_grad():
            found = [student.score_items(student.encode(batch))[:, 1:].cpu() for batch in batches]
        return [scores / found[0].abs().max() for scores in found]

    def assert_same_scores(self, student: Recommender, batch: Batch, other: Batch) -> None:
        expected, found = self.scores(student, batch, other)
        torch.testing.assert_close(found, expected, atol=self.tolerance, rtol=0)

    def losses(self, student: Recommender, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The base loss, and the cross-entropy of the in-batch scores."""
        encoded, table = student(batch)
        own = student.base_loss(batch, encoded, table)
        if own is None:
            own = F.cross_entropy(student.score_items(encoded) * student.logit_scale, batch.targets)
        logits = student.score_items(encoded, batch.targets) if table is None else encoded @ table[batch.targets].T
        return own, F.cross_entropy(logits * student.logit_scale, torch.arange(len(batch), device=logits.device))

    def train(self, domain: Domain, folder: Path, distil: bool = False, **settings: Any) -> tuple[Recommender, Trained]:
        """A student trained by ckd's own loop, and how that went."""
        student = self.seeded(domain)
        epochs = settings.get("epochs", self.epochs)
        plan = build_plan(domain, PlanConfig(batch_size=64, difficulty="none", epochs=epochs), seed=1)
        distillation = None
        if distil:
            target = TargetBuilder(DistillConfig(), ["popularity"], [1.0], [1.0], epsilon=0.0)
            distillation = Distillation(_PopularityScores(domain, plan), target, weight=10.0)
        config = TrainConfig(lr=self.lr, device="cpu", **settings)
        folder.mkdir()
        return student, Trainer(student, domain, plan, config, folder, {}, distillation, seed=3).fit()

    # --- the form of the answers -------------------------------------------------------------------------------

    def test_it_is_a_recommender_with_a_configuration_of_its_own(self, student: Recommender) -> None:
        assert isinstance(student, Recommender)
        assert issubclass(type(student).Config, ModelConfig)
        with pytest.raises(ConfigError, match="surely_no_such_key"):
            parse(type(student).Config, {"surely_no_such_key": 1}, "student")
        for name in type(student).TRAIN_DEFAULTS:
            assert name in TrainConfig.model_fields

    def test_it_scores_every_item_of_every_instance(self, student: Recommender, domain: Domain) -> None:
        batch = self.batch(domain, self.ids(domain))
        with torch.no_grad():
            encoded = student.encode(batch)
            scores = student.score_items(encoded)
        assert len(encoded) == len(batch)
        assert scores.shape == (len(batch), domain.n_items + 1)
        assert bool(scores.isfinite().all())
        assert float(scores[:, 1:].std(dim=1).max()) > 0
        assert float(scores[:, 1:].std(dim=0).max()) > 0

    def test_chosen_items_score_as_in_the_whole(self, student: Recommender, domain: Domain) -> None:
        batch = self.batch(domain, self.ids(domain))
        encoded = student.encode(batch)
        items = torch.from_numpy(np.random.default_rng(2).permutation(domain.n_items)[:7] + 1)
        expected = student.score_items(encoded)[:, items]
        torch.testing.assert_close(student.score_items(encoded, items), expected, atol=1e-5, rtol=1e-5)
        if student.factored:
            torch.testing.assert_close(encoded @ student.item_table()[items].T, expected, atol=1e-5, rtol=1e-5)

    def test_forward_gives_what_encode_and_item_table_give(self, student: Recommender, domain: Domain) -> None:
        batch = self.batch(domain, self.ids(domain))
        encoded, table = student(batch)
        torch.testing.assert_close(encoded, student.encode(batch))
        if table is not None:
            torch.testing.assert_close(table, student.item_table())

    # --- company does not matter -------------------------------------------------------------------------------

    def test_the_order_of_a_batch_does_not_matter(self, student: Recommender, domain: Domain) -> None:
        ids = self.ids(domain)
        order = np.random.default_rng(1).permutation(len(ids))
        straight, shuffled = self.scores(student, self.batch(domain, ids), self.batch(domain, ids[order]))
        torch.testing.assert_close(shuffled, straight[torch.from_numpy(order)], atol=self.tolerance, rtol=0)

    def test_batch_mates_do_not_matter(self, student: Recommender, domain: Domain) -> None:
        ids = self.ids(domain)
        together, *alone = self.scores(student, self.batch(domain, ids), *(self.batch(domain, [i]) for i in ids))
        torch.testing.assert_close(torch.cat(alone), together, atol=self.tolerance, rtol=0)

    def test_padding_does_not_matter(self, student: Recommender, domain: Domain) -> None:
        batch = self.batch(domain, self.ids(domain))
        wide = F.pad(batch.histories(), (0, domain.history_cap - batch.sequences.shape[1]))
        padded = Batch.from_histories(wide, batch.lengths, batch.targets, batch.users)
        self.assert_same_scores(student, batch, padded)

    def test_shared_prefixes_do_not_matter(self, student: Recommender, domain: Domain) -> None:
        ids = np.arange(min(len(domain.instances("train")), 2 * self.instance_count))
        single, shared = (self.batch(domain, ids, share) for share in (False, True))
        assert len(shared.sequences) < len(single.sequences)
        self.assert_same_scores(student, single, shared)

    def test_the_target_is_not_looked_at(self, student: Recommender, domain: Domain) -> None:
        batch = self.batch(domain, self.ids(domain))
        other = Batch(batch.users, batch.targets.flip(0), batch.sequences, batch.rows, batch.lengths, batch.packed)
        self.assert_same_scores(student, batch, other)

    def test_users_are_told_apart_only_by_a_student_that_says_so(self, student: Recommender, domain: Domain) -> None:
        batch = self.batch(domain, self.ids(domain))
        other = Batch(batch.users.flip(0), batch.targets, batch.sequences, batch.rows, batch.lengths, batch.packed)
        expected, found = self.scores(student, batch, other)
        assert student.reads_users != torch.allclose(found, expected, atol=self.tolerance, rtol=0)

    # --- weights and files -------------------------------------------------------------------------------------

    def test_the_same_seed_gives_the_same_weights(self, student: Recommender, domain: Domain) -> None:
        again, other = (self.seeded(domain, seed).state_dict() for seed in (5, 6))
        state = student.state_dict()
        assert state.keys() == again.keys() == other.keys()
        assert all(torch.equal(value, again[name]) for name, value in state.items())
        assert any(not torch.equal(value, other[name]) for name, value in state.items())

    def test_it_survives_saving_and_loading(self, student: Recommender, domain: Domain, tmp_path: Path) -> None:
        paths = [tmp_path / "first.safetensors", tmp_path / "again.safetensors"]
        write_weights(paths[0], student)
        loaded = self.seeded(domain, seed=6).eval()
        put_weights(loaded, read_weights(paths[0]), str(paths[0]))
        batch = self.batch(domain, self.ids(domain))
        assert torch.equal(self.scores(loaded, batch)[0], self.scores(student, batch)[0])
        write_weights(paths[1], loaded)
        assert paths[0].read_bytes() == paths[1].read_bytes()

    def test_a_checkpoint_holds_little_but_weights(self, student: Recommender) -> None:
        weights = sum(weight.numel() for weight in student.parameters())
        assert sum(value.numel() for value in student.state_dict().values()) <= 1.1 * weights

    # --- learning ----------------------------------------------------------------------------------------------

    def test_every_weight_learns(self, domain: Domain) -> None:
        student = self.seeded(domain).train()
        base, in_batch = self.losses(student, self.batch(domain, self.ids(domain), student.causal))
        torch.autograd.backward(base + in_batch)
        for name, weight in student.named_parameters():
            assert not weight.requires_grad or weight.grad is not None, name
            if weight.grad is not None:
                assert bool(weight.grad.isfinite().all()), name
                assert float(weight.grad.abs().max()) > 0, name

    def test_base_training_lowers_the_loss(self, domain: Domain, tmp_path: Path) -> None:
        _, trained = self.train(domain, tmp_path / "base")
        assert trained.rows[-1]["ce"] < trained.rows[0]["ce"]

    def test_distillation_follows_the_teacher(self, domain: Domain, tmp_path: Path) -> None:
        _, trained = self.train(domain, tmp_path / "distilled", distil=True)
        assert trained.rows[-1]["kd"] < 0.9 * trained.rows[0]["kd"]

    def test_training_twice_gives_the_same_weights(self, domain: Domain, tmp_path: Path) -> None:
        first, second = (self.train(domain, tmp_path / name, distil=True, epochs=1)[0] for name in ("one", "two"))
        for name, weight in first.state_dict().items():
            assert torch.equal(weight, second.state_dict()[name]), name

    def test_it_trains_under_bfloat16(self, domain: Domain, tmp_path: Path) -> None:
        student, trained = self.train(domain, tmp_path / "bf16", distil=True, epochs=1, precision="bf16")
        assert all(np.isfinite(trained.rows[0][name]) for name in ("ce", "kd", "loss"))
        assert {weight.dtype for weight in student.parameters()} == {torch.float32}

    # --- ranking -----------------------------------------------------------------------------------------------

    def test_every_item_is_ranked(self, student: Recommender, domain: Domain) -> None:
        student.train()
        ranks = rank_targets(student, domain, "test")
        assert student.training
        student.eval()
        batches = Batches(domain, domain.instances("test"), share_prefixes=False)
        (scores,) = self.scores(student, batches(np.arange(len(ranks))))
        target = scores.gather(1, torch.from_numpy(ranks.target)[:, None] - 1)
        least = 1 + (scores > target + self.tolerance).sum(1).numpy()
        most = (scores >= target - self.tolerance).sum(1).numpy()
        assert bool(((least <= ranks.rank) & (ranks.rank <= most)).all())
        blocks = rank_targets(student, domain, "test", batch_size=7, item_block=11)
        assert bool(((least <= blocks.rank) & (blocks.rank <= most)).all())

    def test_padding_never_wins(self, student: Recommender, domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = rank_targets(student, domain, "test").rank
        score_items, item_table = student.score_items, student.item_table

        def scores(encoded: torch.Tensor, items: torch.Tensor | None = None) -> torch.Tensor:
            found = score_items(encoded, items)
            padding = torch.arange(found.shape[1]) if items is None else items
            return found.masked_fill(padding == 0, HUGE)

        def table() -> torch.Tensor:
            found = item_table().clone()
            found[0] = HUGE
            return found

        monkeypatch.setattr(student, "score_items", scores)
        if student.factored:
            monkeypatch.setattr(student, "item_table", table)
        assert np.array_equal(rank_targets(student, domain, "test").rank, expected)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
    def test_a_gpu_gives_the_same_scores(self, student: Recommender, domain: Domain) -> None:
        batch = self.batch(domain, self.ids(domain), student.causal)
        (expected,) = self.scores(student, batch)
        (found,) = self.scores(student.to("cuda"), batch.to("cuda"))
        torch.testing.assert_close(found, expected, atol=self.gpu_tolerance, rtol=0)
        losses = self.losses(student.train(), batch.to("cuda"))
        assert all(bool(loss.isfinite()) for loss in losses)


class _PopularityScores:
    """The stored scores of a teacher to whom an item's number says how good it is."""

    def __init__(self, domain: Domain, plan: Plan) -> None:
        self.targets = domain.instances("train").targets
        self.plan = plan

    def stream(self, batch_ids: Iterable[int], *, dtype: None) -> Iterator[tuple[int, Sequence[np.ndarray]]]:
        for batch_id in batch_ids:
            targets = torch.from_numpy(self.targets[self.plan.batch(batch_id)].astype(np.int64))
            logits = 2 * torch.sin(targets.double()).expand(len(targets), -1)
            yield batch_id, [logits.log_softmax(dim=1).float().numpy()]
