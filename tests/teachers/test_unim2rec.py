"""UniM²Rec: the contract, what a missing modality may change, pre-training, and training at every image coverage."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn import functional as F

from ckd.config import PlanConfig, TrainConfig, parse
from ckd.data.batch import Batches
from ckd.data.domain import Domain
from ckd.data.features import ItemFeatures, load_features, save_features
from ckd.distill.plan import build_plan
from ckd.distill.trainer import Trainer
from ckd.errors import ConfigError, DataError
from ckd.nn.evaluating import evaluating
from ckd.pipelines.image_coverage import cover
from ckd.teachers import TEACHERS
from ckd.teachers.protocol import Pretrainable
from ckd.teachers.unim2rec import UniM2Rec, UniM2RecConfig
from ckd.teachers.unim2rec_parts.config import UniM2RecPretrainConfig
from ckd.teachers.unim2rec_parts.modalities import ItemContent, drop_modalities
from ckd.teachers.unim2rec_parts.pretraining import PretrainingModel, alignment_loss
from ckd.testing.teacher_contract import TeacherContract

SMALL: dict[str, Any] = {"hidden_size": 16, "inner_size": 24, "n_experts": 3}
TEXT_SIZE, IMAGE_SIZE = 12, 10


def make_features(n_items: int, name: str, size: int, coverage: float = 1.0, seed: int = 0) -> ItemFeatures:
    """Random vectors for a share of the items."""
    generator = np.random.default_rng([seed, size])
    vectors = generator.standard_normal((n_items + 1, size)).astype(np.float32)
    vectors[0] = 0.0
    present = np.ones(n_items + 1, dtype=bool)
    present[0] = False
    return cover(ItemFeatures(name, vectors, present), coverage, seed)


def both_features(n_items: int, coverage: float = 0.5, seed: int = 0) -> dict[str, ItemFeatures]:
    return {
        "text": make_features(n_items, "text", TEXT_SIZE, seed=seed),
        "image": make_features(n_items, "image", IMAGE_SIZE, coverage, seed),
    }


def saved(domain: Domain, folder: Path, coverage: float = 0.5) -> Domain:
    domain = domain.save(folder)
    for features in both_features(domain.n_items, coverage).values():
        save_features(folder, features)
    return domain


class TestUniM2Rec(TeacherContract):
    config = UniM2RecConfig(**SMALL)
    coverage = 0.5

    def make_domain(self, folder: Path) -> Domain:
        return saved(super().make_domain(folder), folder, self.coverage)

    def make_other_domain(self, folder: Path) -> Domain:
        return saved(super().make_other_domain(folder), folder, self.coverage)

    def make_teacher(self, domain: Domain) -> UniM2Rec:
        return UniM2Rec.create(self.config, domain)


class TestTransductiveUniM2Rec(TestUniM2Rec):
    config = UniM2RecConfig(**SMALL, mode="transductive")


class TestUniM2RecWithoutAnyImage(TestUniM2Rec):
    coverage = 0.0


@pytest.fixture(scope="module")
def domains(tiny: dict[str, Domain], tmp_path_factory: pytest.TempPathFactory) -> list[Domain]:
    """Two sources and a target, with features."""
    folder = tmp_path_factory.mktemp("unim2rec")
    return [saved(domain, folder / name) for name, domain in tiny.items()]


@pytest.fixture(scope="module")
def target(domains: list[Domain]) -> Domain:
    return domains[-1]


def make_model(features: dict[str, ItemFeatures], seed: int = 0, **config: Any) -> UniM2Rec:
    torch.manual_seed(seed)
    return UniM2Rec(UniM2RecConfig(**SMALL, **config), features, max_length=50)


def make_content(features: dict[str, ItemFeatures], chance: float = 0.0) -> ItemContent:
    """Item content with gates that are not all alike."""
    torch.manual_seed(3)
    content = ItemContent(features, hidden=8, n_experts=2, adaptor_dropout=0.0, modality_dropout=chance)
    for parameter in content.parameters():
        parameter.data.normal_()
    return content


def all_rows(n_items: int) -> torch.Tensor:
    return torch.arange(1, n_items + 1)


# --- a missing modality --------------------------------------------------------------------------------------------


def test_what_stands_in_the_row_of_a_missing_image_reaches_nothing(target: Domain) -> None:
    clean = both_features(target.n_items)
    garbage = clean["image"].vectors.copy()
    garbage[~clean["image"].present] = np.random.default_rng(9).standard_normal(IMAGE_SIZE) * 1e6
    garbage[np.flatnonzero(~clean["image"].present)[1]] = np.nan
    spoilt = {**clean, "image": ItemFeatures("image", garbage, clean["image"].present)}
    batch = Batches(target, target.instances("train"))(np.arange(64))
    results = []
    for features in (clean, spoilt):
        model = make_model(features)
        torch.manual_seed(1)
        users, table = model(batch)
        F.cross_entropy(users @ table.T * model.logit_scale, batch.targets).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        results.append((users, table, model.encode_instances(batch), *gradients))
    for expected, found in zip(*results, strict=True):
        assert torch.equal(expected, found)


def test_an_item_with_text_alone_is_its_text_exactly() -> None:
    content = make_content(both_features(40)).eval()
    found = content(all_rows(40))
    alone = ~found.present[1]
    assert 0 < int(alone.sum()) < 40
    assert torch.equal(found.fused[alone], found.parts[0][alone])
    assert not torch.equal(found.fused[~alone], found.parts[0][~alone])


def test_with_no_image_at_all_the_vectors_are_those_of_a_text_model() -> None:
    features = both_features(40, coverage=0.0)
    both, text = make_content(features).eval(), make_content({"text": features["text"]}).eval()
    text.load_state_dict(both.state_dict(), strict=False)
    items = all_rows(40)
    assert torch.equal(both(items).fused, text(items).fused)


def test_an_item_with_an_image_alone_is_its_image_exactly() -> None:
    features = both_features(40, coverage=1.0)
    features["text"] = cover(features["text"], 0.25, seed=4)
    found = make_content(features).eval()(all_rows(40))
    alone = ~found.present[0]
    assert int(alone.sum()) == 30
    assert torch.equal(found.fused[alone], found.parts[1][alone])


def test_items_without_any_content_share_one_learned_vector() -> None:
    features = {name: cover(found, 0.5, seed=6) for name, found in both_features(40, coverage=1.0).items()}
    content = make_content(features)
    items = all_rows(40)
    found = content(items)
    none = ~found.present.any(dim=0)
    assert bool(none.any())
    assert torch.equal(found.fused[none], content.missing.expand(int(none.sum()), -1))
    found.fused.sum().backward()
    for name, parameter in content.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name


def test_a_vector_of_zeros_counts_as_missing() -> None:
    features = both_features(40, coverage=1.0)
    vectors = features["image"].vectors.copy()
    vectors[7] = 0.0
    features["image"] = replace(features["image"], vectors=vectors, fingerprint="")
    found = make_content(features).eval()(all_rows(40))
    assert (~found.present[1]).nonzero().flatten().tolist() == [6]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.floats(0, 1), st.integers(1, 4))
def test_modality_dropout_never_takes_the_last(seed: int, chance: float, modalities: int) -> None:
    torch.manual_seed(seed)
    present = torch.rand(modalities, 50) < 0.6
    kept = drop_modalities(present, chance)
    assert not bool((kept & ~present).any())
    lost = present.sum(dim=0) - kept.sum(dim=0)
    assert int(lost.max()) <= 1
    assert torch.equal(kept.any(dim=0), present.any(dim=0))


def test_modality_dropout_hits_its_share_and_all_modalities_alike() -> None:
    torch.manual_seed(0)
    kept = drop_modalities(torch.ones(2, 20000, dtype=torch.bool), 0.4)
    assert (~kept).float().mean(dim=1).tolist() == pytest.approx([0.2, 0.2], abs=0.015)


def test_every_position_draws_noise_of_its_own_in_training_alone() -> None:
    model = UniM2Rec(UniM2RecConfig(**SMALL, mode="transductive"), both_features(40), 50)
    items = torch.tensor([[3, 3, 5], [5, 3, 0]])
    drawn = model.train()._drawn(items)
    for one, other in (((0, 0), (0, 1)), ((0, 0), (1, 1)), ((0, 2), (1, 0))):
        assert not torch.equal(drawn[one], drawn[other])
    torch.testing.assert_close(model.eval()._drawn(items[:1]), model.table()[items[:1]])


def test_weights_of_an_earlier_revision_are_refused(tmp_path: Path, target: Domain) -> None:
    domain = saved(target, tmp_path / "domain")
    model = UniM2Rec.create(UniM2RecConfig(**SMALL), domain)
    for stage, write in (("fine-tuned", model.save), ("pre-trained", lambda at: model.save_pretrained(at, {}))):
        folder = tmp_path / stage
        folder.mkdir()
        write(folder)
        path = folder / "teacher.json"
        info = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in info.items() if key != "revision"}))
        begin = partial(UniM2Rec.create, UniM2RecConfig(**SMALL, start=folder))
        read = partial(UniM2Rec.load, folder) if stage == "fine-tuned" else begin
        with pytest.raises(
            DataError, match=r"teacher\.json: revision None of UniM²Rec, this version reads 2\. .*again"
        ):
            read(domain)


def test_gates_see_directions_alone() -> None:
    content = make_content(both_features(40, coverage=1.0), chance=0.0).eval()
    with torch.no_grad():
        parts = torch.stack([part for part, _ in (m(all_rows(40)) for m in content.modalities.values())])
        before = content(all_rows(40)).fused
        for expert in content.modalities["text"].adaptor.experts:
            expert.lin.weight.mul_(3.0)
        after = content(all_rows(40)).fused
        weights = [(fused - parts[1]).norm(dim=1) for fused in (before, after)]
    # w text + (1 - w) image: with text three times as long and w the same.
    share = weights[0] / (parts[0] - parts[1]).norm(dim=1)
    torch.testing.assert_close(
        after, share[:, None] * 3 * parts[0] + (1 - share)[:, None] * parts[1], rtol=1e-4, atol=1e-4
    )


def test_modality_dropout_is_for_training_alone() -> None:
    content = make_content(both_features(40, coverage=1.0), chance=1.0)
    items = all_rows(40)
    found = content.eval()(items)
    assert not bool(((found.fused == found.parts[0]) | (found.fused == found.parts[1])).all(dim=1).any())
    for modality in content.modalities.values():
        modality.eval()
    content.training = True
    dropped = content(items)
    assert bool(((dropped.fused == dropped.parts[0]).all(dim=1) | (dropped.fused == dropped.parts[1]).all(dim=1)).all())


# --- the model -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["inductive", "transductive"])
def test_one_pass_gives_what_encoding_and_the_table_give(target: Domain, mode: str) -> None:
    model = make_model(both_features(target.n_items), mode=mode)
    batch = Batches(target, target.instances("train"))(np.arange(50))
    with evaluating(model):
        users, table = model(batch)
        assert torch.equal(users, model.encode(batch))
        assert torch.equal(table, model.item_table())
        torch.testing.assert_close(users, model.encode_instances(batch))
        torch.testing.assert_close(table[1:], model.encode_items(all_rows(target.n_items)))
    for vectors in (users, table[1:]):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
    assert not table[0].any()


def test_scores_are_the_same_from_the_kept_table_and_from_scratch(target: Domain) -> None:
    model = make_model(both_features(target.n_items)).eval()
    batch = Batches(target, target.instances("valid"))(np.arange(20))
    with torch.no_grad():
        kept = [model.encode(batch) for _ in range(2)][1]
    torch.testing.assert_close(kept, model.encode(batch).detach())


def test_every_weight_takes_part(target: Domain) -> None:
    features = both_features(target.n_items)
    features["text"] = cover(features["text"], 0.8, seed=2)
    model = make_model(features, mode="transductive")
    batch = Batches(target, target.instances("train"))(np.arange(100))
    users, table = model(batch)
    F.cross_entropy(users @ table.T * model.logit_scale, batch.targets).backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_it_is_found_by_name() -> None:
    assert TEACHERS.get("unim2rec") is UniM2Rec
    assert isinstance(UniM2Rec, Pretrainable)


def train_and_measure(model: UniM2Rec, domain: Domain, folder: Path, epochs: int = 8) -> tuple[float, list[float]]:
    """Best validation NDCG@10, and the loss of each epoch."""
    plan = build_plan(domain, PlanConfig(batch_size=64, difficulty="none", buckets=1, epochs=epochs), 0)
    train = TrainConfig(lr=5e-3, epochs=epochs, device="cpu")
    trained = Trainer(model, domain, plan, train, folder, {}, seed=0).fit()
    return trained.metrics["ndcg@10"], [row["loss"] for row in trained.rows]


@pytest.mark.parametrize("coverage", [0.0, 0.36, 1.0])
def test_it_trains_and_scores_at_every_image_coverage(tiny: dict[str, Domain], tmp_path: Path, coverage: float) -> None:
    domain = saved(list(tiny.values())[-1], tmp_path / "domain", coverage)
    torch.manual_seed(0)
    model = UniM2Rec.create(UniM2RecConfig(**SMALL, hidden_dropout=0.1, attention_dropout=0.1), domain)
    _, losses = train_and_measure(model, domain, tmp_path / "run")
    assert losses[-1] < losses[0] - 0.1
    instances = domain.instances("test")
    users = model.encode_instances(Batches(domain, instances)(np.arange(len(instances))))
    scores = users @ model.encode_items(all_rows(domain.n_items)).T
    assert bool(scores.isfinite().all())
    assert float(scores.std(dim=1).min()) > 0.01


# --- files and starts ----------------------------------------------------------------------------------------------


def test_frozen_vectors_are_not_stored_but_bound(target: Domain, tmp_path: Path) -> None:
    model = UniM2Rec.create(UniM2RecConfig(**SMALL), target)
    model.save(tmp_path)
    stored = sum(p.numel() for p in model.parameters()) * 4
    assert (tmp_path / "model.safetensors").stat().st_size < stored + 20_000
    info = json.loads((tmp_path / "teacher.json").read_text())
    assert info["features"]["image"]["fingerprint"] == load_features(target, "image").fingerprint


def test_a_feature_that_was_encoded_anew_is_refused(tiny: dict[str, Domain], tmp_path: Path) -> None:
    domain = saved(list(tiny.values())[-1], tmp_path / "domain")
    UniM2Rec.create(UniM2RecConfig(**SMALL), domain).save(tmp_path)
    save_features(tmp_path / "domain", make_features(domain.n_items, "image", IMAGE_SIZE, seed=8))
    with pytest.raises(DataError, match="fine-tuned with feature 'image' of content"):
        UniM2Rec.load(tmp_path, domain)


def test_a_domain_without_the_feature_is_refused_in_words(tiny: dict[str, Domain], tmp_path: Path) -> None:
    domain = list(tiny.values())[-1].save(tmp_path / "domain")
    save_features(tmp_path / "domain", make_features(domain.n_items, "text", TEXT_SIZE))
    with pytest.raises(DataError, match="image"):
        UniM2Rec.create(UniM2RecConfig(**SMALL), domain)
    assert list(UniM2Rec.create(UniM2RecConfig(**SMALL, image_feature=None), domain).feature_info) == ["text"]


def pretrain(domains: list[Domain], folder: Path, **config: Any) -> None:
    folder.mkdir(exist_ok=True)
    parsed = UniM2RecPretrainConfig(**{**SMALL, "hidden_dropout": 0.1, "attention_dropout": 0.1, **config})
    train = TrainConfig(epochs=3, batch_size=128, lr=3e-3, device="cpu")
    UniM2Rec.pretrain(domains, parsed, train, 0, folder, lambda *_: None)


@pytest.fixture(scope="module")
def pretrained(domains: list[Domain], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unim2rec-pretrained")
    pretrain(domains[:2], folder)
    return folder


def test_fine_tuning_starts_from_the_pretrained_weights(target: Domain, pretrained: Path, tmp_path: Path) -> None:
    dropout = {"hidden_dropout": 0.1, "attention_dropout": 0.1}
    model = UniM2Rec.create(UniM2RecConfig(**SMALL, **dropout, start=pretrained, mode="transductive"), target)
    weights = load_file(pretrained / "model.safetensors")
    for name, parameter in model.named_parameters():
        frozen = name.startswith(("position_embedding.", "trm_encoder."))
        assert parameter.requires_grad != frozen, name
        assert name == "item_embedding.weight" or torch.equal(parameter, weights[name]), name
    train_and_measure(model, target, tmp_path, epochs=2)
    moved = {name for name, p in model.named_parameters() if name in weights and not torch.equal(p, weights[name])}
    assert not any(name.startswith(("position_embedding.", "trm_encoder.")) for name in moved)
    assert any(name.startswith("content.modalities.text") for name in moved)
    assert any(name.startswith("content.modalities.image") for name in moved)


def test_freezing_can_be_switched_off(target: Domain, pretrained: Path) -> None:
    model = UniM2Rec.create(UniM2RecConfig(**SMALL, start=pretrained, freeze="none"), target)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_start_with_images_serves_a_model_of_texts(target: Domain, pretrained: Path) -> None:
    model = UniM2Rec.create(UniM2RecConfig(**SMALL, start=pretrained, image_feature=None), target)
    assert not any("image" in name for name in model.state_dict())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"n_experts": 4}, "pre-trained with n_experts=3, not 4"),
        ({"hidden_size": 8}, "pre-trained with hidden_size=16, not 8"),
        ({"text_feature": "image"}, "text vectors of size 12, feature 'image' .* has 10"),
    ],
)
def test_a_start_of_other_sizes_is_refused(
    target: Domain, pretrained: Path, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        UniM2Rec.create(UniM2RecConfig(**{**SMALL, **config}, start=pretrained), target)


def test_a_start_from_the_vectors_of_another_encoder_is_refused(
    tiny: dict[str, Domain], target: Domain, pretrained: Path, tmp_path: Path
) -> None:
    source, other = (replace(each, folder=None) for each in list(tiny.values())[1:3])
    here, there = ({"kind": "text", "weights": weights, "pooling": "mean"} for weights in ("abc", "def"))
    known = []
    for domain, encoder in ((source, here), (other, here), (other, there)):
        known.append(domain.save(tmp_path / f"domain-{len(known)}"))
        text = replace(make_features(domain.n_items, "text", TEXT_SIZE), source={"encoder": encoder})
        save_features(known[-1].folder, text)
    start = tmp_path / "start"
    pretrain(known[:1], start, image_feature=None)
    config = UniM2RecConfig(**SMALL, image_feature=None, start=start)
    UniM2Rec.create(config, known[1])
    with pytest.raises(ConfigError, match=r"text vectors of another encoder than feature 'text' of domain"):
        UniM2Rec.create(config, known[2])
    # One from before encoders were noted is taken as it was.
    info = json.loads((start / "teacher.json").read_text())
    del info["origin"]["encoders"]
    (start / "teacher.json").write_text(json.dumps(info))
    UniM2Rec.create(config, known[2])


def test_images_begin_anew_after_pretraining_on_texts_alone(
    domains: list[Domain], target: Domain, tmp_path: Path
) -> None:
    pretrain(domains[:1], tmp_path, image_feature=None)
    start = load_file(tmp_path / "model.safetensors")
    torch.manual_seed(5)
    scratch = UniM2Rec.create(UniM2RecConfig(**SMALL), target).state_dict()
    torch.manual_seed(5)
    found = UniM2Rec.create(UniM2RecConfig(**SMALL, start=tmp_path), target).state_dict()
    assert found.keys() - start.keys() == {name for name in scratch if ".image." in name}
    for name, value in found.items():
        assert torch.equal(value, scratch[name] if ".image." in name else start[name]), name


def test_a_start_for_shorter_histories_is_refused(target: Domain, pretrained: Path) -> None:
    assert target.folder is not None
    longer = replace(target, history_cap=60)
    with pytest.raises(ConfigError, match=r"histories of at most 50 items, .* up to 60"):
        UniM2Rec.create(UniM2RecConfig(**SMALL, start=pretrained), longer)


def test_a_fine_tuned_teacher_is_no_start_and_a_start_no_teacher(
    target: Domain, pretrained: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="pre-trained, not fine-tuned"):
        UniM2Rec.load(pretrained, target)
    UniM2Rec.create(UniM2RecConfig(**SMALL), target).save(tmp_path)
    with pytest.raises(DataError, match="fine-tuned, not pre-trained"):
        UniM2Rec.create(UniM2RecConfig(**SMALL, start=tmp_path), target)


# --- pre-training --------------------------------------------------------------------------------------------------


def test_pretraining_goes_on_to_the_same_weights(
    domains: list[Domain], pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(Exception):
        pass

    original, calls = Trainer._finish_epoch, []

    def stop(self: Trainer, last: bool) -> None:
        original(self, last)
        calls.append(1)
        if len(calls) == 2:
            raise Interrupted

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_finish_epoch", stop)
        with pytest.raises(Interrupted):
            pretrain(domains[:2], tmp_path)
    assert not (tmp_path / "teacher.json").exists()
    pretrain(domains[:2], tmp_path)
    for name in ("model.safetensors", "teacher.json"):
        assert (tmp_path / name).read_bytes() == (pretrained / name).read_bytes()


def test_pretraining_learns_and_keeps_no_ids(pretrained: Path) -> None:
    rows = json.loads((pretrained / "last.json").read_text())["rows"]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert "item_embedding.weight" not in load_file(pretrained / "model.safetensors")
    origin = json.loads((pretrained / "teacher.json").read_text())["origin"]
    assert len(origin["domains"]) == 2


def test_pretraining_refuses_features_of_different_sizes(tiny: dict[str, Domain], tmp_path: Path) -> None:
    pair = [saved(domain, tmp_path / name) for name, domain in list(tiny.items())[:2]]
    assert pair[1].folder is not None
    save_features(pair[1].folder, make_features(pair[1].n_items, "image", 7))
    with pytest.raises(DataError, match=r"feature 'image' has vectors of different sizes \(10, 7\)"):
        pretrain(pair, tmp_path / "run")


def test_pretraining_knows_no_keys_of_fine_tuning() -> None:
    with pytest.raises(ConfigError, match="unknown key 'start'"):
        parse(UniM2RecPretrainConfig, {"start": "somewhere"}, "teacher")


def test_the_pretraining_loss_is_the_contrast_over_the_batchs_distinct_targets(target: Domain) -> None:
    config = UniM2RecPretrainConfig(**SMALL, alignment_weight=0.0)
    torch.manual_seed(0)
    model = PretrainingModel(config, both_features(target.n_items), 50)
    batch = Batches(target, target.instances("train"))(np.arange(60))
    with evaluating(model):
        found = model.base_loss(batch, *model(batch))
        users, table = model.encode(batch), model.item_table()
    total = 0.0
    positives = {int(u): set(batch.targets[batch.users == u].tolist()) for u in batch.users}
    for row, (user, item) in enumerate(zip(batch.users.tolist(), batch.targets.tolist(), strict=True)):
        candidates = sorted((set(batch.targets.tolist()) - positives[user]) | {item})
        logits = users[row] @ table[candidates].T / config.temperature
        total -= float(logits.log_softmax(0)[candidates.index(item)])
    assert float(found) == pytest.approx(total / len(batch), rel=1e-5)


def test_pretraining_with_alignment_adds_its_weight(target: Domain) -> None:
    batch = Batches(target, target.instances("train"))(np.arange(60))
    losses = []
    for weight in (0.0, 0.3):
        torch.manual_seed(0)
        config = UniM2RecPretrainConfig(**SMALL, alignment_weight=weight)
        model = PretrainingModel(config, both_features(target.n_items), 50).eval()
        with torch.no_grad():
            users, parts = model(batch)
            losses.append(float(model.base_loss(batch, users, parts)))
            alignment = float(alignment_loss(parts[1], parts[2], batch.targets, config.temperature))
    assert alignment > 0
    assert losses[1] == pytest.approx(losses[0] + 0.3 * alignment, rel=1e-5)


def test_pretraining_on_the_items_of_a_batch_alone_changes_no_vector(target: Domain) -> None:
    torch.manual_seed(0)
    model = PretrainingModel(UniM2RecPretrainConfig(**SMALL), both_features(target.n_items), 50)
    batch = Batches(target, target.instances("train"))(np.arange(80))
    with evaluating(model):
        users, parts = model(batch)
        torch.testing.assert_close(users, model.encode(batch))
        torch.testing.assert_close(F.normalize(parts[0], dim=1), model.item_table()[batch.targets])
