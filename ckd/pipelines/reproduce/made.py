"""What a result was made with: recorded in it, part of its file's name, and told to people in a line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ckd.config import RunConfig, TrainConfig

#: As many settings are told in a line; the file has them all.
TOLD = 4


@dataclass(frozen=True)
class Made:
    """What the runs of a result depend on besides their methods and seeds.

    Attributes:
        teachers: registered teachers that are compared or distilled.
        teacher_seeds: of their runs.
        sources: domains that they were pre-trained on; none: from scratch.
        settings: what the configuration says, by `section.key`, in the order of the alphabet, as its file has it.
    """

    teachers: tuple[str, ...] = ()
    teacher_seeds: tuple[int, ...] = ()
    sources: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    def text(self, seeds: Sequence[int]) -> str:
        """A line for people, such as `Made with seeds 1, 2; teachers unisrec of seed 1; plan.epochs=40.`"""
        parts = [_seeds(seeds)]
        if self.teachers:
            of = "" if self.teacher_seeds == tuple(seeds) else f" of {_seeds(self.teacher_seeds)}"
            before = f", pre-trained on {', '.join(self.sources)}" if self.sources else ""
            parts.append(f"teachers {', '.join(self.teachers)}{of}{before}")
        told = [f"{key}={_value(value)}" for key, value in list(self.settings.items())[:TOLD]]
        more = len(self.settings) - len(told)
        if told:
            parts.append(", ".join(told) + (f" and {more} more settings" if more else ""))
        return f"Made with {'; '.join(parts)}."


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def settings_said(config: RunConfig) -> dict[str, Any]:
    """What a configuration says of runs, by `section.key`: neither seeds, nor devices, nor how domains are prepared.

    All that is said counts, be it a default: over a model's own default, or the example's, it is a change.
    """
    said = config.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude={"seed", "prepare"})
    unsaid = {f"train.{key}" for key in TrainConfig.NO_IDENTITY}
    return {key: value for key, value in sorted(_flat(said).items()) if key not in unsaid}


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
    return found


def mark(made: Made, seeds: Sequence[int], usual: bool) -> str:
    """Ends the name of a result's file; empty where it was made by default.

    `3seeds`, where there are several, and eight letters for other teachers, sources, settings or a first seed.

    Args:
        made: with what.
        seeds: of the runs.
        usual: the teachers are those that are taken unless told otherwise.
    """
    several = len(seeds) > 1
    first = seeds[0] if seeds else RunConfig().seed
    other = {
        "teachers": None if usual else made.teachers,
        "teacher_seeds": len(made.teacher_seeds) if 0 < len(made.teacher_seeds) < len(seeds) else None,
        "sources": made.sources or None,
        "settings": made.settings or None,
        "seed": None if first == RunConfig().seed else first,
    }
    said = {key: value for key, value in other.items() if value is not None}
    return "-".join([*([f"{len(seeds)}seeds"] if several else []), *([short_hash(said)] if said else [])])


def short_hash(value: Any) -> str:
    """Eight letters that tell plain values apart."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
