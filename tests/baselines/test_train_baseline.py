"""The pipeline that trains baselines, and the contract that their models keep to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml

from ckd.baselines import model_class
from ckd.baselines.hetcomp_parts.kept import choose_checkpoints, kept_rankings
from ckd.config import RunConfig, parse
from ckd.data.domain import Domain
from ckd.errors import ConfigError, DataError
from ckd.nn.recommender import Recommender
from ckd.pipelines.evaluate import evaluate
from ckd.pipelines.export import export_student
from ckd.pipelines.finetune_teacher import finetune_teacher, teacher_fingerprint
from ckd.pipelines.recommend import recommend
from ckd.pipelines.train_baseline import TrainedBaseline, listed_teachers, train_baseline
from ckd.pipelines.train_student import load_student
from ckd.pipelines.workspace import teacher_folder
from ckd.testing.student_contract import StudentContract

CONFIG = RunConfig.model_validate({"seed": 3, "train": {"device": "cpu"}})
HETCOMP: dict[str, Any] = {
    "length": 12,
    "period": 1,
    "epochs": 3,
    "validate_every": 1,
    "checkpoints": 2,
    "metric": "ndcg@10",
}
RECGURU: dict[str, Any] = {
    "hidden_size": 8,
    "inner_size": 8,
    "n_layers": 1,
    "batch_size": 64,
    "recon_negatives": 3,
    "bpr_negatives": 2,
    "warmup_epochs": 1,
    "epochs": 2,
    "critic_steps": 1,
}
SIZES = {"hidden_size": 8, "inner_size": 8, "n_layers": 1, "n_heads": 2}


class BaselineModel(StudentContract):
    """A baseline's model, held to the same contract as students."""

    name: ClassVar[str]
    config: ClassVar[dict[str, Any]]

    def make_student(self, domain: Domain) -> Recommender:
        found = model_class(self.name)
        return found.create(parse(found.Config, self.config, "student"), domain)


class TestMF(BaselineModel):
    name = "mf"
    config: ClassVar = {"embedding_size": 16, "initializer_range": 0.1}


class TestRecGURU(BaselineModel):
    name = "recguru"
    config: ClassVar = {"hidden_size": 16, "inner_size": 16, "n_layers": 1}

    def test_every_weight_learns(self, domain: Domain) -> None:
        """All but queries and keys of the attention over the user vector, whose keys are all alike."""
        student = self.seeded(domain).train()
        base, in_batch = self.losses(student, self.batch(domain, self.ids(domain), student.causal))
        torch.autograd.backward(base + in_batch)
        for name, weight in student.named_parameters():
            assert weight.grad is not None, name
            idle = "dec_enc_attn.WQ" in name or "dec_enc_attn.WK" in name
            # The bias of keys shifts all logits of a row alike, so its gradient is rounding.
            assert idle or "WK.bias" in name or float(weight.grad.abs().max()) > 1e-6, name
            assert not idle or float(weight.grad.abs().max()) < 1e-5, name


del BaselineModel, StudentContract


@pytest.fixture(scope="module")
def work(
    tmp_path_factory: pytest.TempPathFactory, tiny: dict[str, Domain], small: RunConfig, bag_of_words: Any
) -> Path:
    """Saved domains, and two teachers that kept ranking lists and one that did not."""
    folder = tmp_path_factory.mktemp("baselines")
    *_, target = [domain.save(folder / "domains" / name) for name, domain in tiny.items()]
    bag_of_words(target)
    for seed, (run, keep) in enumerate({"teacher": 1, "other": 2, "silent": None}.items()):
        config = small.model_copy(update={"seed": seed})
        finetune_teacher(folder, target.name, "unisrec", config, run=run, keep_rankings=keep)
    return folder


@pytest.fixture(scope="module")
def names(tiny: dict[str, Domain]) -> tuple[str, str]:
    """Target and source."""
    *_, source, target = tiny
    return target, source


def hetcomp(work: Path, names: tuple[str, str], config: RunConfig = CONFIG, **options: Any) -> TrainedBaseline:
    config = config.model_copy(update={"baseline": options.pop("settings", HETCOMP)})
    return train_baseline(work, names[0], "hetcomp", config, **{"teachers": ["teacher"], **options})


def recguru(work: Path, names: tuple[str, str], **options: Any) -> TrainedBaseline:
    config = CONFIG.model_copy(update={"baseline": options.pop("settings", RECGURU)})
    return train_baseline(work, names[0], "recguru", config, **{"source": names[1], **options})


def test_hetcomp_teaches_a_student_that_loads_as_any_other(work, names) -> None:
    config = CONFIG.model_copy(update={"student": SIZES})
    done = hetcomp(work, names, config, student="sasrec")
    assert done.folder.name == "hetcomp-sasrec-teacher"
    found = evaluate(work, names[0], done.folder.name, "valid", device="cpu")
    assert found.metrics["ndcg@10"] == pytest.approx(done.trained.metrics["ndcg@10"])
    described = json.loads((done.folder / "student.json").read_text())
    assert described["identity"]["baseline"] == "hetcomp"
    domain = Domain.load(work / "domains" / names[0])
    folder = teacher_folder(work, names[0], "teacher")
    chosen = choose_checkpoints(kept_rankings(folder, domain, teacher_fingerprint(folder)), HETCOMP["checkpoints"])
    assert [each["content"] for each in described["identity"]["teachers"]["teacher"]] == [c.content for c in chosen]


@pytest.mark.parametrize("train", [hetcomp, recguru])
def test_a_baseline_is_evaluated_like_a_student(work, names, train) -> None:
    done = train(work, names, run=f"{train.__name__}-known")
    for split in ("valid", "test"):
        found = evaluate(work, names[0], done.folder.name, split, device="cpu")
        assert 0 < found.metrics["mrr"] <= 1
        if split == "valid":
            assert found.metrics["ndcg@10"] == pytest.approx(done.trained.metrics["ndcg@10"])


