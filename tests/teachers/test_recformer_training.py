"""Recformer's two-stage fine-tuning and its pre-training."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._pytree import tree_leaves

from ckd.config import RunConfig, TrainConfig
from ckd.data.domain import Domain, leave_one_out
from ckd.data.example import ExampleSize, make_example
from ckd.distill.checkpoint import save_checkpoint
from ckd.distill.trainer import TrainingDiverged
from ckd.errors import ConfigError, DataError
from ckd.evaluation.metrics import ranking_metrics
from ckd.evaluation.ranks import rank_targets
from ckd.nn.weights import read_weights
from ckd.pipelines.finetune_teacher import finetune_teacher, teacher_fingerprint
from ckd.pipelines.pretrain_teacher import pretrain_teacher
from ckd.teachers.protocol import FinetuneResult
from ckd.teachers.recformer import Recformer, RecformerConfig, RecformerPretrainConfig
from ckd.teachers.recformer_parts.files import LAST, read_start, write_recformer
from ckd.teachers.recformer_parts.finetune import Draws, Finetuning
from ckd.teachers.recformer_parts.losses import next_item_loss
from ckd.teachers.recformer_parts.pretrain import Pretraining, Users
from ckd.teachers.recformer_parts.tokenise import TokenBatch
from ckd.teachers.recformer_parts.training import linear_schedule

SMALL: dict[str, Any] = {
    "window": 8,
    "max_attribute_length": 6,
    "max_items": 4,
    "max_tokens": 48,
    "warmup_steps": 2,
    "layers": 2,
}
TRAIN = TrainConfig(lr=2e-3, weight_decay=0.0, batch_size=16, epochs=3, validate_every=1, patience=5, device="cpu")


class Interrupted(Exception):
    """Stands for a kill."""


def silent(done: int, total: int | None, unit: str, note: str) -> None:
    pass


def stop_after(steps: int) -> Callable[[int, int | None, str, str], None]:
    taken = 0

    def report(done: int, total: int | None, unit: str, note: str) -> None:
        nonlocal taken
        taken += 1
        if taken > steps:
            raise Interrupted

    return report


@pytest.fixture(scope="module")
def domains() -> list[Domain]:
    return list(make_example(seed=7, size=ExampleSize(users=32, items=25, mean_length=6.0)).values())


@pytest.fixture(scope="module")
def domain(domains: list[Domain]) -> Domain:
    return domains[-1]


@pytest.fixture(scope="module")
def backbone(tiny_backbone) -> str:
    # The published initialisation: wide random weights, as elsewhere, hardly train.
    return str(tiny_backbone("bert", initializer_range=0.05))


def fresh(backbone: str, domain: Domain, **changes: Any) -> Recformer:
    return Recformer.create(RecformerConfig(backbone=backbone, **{**SMALL, **changes}), domain)


def tune(teacher: Recformer, domain: Domain, folder: Path, train: TrainConfig = TRAIN) -> FinetuneResult:
    return teacher.finetune(domain, train, 1, folder, silent)


def loss_of(teacher: Recformer, domain: Domain) -> float:
    """Mean loss over the same positions, by the present weights alone."""
    table, total = teacher.encode_catalogue(), 0.0
    for recent, labels, _ in Draws(domain, 4, 16, seed=9)(0, None):
        vectors, label = teacher.vectors(recent), torch.from_numpy(labels)
        total += float(next_item_loss(vectors, table, label, teacher.temperature).sum())
    return total / domain.n_users


# --- fine-tuning -----------------------------------------------------------------------------------------------


def test_finetuning_ends_with_the_best_weights_and_their_table(backbone: str, domain: Domain, tmp_path: Path) -> None:
    teacher = fresh(backbone, domain)
    before = ranking_metrics(rank_targets(teacher, domain, "valid").rank)["ndcg@10"]
    result = tune(teacher, domain, tmp_path)
    found = ranking_metrics(rank_targets(teacher, domain, "valid").rank)["ndcg@10"]
    assert result.metric == pytest.approx(found)
    assert result.metric == max(row["ndcg@10"] for row in result.rows)
    assert result.metric > before
    assert not teacher.training
    with (tmp_path / "log.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(result.rows) == result.epochs == 6


def test_stage_one_encodes_the_table_every_epoch_and_stage_two_never(
    backbone: str, domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, encoded = fresh(backbone, domain), []
    encode = Recformer.encode_catalogue

    def spy(self: Recformer) -> torch.Tensor:
        encoded.append(encode(self))
        return encoded[-1]

    monkeypatch.setattr(Recformer, "encode_catalogue", spy)
    result = tune(teacher, domain, tmp_path)
    assert [row["stage"] for row in result.rows] == [1, 1, 1, 2, 2, 2]
    assert len(encoded) == 3
    stage_one = [row["ndcg@10"] for row in result.rows[:3]]
    # Whatever stage two did, the table is the one of stage one's best epoch.
    assert teacher.item_embedding is not None
    assert torch.equal(teacher.item_embedding.weight, encoded[int(np.argmax(stage_one))])
    assert not teacher.item_embedding.weight.requires_grad


def test_the_learning_rate_does_not_reach_zero_before_the_end(backbone: str, domain: Domain, tmp_path: Path) -> None:
    result = tune(fresh(backbone, domain), domain, tmp_path)
    rates = [row["lr"] for row in result.rows]
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert all(rate > 0 for rate in rates)


@given(st.integers(0, 50), st.integers(1, 200))
@settings(max_examples=50, deadline=None)
def test_the_schedule_rises_to_its_peak_and_falls_to_zero(warmup: int, total: int) -> None:
    rate = linear_schedule(2.0, warmup, total)
    rates = [rate(step) for step in range(total)]
    peak = int(np.argmax(rates))
    assert all(0 < value <= 2.0 for value in rates)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert max(rates) == 2.0
    assert rate(total) == rate(total + 5) == 0.0


def test_patience_ends_each_stage(
    backbone: str, domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([0.5, 0.4, 0.3, 0.2, 0.1, 0.6, 0.1, 0.1, 0.1])
    monkeypatch.setattr("ckd.teachers.recformer_parts.finetune.ranking_metrics", lambda rank: {"ndcg@10": next(values)})
    train = TRAIN.model_copy(update={"epochs": 30, "patience": 4})
    result = tune(fresh(backbone, domain, patience_two=3), domain, tmp_path, train)
    assert [(row["stage"], row["ndcg@10"]) for row in result.rows] == [
        (1, 0.5), (1, 0.4), (1, 0.3), (1, 0.2), (1, 0.1),
        (2, 0.6), (2, 0.1), (2, 0.1), (2, 0.1),
    ]  # fmt: skip
    assert result.metric == 0.6


def test_it_validates_every_so_many_epochs_and_at_the_end_of_a_stage(
    backbone: str, domain: Domain, tmp_path: Path
) -> None:
    result = tune(fresh(backbone, domain), domain, tmp_path, TRAIN.model_copy(update={"validate_every": 2}))
    assert [row["epoch"] for row in result.rows] == [1, 2, 4, 5]


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    backbone: str, domain: Domain, tmp_path: Path, steps: int
) -> None:
    folders = [tmp_path / "whole", tmp_path / "cut"]
    for folder in folders:
        folder.mkdir()
    whole = fresh(backbone, domain)
    expected = tune(whole, domain, folders[0])
    with pytest.raises(Interrupted):
        fresh(backbone, domain).finetune(domain, TRAIN, 1, folders[1], stop_after(steps))
    resumed = fresh(backbone, domain)
    assert tune(resumed, domain, folders[1]) == expected
    for folder, teacher in zip(folders, (whole, resumed), strict=True):
        teacher.save(folder)
    assert (folders[0] / "model.safetensors").read_bytes() == (folders[1] / "model.safetensors").read_bytes()
    # A third call finds everything done.
    assert fresh(backbone, domain).finetune(domain, TRAIN, 1, folders[1], stop_after(0)) == expected


def test_a_folder_of_another_run_is_refused(backbone: str, domain: Domain, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        fresh(backbone, domain).finetune(domain, TRAIN, 1, tmp_path, stop_after(3))
    with pytest.raises(DataError, match="seed = 1, this one has 2"):
        fresh(backbone, domain).finetune(domain, TRAIN, 2, tmp_path, silent)


@pytest.mark.parametrize("changes", [{"negatives": 5}, {"pass_tokens": 200}])
def test_variants_train(backbone: str, domain: Domain, tmp_path: Path, changes: dict[str, int]) -> None:
    teacher = fresh(backbone, domain, **changes)
    before = loss_of(teacher, domain)
    tune(teacher, domain, tmp_path)
    assert loss_of(teacher, domain) < before


def test_bfloat16_and_clipping_train(backbone: str, domain: Domain, tmp_path: Path) -> None:
    train = TRAIN.model_copy(update={"precision": "bf16", "clip_norm": 1.0})
    teacher = fresh(backbone, domain)
    before = loss_of(teacher, domain)
    tune(teacher, domain, tmp_path, train)
    assert loss_of(teacher, domain) < before


@pytest.mark.parametrize("negatives", [None, 3])
def test_gradients_do_not_depend_on_the_passes(
    backbone: str, domain: Domain, tmp_path: Path, negatives: int | None
) -> None:
    gradients = []
    for pass_tokens in (10**6, 60):
        teacher = fresh(backbone, domain, pass_tokens=pass_tokens, negatives=negatives).eval()
        run = Finetuning(teacher, domain, TRAIN, 1, tmp_path, silent)
        table = teacher.encode_catalogue()
        recent, labels, others = next(run.draws(0, negatives))
        run._backward(table, recent, labels, others)
        gradients.append({n: p.grad for n, p in teacher.longformer.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-3)


def test_every_user_gives_one_position_of_its_training_part_an_epoch(domain: Domain) -> None:
    draws = Draws(domain, 4, 16, seed=3)
    seen: set[tuple[int, ...]] = set()
    lengths = set()
    for epoch in range(12):
        batches = list(draws(epoch, None))
        assert len(batches) == draws.steps
        assert sum(len(labels) for _, labels, _ in batches) == domain.n_users
        again = list(draws(epoch, None))
        for (recent, labels, none), (same, _, _) in zip(batches, again, strict=True):
            assert none is None
            assert np.array_equal(recent, same)
            for row, label in zip(recent, labels, strict=True):
                lengths.add(int((row > 0).sum()))
                seen.add((int(label) + 1, *row[row > 0].tolist()))
    expected = set()
    for user in range(domain.n_users):
        low, high = domain.indptr[user : user + 2]
        train = [
            int(item) for item, code in zip(domain.items[low:high], domain.split[low:high], strict=True) if code == 0
        ]
        expected |= {(item, *train[max(0, at - 4) : at][::-1]) for at, item in enumerate(train)}
    assert seen <= expected
    assert lengths == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("change", [{"ce": "in-batch"}, {"checkpoint_steps": 5}, {"ema": 0.9}, {"layout": "user"}])
def test_settings_without_effect_are_refused(
    backbone: str, domains: list[Domain], tmp_path: Path, change: dict[str, Any]
) -> None:
    train = TRAIN.model_copy(update=change)
    with pytest.raises(ConfigError, match=next(iter(change))):
        tune(fresh(backbone, domains[0]), domains[0], tmp_path, train)
    with pytest.raises(ConfigError, match=next(iter(change))):
        Pretraining(domains, RecformerPretrainConfig(backbone=backbone, **SMALL), train, 1, tmp_path, silent)


@pytest.mark.parametrize(("code", "message"), [(2, "no training target"), (0, "no validation target")])
def test_domains_without_targets_are_refused(
    backbone: str, domain: Domain, tmp_path: Path, code: int, message: str
) -> None:
    split = np.where(domain.split == code, 3, domain.split) if code else np.zeros_like(domain.split)
    if code:
        split = np.where(leave_one_out(domain.indptr) == 0, 3, domain.split)
    bare = Domain("bare", domain.indptr, domain.items, split.astype(np.uint8), domain.item_table, domain.user_ids)
    with pytest.raises(DataError, match=message):
        tune(fresh(backbone, bare), bare, tmp_path)


def test_a_loss_that_is_no_number_ends_the_run(backbone: str, domains: list[Domain], tmp_path: Path) -> None:
    teacher = fresh(backbone, domains[0])
    teacher.longformer.embeddings.LayerNorm.weight.data.fill_(torch.nan)
    with pytest.raises(TrainingDiverged, match="epoch 0, step 0"):
        tune(teacher, domains[0], tmp_path)
    run = Pretraining(domains, RecformerPretrainConfig(backbone=backbone, **SMALL), TRAIN, 1, tmp_path, silent)
    run.model.longformer.embeddings.LayerNorm.weight.data.fill_(torch.nan)
    with pytest.raises(TrainingDiverged, match="epoch 0, step 0"):
        run.run()


def start_folder(backbone: str, domains: list[Domain], folder: Path, seed: int) -> Path:
    """Pre-trained weights that no training has touched."""
    folder.mkdir(exist_ok=True)
    run = pretraining(backbone, domains, folder)
    torch.manual_seed(seed)
    torch.nn.init.normal_(run.model.longformer.embeddings.item_position_embeddings.weight)
    write_recformer(folder, "pre-trained", run.model, run.start, run.config, {"origin": {}})
    return folder


def test_losses_are_not_read_pass_by_pass(
    backbone: str, domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU each reading waits until all is computed."""
    teacher, read = fresh(backbone, domain, pass_tokens=60), []
    run = Finetuning(teacher, domain, TRAIN, 1, tmp_path, silent)
    recent, labels, _ = next(iter(run.draws(0, None)))
    table = teacher.encode_catalogue()
    assert len(list(teacher.passes(recent))) > 1
    as_float = torch.Tensor.__float__
    monkeypatch.setattr(torch.Tensor, "__float__", lambda tensor: read.append(tensor) or as_float(tensor))
    assert run._backward(table, recent, labels, None) > 0
    assert not read


