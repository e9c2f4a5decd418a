"""JSON files that describe what lies beside them."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from ckd.data.described import read_json
from ckd.errors import DataError


def written(folder: Path, text: str) -> Path:
    path = folder / "student.json"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "ask", "message"),
    [
        ("{}", ("identity",), r"student\.json: has no 'identity'\. Make it again\.$"),
        ('{"identity": {}}', ("identity", "seed"), r"student\.json: has no 'seed'\. Make it again\.$"),
        ('{"a": [{}]}', ("a", 0, "b"), r"student\.json: has no 'b'\."),
        ("[]", (), r"student\.json: expected a JSON object, found list\."),
        ("{", (), r"student\.json: not valid JSON .*Make it again\.$"),
    ],
)
def test_what_is_not_there_names_the_file(tmp_path: Path, text: str, ask: tuple[Any, ...], message: str) -> None:
    def look(path: Path) -> None:
        value: Any = read_json(path, "Make it again.")
        for key in ask:
            value = value[key]

    with pytest.raises(DataError, match=message):
        look(written(tmp_path, text))


def test_a_file_that_is_not_there_may_have_a_remedy_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a: no such file\. Make it again\.$"):
        read_json(tmp_path / "a", "Make it again.")
    with pytest.raises(DataError, match=r"a: no such file\. Make it\.$"):
        read_json(tmp_path / "a", "Make it again.", missing="Make it.")


def test_it_is_a_dictionary_like_any_other(tmp_path: Path) -> None:
    @dataclass
    class Holder:
        value: dict[str, Any]

    plain = {"a": {"b": [1, {"c": None}]}, "d": "e"}
    found = read_json(written(tmp_path, json.dumps(plain)), "")
    assert found == plain
    assert found.get("x") is None
    assert json.loads(json.dumps(found)) == plain
    assert asdict(Holder(found)) == {"value": plain}
    with pytest.raises(KeyError):
        asdict(Holder(found))["value"]["x"]
    assert copy.deepcopy(found) == plain
