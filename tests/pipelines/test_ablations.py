"""Every ablation of the paper and every choice of the method is a value of the configuration and has its effect."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from ckd.config import RunConfig, load_config, parse
from ckd.data.domain import Domain
from ckd.distill.plan import FULL
from ckd.distill.target import CatalogueRows
from ckd.errors import CkdError, ConfigError, DataError, StoreError
from ckd.pipelines import calibration
from ckd.pipelines.calibration import calibrated_temperature
from ckd.pipelines.distillation import distillation_from
from ckd.pipelines.finetune_teacher import load_teacher, teacher_fingerprint
from ckd.pipelines.plan import load_plan, make_plan
from ckd.pipelines.score_binding import open_scores
from ckd.pipelines.teacher_score import adopt_vectors, teacher_score
from ckd.pipelines.train_student import train_student
from ckd.teachers.vectors_parts.instances import instance_table

#: Enough for a difference to show.
ONE_EPOCH = {"epochs": 1}


def changed(config: RunConfig, **sections: dict[str, Any]) -> RunConfig:
    """The configuration with other values, checked as a user's are."""
    values = config.model_dump(mode="json", by_alias=True)
    for section, keys in sections.items():
        values[section] |= keys
    return parse(RunConfig, values, "test")


@pytest.fixture(scope="module")
def bench(finished_studio: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The studio with vectors of all teachers beside their matrices, below `vectors`."""
    work = tmp_path_factory.mktemp("ablations") / "work"
    shutil.copytree(finished_studio.work, work)
    domain = Domain.load(work / "domains" / finished_studio.domain.name)
    config = changed(finished_studio.config, train=ONE_EPOCH)
    studio = replace(finished_studio, work=work, domain=domain, config=config)
    for teacher in studio.teachers:
        score_vectors(studio, teacher)
    return studio


def score_vectors(studio: Any, teacher: str, plan: str | None = None) -> None:
    config = changed(studio.config, score={"codec": "vectors"})
    teacher_score(
        studio.work, studio.domain.name, teacher, config, plan or studio.plan, scores=str(studio.work / "vectors")
    )


def run(bench: Any, name: str, config: RunConfig, teachers: tuple[str, ...] | None = None, **options: Any) -> Any:
    chosen = bench.teachers if teachers is None else teachers
    options = {"plan_id": bench.plan, **options}
    return train_student(bench.work, bench.domain.name, "sasrec", config, chosen, run=name.replace(" ", "-"), **options)


def weights(done: Any) -> bytes:
    content: bytes = (done.folder / "best.safetensors").read_bytes()
    return content


@pytest.fixture(scope="module")
def default(bench: Any) -> bytes:
    return weights(run(bench, "default", bench.config))


# --- configurations --------------------------------------------------------------------------------------------------

#: Choices that change what a student learns from the same plan and scores.
CHOICES: dict[str, dict[str, Any]] = {
    "without weight adjustment": {"consistency": "off"},
    "by pair": {"consistency": "pair"},
    "no teacher dropped": {"epsilon": 1e9},
    "one teacher always dropped": {"epsilon": 0.0},
    "another quantile": {"epsilon_quantile": 0.9},
    "uniform weights": {"weights": "uniform"},
    "given weights": {"weights": {"unisrec-0": 1, "unisrec-1": 0, "unisrec-2": 5}},
    "minmax": {"normalisation": "minmax"},
    "zscore": {"normalisation": "zscore"},
    "the other direction": {"direction": "teacher"},
    "another lambda": {"lambda": 1.0},
    "a temperature": {"temperature": 0.3},
    "calibrated": {"temperature": "calibrated"},
}


@pytest.mark.parametrize("name", CHOICES)
def test_each_choice_is_a_value_of_the_configuration(bench: Any, default: bytes, name: str) -> None:
    done = run(bench, name, changed(bench.config, distill=CHOICES[name]))
    assert weights(done) != default
    assert done.trained.rows[0]["kd"] > 0
    dropped = sum(value for key, value in done.trained.rows[0].items() if key.startswith("dropped_"))
    expected = {"without weight adjustment": 0.0, "no teacher dropped": 0.0, "one teacher always dropped": 1.0}
    if name in expected:
        assert dropped == pytest.approx(expected[name])
    else:
        assert 0 < dropped < 1


@pytest.mark.parametrize("teachers", [("unisrec-1",), ("unisrec-0", "unisrec-2")])
def test_without_multiple_teachers_others_are_left_out(bench: Any, default: bytes, teachers: tuple[str, ...]) -> None:
    done = run(bench, f"of {'-'.join(teachers)}", bench.config, teachers)
    assert weights(done) != default
    assert {key for key in done.trained.rows[0] if key.startswith("dropped_")} == {f"dropped_{t}" for t in teachers}


@pytest.mark.parametrize("plan", [{"difficulty": "none"}, {"buckets": 1}])
def test_without_curriculum_every_epoch_has_all_instances(bench: Any, plan: dict[str, Any]) -> None:
    config = changed(bench.config, plan=plan)
    planned = make_plan(bench.work, bench.domain.name, config).plan
    for teacher in bench.teachers:
        score_vectors(bench, teacher, planned.id)
    options = {"plan_id": planned.id, "scores": str(bench.work / "vectors")}
    done = run(bench, f"css-{next(iter(plan))}", config, **options)
    assert [row["instances"] for row in done.trained.rows] == [len(bench.domain.instances("train"))]
    assert done.trained.rows[0]["stage"] == FULL


@pytest.mark.parametrize("ce", ["in-batch", "in-batch-logq"])
def test_the_cross_entropy_is_chosen_apart(bench: Any, default: bytes, ce: str) -> None:
    assert weights(run(bench, ce, changed(bench.config, train={"ce": ce}))) != default


def test_the_defaults_by_name_are_the_defaults(bench: Any, default: bytes) -> None:
    config = changed(bench.config, distill={"scope": "in-batch", "temperature": None, "consistency": "instance"})
    assert weights(run(bench, "default", config)) == default
    stored = dict.fromkeys(bench.teachers, 0.07)
    assert weights(run(bench, "by name", changed(bench.config, distill={"temperature": stored}))) == default


# --- all items -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("consistency", ["instance", "pair", "off"])
def test_without_in_batch_negatives_all_items_are_distilled_over(bench: Any, default: bytes, consistency: str) -> None:
    config = changed(bench.config, distill={"scope": "all", "consistency": consistency})
    done = run(bench, f"all-{consistency}", config, scores=str(bench.work / "vectors"))
    assert weights(done) != default
    described = json.loads((done.folder / "student.json").read_text())
    dropped = [done.trained.rows[0][f"dropped_{name}"] for name in bench.teachers]
    assert (described["epsilon"] > 0) == (consistency != "off")
    assert sum(dropped) == pytest.approx(0.0 if consistency == "off" else 0.5, abs=0.2)


def test_the_target_over_all_items_is_the_stored_scores(bench: Any) -> None:
    """Three teachers, fixed weights, against what the store itself says of the catalogue."""
    plan = load_plan(bench.work, bench.domain, bench.plan)
    places = str(bench.work / "vectors")
    readers = {name: open_scores(bench.work, bench.domain, plan, name, scores=places) for name in bench.teachers}
    config = changed(bench.config, distill={"scope": "all", "consistency": "off", "weights": "uniform"}).distill
    made = distillation_from(bench.work, bench.domain, plan, readers, config, "cpu")
    batch_id, vectors = next(iter(made.scores.stream([2], dtype=None)))
    ids = plan.batch(batch_id)
    instances = bench.domain.instances("train")
    users, targets = (torch.from_numpy(a[ids].astype(np.int64)) for a in (instances.users, instances.targets))
    tensors = [torch.from_numpy(v) for v in vectors]
    rows = CatalogueRows(made.target, tensors, made.tables, users, targets, users, targets)
    log_q, mask = rows.block(slice(0, len(ids)))(slice(None))
    expected = torch.zeros(len(ids), bench.domain.n_items)
    for reader in readers.values():
        scores = torch.from_numpy(reader.vectors.catalogue(batch_id))
        expected += scores.masked_fill(~mask[:, 1:], -torch.inf).softmax(dim=1) / 3
    torch.testing.assert_close(log_q.exp()[:, 1:], expected, atol=1e-6, rtol=1e-4)


def test_all_items_need_vectors(bench: Any) -> None:
    config = changed(bench.config, distill={"scope": "all"})
    with pytest.raises(
        StoreError, match=r"unisrec-0/manifest\.json: codec f16 holds in-batch .* --codec vectors --scores FOLDER`"
    ):
        run(bench, "no vectors", config)


def test_all_items_are_this_domains(bench: Any, tiny: dict[str, Domain]) -> None:
    plan = load_plan(bench.work, bench.domain, bench.plan)
    places = str(bench.work / "vectors")
    readers = {name: open_scores(bench.work, bench.domain, plan, name, scores=places) for name in bench.teachers}
    other = bench.domain.n_items - 1
    config = changed(bench.config, distill={"scope": "all", "weights": "uniform"}).distill
    source = readers["unisrec-1"].vectors
    source.items = source.items[: other + 1]
    with pytest.raises(StoreError, match=rf"unisrec-1: holds vectors of {other} items, .* has {other + 1}"):
        distillation_from(bench.work, bench.domain, plan, readers, config, "cpu")


# --- temperatures ----------------------------------------------------------------------------------------------------


def temperatures(done: Any) -> dict[str, float]:
    found: dict[str, float] = json.loads((done.folder / "student.json").read_text())["temperatures"]
    return found


def test_temperatures_by_teacher(bench: Any) -> None:
    wanted = {"unisrec-0": 0.5, "unisrec-1": "calibrated", "unisrec-2": 0.07, "another": 1.0}
    config = changed(bench.config, distill={"temperature": wanted})
    found = temperatures(run(bench, "by teacher", config))
    tau = calibrated_temperature(bench.work, bench.domain, "unisrec-1", "cpu")
    assert found == {"unisrec-0": 0.5, "unisrec-1": tau, "unisrec-2": 0.07}
    del wanted["unisrec-2"]
    with pytest.raises(ConfigError, match=r"distill\.temperature: none for teacher 'unisrec-2'; given: \['another'"):
        run(bench, "too few", changed(bench.config, distill={"temperature": wanted}))


def test_the_calibrated_temperature_is_the_likeliest(studio: Any) -> None:
    tau = calibrated_temperature(studio.work, studio.domain, "unisrec-0", "cpu")
    teacher, _, _ = load_teacher(studio.work, studio.domain, "unisrec-0")
    users, items, targets = calibration._encode(teacher, studio.domain, torch.device("cpu"))
    assert len(users) == len(studio.domain.instances("valid"))
    torch.testing.assert_close(users.norm(dim=1), torch.ones(len(users)))
    scores = users.double() @ items[1:].double().T

    def nll(at: float) -> float:
        return float(torch.nn.functional.cross_entropy(scores / at, targets - 1))

    assert nll(tau) < min(nll(tau * 0.95), nll(tau * 1.05), nll(teacher.temperature))


def test_stage_one_calibrates_and_stage_two_needs_no_teacher(studio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = changed(studio.config, distill={"temperature": "calibrated"}, train=ONE_EPOCH)
    folders = {name: studio.work / "teachers" / studio.domain.name / name for name in studio.teachers}
    teacher_score(studio.work, studio.domain.name, "unisrec-0", studio.config)
    assert not any((folder / "calibration.json").exists() for folder in folders.values())
    for name in studio.teachers:
        teacher_score(studio.work, studio.domain.name, name, config)
    kept = {name: json.loads((folder / "calibration.json").read_text()) for name, folder in folders.items()}
    for name, found in kept.items():
        bound = {"teacher": teacher_fingerprint(folders[name]), "domain": studio.domain.fingerprint}
        assert found["made_for"] == bound
        assert found["instances"] == len(studio.domain.instances("valid"))

    def refuse(*_: Any) -> Any:
        raise CkdError("the teacher was loaded")

    monkeypatch.setattr(calibration, "load_teacher", refuse)
    done = train_student(studio.work, studio.domain.name, "sasrec", config, studio.teachers)
    assert temperatures(done) == {name: found["temperature"] for name, found in kept.items()}
    # What was found for other weights or another domain is found anew.
    path = folders["unisrec-0"] / "calibration.json"
    path.write_text(json.dumps({**kept["unisrec-0"], "made_for": {"teacher": "other", "domain": "other"}}))
    with pytest.raises(CkdError, match="the teacher was loaded"):
        calibrated_temperature(studio.work, studio.domain, "unisrec-0", "cpu")
    path.write_text("{")
    with pytest.raises(DataError, match=r"calibration\.json.*Delete it to calibrate again"):
        calibrated_temperature(studio.work, studio.domain, "unisrec-0", "cpu")


@pytest.mark.parametrize("by_instance", [True, False])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_ready_made_vectors_are_calibrated_as_any_teachers(bench: Any, by_instance: bool, similarity: str) -> None:
    """By instance they must hold the validation's, or are refused before anything is scored."""
    table = instance_table(bench.domain)
    table = table if by_instance else table.select("user").unique(maintain_order=True)
    rng = np.random.default_rng(5)
    place, run_name = bench.work / "written", f"vectors-{similarity}-{by_instance}"
    place.mkdir(exist_ok=True)
    items = rng.normal(size=(bench.domain.n_items, 6))
    # The user's last target is near: nobody's validation targets then score below the average item.
    of_item = dict(zip(bench.domain.item_table["raw_id"], items, strict=True))
    last = dict(instance_table(bench.domain).filter(split="valid").select("user", "target").iter_rows())
    users = np.array([of_item[last[user]] if user in last else items[0] for user in table["user"]])
    users = users + rng.normal(size=users.shape)
    table.with_columns(vector=pl.Series(users.tolist())).write_parquet(place / "users.parquet")
    names = bench.domain.item_table.select(item="raw_id")
    names.with_columns(vector=pl.Series(items.tolist())).write_parquet(place / "items.parquet")
    config = changed(bench.config, distill={"temperature": "calibrated"})
    config = config.model_copy(update={"teacher": {"similarity": similarity}})
    files = (place / "users.parquet", place / "items.parquet")
    adopt_vectors(bench.work, bench.domain.name, config, *files, run=run_name)
    teacher_score(bench.work, bench.domain.name, run_name, config, bench.plan)
    found = json.loads((bench.work / "teachers" / bench.domain.name / run_name / "calibration.json").read_text())
    assert 0 < found["nll"] < np.log(bench.domain.n_items)
    assert temperatures(run(bench, f"of {run_name}", config, (run_name,))) == {run_name: found["temperature"]}
    if by_instance:
        without = pl.read_parquet(files[0]).filter(pl.col("split") != "valid")
        without.write_parquet(files[0])
        with pytest.raises(DataError, match=r"users\.parquet: no vector for"):
            adopt_vectors(bench.work, bench.domain.name, config, *files, run=f"{run_name}-less")


@pytest.mark.parametrize("value", ["0", "-1", "warm", "{unisrec-0: 0}", "{unisrec-0: cold}"])
def test_what_is_no_temperature_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"distill\.temperature"):
        load_config(None, [f"distill.temperature={value}"])


def test_what_is_no_scope_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"distill\.scope='some'"):
        load_config(None, ["distill.scope=some"])
