"""Recformer as a teacher: the contract, passes of bounded size, texts that are missing, files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
import pytest
import torch

from ckd.config import parse
from ckd.data.batch import Batches
from ckd.data.domain import Domain, leave_one_out
from ckd.errors import ConfigError, DataError
from ckd.teachers import TEACHERS
from ckd.teachers.protocol import Importable, Pretrainable, SelfFinetuning, Teacher
from ckd.teachers.recformer import Recformer, RecformerConfig
from ckd.teachers.recformer_parts.tokenise import TokenBatch
from ckd.testing.teacher_contract import TeacherContract

SMALL = {"window": 8, "max_attribute_length": 9, "max_items": 6, "max_tokens": 64}


class TestRecformer(TeacherContract):
    kind: ClassVar[str] = "bert"
    backbone: ClassVar[Path]
    config: ClassVar[dict[str, object]] = SMALL

    @pytest.fixture(autouse=True)
    def find_backbone(self, tiny_backbone) -> None:
        type(self).backbone = tiny_backbone(self.kind)

    def make_teacher(self, domain: Domain) -> Teacher:
        return Recformer.create(RecformerConfig(backbone=str(self.backbone), **self.config), domain)


class TestRecformerFromRoberta(TestRecformer):
    kind = "roberta"


class TestRecformerInManyPasses(TestRecformer):
    kind = "longformer"
    config: ClassVar[dict[str, object]] = {**SMALL, "pass_tokens": 70, "window": 4}


class TestFinetunedRecformer(TestRecformer):
    """With a table of items, as fine-tuning leaves it."""

    def make_teacher(self, domain: Domain) -> Teacher:
        teacher = super().make_teacher(domain)
        assert isinstance(teacher, Recformer)
        teacher.set_table(torch.randn(domain.n_items, 16))
        return teacher


def domain_of(texts: dict[str, list[str | None]], sequences: list[list[int]]) -> Domain:
    n = len(next(iter(texts.values())))
    lengths = np.array([len(sequence) for sequence in sequences])
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    table = pl.DataFrame({"item": range(1, n + 1), "raw_id": [f"i{i}" for i in range(n)], **texts})
    users = pl.Series("raw_id", [f"u{u}" for u in range(len(sequences))])
    items = np.concatenate(sequences).astype(np.int32)
    return Domain("small", indptr, items, leave_one_out(indptr), table, users)


@pytest.fixture(scope="module")
def half_empty() -> Domain:
    """Items 3 and 4 have no text at all, and the second user has seen nothing else."""
    titles = ["red cup", "blue plate", None, "", "green pan", "fork"]
    sequences = [[1, 3, 2, 5, 6], [3, 4, 3, 4, 3], [5, 2, 1, 6]]
    return domain_of({"text": [t or "" for t in titles], "title": titles, "brand": [None] * 6}, sequences)


@pytest.fixture(scope="module")
def teacher(tiny_backbone, half_empty: Domain) -> Recformer:
    return Recformer.create(RecformerConfig(backbone=str(tiny_backbone("bert")), **SMALL), half_empty)


def test_it_is_found_by_name_and_offers_everything(teacher: Recformer) -> None:
    assert TEACHERS.get("recformer") is Recformer
    assert isinstance(teacher, SelfFinetuning)
    assert isinstance(Recformer, Pretrainable)
    assert isinstance(Recformer, Importable)


def test_texts_that_are_missing_give_the_vector_of_the_first_token(teacher: Recformer, half_empty: Domain) -> None:
    bare = teacher.vectors(np.zeros((1, 1), dtype=np.int64))[0]
    assert bool(bare.isfinite().all())
    items = teacher.encode_items(torch.arange(1, 7))
    assert torch.allclose(items[2], bare, atol=1e-6)
    assert torch.allclose(items[3], bare, atol=1e-6)
    assert not torch.allclose(items[0], bare, atol=1e-3)
    batch = Batches(half_empty, half_empty.instances("test"))(np.arange(3))
    users = teacher.encode_instances(batch)
    assert torch.allclose(users[1], bare, atol=1e-6)
    assert bool(users.isfinite().all())


def test_an_item_without_text_still_takes_its_place(teacher: Recformer) -> None:
    with_gap = teacher.compose(np.array([[1, 3, 2]]))
    assert sorted(set(with_gap.items[0].tolist())) == [0, 1, 3]


def test_every_sequence_is_encoded_once_in_passes_of_bounded_size(
    tiny_backbone, half_empty: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = 40
    config = RecformerConfig(backbone=str(tiny_backbone("bert")), **SMALL, pass_tokens=budget)
    teacher = Recformer.create(config, half_empty)
    seen: list[torch.Size] = []
    pooled = type(teacher.longformer).pooled

    def spy(self: object, tokens: TokenBatch) -> torch.Tensor:
        seen.append(tokens.ids.shape)
        return pooled(self, tokens)

    monkeypatch.setattr(type(teacher.longformer), "pooled", spy)
    recent = np.random.default_rng(0).integers(0, 7, (50, 6)) * (np.arange(6) < np.arange(50)[:, None] % 7)
    found = teacher.vectors(recent)
    assert sum(rows for rows, _ in seen) == len(recent)
    assert len(seen) > 5
    assert all(rows == 1 or rows * width <= budget for rows, width in seen)
    # Sorted by length, hardly anything is padding.
    padded, real = sum(rows * width for rows, width in seen), sum(teacher.compose(recent).lengths.tolist())
    assert padded <= 1.2 * real
    monkeypatch.undo()
    whole = Recformer.create(config.model_copy(update={"pass_tokens": 10**6}), half_empty)
    torch.testing.assert_close(found, whole.vectors(recent), atol=1e-5, rtol=0)


def test_the_newest_items_within_the_limits_count(teacher: Recformer) -> None:
    long = np.array([[1, 2, 5, 6, 1, 2, 5, 5, 6]])
    torch.testing.assert_close(teacher.vectors(long), teacher.vectors(long[:, :6]))
    # Order matters: a history is no bag of items.
    assert not torch.allclose(teacher.vectors(np.array([[1, 2]])), teacher.vectors(np.array([[2, 1]])), atol=1e-4)


# --- files and configuration -----------------------------------------------------------------------------------


@pytest.fixture
def saved(teacher: Recformer, tmp_path: Path) -> Path:
    teacher.save(tmp_path)
    return tmp_path


def test_the_published_names_are_kept(tiny_backbone, half_empty: Domain, golden_dir: Path) -> None:
    names = json.loads((golden_dir / "recformer_golden.json").read_text())["state_dict_keys_seqrec"]
    teacher = Recformer.create(RecformerConfig(backbone=str(tiny_backbone("bert")), layers=2, **SMALL), half_empty)
    teacher.set_table(teacher.encode_catalogue())
    deeper = {name for name in names if (part := name.split("encoder.layer."))[1:] and int(part[1].split(".")[0]) > 1}
    assert set(teacher.state_dict()) == set(names) - {"longformer.embeddings.position_ids"} - deeper


def test_changed_texts_are_refused(saved: Path, half_empty: Domain) -> None:
    table = half_empty.item_table.with_columns(pl.col("title").replace("fork", "spoon"))
    other = domain_of({name: table[name].to_list() for name in ("text", "title", "brand")}, [[1, 2, 3]])
    with pytest.raises(DataError, match="Fine-tune it on this domain"):
        Recformer.load(saved, other)


def test_another_tokenizer_is_refused(saved: Path, half_empty: Domain) -> None:
    path = saved / "tokenizer.json"
    path.write_text(path.read_text().replace('"lowercase":true', '"lowercase":false'))
    with pytest.raises(DataError, match=r"tokenizer\.json: is not the tokenizer"):
        Recformer.load(saved, half_empty)
    path.unlink()
    with pytest.raises(DataError, match=r"tokenizer\.json: no such file"):
        Recformer.load(saved, half_empty)


@pytest.mark.parametrize("change", [{"shape": {}}, {"shape": None}, {"tokenizer": None}])
def test_a_damaged_description_is_refused(saved: Path, half_empty: Domain, change: dict[str, object]) -> None:
    path = saved / "teacher.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=str(saved)):
        Recformer.load(saved, half_empty)


def test_weights_of_another_shape_are_refused(saved: Path, half_empty: Domain, tiny_backbone, tmp_path: Path) -> None:
    config = RecformerConfig(backbone=str(tiny_backbone("bert")), **{**SMALL, "max_items": 5})
    other = tmp_path / "other"
    other.mkdir()
    Recformer.create(config, half_empty).save(other)
    shutil.copy(other / "model.safetensors", saved / "model.safetensors")
    with pytest.raises(DataError, match="item_position_embeddings"):
        Recformer.load(saved, half_empty)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"window": 7}, "even"),
        ({"window": 0}, "window"),
        ({"max_tokens": 1}, "max_tokens"),
        ({"start": "a", "backbone": "b"}, "not both"),
        ({"pooling": "max"}, "pooling"),
    ],
)
def test_impossible_configurations_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(RecformerConfig, values, "teacher")
