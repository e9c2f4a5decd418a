"""The pipeline that trains baselines, and the contract that their models keep to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from ckd.baselines import model_class
from ckd.baselines.hetcomp_parts.rankings import RankingRecorder, choose_checkpoints
from ckd.config import PlanConfig, RunConfig, TrainConfig, parse
from ckd.data.domain import Domain
from ckd.distill.plan import build_plan
from ckd.distill.trainer import Trainer
from ckd.errors import ConfigError, DataError
from ckd.nn.recommender import Recommender
from ckd.pipelines.evaluate import evaluate
from ckd.pipelines.train_baseline import TrainedBaseline, train_baseline
from ckd.pipelines.workspace import teacher_folder
from ckd.students.sasrec import SASRec, SASRecConfig
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
def work(tmp_path_factory: pytest.TempPathFactory, tiny: dict[str, Domain]) -> Path:
    """Saved domains, and a fine-tuned teacher's ranking lists on the target."""
    folder = tmp_path_factory.mktemp("baselines")
    *_, target = [domain.save(folder / "domains" / name) for name, domain in tiny.items()]
    torch.manual_seed(0)
    model = SASRec.create(SASRecConfig(**SIZES), target)
    place = teacher_folder(folder, target.name, "teacher")
    plan = build_plan(target, PlanConfig(batch_size=64, buckets=1, difficulty="none", epochs=2), 0)
    recorder = RankingRecorder(model, target, place, length=12)
    Trainer(model, target, plan, TrainConfig(epochs=2, device="cpu"), place, {}, on_epoch=recorder).fit()
    return folder


@pytest.fixture(scope="module")
def names(tiny: dict[str, Domain]) -> tuple[str, str]:
    """Target and source."""
    *_, source, target = tiny
    return target, source


def hetcomp(work: Path, names: tuple[str, str], config: RunConfig = CONFIG, **options: Any) -> TrainedBaseline:
    options = {"settings": HETCOMP, "teachers": ["teacher"], **options}
    return train_baseline(work, names[0], "hetcomp", config, **options)


def recguru(work: Path, names: tuple[str, str], **options: Any) -> TrainedBaseline:
    options = {"settings": RECGURU, "source": names[1], **options}
    return train_baseline(work, names[0], "recguru", CONFIG, **options)


def test_hetcomp_teaches_a_student_that_loads_as_any_other(work, names) -> None:
    config = CONFIG.model_copy(update={"student": SIZES})
    done = hetcomp(work, names, config, student="sasrec")
    assert done.folder.name == "hetcomp-sasrec-teacher"
    found = evaluate(work, names[0], done.folder.name, "valid", device="cpu")
    assert found.metrics["ndcg@10"] == pytest.approx(done.trained.metrics["ndcg@10"])
    described = json.loads((done.folder / "student.json").read_text())
    assert described["identity"]["baseline"] == "hetcomp"
    domain = Domain.load(work / "domains" / names[0])
    chosen = choose_checkpoints(teacher_folder(work, names[0], "teacher"), domain, HETCOMP["checkpoints"])
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


def test_bad_input_to_the_pipeline(work, names) -> None:
    target, source = names
    with pytest.raises(ConfigError, match=r"unknown baseline 'hetcom'. Did you mean 'hetcomp'\?"):
        train_baseline(work, target, "hetcom", CONFIG)
    with pytest.raises(ConfigError, match="at least one teacher"):
        hetcomp(work, names, teachers=[])
    with pytest.raises(ConfigError, match="at least one teacher"):
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
    with pytest.raises(DataError, match="no ranking lists"):
        hetcomp(work, names, teachers=["nobody"])
    with pytest.raises(DataError, match="no prepared domain"):
        recguru(work, names, source="nowhere")
