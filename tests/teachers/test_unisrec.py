"""UniSRec as a teacher: the contract, fine-tuning from pre-trained weights, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from ckd.config import RunConfig, TrainConfig, parse
from ckd.data.batch import Batches
from ckd.data.domain import Domain
from ckd.data.features import ItemFeatures, save_features
from ckd.errors import CkdError, ConfigError, DataError
from ckd.evaluation.metrics import ranking_metrics
from ckd.evaluation.ranks import rank_targets
from ckd.nn.weights import read_weights
from ckd.pipelines.finetune_teacher import finetune_teacher, load_teacher
from ckd.teachers import TEACHERS
from ckd.teachers.unisrec import UniSRec, UniSRecConfig
from ckd.testing.teacher_contract import TeacherContract

P = 12
SMALL: dict[str, Any] = {"hidden_size": 16, "inner_size": 24, "n_experts": 3}


def add_feature(domain: Domain, size: int = P, name: str = "text", seed: int = 0, source: Any = None) -> Domain:
    """Random vectors for most items; every seventh has none."""
    vectors = np.random.default_rng(seed).normal(size=(domain.n_items + 1, size)).astype(np.float32)
    present = np.arange(domain.n_items + 1) % 7 != 0
    vectors[~present] = 0
    assert domain.folder is not None
    save_features(domain.folder, ItemFeatures(name, vectors, present, source or {}))
    return domain


def make(domain: Domain, **config: Any) -> UniSRec:
    torch.manual_seed(0)
    return UniSRec.create(UniSRecConfig(**SMALL, **config), domain)


@pytest.fixture
def domain(tiny: dict[str, Domain], tmp_path: Path) -> Domain:
    return add_feature(list(tiny.values())[-1].save(tmp_path / "domain"))


def batch_of(domain: Domain, n: int = 30) -> Any:
    return Batches(domain, domain.instances("train"))(np.arange(n))


class TestInductive(TeacherContract):
    mode = "inductive"

    def make_teacher(self, domain: Domain) -> UniSRec:
        return UniSRec.create(UniSRecConfig(**SMALL, mode=self.mode), add_feature(domain))


class TestTransductive(TestInductive):
    mode = "transductive"


def test_the_registry_finds_it() -> None:
    assert TEACHERS.get("unisrec") is UniSRec


def test_missing_vectors_share_the_vector_of_no_text(domain: Domain) -> None:
    table = make(domain).eval().item_table()
    torch.testing.assert_close(table[7], table[0])
    assert not torch.allclose(table[8], table[1])


def test_the_item_table_is_unit_length_and_ids_tell_items_apart_in_transductive_mode(domain: Domain) -> None:
    table = make(domain, mode="transductive").eval().item_table()
    torch.testing.assert_close(table.norm(dim=1), torch.ones(domain.n_items + 1))
    assert not torch.allclose(table[7], table[14])


def test_text_vectors_take_no_gradient_and_stay_out_of_the_file(domain: Domain, tmp_path: Path) -> None:
    model = make(domain)
    encoded, table = model.train()(batch_of(domain))
    (encoded @ table.T).sum().backward()
    assert not model.plm_embedding.weight.requires_grad
    assert "plm_embedding.weight" not in dict(model.named_parameters())
    model.save(tmp_path)
    assert "plm_embedding.weight" not in read_weights(tmp_path / "model.safetensors")
    # The feature on disk is memory-mapped: loading a published table must not write into it.
    before = model.plm_embedding.weight.clone()
    shared = torch.zeros_like(before)
    other = UniSRec(model.config, shared, domain.n_items, 50)
    other.load_state_dict({**model.state_dict(), "plm_embedding.weight": before})
    assert torch.equal(other.plm_embedding.weight, before)
    assert not bool(shared.any())
    with pytest.raises(RuntimeError, match=r"plm_embedding\.weight"):
        other.load_state_dict({**model.state_dict(), "plm_embedding.weight": before[1:]})


def test_encode_agrees_with_forward_with_and_without_gradients(domain: Domain) -> None:
    model, batch = make(domain).eval(), batch_of(domain)
    expected, _ = model(batch)
    torch.testing.assert_close(model.encode(batch), expected)
    with torch.no_grad():
        torch.testing.assert_close(model.encode(batch), expected)


def test_training_is_noisy_and_evaluation_is_not(domain: Domain) -> None:
    model, batch = make(domain), batch_of(domain)
    model.train()
    assert not torch.equal(model.table(), model.table())
    noisy = make(domain, adaptor_dropout=0.0).train()
    assert not torch.equal(noisy.moe_adaptor.gates(noisy.plm_embedding.weight), torch.full((1, 3), 1 / 3))
    model.eval()
    assert torch.equal(model(batch)[1], model(batch)[1])


def test_the_adaptor_in_blocks_equals_the_adaptor_at_once(domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(domain).eval()
    whole = model.moe_adaptor(model.plm_embedding.weight)
    monkeypatch.setattr("ckd.nn.moe_adaptor.BLOCK_ROWS", 7)
    with torch.no_grad():
        torch.testing.assert_close(model.moe_adaptor(model.plm_embedding.weight), whole)


# --- fine-tuning from pre-trained weights --------------------------------------------------------------------------


@pytest.fixture
def pretrained(domain: Domain, tmp_path: Path) -> Path:
    folder = tmp_path / "pretrained"
    folder.mkdir()
    torch.manual_seed(99)
    # Pre-trained elsewhere: on another catalogue, with longer histories.
    UniSRec(UniSRecConfig(**SMALL), torch.zeros(5, P), 4, 60).save_pretrained(folder, {"encoder": ENCODER})
    return folder


ENCODER = {"kind": "text", "weights": "abc", "pooling": "mean", "precision": "fp32"}


@pytest.mark.parametrize("mode", ["inductive", "transductive"])
def test_fine_tuning_starts_from_pretrained_weights(domain: Domain, pretrained: Path, mode: str) -> None:
    model = make(domain, mode=mode, start=pretrained)
    stored = read_weights(pretrained / "model.safetensors")
    for name, value in model.state_dict().items():
        assert name == "item_embedding.weight" or torch.equal(value, stored[name]), name
    assert model.position_embedding.num_embeddings == 60
    frozen = {name.split(".")[0] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"position_embedding", "trm_encoder"}
    encoded, table = model(batch_of(domain))
    (encoded @ table.T).exp().mean().backward()
    assert model.LayerNorm.weight.grad is not None
    assert model.moe_adaptor.experts[0].lin.weight.grad is not None
    assert all(p.grad is None for p in model.trm_encoder.parameters())
    assert all(p.requires_grad for p in make(domain, mode=mode, start=pretrained, freeze="none").parameters())


def test_a_started_teacher_survives_saving_and_loading(domain: Domain, pretrained: Path, tmp_path: Path) -> None:
    model = make(domain, start=pretrained)
    (tmp_path / "saved").mkdir()
    model.save(tmp_path / "saved")
    loaded = UniSRec.load(tmp_path / "saved", domain)
    assert torch.equal(loaded.encode_instances(batch_of(domain)), model.encode_instances(batch_of(domain)))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fine_tuning_through_the_pipeline(
    tiny: dict[str, Domain], pretrained: Path, tmp_path: Path, precision: Literal["fp32", "bf16"]
) -> None:
    target = list(tiny.values())[-1]
    domain = add_feature(target.save(tmp_path / "work" / "domains" / target.name))
    config = RunConfig(
        train=TrainConfig(batch_size=64, epochs=6, lr=0.01, precision=precision, device="cpu"),
        teacher={**SMALL, "start": str(pretrained), "hidden_dropout": 0.1, "attention_dropout": 0.1},
    )
    rows: list[dict[str, Any]] = []
    result = finetune_teacher(tmp_path / "work", target.name, "unisrec", config, on_epoch=rows.append)
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.05
    teacher, _, _ = load_teacher(tmp_path / "work", domain, "unisrec")
    assert isinstance(teacher, UniSRec)
    stored = read_weights(pretrained / "model.safetensors")
    for name, value in teacher.state_dict().items():
        frozen = name.startswith(("position_embedding", "trm_encoder"))
        assert torch.equal(value, stored[name]) == frozen, name
    ranks = rank_targets(teacher, domain, "valid")
    assert ranking_metrics(ranks.rank)["ndcg@10"] == pytest.approx(result.metrics["valid"]["ndcg@10"])


def test_from_scratch_nothing_is_frozen(domain: Domain) -> None:
    assert all(p.requires_grad for p in make(domain).parameters())


def test_start_of_other_sizes_is_refused(domain: Domain, pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"hidden_size=16, not 32\. Set teacher.hidden_size=16"):
        UniSRec.create(UniSRecConfig(**{**SMALL, "hidden_size": 32}, start=pretrained), domain)
    with pytest.raises(ConfigError, match=r"size 12, feature 'wide' .* has 13"):
        make(add_feature(domain, P + 1, "wide"), feature="wide", start=pretrained)
    other = {**ENCODER, "weights": "def"}
    with pytest.raises(ConfigError, match="another encoder"):
        make(add_feature(domain, P, "other", source={"encoder": other}), feature="other", start=pretrained)
    make(
        add_feature(domain, P, "same", source={"encoder": {**ENCODER, "precision": "bf16"}}),
        feature="same",
        start=pretrained,
    )
    long = replace(domain, history_cap=61)
    with pytest.raises(ConfigError, match=r"at most 60 items, .* up to 61"):
        make(long, start=pretrained)


def test_start_must_be_a_pretrained_folder(domain: Domain, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere/teacher\.json: no such file"):
        make(domain, start=tmp_path / "nowhere")
    make(domain).save(tmp_path)
    with pytest.raises(DataError, match=r"is fine-tuned, not pre-trained"):
        make(domain, start=tmp_path)


def test_a_pretrained_folder_is_no_teacher_yet(domain: Domain, pretrained: Path) -> None:
    with pytest.raises(DataError, match=r"pre-trained, not fine-tuned\. .*teacher\.start="):
        UniSRec.load(pretrained, domain)


# --- refusals ------------------------------------------------------------------------------------------------------


def test_another_feature_is_refused(domain: Domain, tmp_path: Path) -> None:
    make(domain).save(tmp_path)
    add_feature(domain, seed=1)
    with pytest.raises(DataError, match=r"feature 'text' of content .* is now"):
        UniSRec.load(tmp_path, domain)


def test_a_missing_feature_is_refused(domain: Domain) -> None:
    with pytest.raises(DataError, match="no such feature"):
        make(domain, feature="absent")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object, found list"),
        ("{}", "format None"),
        ('{"format": 99}', "format 99"),
        ('{"format": 1, "teacher": "other"}', "'other', expected a 'unisrec'"),
    ],
)
def test_a_damaged_description_is_refused(domain: Domain, tmp_path: Path, content: str, message: str) -> None:
    make(domain).save(tmp_path)
    (tmp_path / "teacher.json").write_text(content)
    with pytest.raises(DataError, match=message):
        UniSRec.load(tmp_path, domain)


def test_weights_that_do_not_fit_are_named(domain: Domain, tmp_path: Path) -> None:
    make(domain).save(tmp_path)
    info = json.loads((tmp_path / "teacher.json").read_text())
    info["config"] |= {"inner_size": 20, "n_experts": 4}
    (tmp_path / "teacher.json").write_text(json.dumps(info))
    with pytest.raises(DataError) as caught:
        UniSRec.load(tmp_path, domain)
    message = str(caught.value)
    assert "missing: moe_adaptor.experts.3.bias, moe_adaptor.experts.3.lin.weight;" in message
    assert "trm_encoder.layer.0.feed_forward.dense_1.weight (24, 16) where (20, 16) is needed" in message
    assert "\n" not in message


def test_vectors_and_items_must_agree() -> None:
    with pytest.raises(ValueError, match="4 text vectors for 5 items"):
        UniSRec(UniSRecConfig(**SMALL), torch.zeros(4, P), 5, 10)


@pytest.mark.parametrize(
    ("key", "value"),
    [("n_heads", 7), ("temperature", 0), ("mode", "both"), ("freeze", "some"), ("hidden_dropout", 1.0)],
)
def test_values_that_cannot_be_are_refused(key: str, value: Any) -> None:
    with pytest.raises(CkdError, match=key):
        parse(UniSRecConfig, {key: value}, "teacher")
