"""Verifying a store: its bytes, what it was made for, and a sample of its numbers."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckd.errors import CkdError, ConfigError, DataError, StoreError
from ckd.pipelines.evaluate import evaluate
from ckd.pipelines.finetune_teacher import finetune_teacher
from ckd.pipelines.plan import load_plan
from ckd.pipelines.teacher_score import teacher_score
from ckd.pipelines.verify_scores import verify_scores

RUN = "unisrec-1"


def store(studio: Any) -> Path:
    folder: Path = studio.work / "scores" / studio.domain.name / studio.plan / RUN
    return folder


def verify(studio: Any, sample: str | None = None, **options: Any) -> dict[str, Any]:
    return verify_scores(studio.work, sample=sample, domain_name=studio.domain.name, teacher_run=RUN, **options)


def test_a_sound_store_passes(studio: Any) -> None:
    parts = sorted(store(studio).glob("part-*.parquet"))
    expected = {"shards": len(parts), "bytes": sum(path.stat().st_size for path in parts)}
    assert verify_scores(studio.work, str(store(studio))) == expected
    assert verify(studio) == expected
    assert verify(studio, plan_id=studio.plan) == expected


@pytest.mark.parametrize(("sample", "share"), [("100%", 1), ("1", 1), ("0.5", 0.5), ("30%", 0.3), ("0.0001%", 1e-6)])
def test_a_sample_is_scored_again(studio: Any, sample: str, share: float) -> None:
    found = verify(studio, sample)
    batches = math.ceil(load_plan(studio.work, studio.domain).n_batches * share)
    assert found["batches"] == batches
    assert 0 <= found["mean_kl"] <= found["max_kl"] < 1e-5
    assert found["rows"] >= batches


@pytest.mark.parametrize("codec", ["u8", "vectors", "tensor"])
def test_every_codec_passes(studio: Any, tmp_path: Path, codec: str) -> None:
    score = studio.config.score.model_copy(update={"codec": codec})
    config = studio.config.model_copy(update={"score": score})
    place = teacher_score(studio.work, studio.domain.name, RUN, config, scores=str(tmp_path)).location
    assert verify(studio, "100%", location=place)["max_kl"] < 1e-3


def test_scores_of_another_teacher_fail(studio: Any) -> None:
    shutil.rmtree(studio.work / "teachers" / studio.domain.name / RUN)
    config = studio.config.model_copy(update={"seed": 50})
    finetune_teacher(studio.work, studio.domain.name, "unisrec", config, run=RUN)
    with pytest.raises(StoreError, match=r"manifest\.json: made for teacher .*, expected teacher "):
        verify(studio)
    with pytest.raises(StoreError, match="made for teacher"):
        verify(studio, "1%")
    # The bytes are what was written; only domain and teacher tell that they are not what should have been.
    assert verify_scores(studio.work, str(store(studio)))["shards"] > 0


@pytest.mark.parametrize("name", ["model.safetensors", "teacher.json"])
def test_a_teacher_whose_files_were_taken_is_told_alike_everywhere(studio: Any, name: str) -> None:
    (studio.work / "teachers" / studio.domain.name / RUN / name).unlink()
    missing = rf"{RUN}/{name}: no such file, of a run that is finished\. Fine-tune the teacher again, with --restart\."
    with pytest.raises(DataError, match=missing):
        verify(studio)
    with pytest.raises(DataError, match=missing):
        evaluate(studio.work, studio.domain.name, RUN)


def test_numbers_that_the_teacher_does_not_give_fail(studio: Any) -> None:
    """A store that is bound to the teacher, whole and checksummed, but made from vectors that are not the teacher's."""
    for path in (studio.work / "cache" / "vectors").rglob("instances-*.npy"):
        np.save(path, np.roll(np.load(path), 1, axis=0))
    shutil.rmtree(store(studio))
    teacher_score(studio.work, studio.domain.name, RUN, studio.config)
    assert verify(studio)["shards"] > 0
    with pytest.raises(StoreError, match=r"row \d+ of batch \d+ differs from the teacher by \S+ nats, expected at mos"):
        verify(studio, "1%")


@pytest.mark.parametrize("place", [0.1, 0.5, 0.999])
def test_a_flipped_bit_fails(studio: Any, place: float) -> None:
    part = store(studio) / "part-00002.parquet"
    content = bytearray(part.read_bytes())
    content[int(len(content) * place)] ^= 16
    part.write_bytes(bytes(content))
    for check in (lambda: verify(studio), lambda: verify_scores(studio.work, str(store(studio)))):
        with pytest.raises(StoreError, match=r"part-00002\.parquet: "):
            check()


def test_every_problem_is_counted(studio: Any) -> None:
    (store(studio) / "part-00002.parquet").unlink()
    (store(studio) / "part-00004.parquet").unlink()
    (store(studio) / "extra.parquet").write_bytes(b"")
    with pytest.raises(StoreError, match=r"part-00002\.parquet: no such file.* \(2 more\)$"):
        verify(studio)


@pytest.mark.parametrize("sample", ["0", "0%", "101%", "2", "-1%", "some", "%", ""])
def test_shares_that_are_none(studio: Any, sample: str) -> None:
    with pytest.raises(ConfigError, match=f"--sample {sample}: "):
        verify(studio, sample)


def test_what_is_missing_is_named(studio: Any) -> None:
    name = studio.domain.name

    def refused(kind: type[CkdError], message: str, **options: Any) -> None:
        with pytest.raises(kind, match=message):
            verify_scores(studio.work, **options)

    refused(ConfigError, "give a store's location, or --domain and --teacher")
    refused(ConfigError, "give a store's location, or --domain and --teacher", domain_name=name)
    refused(ConfigError, "needed by --sample", location=str(store(studio)), sample="1%")
    refused(StoreError, r"manifest\.json: no such file", location=str(studio.work))
    refused(DataError, "no prepared domain", domain_name="absent", teacher_run=RUN)
    refused(DataError, r"unisrec-9/result\.json: no such file", domain_name=name, teacher_run="unisrec-9")
    refused(StoreError, "no plan 'x'", domain_name=name, teacher_run=RUN, plan_id="x")
