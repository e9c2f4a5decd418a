"""What is compared: every method of the paper is a model, its teachers, and values of the configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ckd.errors import ConfigError, did_you_mean
from ckd.pipelines.reproduce.result import Kind

#: Teachers as they are printed; others by their own name.
TEACHER_NAMES = {"unisrec": "UniSRec", "recformer": "Recformer", "unim2rec": "UniM²Rec"}

BASE, DISTILLED = "SASRec", "CKD-MDSR"

#: How a student trains without teachers, as it is published: no curriculum, batches composed afresh every epoch.
PLAIN: dict[str, Any] = {"plan.difficulty": "none", "plan.buckets": 1, "plan.pool": "fresh"}

#: Distillation without the curriculum: the paper's "w/o CSS", and its first version.
NO_CURRICULUM: dict[str, Any] = {"plan.difficulty": "none", "plan.buckets": 1}


@dataclass(frozen=True)
class Method:
    """One line of a table.

    Attributes:
        name: as printed; unique within an experiment.
        kind: teacher, student, or a baseline with a training of its own.
        model: the registered teacher, student or baseline.
        teachers: registered teachers that it learns from.
        overrides: values by `section.key`, over everything the user's configuration says.
        student: what HetComp trains.
        x: where it stands in a sweep.
    """

    name: str
    kind: Kind
    model: str
    teachers: tuple[str, ...] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)
    student: str | None = None
    x: float | str | None = None


def teacher(model: str) -> Method:
    """A fine-tuned teacher by itself."""
    return Method(TEACHER_NAMES.get(model, model), "teacher", model)


def plain(name: str, model: str) -> Method:
    """A student without teachers."""
    return Method(name, "student", model, overrides=PLAIN)


BASE_METHOD = plain(BASE, "sasrec")


def distilled(teachers: Sequence[str], name: str = DISTILLED, model: str = "sasrec", **changes: Any) -> Method:
    """A student along the curriculum, with the teachers' scores; `changes` are `section__key=value`."""
    overrides = {key.replace("__", ".", 1): value for key, value in changes.items()}
    return Method(name, "student", model, tuple(teachers), overrides)


def table3_methods(teachers: Sequence[str]) -> list[Method]:
    """The columns of the paper's Tables 3 and 4, and its first version, which has no curriculum."""
    return [
        *(teacher(model) for model in teachers),
        plain("GRU4Rec", "gru4rec"),
        BASE_METHOD,
        plain("BERT4Rec", "bert4rec"),
        Method("RecGURU", "baseline", "recguru"),
        Method("HetComp", "baseline", "hetcomp", tuple(teachers), student="sasrec"),
        replace(distilled(teachers, "PRM-KD"), overrides=NO_CURRICULUM),
        distilled(teachers),
    ]


def ablations(teachers: Sequence[str]) -> list[Method]:
    """The variants of the paper's Figure 3: one teacher alone, no curriculum, all items as negatives, fixed weights."""
    alone = [
        distilled([model], f"w/o MT{number} ({TEACHER_NAMES.get(model, model)} alone)")
        for number, model in enumerate(teachers, start=1)
    ]
    return [
        distilled(teachers),
        *(alone if len(teachers) > 1 else []),
        replace(distilled(teachers, "w/o CSS"), overrides=NO_CURRICULUM),
        distilled(teachers, "w/o IN", distill__scope="all", score__codec="vectors"),
        # Of fewer than three teachers none is ever dropped: the weights are fixed anyway.
        *([distilled(teachers, "w/o WA", distill__consistency="off")] if len(teachers) > 2 else []),
    ]


#: Students of the paper's Figure 4, as printed.
UNIVERSAL = {"fm": "FM", "deepfm": "DeepFM", "lightgcn": "LightGCN"}


def universal(teachers: Sequence[str]) -> list[Method]:
    """Feature-interaction and graph students without and with distillation (Figure 4)."""
    found = []
    for model, name in UNIVERSAL.items():
        found += [plain(name, model), distilled(teachers, f"{DISTILLED} {name}", model)]
    return found


def choose(methods: Sequence[Method], names: Sequence[str] | None, keep: Sequence[str] = ()) -> list[Method]:
    """The methods of these names, in any case, and those of `keep`; all without names.

    What stands in parentheses may be left out: `w/o MT1` is `w/o MT1 (UniSRec alone)`.

    Raises:
        ConfigError: there is none of that name.
    """
    if names is None:
        return list(methods)
    known = {name.casefold(): method.name for method in methods for name in (method.name, method.name.split(" (")[0])}
    wanted = set(keep)
    for name in names:
        if name.casefold() not in known:
            raise ConfigError(f"no method {name!r} here.{did_you_mean(name, [m.name for m in methods])}")
        wanted.add(known[name.casefold()])
    return [method for method in methods if method.name in wanted]
