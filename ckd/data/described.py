"""JSON files that describe what lies beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ckd.errors import DataError, did_you_mean


class Described(dict[str, Any]):
    """A JSON object of a file: asked for a key that is not there, it names the file and says what to do."""

    place: tuple[Path, str] | None = None

    def __missing__(self, key: str) -> Any:
        if self.place is None:
            raise KeyError(key)
        path, remedy = self.place
        raise DataError(f"{path}: has no {key!r}. {remedy}")


def read_json(path: Path, remedy: str, missing: str | None = None) -> dict[str, Any]:
    """The JSON object in `path`, as `Described`, like all objects in it.

    Args:
        remedy: ends the line where the file cannot be used.
        missing: ends it where there is none; without, `remedy` does.

    Raises:
        DataError: there is no such file, or it is no JSON.
    """
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path}: no such file. {missing or remedy}") from None
    return parse_json(content, path, remedy)


def parse_json(content: bytes, path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object that is `content`, which lies in `path`, as `Described`, like all objects in it.

    Args:
        remedy: ends the line where it cannot be used.

    Raises:
        DataError: it is no JSON object.
    """

    def placed(values: dict[str, Any]) -> Described:
        described = Described(values)
        described.place = path, remedy
        return described

    try:
        value = json.loads(content, object_hook=placed)
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}). {remedy}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(value).__name__}. {remedy}")
    return value


def nearest(folder: Path, file: str) -> str:
    """Ends a message about a folder that is not there: the nearest name of those beside it that hold `file`, or all."""
    names = [path.parent.name for path in folder.parent.glob(f"*/{file}")]
    return did_you_mean(folder.name, names) if names else ""
