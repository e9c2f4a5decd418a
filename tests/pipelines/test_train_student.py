"""Stage two: what a student learns from, what is recorded of it, and how an interrupted run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ckd.config import RunConfig
from ckd.data.run_folder import only_process
from ckd.distill.masks import in_batch_mask
from ckd.errors import CkdError, ConfigError, DataError
from ckd.pipelines.finetune_teacher import load_result, teacher_fingerprint
from ckd.pipelines.plan import load_plan
from ckd.pipelines.score_binding import open_scores
from ckd.pipelines.teacher_score import teacher_score
from ckd.pipelines.train_student import TrainedStudent, train_student


def change(config: RunConfig, section: str, **values: Any) -> RunConfig:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def train(studio: Any, teachers: tuple[str, ...] = (), config: RunConfig | None = None, **options: Any) -> Any:
    return train_student(studio.work, studio.domain.name, "sasrec", config or studio.config, teachers, **options)


def described(done: TrainedStudent) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((done.folder / "student.json").read_text())
    return found


def weights(done: TrainedStudent) -> bytes:
    return (done.folder / "best.safetensors").read_bytes()


def everything(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- what it learns from ---------------------------------------------------------------------------------------------


def test_a_base_student(studio: Any) -> None:
    done = train(studio)
    assert done.folder == studio.work / "students" / studio.domain.name / "sasrec"
    assert (done.reused, done.mismatches) == (False, {})
    assert len(done.trained.rows) == 3
    assert not any(name == "kd" or name.startswith("dropped") for row in done.trained.rows for name in row)
    found = described(done)
    assert (found["identity"]["teachers"], found["identity"]["distill"]) == ({}, None)
    assert (found["epsilon"], found["teacher_weights"]) == (None, None)
    assert found["n_items"] == studio.domain.n_items
    assert found["parameters"] == sum(v.numel() for v in load_file(done.folder / "best.safetensors").values())


def test_a_student_of_one_teacher(studio: Any) -> None:
    done = train(studio, studio.teachers[:1])
    assert done.folder.name == "sasrec-unisrec-0"
    rows = done.trained.rows
    assert all(row["kd"] > 0 for row in rows)
    # There is nobody to disagree with.
    assert {row["dropped_unisrec-0"] for row in rows} == {0.0}
    found = described(done)
    assert (found["teacher_weights"], found["epsilon"]) == ([1.0], 0.0)
    (binding,) = found["identity"]["teachers"].values()
    folder = studio.work / "teachers" / studio.domain.name / "unisrec-0"
    assert binding == {
        "domain": studio.domain.fingerprint,
        "plan": load_plan(studio.work, studio.domain).fingerprint,
        "teacher": teacher_fingerprint(folder),
        "temperature": 0.07,
        "codec": "f16",
        "similarity": "cosine",
    }


def test_a_student_of_three_teachers(studio: Any) -> None:
    done = train(studio, studio.teachers)
    found = described(done)
    strength = [load_result(studio.work, studio.domain, run)["metrics"]["valid"]["ndcg@10"] for run in studio.teachers]
    assert found["teacher_weights"] == pytest.approx([s / sum(strength) for s in strength])
    assert found["epsilon"] > 0
    dropped = [sum(row[f"dropped_{run}"] for run in studio.teachers) for row in done.trained.rows]
    # Epsilon is the median over a sample of the batches.
    assert np.mean(dropped) == pytest.approx(0.5, abs=0.2)
    assert weights(done) not in (weights(train(studio, run="base")), weights(train(studio, studio.teachers[:1])))
    base = {name: value.shape for name, value in load_file(train(studio).folder / "best.safetensors").items()}
    assert {name: value.shape for name, value in load_file(done.folder / "best.safetensors").items()} == base


def test_given_and_uniform_weights(studio: Any) -> None:
    uniform = train(studio, studio.teachers, change(studio.config, "distill", weights="uniform"), run="uniform")
    assert described(uniform)["teacher_weights"] == pytest.approx([1 / 3] * 3)
    given = {"unisrec-2": 1.0, "unisrec-0": 2.0, "unisrec-1": 5.0}
    found = train(studio, studio.teachers, change(studio.config, "distill", weights=given), run="given")
    assert described(found)["teacher_weights"] == pytest.approx([0.25, 0.625, 0.125])
    assert weights(uniform) != weights(found)
    partial = change(studio.config, "distill", weights={"unisrec-2": 1.0})
    with pytest.raises(ConfigError, match=r"no weight for teacher 'unisrec-0'; given: \['unisrec-2'\]"):
        train(studio, studio.teachers, partial, run="partial")
    none = change(studio.config, "distill", weights=dict.fromkeys(studio.teachers, 0.0))
    with pytest.raises(ConfigError, match="at least one must be positive"):
        train(studio, studio.teachers, none, run="none")
    assert not (uniform.folder.parent / "partial").exists()
    assert not (uniform.folder.parent / "none").exists()


@pytest.mark.parametrize(
    ("distill", "share"),
    [
        ({"epsilon": 0.0}, 1.0),
        ({"epsilon": 100.0}, 0.0),
        ({"epsilon_quantile": 0.0}, 1.0),
        ({"epsilon_quantile": 1.0}, 0.0),
        ({"consistency": "off", "epsilon": 0.0}, 0.0),
    ],
)
def test_epsilon_given_or_by_its_quantile(studio: Any, distill: dict[str, Any], share: float) -> None:
    config = change(change(studio.config, "distill", **distill), "train", epochs=1)
    done = train(studio, studio.teachers, config)
    assert described(done)["epsilon"] == pytest.approx(distill.get("epsilon", described(done)["epsilon"]))
    dropped = sum(done.trained.rows[0][f"dropped_{run}"] for run in studio.teachers)
    assert dropped == pytest.approx(share, abs=0.1)


def test_the_measured_epsilon_is_the_quantile_of_the_stored_scores(studio: Any) -> None:
    found = described(train(studio, studio.teachers))["epsilon"]
    plan = load_plan(studio.work, studio.domain)
    instances = studio.domain.instances("train")
    readers = [open_scores(studio.work, studio.domain, plan, run) for run in studio.teachers]
    values = []
    # From the first batch to the last: the full data comes after the curriculum's easy buckets.
    for batch_id in np.unique(np.linspace(0, plan.n_batches - 1, 16).astype(int)).tolist():
        ids = plan.batch(batch_id)
        mask = in_batch_mask(instances.users[ids], instances.targets[ids])
        s = np.stack([np.where(mask, np.exp(reader.read(batch_id).astype(np.float64)), 0) for reader in readers])
        s /= s.sum(axis=2, keepdims=True)
        values.append(((s[:, None] - s[None]) ** 2).sum(axis=(1, 3)).max(axis=0))
    taken = np.concatenate(values)
    assert found == pytest.approx(np.quantile(taken, 0.5), rel=1e-3)


def test_another_temperature_is_renormalised_to_or_scored_at(studio: Any, tmp_path: Path) -> None:
    """A store made at 0.2 trains as one made at 0.07 that is re-normalised to 0.2, up to the rounding of float16."""
    for run in studio.teachers:
        warm = change(studio.config, "score", temperature=0.2)
        teacher_score(studio.work, studio.domain.name, run, warm, scores=str(tmp_path / "warm"))
    config = change(studio.config, "train", epochs=1)
    direct = train(studio, studio.teachers, config, run="direct", scores=str(tmp_path / "warm"))
    again = train(studio, studio.teachers, change(config, "distill", temperature=0.2), run="renormalised")
    stored = train(studio, studio.teachers, config, run="as-stored")
    losses = [done.trained.rows[0]["kd"] for done in (direct, again, stored)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    assert abs(losses[0] - losses[2]) > 0.05
    # The store's own temperature is recorded, and a run never goes on with a store of another.
    taus = [described(done)["identity"]["teachers"]["unisrec-1"]["temperature"] for done in (direct, again)]
    assert taus == [0.2, 0.07]
    with pytest.raises(DataError, match=r"teachers\.unisrec-0\.temperature = 0\.2, this one has 0\.07"):
        train(studio, studio.teachers, config, run="direct")


@pytest.mark.parametrize("codec", ["u8", "vectors", "tensor"])
def test_every_codec_trains_alike(studio: Any, tmp_path: Path, codec: str) -> None:
    config = change(change(studio.config, "train", epochs=1), "score", codec=codec)
    for run in studio.teachers:
        teacher_score(studio.work, studio.domain.name, run, config, scores=str(tmp_path / "s"))
    exact = train(studio, studio.teachers, config)
    found = train(studio, studio.teachers, config, run=codec, scores=str(tmp_path / "s"))
    assert found.trained.rows[0]["kd"] == pytest.approx(exact.trained.rows[0]["kd"], rel=5e-3)


@pytest.mark.parametrize(
    "values",
    [
        {"train": {"ce": "in-batch"}},
        {"train": {"ce": "in-batch-logq"}},
        {"train": {"precision": "bf16"}},
        {"distill": {"direction": "teacher"}},
        {"distill": {"normalisation": "minmax"}},
        {"distill": {"normalisation": "zscore"}},
        {"distill": {"consistency": "pair"}},
        {"distill": {"weight": 0.5}},
    ],
    ids=str,
)
def test_every_setting_changes_what_is_learned(studio: Any, values: dict[str, dict[str, Any]]) -> None:
    config = change(studio.config, "train", epochs=1)
    plain = train(studio, studio.teachers, config, run="plain")
    for section, keys in values.items():
        config = change(config, section, **keys)
    found = train(studio, studio.teachers, config, run="changed")
    assert weights(found) != weights(plain)
    assert np.isfinite(found.trained.rows[0]["loss"])


# --- kept, gone on with, discarded -----------------------------------------------------------------------------------


def test_a_finished_run_is_returned_as_it_is(studio: Any) -> None:
    first = train(studio, studio.teachers)
    before = everything(studio.work)
    again = train(studio, studio.teachers, on_step=lambda *_: pytest.fail("trained"))
    assert again == replace(first, reused=True)
    assert everything(studio.work) == before


@pytest.mark.parametrize(
    ("section", "keys", "message"),
    [
        ("train", {"lr": 0.5}, r"train\.lr = 0\.001, this one has 0\.5"),
        ("distill", {"weight": 0.5}, r"distill\.lambda = 10\.0, this one has 0\.5"),
        ("distill", {"weights": "uniform"}, r"distill\.weights = \"validation\", this one has \"uniform\""),
    ],
)
def test_another_run_in_the_folder_is_refused_and_left_alone(
    studio: Any, section: str, keys: dict[str, Any], message: str
) -> None:
    done = train(studio, studio.teachers, run="mine")
    before = everything(studio.work)
    other = change(studio.config, section, **keys)
    for _ in range(2):  # the first refusal must not make the second attempt look like the run that is there
        with pytest.raises(DataError, match=rf"mine/student\.json: .*{message}\. Give another --run"):
            train(studio, studio.teachers, other, run="mine")
    assert everything(studio.work) == before
    with pytest.raises(DataError, match=r"run with .*this one has"):
        train(studio, studio.teachers[:2], run="mine")
    again = train(studio, studio.teachers, other, run="mine", restart=True)
    assert not again.reused
    assert weights(done) != before[f"students/{studio.domain.name}/mine/best.safetensors"][1]
    assert train(studio, studio.teachers, other, run="mine").reused


@pytest.mark.parametrize("restart", [False, True])
def test_a_run_that_another_process_trains_is_left_alone(studio: Any, restart: bool) -> None:
    folder = train(studio).folder
    (folder / "last.json").unlink()
    before = everything(folder)
    with only_process(folder), pytest.raises(DataError, match=r"sasrec: another process is at work here\. Wait"):
        train(studio, restart=restart)
    assert everything(folder) == before


def test_a_restart_that_cannot_begin_discards_nothing(studio: Any) -> None:
    train(studio, studio.teachers, run="mine")
    before = everything(studio.work)
    bad = change(studio.config, "distill", weights={"unisrec-0": 1.0})
    with pytest.raises(ConfigError, match="no weight for teacher"):
        train(studio, studio.teachers, bad, run="mine", restart=True)
    for run in ("..", ".", "../../students", ""):
        with pytest.raises(CkdError) if run else pytest.raises(ConfigError, match="unknown key"):
            train(
                studio,
                studio.teachers,
                studio.config if run else studio.config.model_copy(update={"student": {"no_such": 1}}),
                run=run,
                restart=True,
            )
    assert everything(studio.work) == before


#: A process with threads of its own cannot be forked safely.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}

#: Imports once, then forks: a run that is whole, and one that is killed and begun again.
SCRIPT = """
import json, os, signal, sys
from pathlib import Path
import torch
import ckd.students.sasrec
from ckd.config import RunConfig
from ckd.pipelines.train_student import train_student
torch.set_num_threads(1)
work, domain, config, teachers = json.load(sys.stdin)

