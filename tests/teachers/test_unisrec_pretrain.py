"""UniSRec's pre-training: augmentation, contrast, the loop over several domains."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from ckd.config import RunConfig, TrainConfig
from ckd.data.batch import Batches
from ckd.data.domain import Domain
from ckd.data.features import DROPPED_TEXT, TEXT, ItemFeatures, save_features
from ckd.data.merge import item_offsets, merge_domains, merge_features
from ckd.distill.trainer import TrainingDiverged
from ckd.errors import ConfigError, DataError
from ckd.nn.weights import read_weights
from ckd.pipelines.pretrain_teacher import pretrain_teacher
from ckd.teachers.unisrec import UniSRec, UniSRecConfig
from ckd.teachers.unisrec_parts.augment import drop_items, drop_words
from ckd.teachers.unisrec_parts.config import UniSRecPretrainConfig
from ckd.teachers.unisrec_parts.contrast import in_batch_contrast
from ckd.teachers.unisrec_parts.pretrain import Pretraining

P = 10
SMALL: dict[str, Any] = {"hidden_size": 16, "inner_size": 24, "n_experts": 3}


def feature(domain: Domain, name: str, size: int = P, source: Any = None) -> ItemFeatures:
    vectors = np.random.default_rng([size, len(name)]).normal(size=(domain.n_items + 1, size)).astype(np.float32)
    vectors[0] = 0
    return ItemFeatures(name, vectors, np.arange(domain.n_items + 1) > 0, source or {})


@pytest.fixture
def work(tiny: dict[str, Domain], tmp_path: Path) -> Path:
    """A workspace with both source domains and their two text features."""
    for domain in list(tiny.values())[:2]:
        folder = tmp_path / "domains" / domain.name
        domain.save(folder)
        for name in (TEXT, DROPPED_TEXT):
            save_features(folder, feature(domain, name))
    return tmp_path


@pytest.fixture
def sources(work: Path, tiny: dict[str, Domain]) -> list[Domain]:
    return [Domain.load(work / "domains" / name) for name in list(tiny)[:2]]


# --- views ---------------------------------------------------------------------------------------------------------


@st.composite
def histories(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Histories of distinct items, lengths, and draws."""
    lengths = np.array(draw(st.lists(st.integers(1, 9), min_size=1, max_size=6)), dtype=np.int64)
    width = int(lengths.max()) + draw(st.integers(0, 2))
    inside = np.arange(width) < lengths[:, None]
    items = np.where(inside, 1 + np.arange(lengths.size * width).reshape(-1, width), 0).astype(np.int64)
    return items, lengths, np.random.default_rng(draw(st.integers(0, 999))).random(items.shape) < 0.5