def test_how_the_start_is_spelled_makes_no_other_run(
    backbone: str, domains: list[Domain], domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    start = start_folder(backbone, domains, tmp_path / "start", 0)
    shutil.copytree(start, tmp_path / "moved")

    def begin(start: Path, folder: str = "run") -> Finetuning:
        teacher = Recformer.create(RecformerConfig(start=start, **SMALL), domain)
        return Finetuning(teacher, domain, TRAIN.model_copy(update={"epochs": 1}), 1, tmp_path / folder, silent)

    first = begin(start)
    first.folder.mkdir()
    first.run()
    assert len(begin(Path("start")).run().rows) == len(begin(Path("moved")).run().rows) == 2
    start_folder(backbone, domains, start, 1)
    with pytest.raises(DataError, match=r"last\.safetensors: belongs to a run with start = "):
        begin(start).run()
    # One from before the start's content was noted is bound to the place, however that is spelled.
    identity = {key: value for key, value in first.identity.items() if key != "start"}
    save_checkpoint(tmp_path / "run" / LAST, first.teacher, first.optimizer, first.state, identity)
    assert len(begin(Path("start")).run().rows) == 2
    with pytest.raises(DataError, match=r"run with config\.start = "):
        begin(Path("moved")).run()


# --- pre-training ----------------------------------------------------------------------------------------------


def pretraining(backbone: str, domains: list[Domain], folder: Path, **changes: Any) -> Pretraining:
    config = RecformerPretrainConfig(backbone=backbone, **{**SMALL, **changes})
    return Pretraining(domains, config, TRAIN, 1, folder, silent)


def test_pretraining_learns_both_tasks_and_is_started_from(
    backbone: str, domains: list[Domain], tmp_path: Path
) -> None:
    config = RecformerPretrainConfig(backbone=backbone, **SMALL)
    train = TRAIN.model_copy(update={"epochs": 6})
    Recformer.pretrain(domains[:2], config, train, 1, tmp_path, silent)
    with (tmp_path / "log.csv").open() as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    for name in ("contrast", "history_words", "target_words"):
        assert rows[-1][name] < rows[0][name]
    start = read_start(RecformerConfig(start=tmp_path, **SMALL))
    backbone_start = read_start(RecformerConfig(backbone=backbone, **SMALL))
    words = "longformer.embeddings.word_embeddings.weight"
    assert torch.equal(start.weights[words], backbone_start.weights[words])
    places = "longformer.embeddings.item_position_embeddings.weight"
    assert not torch.equal(start.weights[places], backbone_start.weights[places])
    teacher = Recformer.create(RecformerConfig(start=tmp_path, **SMALL), domains[2])
    assert torch.equal(teacher.longformer.embeddings.item_position_embeddings.weight, start.weights[places])


@pytest.mark.parametrize("steps", [2, 5])
def test_interrupted_pretraining_ends_as_uninterrupted(
    backbone: str, domains: list[Domain], tmp_path: Path, steps: int
) -> None:
    config, folders = RecformerPretrainConfig(backbone=backbone, **SMALL), [tmp_path / "whole", tmp_path / "cut"]
    for folder in folders:
        folder.mkdir()
    train = TRAIN.model_copy(update={"epochs": 2})
    Recformer.pretrain(domains[:2], config, train, 1, folders[0], silent)
    with pytest.raises(Interrupted):
        Recformer.pretrain(domains[:2], config, train, 1, folders[1], stop_after(steps))
    assert not (folders[1] / "teacher.json").exists()
    Recformer.pretrain(domains[:2], config, train, 1, folders[1], silent)
    for name in ("model.safetensors", "teacher.json", "tokenizer.json"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


def test_pretraining_keeps_the_best_epoch(
    backbone: str, domains: list[Domain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = pretraining(backbone, domains, tmp_path)
    values = iter([0.1, 0.9, 0.2])
    kept: list[dict[str, torch.Tensor]] = []

    def accuracy() -> float:
        kept.append({name: tensor.clone() for name, tensor in run.model.state_dict().items()})
        return next(values)

    monkeypatch.setattr(run, "accuracy", accuracy)
    run.run()
    assert run.state.best_epoch == 2
    for name, tensor in read_weights(tmp_path / "model.safetensors").items():
        assert torch.equal(tensor, kept[1][name]), name
    assert {path.name for path in tmp_path.iterdir()} >= {"best.safetensors", LAST, "log.csv"}


def test_an_epoch_that_was_cut_off_and_turns_out_otherwise_is_not_the_best(
    backbone: str, domains: list[Domain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = pretraining(backbone, domains, tmp_path)
    values = iter([0.5, 0.9])
    monkeypatch.setattr(run, "accuracy", lambda: next(values))
    with monkeypatch.context() as patch:
        saved: list[Path] = []

        def save(path: Path, *rest: Any) -> None:
            if saved:
                raise Interrupted
            saved.append(path)
            save_checkpoint(path, *rest)

        patch.setattr("ckd.teachers.recformer_parts.pretrain.save_checkpoint", save)
        with pytest.raises(Interrupted):
            run.run()
    first = read_weights(tmp_path / ".former.best.safetensors")
    again = pretraining(backbone, domains, tmp_path)
    monkeypatch.setattr(again, "accuracy", lambda: 0.4)
    again.run()
    assert (again.state.best, again.state.best_epoch) == (0.5, 1)
    made = read_weights(tmp_path / "model.safetensors")
    assert all(torch.equal(made[name], value) for name, value in first.items())


def test_contrast_gradients_do_not_depend_on_the_passes(backbone: str, domains: list[Domain], tmp_path: Path) -> None:
    """Dropout is on: what is computed again draws the same."""
    gradients = []
    for hide in (False, True):
        run = pretraining(backbone, domains, tmp_path, pass_tokens=60)
        run.model.train()
        histories, targets = run.users.pairs(4, np.random.default_rng(0))
        if hide:
            # The same passes, each keeping its graph.
            import ckd.teachers.recformer_parts.pretrain as module

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(module, "checkpoint", lambda function, *tokens, use_reentrant: function(*tokens))
                torch.manual_seed(5)
                value = run._contrast(histories[:12], targets[:12])
        else:
            torch.manual_seed(5)
            value = run._contrast(histories[:12], targets[:12])
        gradients.append((value, {n: p.grad for n, p in run.model.named_parameters() if p.grad is not None}))
    assert gradients[0][0] == gradients[1][0]
    assert len(gradients[0][1]) > 10
    for name, gradient in gradients[0][1].items():
        torch.testing.assert_close(gradients[1][1][name], gradient, atol=1e-6, rtol=1e-4)


def test_the_order_of_the_domains_makes_another_run(backbone: str, domains: list[Domain], tmp_path: Path) -> None:
    run = pretraining(backbone, domains[:2], tmp_path)
    save_checkpoint(tmp_path / LAST, run.model, run.optimizer, run.state, run.identity)
    with pytest.raises(DataError, match=r"last\.safetensors: belongs to a run with order"):
        pretraining(backbone, domains[1::-1], tmp_path).run()


def test_what_is_computed_again_finds_its_device_among_its_arguments(
    backbone: str, domains: list[Domain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch keeps the random numbers of those devices alone that the arguments lie on."""
    import ckd.teachers.recformer_parts.pretrain as module

    run = pretraining(backbone, domains, tmp_path, pass_tokens=60)
    given: list[list[torch.Tensor]] = []
    read: list[TokenBatch] = []
    pooled = type(run.model.longformer).pooled

    def spy(function: Callable[..., torch.Tensor], *args: Any, use_reentrant: bool) -> torch.Tensor:
        given.append([leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)])
        return function(*args)

    monkeypatch.setattr(module, "checkpoint", spy)
    monkeypatch.setattr(run.model.longformer, "pooled", lambda t: read.append(t) or pooled(run.model.longformer, t))
    histories, targets = run.users.pairs(4, np.random.default_rng(0))
    run._contrast(histories[:12], targets[:12])
    assert len(given) > 2
    for tensors, tokens in zip(given, read, strict=True):
        for tensor in (tokens.ids, tokens.types, tokens.items, tokens.lengths):
            assert any(tensor is each for each in tensors)


def test_items_without_text_leave_nothing_to_predict_and_do_no_harm(
    backbone: str, domains: list[Domain], tmp_path: Path
) -> None:
    source = domains[0]
    table = source.item_table.select("item", "raw_id").with_columns(text=None)
    bare = Domain("bare", source.indptr, source.items, source.split, table, source.user_ids)
    run = pretraining(backbone, [bare], tmp_path)
    run.run()
    assert [row["history_words"] for row in run.state.rows] == [0.0] * 3
    assert all(np.isfinite(row["contrast"]) for row in run.state.rows)
    assert all(bool(tensor.isfinite().all()) for tensor in run.model.state_dict().values())


def test_a_weight_of_zero_saves_the_masked_forwards(backbone: str, domains: list[Domain], tmp_path: Path) -> None:
    run = pretraining(backbone, domains, tmp_path, mlm_weight=0.0)
    forwards = []
    run.model.longformer.register_forward_hook(lambda *_: forwards.append(1))
    run.run()
    assert not forwards


def test_pairs_have_a_history_and_a_target_from_the_second_half(domains: list[Domain]) -> None:
    users = Users.of(domains[0])
    seen: dict[int, set[int]] = {}
    for seed in range(40):
        histories, targets = users.pairs(4, np.random.default_rng(seed))
        for user in range(len(users)):
            start, count = int(users.starts[user]), int(users.counts[user])
            own = users.items[start : start + count].tolist()
            history = histories[user][histories[user] > 0].tolist()
            assert history
            places = [
                at for at in range(1, count)
                if own[at] == targets[user, 0] and own[max(0, at - 4) : at][::-1] == history
            ]  # fmt: skip
            assert places
            assert max(places) >= max(1, (count - 1) // 2)
            seen.setdefault(user, set()).update(places)
    assert all(count - 1 in seen[user] for user, count in enumerate(users.counts.tolist()) if count <= 4)


def test_held_out_users_are_not_trained_on(backbone: str, domains: list[Domain], tmp_path: Path) -> None:
    run = pretraining(backbone, domains, tmp_path)
    assert not set(run.users.starts.tolist()) & set(run.held_out.starts.tolist())
    assert len(run.users) + len(run.held_out) == len(Users.of(domains[0])) + len(Users.of(domains[1])) + len(
        Users.of(domains[2])
    )
    assert 0 <= run.accuracy() <= 1


def test_too_few_users_are_refused(backbone: str, domain: Domain, tmp_path: Path) -> None:
    end = domain.indptr[3]
    few = Domain(
        "few", domain.indptr[:4], domain.items[:end], domain.split[:end], domain.item_table, domain.user_ids[:3]
    )
    with pytest.raises(DataError, match="four users"):
        pretraining(backbone, [few], tmp_path)


# --- through the pipelines -------------------------------------------------------------------------------------


def test_pretrained_and_fine_tuned_through_the_pipelines(backbone: str, domains: list[Domain], tmp_path: Path) -> None:
    for source in domains:
        source.save(tmp_path / "domains" / source.name)
    train = TRAIN.model_copy(update={"epochs": 1})
    sources = [source.name for source in domains[:2]]
    run = RunConfig(seed=1, train=train, teacher={"backbone": backbone, **SMALL})
    pretrained = pretrain_teacher(tmp_path, "recformer", sources, run)
    run = RunConfig(seed=1, train=train, teacher={"start": str(pretrained.folder), **SMALL})
    # What it would start from is not thrown away.
    with pytest.raises(ConfigError, match=r"teacher\.start: .*recformer lies in .*recformer, which --restart empties"):
        pretrain_teacher(tmp_path, "recformer", sources, run, restart=True)
    assert teacher_fingerprint(pretrained.folder) == pretrained.fingerprint
    tuned = finetune_teacher(tmp_path, domains[2].name, "recformer", run)
    teacher = Recformer.load(tuned.folder, domains[2])
    assert ranking_metrics(rank_targets(teacher, domains[2], "test").rank) == pytest.approx(tuned.metrics["test"])
    refused = run.model_copy(update={"train": train.model_copy(update={"ema": 0.9})})
    with pytest.raises(ConfigError, match="Recformer does nothing with it"):
        finetune_teacher(tmp_path, domains[2].name, "recformer", refused, restart=True)
    assert finetune_teacher(tmp_path, domains[2].name, "recformer", run).reused
    assert pretrained.fingerprint != tuned.fingerprint
