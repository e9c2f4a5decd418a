"""Top-K recommendations from JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from ckd.data.domain import Domain, columns
from ckd.errors import CkdError, ConfigError, DataError
from ckd.nn.weights import read_weights, write_tensors
from ckd.pipelines.recommend import batch_of, recommend, top_k
from ckd.pipelines.train_student import load_student
from ckd.students import STUDENTS

Serving = tuple[Path, Domain]

BUILT_IN = [name for name in STUDENTS.names() if STUDENTS.get(name).__module__.startswith("ckd.students.")]


def ask(serving: Serving, run: str, *requests: Any, **options: Any) -> list[dict[str, Any]]:
    lines = [each if isinstance(each, str) else json.dumps(each) for each in requests]
    return [json.loads(line) for line in recommend(serving[0], serving[1].name, run, lines, **options)]


def raw(domain: Domain, *numbers: int) -> list[str]:
    names = domain.item_table[columns.RAW].to_list()
    return [names[number - 1] for number in numbers]


def expected_scores(serving: Serving, run: str, history: list[int], user: int = 0) -> np.ndarray:
    model, _ = load_student(serving[0], serving[1], run)
    with torch.no_grad():
        batch = batch_of([history], serving[1].history_cap, [user])
        return model.score_items(model.encode(batch))[0].numpy()


@pytest.mark.parametrize("student", BUILT_IN)
def test_the_best_items_of_every_student(serving: Serving, student: str) -> None:
    domain = serving[1]
    user = str(domain.user_ids[3])
    (found,) = ask(serving, student, {"history": raw(domain, 4, 9, 2), "user": user}, k=5)
    scores = expected_scores(serving, student, [4, 9, 2], 3)
    best = 1 + np.argsort(-scores[1:])[:5]
    assert found["items"] == raw(domain, *best)
    assert found["scores"] == pytest.approx(scores[best], abs=1e-5)
    assert (found["line"], found["unknown"]) == (1, 0)
    assert "id" not in found


def test_numbers_instead_of_raw_ids(serving: Serving) -> None:
    domain = serving[1]
    (named,) = ask(serving, "sasrec", {"history": raw(domain, 1, domain.n_items)})
    (numbered,) = ask(serving, "sasrec", {"history": [1, domain.n_items]}, ids="number")
    assert named["items"] == raw(domain, *numbered["items"])
    assert named["scores"] == numbered["scores"]
    (found,) = ask(serving, "sasrec", {"history": [0, 1, domain.n_items + 1]}, ids="number")
    assert found["unknown"] == 2


def test_batches_and_blocks_change_nothing(serving: Serving) -> None:
    domain = serving[1]
    draw = np.random.default_rng(0)
    requests = [
        {"id": f"r{n}", "history": raw(domain, *draw.integers(1, domain.n_items + 1, draw.integers(1, 70)))}
        for n in range(11)
    ]
    whole = ask(serving, "sasrec", *requests)
    assert [answer["id"] for answer in whole] == [request["id"] for request in requests]
    for options in ({"batch_size": 1}, {"batch_size": 4}, {"item_block": 3}, {"item_block": 7, "batch_size": 5}):
        found = ask(serving, "sasrec", *requests, **options)
        for one, other in zip(whole, found, strict=True):
            assert one["items"] == other["items"]
            assert one["scores"] == pytest.approx(other["scores"], abs=1e-5)


def test_padding_is_never_recommended_and_k_may_exceed_the_catalogue(serving: Serving) -> None:
    domain = serving[1]
    (found,) = ask(serving, "sasrec", {"history": [3]}, k=10**6, ids="number")
    assert sorted(found["items"]) == list(range(1, domain.n_items + 1))
    assert found["scores"] == sorted(found["scores"], reverse=True)


def test_items_of_the_history_are_left_out_on_demand(serving: Serving) -> None:
    domain = serving[1]
    history = [*range(1, domain.n_items - 1), *range(1, 60 - domain.n_items)]  # longer than the cap
    assert len(history) > domain.history_cap
    (found,) = ask(serving, "sasrec", {"history": history}, ids="number", exclude_history=True, item_block=6)
    assert sorted(found["items"]) == [domain.n_items - 1, domain.n_items]
    (other,) = ask(serving, "sasrec", {"history": history}, ids="number")
    assert set(other["items"]) & set(history)


def test_only_the_last_items_of_a_long_history_count(serving: Serving) -> None:
    cap = serving[1].history_cap
    tail = [1 + n % 7 for n in range(cap)]
    answers = ask(serving, "sasrec", {"history": [9, 8, *tail]}, {"history": tail}, ids="number")
    assert answers[0]["items"] == answers[1]["items"]


def test_without_a_history_the_users_own(serving: Serving) -> None:
    domain = serving[1]
    own = domain.items[domain.indptr[5] : domain.indptr[6]].tolist()
    user = str(domain.user_ids[5])
    for run in ("sasrec", "lightgcn"):
        asked, given = ask(serving, run, {"user": user}, {"user": user, "history": own}, ids="number")
        assert asked["items"] == given["items"]


@pytest.mark.parametrize("run", ["lightgcn", "fm"])
def test_a_student_that_ranks_by_user_needs_nothing_known_in_the_history(serving: Serving, run: str) -> None:
    user = str(serving[1].user_ids[5])
    own, empty, unknown = ask(
        serving, run, *({"user": user, **more} for more in ({}, {"history": []}, {"history": ["?"]}))
    )
    assert own["items"] == empty["items"] == unknown["items"]
    assert [each["unknown"] for each in (own, empty, unknown)] == [0, 0, 1]
    with pytest.raises(DataError, match=r"^line 1: nothing to rank by in the history: it is empty"):
        ask(serving, "sasrec", {"user": user, "history": []})


def test_unknown_items_are_counted_or_refused(serving: Serving) -> None:
    domain = serving[1]
    known = raw(domain, 5, 6)
    one, other = ask(serving, "sasrec", {"history": [known[0], "?", known[1], "!"]}, {"history": known})
    assert (one["unknown"], one["items"]) == (2, other["items"])
    with pytest.raises(DataError, match=rf"^line 1: item '\?' is not in {domain.name}"):
        ask(serving, "sasrec", {"history": [known[0], "?", "!"]}, on_unknown="refuse")


BAD = {
    '{"history": [': "line 2: not valid JSON",
    '{"history": ["i1"], "id": NaN}': "line 2: not valid JSON .NaN is no JSON",
    "[" * 100_000: "line 2: not valid JSON",
    "[1]": "line 2: a list, not an object",
    '{"histroy": ["1"]}': "line 2: unknown key 'histroy'. Did you mean 'history'",
    '{"history": "abc"}': "line 2: the history is a str, not a list",
    '{"history": [null]}': "line 2: item None is no id",
    '{"history": [true]}': "line 2: item True is no id",
    '{"history": [1.5]}': "line 2: item 1.5 is no id",
    '{"history": []}': "line 2: nothing to rank by in the history: it is empty",
    '{"history": ["?", "!"]}': "line 2: nothing to rank by in the history: none of its 2 items is in",
    "{}": "line 2: neither a history nor a user of",
    '{"user": "?"}': r"line 2: user '\?' is not in example-studio, and there is no history\. Give",
    '{"user": [1]}': r"line 2: user \[1\] is no id",
}


@pytest.mark.parametrize("line", BAD, ids=list(BAD.values()))
def test_a_request_that_cannot_be_answered(serving: Serving, line: str) -> None:
    good = json.dumps({"history": raw(serving[1], 1)})
    answers = recommend(serving[0], serving[1].name, "sasrec", [good, line, good])
    assert json.loads(next(answers))["line"] == 1
    with pytest.raises(DataError, match=BAD[line]) as caught:
        next(answers)
    assert "\n" not in str(caught.value)
    found = ask(serving, "sasrec", good, line, good, on_error="skip")
    assert [answer["line"] for answer in found] == [1, 2, 3]
    assert f"line 2: {found[1]['error']}" == str(caught.value)
    assert found[0]["items"] == found[2]["items"]


def test_an_error_carries_the_id_and_empty_lines_count(serving: Serving) -> None:
    found = ask(serving, "sasrec", "", " \n", {"id": {"a": 1}, "history": []}, on_error="skip")
    assert [(answer["line"], answer["id"]) for answer in found] == [(3, {"a": 1})]


@pytest.mark.parametrize("item", ["x", True, 1.0])
def test_an_item_by_name_where_numbers_are_asked_for(serving: Serving, item: Any) -> None:
    with pytest.raises(DataError, match=f"line 1: item {item!r} is no item number"):
        ask(serving, "sasrec", {"history": [item]}, ids="number")


def test_ids_of_digits_may_be_written_as_numbers(serving: Serving, tmp_path: Path, save_run: Any) -> None:
    table = serving[1].item_table
    names = pl.Series(columns.RAW, [str(1000 + number) for number in range(len(table))])
    users = pl.Series(columns.RAW, [str(number) for number in range(serving[1].n_users)])
    domain = replace(serving[1], item_table=table.with_columns(names), user_ids=users)
    domain = domain.save(tmp_path / "domains" / domain.name)
    save_run(tmp_path, domain, "lightgcn")
    asked = [{"user": "3", "history": ["1004", "1000"]}, {"user": 3, "history": [1004, 1000]}, {"user": 3}]
    written, numbers, own = ask((tmp_path, domain), "lightgcn", *asked)
    assert written["items"] == numbers["items"] == own["items"]
    assert [each["unknown"] for each in (written, numbers)] == [0, 0]


@pytest.mark.parametrize("run", ["fm", "deepfm", "lightgcn"])
def test_a_student_that_reads_users_needs_a_known_one(serving: Serving, run: str) -> None:
    history = raw(serving[1], 1)
    with pytest.raises(DataError, match=f"line 1: no user, and {run} scores for the users it was trained on alone"):
        ask(serving, run, {"history": history})
    with pytest.raises(DataError, match=r"line 1: user 'nobody' is not in"):
        ask(serving, run, {"history": history, "user": "nobody"})
    # One that reads histories alone does not mind.
    assert ask(serving, "sasrec", {"history": history, "user": "nobody"})[0]["items"]


def test_requests_are_read_as_answers_are_taken(serving: Serving) -> None:
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield json.dumps({"history": [1]})

    answers = recommend(serving[0], serving[1].name, "sasrec", endless(), ids="number", batch_size=3)
    for number in range(1, 8):
        assert json.loads(next(answers))["line"] == number
    assert read == 9


def test_wrong_options_and_runs_are_refused_before_the_first_answer(serving: Serving) -> None:
    with pytest.raises(ConfigError, match="k=0"):
        recommend(serving[0], serving[1].name, "sasrec", [], k=0)
    with pytest.raises(DataError, match=r"student\.json: no such file"):
        recommend(serving[0], serving[1].name, "nothing", [])
    with pytest.raises(DataError, match="no prepared domain"):
        recommend(serving[0], "nowhere", "sasrec", [])
    for device, why in (("tpu9", "Invalid device string"), ("meta", "holds no numbers")):
        with pytest.raises(ConfigError, match=rf"^--device='{device}': {why}.* Use auto, cpu or a GPU of this machine"):
            recommend(serving[0], serving[1].name, "sasrec", [], device=device)
    assert ask(serving, "sasrec") == []
    for nothing in ({"batch_size": 0}, {"item_block": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            recommend(serving[0], serving[1].name, "sasrec", [], **nothing)


def test_a_diverged_student_is_refused(serving: Serving, tmp_path: Path, save_run: Any) -> None:
    domain = serving[1].save(tmp_path / "domains" / serving[1].name)
    save_run(tmp_path, domain, "sasrec")
    path = tmp_path / "students" / domain.name / "sasrec" / "best.safetensors"
    tensors = read_weights(path)
    tensors["item_embedding.weight"][7] = torch.nan
    write_tensors(path, tensors)
    with pytest.raises(CkdError, match="line 2: sasrec gives NaN for a score"):
        ask((tmp_path, domain), "sasrec", "", {"history": [1]}, {"history": [2]}, ids="number", k=1)


def test_top_k_is_a_sort() -> None:
    scores = torch.randn(4, 30, generator=torch.Generator().manual_seed(1))
    seen = [[1, 30], [], list(range(1, 29)), [5]]

    def score(encoded: torch.Tensor, low: int, high: int) -> torch.Tensor:
        return encoded[:, low - 1 : high - 1].clone()

    masked = scores.clone()
    for row, items in enumerate(seen):
        masked[row, [item - 1 for item in items]] = -torch.inf
    for block in (1, 7, 30, 100):
        values, items = top_k(score, scores, 30, 6, seen, block)
        torch.testing.assert_close(values, masked.sort(dim=1, descending=True).values[:, :6], rtol=0, atol=0)
        torch.testing.assert_close(masked.gather(1, items - 1), values, rtol=0, atol=0)