@pytest.mark.parametrize("train", [hetcomp, recguru])
def test_a_finished_run_is_reused_and_a_different_one_refused(work, names, train) -> None:
    first = train(work, names)
    again = train(work, names)
    assert again.reused
    assert again.trained == first.trained
    other = {**(HETCOMP if train is hetcomp else RECGURU), "epochs": 4}
    with pytest.raises(DataError, match="Give another --run"):
        train(work, names, settings=other)
    restarted = train(work, names, restart=True)
    assert not restarted.reused
    assert restarted.trained.metrics == first.trained.metrics


def test_hetcomp_learns_from_several_teachers(work, names) -> None:
    assert listed_teachers(work, names[0]) == ["other", "teacher"]
    told: list[tuple[Any, ...]] = []
    done = hetcomp(work, names, teachers=["other", "teacher"], progress=lambda *a: told.append(a))
    assert done.folder.name == "hetcomp-mf-other-teacher"
    assert [(at, total, unit) for at, total, unit, _ in told] == [(n, 3, "epoch") for n in range(1, 4)]
    alone = hetcomp(work, names)
    one, other = ((each.folder / "best.safetensors").read_bytes() for each in (done, alone))
    assert one != other


def test_a_baseline_serves_and_is_exported_where_it_can_be(work, names, tmp_path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    target, domain = names[0], Domain.load(work / "domains" / names[0])
    config = CONFIG.model_copy(update={"student": SIZES})
    student = hetcomp(work, names, config, student="sasrec").folder.name
    item, user = domain.item_table["raw_id"][0], domain.user_ids[0]
    for run in (student, recguru(work, names).folder.name):
        (line,) = recommend(work, target, run, [json.dumps({"history": [item]})], k=3, device="cpu")
        assert len(json.loads(line)["items"]) == 3
    mf = hetcomp(work, names).folder.name
    (line,) = recommend(work, target, mf, [json.dumps({"user": user})], k=3, device="cpu")
    assert len(json.loads(line)["items"]) == 3
    with pytest.raises(DataError, match="no user, and hetcomp-mf-teacher scores for the users it was trained on alone"):
        list(recommend(work, target, mf, [json.dumps({"history": [item]})], device="cpu"))
    done = export_student(work, target, student, "recbole", tmp_path / "recbole")
    settings = yaml.safe_load((done.folder / "recbole.yaml").read_text())
    assert (settings["learning_rate"], settings["weight_decay"]) == (1e-3, 1e-5)
    onnx = export_student(work, target, "recguru-" + names[1], "onnx", tmp_path / "onnx")
    assert onnx.about["difference"] <= 1e-5
    with pytest.raises(ConfigError, match="mf cannot be exported to ONNX: it scores for users by number"):
        export_student(work, target, mf, "onnx", tmp_path / "no")
    for run, model in ((mf, "mf"), ("recguru-" + names[1], "recguru")):
        with pytest.raises(ConfigError, match=f"{model} cannot be exported to RecBole: only bert4rec, gru4rec, sasrec"):
            export_student(work, target, run, "recbole", tmp_path / "no")


def test_an_unfinished_baseline_says_how_to_go_on(work, names) -> None:
    def stop(_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hetcomp(work, names, run="broken", on_epoch=stop)
    domain = Domain.load(work / "domains" / names[0])
    with pytest.raises(DataError, match=r"not finished\. Train it: `ckd train-baseline .*--baseline hetcomp --run bro"):
        load_student(work, domain, "broken")
    done, whole = hetcomp(work, names, run="broken"), hetcomp(work, names)
    assert (done.folder / "best.safetensors").read_bytes() == (whole.folder / "best.safetensors").read_bytes()


def test_bad_input_to_the_pipeline(work, names) -> None:
    target, source = names
    with pytest.raises(ConfigError, match=r"unknown baseline 'hetcom'. Did you mean 'hetcomp'\?"):
        train_baseline(work, target, "hetcom", CONFIG)
    with pytest.raises(ConfigError, match="name at least one"):
        hetcomp(work, names, teachers=[])
    with pytest.raises(ConfigError, match="name at least one"):
        hetcomp(work, names, source=source)
    with pytest.raises(ConfigError, match="each can be named once"):
        hetcomp(work, names, teachers=["teacher", "teacher"])
    with pytest.raises(ConfigError, match="name a source domain"):
        recguru(work, names, source=None)
    with pytest.raises(ConfigError, match="name a source domain"):
        recguru(work, names, teachers=["teacher"])
    with pytest.raises(ConfigError, match="the target itself"):
        recguru(work, names, source=target)
    with pytest.raises(ConfigError, match="unknown key 'epoch'"):
        hetcomp(work, names, settings={"epoch": 1})
    with pytest.raises(ConfigError, match="unknown student 'nobody'"):
        hetcomp(work, names, student="nobody")
    with pytest.raises(DataError, match=r"nobody/result\.json: no such file\. Run `ckd finetune-teacher"):
        hetcomp(work, names, teachers=["nobody"])
    with pytest.raises(DataError, match=r"silent: no ranking lists kept\. Fine-tune it with .*--keep-rankings 1"):
        hetcomp(work, names, teachers=["teacher", "silent"])
    with pytest.raises(DataError, match=r"no teacher has kept ranking lists\. Run `ckd finetune-teacher"):
        listed_teachers(work, source)
    with pytest.raises(ConfigError, match="recguru trains a model of its own: leave out the student 'sasrec'"):
        recguru(work, names, student="sasrec")
    with pytest.raises(DataError, match="no prepared domain"):
        recguru(work, names, source="nowhere")
