"""What every teacher must keep to, as a test class to inherit.

    from ckd.testing.teacher_contract import TeacherContract

    class TestMyTeacher(TeacherContract):
        def make_teacher(self, domain):
            return MyTeacher.create(MyTeacher.Config(), domain)

The tests run on a built-in domain of forty items and sixty users with texts and pictures, saved in a temporary folder:
`make_teacher` may put features or other files below `domain.folder` first. Override `make_domain` to run on another.
Only this package needs pytest.
"""

from __future__ import annotations

import pickle
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ckd.config import parse
from ckd.data.batch import Batch, Batches
from ckd.data.domain import Domain
from ckd.data.example import TINY, make_example
from ckd.errors import CkdError, ConfigError
from ckd.teachers.protocol import Teacher

#: Suffixes of formats that run code when they are read.
PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")


T = TypeVar("T")


class _Trap:
    """Unpickling an instance leaves a file behind."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.marker,)


class TeacherContract:
    """The contract; subclasses implement `make_teacher`.

    Attributes:
        tolerance: how far a score may move when only the company of an instance changes. Scores are cosines, or dot
            products over the largest absolute dot product.
        bf16_tolerance: how far a score may move under bfloat16 autocast.
        gpu_tolerance: how far a score on a GPU may lie from the CPU's.
        instance_count: how many validation instances are scored.
    """

    tolerance: float = 1e-5
    bf16_tolerance: float = 0.03
    gpu_tolerance: float = 1e-4
    instance_count: int = 24
    _kept: ClassVar[dict[str, Any]]

    def make_teacher(self, domain: Domain) -> Teacher:
        """A teacher ready to score `domain`, the same whenever torch's generator stands at the same point."""
        raise NotImplementedError(f"{type(self).__name__} must implement make_teacher(domain)")

    def make_domain(self, folder: Path) -> Domain:
        """The domain that the tests run on, saved in `folder`."""
        return list(make_example(seed=7, size=TINY).values())[-1].save(folder)

    def make_other_domain(self, folder: Path) -> Domain:
        """A domain of other items and users, saved in `folder`."""
        return next(iter(make_example(seed=8, size=TINY).values())).save(folder)

    # --- what the tests stand on -------------------------------------------------------------------------------

    @pytest.fixture
    def domain(self, tmp_path_factory: pytest.TempPathFactory) -> Domain:
        return self._once("domain", lambda: self.make_domain(tmp_path_factory.mktemp("contract") / "domain"))

    @pytest.fixture
    def teacher(self, domain: Domain) -> Teacher:
        return self._once("teacher", lambda: self.seeded(domain))

    @pytest.fixture
    def saved(self, teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> Path:
        def save() -> Path:
            folder = tmp_path_factory.mktemp("contract-saved")
            teacher.save(folder)
            return folder

        return self._once("saved", save)

    def _once(self, name: str, make: Callable[[], T]) -> T:
        """What `make` returned the first time in this class: pytest makes a new instance for every test."""
        kept = type(self).__dict__.get("_kept")
        if kept is None:
            kept = {}
            type(self)._kept = kept
        if name not in kept:
            kept[name] = make()
        result: T = kept[name]
        return result

    def seeded(self, domain: Domain) -> Teacher:
        torch.manual_seed(5)
        return self.make_teacher(domain)

    def ids(self, domain: Domain) -> np.ndarray:
        """Instances of very different history lengths."""
        lengths = domain.instances("valid").lengths
        spread = np.argsort(lengths, kind="stable")
        chosen = np.linspace(0, len(spread) - 1, min(self.instance_count, len(spread))).astype(np.int64)
        return np.random.default_rng(0).permutation(spread[chosen])

    def batch(self, domain: Domain, ids: Sequence[int] | np.ndarray) -> Batch:
        return Batches(domain, domain.instances("valid"))(np.asarray(ids))

    def scores(self, teacher: Teacher, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """(B, n) comparable scores: cosines, or dot products scaled to at most 1."""
        users, items = users.double().cpu(), items.double().cpu()
        if teacher.similarity == "cosine":
            return F.normalize(users, dim=1) @ F.normalize(items, dim=1).T
        product = users @ items.T
        return product / product.abs().max()

    def all_items(self, domain: Domain) -> torch.Tensor:
        return torch.arange(1, domain.n_items + 1)

    def all_scores(self, teacher: Teacher, domain: Domain) -> torch.Tensor:
        users = teacher.encode_instances(self.batch(domain, self.ids(domain)))
        return self.scores(teacher, users, teacher.encode_items(self.all_items(domain)))

    def assert_close(self, found: torch.Tensor, expected: torch.Tensor, tolerance: float | None = None) -> None:
        torch.testing.assert_close(found, expected, atol=tolerance or self.tolerance, rtol=0)

    # --- the form of the answers -------------------------------------------------------------------------------

    def test_it_satisfies_the_protocol(self, teacher: Teacher) -> None:
        assert isinstance(teacher, Teacher)
        assert teacher.similarity in ("dot", "cosine")
        assert teacher.temperature > 0

    def test_unknown_configuration_keys_are_refused(self, teacher: Teacher) -> None:
        with pytest.raises(ConfigError, match="surely_no_such_key"):
            parse(teacher.Config, {"surely_no_such_key": 1}, "teacher")

    def test_vectors_are_finite_float32_of_one_size_without_gradient(self, teacher: Teacher, domain: Domain) -> None:
        ids = self.ids(domain)
        users, items = teacher.encode_instances(self.batch(domain, ids)), teacher.encode_items(self.all_items(domain))
        assert users.shape == (len(ids), items.shape[1])
        assert items.shape[0] == domain.n_items
        for vectors in (users, items):
            assert vectors.dtype == torch.float32
            assert not vectors.requires_grad
            assert bool(vectors.isfinite().all())

    def test_scores_tell_instances_and_items_apart(self, teacher: Teacher, domain: Domain) -> None:
        scores = self.all_scores(teacher, domain)
        assert float(scores.std(dim=0).max()) > 0
        assert float(scores.std(dim=1).max()) > 0

    # --- the same input gives the same scores ------------------------------------------------------------------

    def test_the_same_input_gives_the_same_vectors(self, teacher: Teacher, domain: Domain) -> None:
        batch, items = self.batch(domain, self.ids(domain)), self.all_items(domain)
        assert torch.equal(teacher.encode_instances(batch), teacher.encode_instances(batch))
        assert torch.equal(teacher.encode_items(items), teacher.encode_items(items))

    def test_the_same_seed_gives_the_same_teacher(self, teacher: Teacher, domain: Domain) -> None:
        assert torch.equal(self.all_scores(self.seeded(domain), domain), self.all_scores(teacher, domain))

    def test_it_scores_in_evaluation_mode_even_while_training(self, teacher: Teacher, domain: Domain) -> None:
        expected = self.all_scores(teacher, domain)
        if not isinstance(teacher, nn.Module):
            pytest.skip("this teacher is no torch module and has no training mode")
        teacher.train()
        try:
            assert torch.equal(self.all_scores(teacher, domain), expected)
        finally:
            teacher.eval()

    def test_scores_follow_changed_weights(self, domain: Domain) -> None:
        teacher = self.seeded(domain)
        parameters = list(teacher.parameters()) if isinstance(teacher, nn.Module) else []
        if not parameters:
            pytest.skip("this teacher has no weights")
        before = self.all_scores(teacher, domain)
        generator = torch.Generator().manual_seed(0)
        for parameter in parameters:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter)
        assert not torch.allclose(self.all_scores(teacher, domain), before, atol=1e-4)

    # --- company does not matter -------------------------------------------------------------------------------

    def test_the_order_of_a_batch_does_not_matter(self, teacher: Teacher, domain: Domain) -> None:
        ids = self.ids(domain)
        order = np.random.default_rng(1).permutation(len(ids))
        items = teacher.encode_items(self.all_items(domain))
        straight = self.scores(teacher, teacher.encode_instances(self.batch(domain, ids)), items)
        shuffled = self.scores(teacher, teacher.encode_instances(self.batch(domain, ids[order])), items)
        self.assert_close(shuffled, straight[torch.from_numpy(order)])

    def test_batch_mates_do_not_matter(self, teacher: Teacher, domain: Domain) -> None:
        ids = self.ids(domain)
        items = teacher.encode_items(self.all_items(domain))
        together = teacher.encode_instances(self.batch(domain, ids))
        alone = torch.cat([teacher.encode_instances(self.batch(domain, [i])) for i in ids])
        halves = torch.cat([teacher.encode_instances(self.batch(domain, part)) for part in np.array_split(ids, 2)])
        # On the scale of the whole, so that a dot product of one instance is not divided by its own maximum.
        everything = self.scores(teacher, torch.cat([together, alone, halves]), items)
        first, second, third = torch.split(everything, len(ids))
        self.assert_close(second, first)
        self.assert_close(third, first)

    def test_padding_does_not_matter(self, teacher: Teacher, domain: Domain) -> None:
        batch = self.batch(domain, self.ids(domain))
        histories = F.pad(batch.histories(), (0, domain.history_cap - batch.sequences.shape[1]))
        padded = Batch.from_histories(histories, batch.lengths, batch.targets, batch.users)
        items = teacher.encode_items(self.all_items(domain))
        found = self.scores(teacher, teacher.encode_instances(padded), items)
        self.assert_close(found, self.scores(teacher, teacher.encode_instances(batch), items))

    def test_shared_prefixes_do_not_matter(self, teacher: Teacher, domain: Domain) -> None:
        instances = domain.instances("train")
        ids = np.arange(min(len(instances), 2 * self.instance_count))
        shared, single = (Batches(domain, instances, share_prefixes=share)(ids) for share in (True, False))
        assert len(shared.sequences) < len(single.sequences)
        items = teacher.encode_items(self.all_items(domain))
        found = self.scores(teacher, teacher.encode_instances(shared), items)
        self.assert_close(found, self.scores(teacher, teacher.encode_instances(single), items))

    def test_the_target_is_not_looked_at(self, teacher: Teacher, domain: Domain) -> None:
        batch = self.batch(domain, self.ids(domain))
        other = Batch(batch.users, batch.targets.flip(0), batch.sequences, batch.rows, batch.lengths, batch.packed)
        items = teacher.encode_items(self.all_items(domain))
        found = self.scores(teacher, teacher.encode_instances(other), items)
        self.assert_close(found, self.scores(teacher, teacher.encode_instances(batch), items))

    def test_items_are_encoded_each_on_its_own(self, teacher: Teacher, domain: Domain) -> None:
        users = teacher.encode_instances(self.batch(domain, self.ids(domain)))
        items = self.all_items(domain)
        scores = self.scores(teacher, users, teacher.encode_items(items))
        order = torch.from_numpy(np.random.default_rng(2).permutation(len(items)))
        self.assert_close(self.scores(teacher, users, teacher.encode_items(items[order])), scores[:, order])
        parts = torch.cat([teacher.encode_items(part) for part in (items[:1], items[1:])])
        self.assert_close(self.scores(teacher, users, parts), scores)
        twice = teacher.encode_items(torch.cat([items, items[:1]]))
        self.assert_close(twice[-1:], twice[:1])

    # --- files -------------------------------------------------------------------------------------------------

    def test_it_survives_saving_and_loading(self, teacher: Teacher, domain: Domain, saved: Path) -> None:
        loaded = type(teacher).load(saved, domain)
        assert (loaded.similarity, loaded.temperature) == (teacher.similarity, teacher.temperature)
        assert torch.equal(self.all_scores(loaded, domain), self.all_scores(teacher, domain))

    def test_saving_is_deterministic(self, teacher: Teacher, domain: Domain, saved: Path, tmp_path: Path) -> None:
        folders = [tmp_path / "again", tmp_path / "loaded"]
        for folder, source in zip(folders, (teacher, type(teacher).load(saved, domain)), strict=True):
            folder.mkdir()
            source.save(folder)
            for name in ("model.safetensors", "teacher.json"):
                assert (folder / name).read_bytes() == (saved / name).read_bytes(), f"{folder.name}: {name}"

    def test_no_pickle_is_written(self, saved: Path) -> None:
        assert (saved / "model.safetensors").is_file()
        assert [path.name for path in saved.rglob("*") if path.suffix in PICKLES] == []

    @pytest.mark.parametrize("name", ["model.safetensors", "model.pt", "pytorch_model.bin"])
    def test_pickles_are_never_executed(
        self, teacher: Teacher, domain: Domain, saved: Path, tmp_path: Path, name: str
    ) -> None:
        folder = tmp_path / "pickled"
        shutil.copytree(saved, folder)
        (folder / "model.safetensors").unlink()
        marker = tmp_path / "executed"
        (folder / name).write_bytes(pickle.dumps(_Trap(marker)))
        with pytest.raises(CkdError, match=r"model\.safetensors"):
            type(teacher).load(folder, domain)
        assert not marker.exists()

    def test_a_truncated_file_is_refused(self, teacher: Teacher, domain: Domain, saved: Path, tmp_path: Path) -> None:
        folder = tmp_path / "truncated"
        shutil.copytree(saved, folder)
        content = (saved / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[: len(content) - 16])
        with pytest.raises(CkdError, match=r"model\.safetensors"):
            type(teacher).load(folder, domain)

    def test_an_empty_folder_is_refused(self, teacher: Teacher, domain: Domain, tmp_path: Path) -> None:
        with pytest.raises(CkdError, match=re.escape(str(tmp_path))):
            type(teacher).load(tmp_path, domain)

    def test_another_domain_is_refused(self, teacher: Teacher, saved: Path, tmp_path: Path) -> None:
        other = self.make_other_domain(tmp_path / "other")
        with pytest.raises(CkdError):
            type(teacher).load(saved, other)

    # --- precision and devices ---------------------------------------------------------------------------------

    def test_bfloat16_stays_within_the_stated_tolerance(self, teacher: Teacher, domain: Domain) -> None:
        exact = self.all_scores(teacher, domain)
        with torch.autocast("cpu", torch.bfloat16):
            users = teacher.encode_instances(self.batch(domain, self.ids(domain)))
            items = teacher.encode_items(self.all_items(domain))
        assert users.dtype == items.dtype == torch.float32
        self.assert_close(self.scores(teacher, users, items), exact, self.bf16_tolerance)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
    def test_a_gpu_gives_the_same_scores(self, teacher: Teacher, domain: Domain) -> None:
        if not isinstance(teacher, nn.Module):
            pytest.skip("this teacher is no torch module and runs where its vectors are")
        exact = self.all_scores(teacher, domain)
        on_gpu = self.seeded(domain)
        assert isinstance(on_gpu, nn.Module)
        on_gpu.to("cuda")
        users = on_gpu.encode_instances(self.batch(domain, self.ids(domain)).to("cuda"))
        items = on_gpu.encode_items(self.all_items(domain).to("cuda"))
        self.assert_close(self.scores(teacher, users, items), exact, self.gpu_tolerance)