@given(histories())
@settings(max_examples=60, deadline=None)
def test_dropped_items_follow_the_published_scatter(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    items, lengths, keep = drawn
    found, new_lengths = drop_items(items, lengths, keep)
    for row, length in enumerate(lengths):
        place, expected = -1, {}
        for column in range(length):
            place += column == 0 or bool(keep[row, column])
            expected[place] = items[row, column]  # the later write wins
        assert list(found[row, : new_lengths[row]]) == list(expected.values())
        assert not found[row, new_lengths[row] :].any()
        # What the newest item was stays the newest.
        assert found[row, new_lengths[row] - 1] == items[row, length - 1]
    assert found.shape[1] == new_lengths.max()


@given(histories())
@settings(max_examples=30, deadline=None)
def test_dropped_words_keep_items_and_padding(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    items, lengths, drop = drawn
    found = drop_words(items, lengths, drop, offset=1000)
    assert np.array_equal(found % 1000, items)
    assert np.array_equal(found >= 1000, drop & (items > 0))


# --- contrast ------------------------------------------------------------------------------------------------------


def naive_contrast(s: torch.Tensor, k: torch.Tensor, targets: torch.Tensor, tau: float) -> torch.Tensor:
    """The published formula, written as it is."""
    logits = s @ k.T / tau
    same = (targets[:, None] == targets) & ~torch.eye(len(s), dtype=torch.bool)
    logits = torch.where(same, torch.zeros_like(logits), logits)
    return -(logits.diag().exp() / logits.exp().sum(dim=1)).log().mean()


@given(st.integers(2, 12), st.integers(0, 999), st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_contrast_equals_the_naive_formula_and_its_gradients(n: int, seed: int, kinds: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(kinds, (n,), generator=generator)
    pairs = []
    for _ in range(2):
        generator.manual_seed(seed)
        s, k = (F.normalize(torch.randn(n, 5, generator=generator, dtype=torch.double), dim=1) for _ in range(2))
        pairs.append((s.requires_grad_(), k.requires_grad_()))
    ours, naive = in_batch_contrast(*pairs[0], targets, 0.07), naive_contrast(*pairs[1], targets, 0.07)
    torch.testing.assert_close(ours, naive, atol=1e-10, rtol=0)
    (3 * ours).backward()
    (3 * naive).backward()
    for found, expected in zip(pairs[0], pairs[1], strict=True):
        torch.testing.assert_close(found.grad, expected.grad, atol=1e-9, rtol=0)


def test_contrast_in_blocks_equals_contrast_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    s, k = (F.normalize(torch.randn(11, 4), dim=1).requires_grad_() for _ in range(2))
    targets = torch.arange(11) % 6
    whole = torch.autograd.grad(in_batch_contrast(s, k, targets, 0.1), (s, k))
    monkeypatch.setattr("ckd.nn.chunks.BLOCK_ELEMENTS", 33)
    for found, expected in zip(torch.autograd.grad(in_batch_contrast(s, k, targets, 0.1), (s, k)), whole, strict=True):
        torch.testing.assert_close(found, expected)


def test_contrast_stays_finite_at_a_tiny_temperature() -> None:
    s = F.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    assert bool(in_batch_contrast(s, -s, torch.arange(6), 1e-4).isfinite())
    assert not bool(naive_contrast(s, -s, torch.arange(6), 1e-4).isfinite())


# --- several domains as one ----------------------------------------------------------------------------------------


def test_merged_domains_hold_every_instance_of_each(sources: list[Domain]) -> None:
    merged = merge_domains(sources)
    offsets = item_offsets(sources)
    found = Batches(merged, merged.instances("train"))(np.arange(len(merged.instances("train"))))
    expected = []
    for domain, offset in zip(sources, offsets, strict=True):
        batch = Batches(domain, domain.instances("train"))(np.arange(len(domain.instances("train"))))
        expected += [
            ([item + offset for item in history[:length]], target + offset)
            for history, length, target in zip(
                batch.histories().tolist(), batch.lengths.tolist(), batch.targets.tolist(), strict=True
            )
        ]
    assert [
        (history[:length], target)
        for history, length, target in zip(
            found.histories().tolist(), found.lengths.tolist(), found.targets.tolist(), strict=True
        )
    ] == expected
    assert merged.n_items == sum(domain.n_items for domain in sources)
    assert merged.item_table["raw_id"].n_unique() == merged.n_items
    assert merged.item_table["item"].to_list() == list(range(1, merged.n_items + 1))
    assert merged.user_ids.n_unique() == merged.n_users


def test_merged_features_follow_the_merged_items(sources: list[Domain]) -> None:
    parts = [feature(domain, TEXT) for domain in sources]
    merged = merge_features(parts)
    for domain, part, offset in zip(sources, parts, item_offsets(sources), strict=True):
        assert np.array_equal(merged.vectors[1 + offset : 1 + offset + domain.n_items], part.vectors[1:])
    assert not merged.vectors[0].any()
    assert not merged.present[0]


def test_what_cannot_be_merged_is_refused(sources: list[Domain]) -> None:
    with pytest.raises(ConfigError, match="at least one"):
        merge_domains([])
    with pytest.raises(ConfigError, match="given twice"):
        merge_domains([sources[0], sources[0]])
    one = feature(sources[0], TEXT)
    with pytest.raises(DataError, match=r"different sizes \(10, 11\)"):
        merge_features([one, feature(sources[1], TEXT, P + 1)])
    encoders = [{"encoder": {"kind": "text", "weights": w, "pooling": "mean"}} for w in ("a", "b")]
    with pytest.raises(DataError, match="different encoders"):
        merge_features([feature(d, TEXT, P, e) for d, e in zip(sources, encoders, strict=True)])


# --- the loop ------------------------------------------------------------------------------------------------------

TRAIN: dict[str, Any] = {"batch_size": 64, "epochs": 3, "device": "cpu"}


def pretrain(sources: list[Domain], folder: Path, progress: Any = None, seed: int = 3, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    train = TrainConfig(**{**TRAIN, **{k: config.pop(k) for k in list(config) if k in TrainConfig.model_fields}})
    parsed = UniSRecPretrainConfig(**{**SMALL, "item_drop_share": 0.5, **config})
    UniSRec.pretrain(sources, parsed, train, seed, folder, progress or (lambda *_: None))
    return folder


def test_pretraining_learns_and_is_deterministic(sources: list[Domain], tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    first = pretrain(sources, tmp_path / "a", lambda done, total, unit, note: seen.append((done, total)), lr=0.01)
    second = pretrain(sources, tmp_path / "b", lr=0.01)
    for name in ("model.safetensors", "teacher.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    other = pretrain(sources, tmp_path / "c", seed=4, lr=0.01)
    assert (first / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()
    log = pl.read_csv(first / "log.csv")
    instances = sum(len(domain.instances("train")) for domain in sources)
    assert log["instances"].to_list() == [instances] * 3
    assert log["item"][2] < log["item"][0]
    assert log["loss"].to_list() == pytest.approx((log["item"] + 1e-3 * log["sequence"]).to_list(), rel=1e-5)
    steps = -(-instances // 64)
    assert seen == [(i + 1, 3 * steps) for i in range(3 * steps)]


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [1, 5, 16])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(sources: list[Domain], tmp_path: Path, at: int) -> None:
    whole = pretrain(sources, tmp_path / "whole", checkpoint_steps=2)

    def kill(done: int, total: int | None, unit: str, note: str) -> None:
        if done == at:
            raise Killed

    with pytest.raises(Killed):
        pretrain(sources, tmp_path / "cut", kill, checkpoint_steps=2)
    assert not (tmp_path / "cut" / "teacher.json").exists()
    resumed = pretrain(sources, tmp_path / "cut", checkpoint_steps=2)
    for name in ("model.safetensors", "teacher.json"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()


def test_a_checkpoint_of_another_run_is_refused(sources: list[Domain], tmp_path: Path) -> None:
    pretrain(sources, tmp_path / "run", epochs=1)
    with pytest.raises(DataError, match="seed"):
        pretrain(sources, tmp_path / "run", epochs=1, seed=9)


def test_every_instance_is_visited_once_an_epoch_whatever_the_remainder(sources: list[Domain], tmp_path: Path) -> None:
    n = sum(len(domain.instances("train")) for domain in sources)
    for size in (2, n - 1, n, n + 1, 100):
        train = TrainConfig(**{**TRAIN, "batch_size": size})
        run = Pretraining(sources, UniSRecPretrainConfig(**SMALL), train, 0, tmp_path, lambda *_: None)
        chunks = run._chunks(0)
        assert sorted(np.concatenate(chunks)) == list(range(n))
        assert all(len(chunk) >= 2 for chunk in chunks)
        assert not np.array_equal(np.concatenate(chunks), np.concatenate(run._chunks(1)))


@pytest.mark.parametrize(("share", "expected"), [(1.0, "items"), (0.0, "words")])
def test_the_view_is_of_the_kind_asked_for(sources: list[Domain], tmp_path: Path, share: float, expected: str) -> None:
    config = UniSRecPretrainConfig(**SMALL, item_drop_share=share)
    run = Pretraining(sources, config, TrainConfig(**TRAIN), 0, tmp_path, lambda *_: None)
    views = run._prepare((0, run._chunks(0)[0]))
    shorter = bool((views.view.lengths < views.batch.lengths).any())
    twins = bool((views.view.sequences >= run.offset).any())
    assert (shorter, twins) == (expected == "items", expected == "words")
    stacked = run.model.plm_embedding.weight
    text, dropped = (
        torch.from_numpy(merge_features([feature(d, n) for d in sources]).vectors) for n in (TEXT, DROPPED_TEXT)
    )
    assert torch.equal(stacked, text if expected == "items" else torch.cat([text, dropped]))


def test_without_the_sequence_task_no_dropped_texts_are_needed(sources: list[Domain], tmp_path: Path) -> None:
    for domain in sources:
        assert domain.folder is not None
        (domain.folder / "features" / f"{DROPPED_TEXT}.json").unlink()
    with pytest.raises(DataError, match=r"no feature 'text-dropped'.*encode-items.*item_drop_share=1"):
        pretrain(sources, tmp_path / "a")
    pretrain(sources, tmp_path / "b", epochs=1, item_drop_share=1.0)
    folder = pretrain(sources, tmp_path / "c", epochs=1, sequence_weight=0.0)
    assert "sequence" not in pl.read_csv(folder / "log.csv").columns


ENCODER = {"kind": "text", "weights": "abc", "pooling": "mean", "precision": "fp32"}


@pytest.mark.parametrize(
    ("size", "source", "message"),
    [
        (P + 1, {}, rf"vectors of size {P + 1}, feature 'text' has {P}"),
        (P, {"encoder": {**ENCODER, "weights": "def"}, "word_drop": 0.2}, "another encoder than feature 'text'"),
        (P, {"encoder": ENCODER, "word_drop": 0.5}, r"0\.5 of the words .*drop_ratio is 0\.2\..*word_drop=0\.2"),
        (P, {"encoder": ENCODER}, r"a share of 0\.0 of the words"),
    ],
)
def test_dropped_texts_that_are_no_view_of_the_texts_are_refused(
    sources: list[Domain], tmp_path: Path, size: int, source: dict[str, Any], message: str
) -> None:
    for domain in sources:
        assert domain.folder is not None
        save_features(domain.folder, feature(domain, TEXT, source={"encoder": ENCODER}))
        save_features(domain.folder, feature(domain, DROPPED_TEXT, size, source))
    with pytest.raises(DataError, match=rf"feature 'text-dropped' of domain '{sources[0].name}': .*{message}"):
        pretrain(sources, tmp_path / "run", epochs=1)
    for domain in sources:
        assert domain.folder is not None
        fitting = {"encoder": {**ENCODER, "precision": "bf16"}, "word_drop": 0.2}
        save_features(domain.folder, feature(domain, DROPPED_TEXT, source=fitting))
    pretrain(sources, tmp_path / "run", epochs=1)


def test_bfloat16_and_clipping_train_too(sources: list[Domain], tmp_path: Path) -> None:
    exact, rough = (
        pl.read_csv(pretrain(sources, tmp_path / precision, precision=precision, clip_norm=5.0) / "log.csv")
        for precision in ("fp32", "bf16")
    )
    assert exact["loss"].to_list() != rough["loss"].to_list()
    assert exact["loss"].to_list() == pytest.approx(rough["loss"].to_list(), rel=0.05)


def test_a_loss_that_is_no_number_stops_the_run(sources: list[Domain], tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match=r"train\.lr"):
        pretrain(sources, tmp_path / "run", lr=1e30)


def test_too_few_instances_are_refused(sources: list[Domain], tmp_path: Path) -> None:
    empty = replace(sources[0], split=np.full_like(sources[0].split, 3))
    with pytest.raises(DataError, match="0 training instances"):
        pretrain([empty], tmp_path / "run")


@pytest.mark.parametrize(
    "change", [{"ce": "in-batch"}, {"layout": "user"}, {"ema": 0.9}, {"validate_every": 2}, {"patience": 3}]
)
def test_settings_without_effect_are_refused(sources: list[Domain], tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(
        ConfigError, match=f"train.{next(iter(change))}=.*: UniSRec's pre-training does nothing with it"
    ):
        pretrain(sources, tmp_path / "run", **change)
    assert not list((tmp_path / "run").glob("*"))


# --- the pipeline --------------------------------------------------------------------------------------------------


def run_config(**teacher: Any) -> RunConfig:
    values = {**SMALL, "item_drop_share": 1.0, **teacher}
    return RunConfig(seed=5, train=TrainConfig(**{**TRAIN, "epochs": 1}), teacher=values)


def test_the_pipeline_pretrains_once_and_fine_tuning_starts_there(
    work: Path, sources: list[Domain], tiny: dict[str, Domain]
) -> None:
    names = [domain.name for domain in sources]
    first = pretrain_teacher(work, "unisrec", names, run_config())
    assert first.folder == work / "pretrained" / "unisrec"
    assert not first.reused
    again = pretrain_teacher(work, "unisrec", names, run_config())
    assert again.reused
    assert again.fingerprint == first.fingerprint
    target = list(tiny.values())[-1].save(work / "domains" / "target")
    assert target.folder is not None
    save_features(target.folder, feature(target, TEXT))
    model = UniSRec.create(UniSRecConfig(**SMALL, start=first.folder), target)
    stored = read_weights(first.folder / "model.safetensors")
    assert torch.equal(model.state_dict()["moe_adaptor.w_gate"], stored["moe_adaptor.w_gate"])


def test_the_pipeline_refuses_another_run_in_its_folder(work: Path, sources: list[Domain]) -> None:
    names = [domain.name for domain in sources]
    pretrain_teacher(work, "unisrec", names, run_config(), run="mine")
    with pytest.raises(DataError, match="holds a teacher with config"):
        pretrain_teacher(work, "unisrec", names, run_config(temperature=0.1), run="mine")
    assert sources[0].folder is not None
    changed = feature(sources[0], TEXT)
    save_features(sources[0].folder, ItemFeatures(TEXT, changed.vectors * 2, changed.present))
    with pytest.raises(DataError, match="holds a teacher with features"):
        pretrain_teacher(work, "unisrec", names, run_config(), run="mine")


def test_another_run_takes_its_place_when_asked(work: Path, sources: list[Domain]) -> None:
    names = [domain.name for domain in sources]
    folder = pretrain_teacher(work, "unisrec", names, run_config(), run="mine").folder
    other = pretrain_teacher(work, "unisrec", names, run_config(temperature=0.1), run="mine", restart=True)
    assert not other.reused
    assert json.loads((folder / "result.json").read_text())["identity"]["config"]["temperature"] == 0.1
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"model\.safetensors: no such file, of a run that is finished\. .*--restart"):
        pretrain_teacher(work, "unisrec", names, run_config(temperature=0.1), run="mine")


def test_a_refused_restart_leaves_what_was_there(work: Path, sources: list[Domain]) -> None:
    names = [domain.name for domain in sources]
    made = pretrain_teacher(work, "unisrec", names, run_config(), run="mine")
    absent = run_config()
    absent = absent.model_copy(update={"train": absent.train.model_copy(update={"device": "cuda:99"})})
    with pytest.raises(ConfigError, match="cuda:99"):
        pretrain_teacher(work, "unisrec", names, absent, run="mine", restart=True)
    again = pretrain_teacher(work, "unisrec", names, run_config(), run="mine")
    assert (again.reused, again.fingerprint) == (True, made.fingerprint)


def test_a_refused_run_leaves_no_folder(work: Path, sources: list[Domain]) -> None:
    with pytest.raises(DataError):
        pretrain_teacher(work, "unisrec", [sources[0].name], run_config(feature="absent"), run="mine")
    assert not (work / "pretrained" / "mine").exists()


def test_the_order_of_the_domains_makes_another_run(work: Path, sources: list[Domain]) -> None:
    names = [domain.name for domain in sources]
    folder = pretrain_teacher(work, "unisrec", names, run_config(), run="mine").folder
    with pytest.raises(DataError, match="holds a teacher with order"):
        pretrain_teacher(work, "unisrec", names[::-1], run_config(), run="mine")
    with pytest.raises(DataError, match=r"last\.safetensors: belongs to a run with order"):
        pretrain(sources[::-1], folder, seed=5, epochs=1, item_drop_share=1.0)
    # One from before the order was noted is taken as it was.
    result = json.loads((folder / "result.json").read_text())
    del result["identity"]["order"]
    (folder / "result.json").write_text(json.dumps(result))
    assert pretrain_teacher(work, "unisrec", names, run_config(), run="mine").reused


def test_the_pipeline_refuses_what_it_cannot_do(work: Path, sources: list[Domain]) -> None:
    names = [domain.name for domain in sources]
    with pytest.raises(ConfigError, match="unknown teacher"):
        pretrain_teacher(work, "unisrek", names, run_config())
    with pytest.raises(ConfigError, match="at least one domain"):
        pretrain_teacher(work, "unisrec", [], run_config())
    with pytest.raises(ConfigError, match="unknown key 'mode'"):
        pretrain_teacher(work, "unisrec", names, run_config(mode="inductive"))
    with pytest.raises(ConfigError, match="no pre-training"):
        pretrain_teacher(work, "vectors", names, run_config())
    with pytest.raises(DataError, match="no prepared domain"):
        pretrain_teacher(work, "unisrec", ["nowhere"], run_config())
