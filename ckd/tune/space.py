"""What a search varies: configuration keys, each with choices or a range."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from ckd.config import RunConfig, Section, parse, read_yaml
from ckd.errors import ConfigError, did_you_mean

Value = bool | int | float | str | None

#: What a search is of: a model trained without teachers, or with them.
Kind = Literal["base", "distilled"]

#: Sections whose keys can be searched. Others change what is scored, so that every trial would need stage one again.
SEARCHED: dict[Kind, tuple[str, ...]] = {"base": ("student", "train"), "distilled": ("student", "train", "distill")}

#: Significant digits of a value drawn from a range: what a person would write.
DIGITS = 4


class Range(Section):
    """Numbers from low to high.

    Attributes:
        low, high: both included.
        log: even on a logarithmic scale.
        whole: `int` where it is written: whole numbers only.
        steps: how many of them a grid takes, both ends included.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = Field(False, alias="int")
    steps: int | None = Field(None, ge=2)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}, both finite")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low:g} has no logarithm: give one above 0, or log: false")
        if self.whole and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"low {self.low:g} and high {self.high:g} must be whole numbers with int: true")
        return self

    def at(self, share: float) -> Value:
        """The value at a share, in [0, 1], of the way from low to high."""
        if self.log:
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        return self.tidy(value)

    def tidy(self, value: float) -> Value:
        """The value as a person would write it, within the bounds."""
        if self.whole:
            return int(min(max(round(value), self.low), self.high))
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)

    def draw(self, share: float) -> Value:
        """A value for a uniform share in [0, 1); all whole numbers are equally likely where the scale is linear."""
        if self.whole and not self.log:
            return min(int(self.low) + int(share * (self.high - self.low + 1)), int(self.high))
        return self.at(share)

    def bounds(self) -> list[Value]:
        """Values that fit wherever all do."""
        return [self.at(0.0), self.at(1.0)]

    def points(self) -> list[Value] | None:
        """The values that a grid takes; None where nobody said how many."""
        if self.steps is None:
            return None
        return list(dict.fromkeys(self.at(step / (self.steps - 1)) for step in range(self.steps)))


class Choice(Section):
    """One of several values."""

    values: tuple[StrictBool | StrictInt | StrictFloat | StrictStr | None, ...] = Field(min_length=1)

    def draw(self, share: float) -> Value:
        """The value for a uniform share in [0, 1)."""
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]

    def bounds(self) -> list[Value]:
        """All of them."""
        return list(self.values)

    def points(self) -> list[Value]:
        """All of them."""
        return list(self.values)


@dataclass(frozen=True)
class Dimension:
    """One thing that varies.

    Attributes:
        name: its keys as they are written, several separated by a comma and a space; all take the same value.
        keys: each a `section.key` of the configuration.
        domain: the values it can take.
    """

    name: str
    keys: tuple[str, ...]
    domain: Range | Choice


@dataclass(frozen=True)
class Space:
    """What is searched.

    Attributes:
        dimensions: in the order in which they were written.
    """

    dimensions: tuple[Dimension, ...]

    def plain(self) -> dict[str, Any]:
        """As it would be written in a file."""
        return {
            d.name: list(d.domain.values)
            if isinstance(d.domain, Choice)
            else d.domain.model_dump(by_alias=True, exclude_defaults=True)
            for d in self.dimensions
        }

    def sections(self, values: Mapping[str, Value]) -> dict[str, dict[str, Any]]:
        """The configuration sections that hold these values, by dimension's name."""
        found: dict[str, dict[str, Any]] = {}
        for dimension in self.dimensions:
            if dimension.name not in values:
                continue
            for key in dimension.keys:
                section, name = key.split(".", 1)
                found.setdefault(section, {})[name] = values[dimension.name]
        return found

    def apply(self, config: RunConfig, values: Mapping[str, Value]) -> RunConfig:
        """The configuration with these values in it.

        Raises:
            ConfigError: a key that does not exist, or a value that does not fit.
        """
        plain = config.model_dump(by_alias=True, exclude_unset=True)
        for section, keys in self.sections(values).items():
            plain[section] = {**plain.get(section, {}), **keys}
        return parse(RunConfig, plain, "space")