def run(name, kill_after):
    pid = os.fork()
    if not pid:
        steps = []

        def count(*_):
            steps.append(1)
            if len(steps) == kill_after:
                os.kill(os.getpid(), signal.SIGKILL)

        train_student(
            Path(work), domain, "sasrec", RunConfig.model_validate(config), teachers, run=name, on_step=count
        )
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

print(json.dumps([run("whole", None), run("killed", 3), run("killed", 9), run("killed", None)]))
"""


def test_a_killed_student_is_the_student_that_was_not_killed(studio: Any) -> None:
    config = change(studio.config, "train", checkpoint_steps=2)
    told = [str(studio.work), studio.domain.name, config.model_dump(mode="json", by_alias=True), studio.teachers]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps(told),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **ONE_THREAD},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [0, -signal.SIGKILL, -signal.SIGKILL, 0]
    whole, killed = (studio.work / "students" / studio.domain.name / name for name in ("whole", "killed"))
    assert (whole / "best.safetensors").read_bytes() == (killed / "best.safetensors").read_bytes()
    ours, theirs = load_file(killed / "last.safetensors"), load_file(whole / "last.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)
    assert (whole / "student.json").read_bytes() == (killed / "student.json").read_bytes()
    assert sorted(p.name for p in whole.iterdir()) == sorted(p.name for p in killed.iterdir())