def make_space(written: Mapping[str, Any], kind: Kind, where: str, shared: bool = False) -> Space:
    """The space of a mapping from keys to a list of values, or to a range's low, high, log, int and steps.

    Args:
        shared: a distilled student's too, so that a base model leaves out what it has not.

    Raises:
        ConfigError: no key that can be searched, named twice, or no values; the line begins with `where`.
    """
    if shared and kind == "base":
        written = {name: value for name, value in written.items() if not str(name).startswith("distill.")}
    if not written:
        raise ConfigError(f"{where}: nothing to search. Give keys, such as train.lr: [0.0003, 0.001].")
    dimensions: list[Dimension] = []
    seen: set[str] = set()
    for name, value in written.items():
        keys = tuple(key.strip() for key in str(name).split(","))
        for key in keys:
            _require_searchable(key, kind, where)
            if key in seen:
                raise ConfigError(f"{where}: {key} is named twice.")
            seen.add(key)
        dimensions.append(Dimension(", ".join(keys), keys, _domain(value, f"{where}: {', '.join(keys)}")))
    return Space(tuple(dimensions))


def _require_searchable(key: str, kind: Kind, where: str) -> None:
    section, dot, name = key.partition(".")
    if section in SEARCHED[kind] and dot and name and "." not in name:
        return
    known = " or ".join(f"{each}.*" for each in SEARCHED[kind])
    if section == "distill" and kind == "base":
        raise ConfigError(f"{where}: {key}: a base model has no teachers. Search {known}.")
    if section in RunConfig.model_fields and section not in SEARCHED["distilled"]:
        raise ConfigError(f"{where}: {key} would need stage one in every trial. Search {known}.")
    raise ConfigError(f"{where}: {key!r} is no key to search. Search {known}.{did_you_mean(section, SEARCHED[kind])}")


def _domain(value: Any, where: str) -> Range | Choice:
    if isinstance(value, dict):
        return parse(Range, value, where)
    if isinstance(value, list):
        return parse(Choice, {"values": [_number(each) for each in value]}, where)
    raise ConfigError(f"{where}: {value!r} is neither a list of values nor a range with low and high.")


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3, which has no point, as text."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def read_space(
    path: Path | None, vary: Sequence[str], kind: Kind, student: type[BaseModel], shared: bool = False
) -> Space:
    """The space of a YAML file, or the default one, with `KEY=VALUES` laid over it.

    Args:
        path: the file; none: `default_space` unless `vary` says what to search.
        vary: each names keys and their values in YAML, such as `train.lr=[0.001, 0.003]`.
        student: configuration class of the model.
        shared: as `make_space`.

    Raises:
        ConfigError: no such file, no YAML, or as `make_space`.
    """
    written: dict[str, Any] = {}
    if path is not None:
        written = _read(path)
    elif not vary:
        written = default_space(kind, student)
    for each in vary:
        key, equals, text = each.partition("=")
        if not equals or not key:
            raise ConfigError(f"--vary {each!r}: write KEY=VALUES, such as train.lr=[0.0003,0.001].")
        try:
            written[key] = read_yaml(text)
        except (yaml.YAMLError, ValueError):
            raise ConfigError(f"--vary {each!r}: {text!r} is not valid YAML.") from None
    return make_space(written, kind, str(path) if path else "space", shared)


def _read(path: Path) -> dict[str, Any]:
    try:
        loaded = read_yaml(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file. Write one, or leave --space out for the default space.") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: expected a mapping from keys to values, found {type(loaded).__name__}.")
    return loaded


def default_space(kind: Kind, student: type[BaseModel]) -> dict[str, Any]:
    """The few keys that matter: dropout, learning rate and L2; with teachers also lambda and the temperature.

    The paper fixes the first three for all models (section 4.1.4) and finds temperatures from 0.02 to 2 best (4.6).
    """
    dropouts = [name for name in student.model_fields if name.endswith("dropout")]
    space: dict[str, Any] = {}
    if dropouts:
        space[", ".join(f"student.{name}" for name in dropouts)] = {"low": 0.1, "high": 0.7, "steps": 3}
    space["train.lr"] = {"low": 3e-4, "high": 3e-3, "log": True, "steps": 3}
    space["train.weight_decay"] = {"low": 1e-7, "high": 1e-3, "log": True, "steps": 3}
    if kind == "distilled":
        space["distill.lambda"] = {"low": 1.0, "high": 30.0, "log": True, "steps": 3}
        space["distill.temperature"] = {"low": 0.02, "high": 2.0, "log": True, "steps": 3}
    return space
