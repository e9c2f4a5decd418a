"""A method's configuration, resolved: defaults, the example's sizes, what the user says, what the method changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ckd.baselines import BASELINES, model_class
from ckd.baselines.hetcomp import HetCompConfig
from ckd.baselines.recguru import RecGURUConfig
from ckd.config import RunConfig, TrainConfig, parse
from ckd.data.features import DROPPED_TEXT, IMAGE, TEXT
from ckd.errors import ConfigError, did_you_mean
from ckd.pipelines.pretrain_teacher import pretraining_class
from ckd.pipelines.reproduce.example_sizes import (
    EXAMPLE_METHODS,
    EXAMPLE_STUDENT,
    EXAMPLE_TEACHERS,
    EXAMPLE_TRAIN,
)
from ckd.pipelines.reproduce.made import short_hash
from ckd.pipelines.reproduce.methods import DISTILLED, Method, ablations, table3_methods, universal
from ckd.pipelines.workspace import domain_folder
from ckd.students import STUDENTS
from ckd.teachers import TEACHERS

#: A section that a method may change and that is none of `RunConfig`: `train` of a teacher's pre-training.
PRETRAIN = "pretrain"

#: Sections that a method of each kind takes settings from.
SECTIONS = {
    "teacher": ("teacher", "train", PRETRAIN),
    "student": ("student", "train", "plan", "distill", "score"),
    "baseline": ("baseline", "student", "train"),
}

#: What the baselines' own section is validated with.
BASELINE_CLASSES: dict[str, Any] = {"hetcomp": HetCompConfig, "recguru": RecGURUConfig}

Nested = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What a method is trained with.

    Attributes:
        config: everything that pipelines read; the seed is the run's.
        pretrain: keys of `train` for a teacher's pre-training.
    """

    config: RunConfig
    pretrain: dict[str, Any]

    def fingerprint(self, method: Method, parts: Mapping[str, Any]) -> str:
        """Eight letters that tell runs of a model apart, by what they use.

        Args:
            parts: what the run depends on besides, such as its teachers' runs.
        """
        return short_hash({**self.used(method), **parts})

    def used(self, method: Method) -> dict[str, Any]:
        """What a run of the method uses, by section: what differs from the defaults, seed and device left out."""
        config = self.config
        if method.kind == "baseline":
            # Baselines have loops of their own, which read nothing of `train` but the device.
            return {"student": config.student, "baseline": config.baseline, "trains": method.student}
        used: dict[str, Any] = {"train": _trained_with(method, config.train)}
        if method.kind == "teacher":
            used["teacher"] = config.teacher
            return used
        used |= {"student": config.student, "plan": _said(config.plan)}
        if method.teachers:
            used |= {"distill": _said(config.distill), "score": _said(config.score)}
        return used


def pretraining_keys(model: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a teacher's keys that its pre-training has as well."""
    fields = set(pretraining_class(model).model_fields) - {"start"}
    return {key: value for key, value in values.items() if key in fields}


def encodings(model_config: Any, features: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The features that a teacher's configuration names and that can be encoded here, with keys of `EncodeConfig`.

    Args:
        model_config: the teacher's, for fine-tuning or pre-training.
        features: the user's `features` section.
    """
    named = {getattr(model_config, key, None) for key in ("feature", "text_feature", "image_feature")}
    if getattr(model_config, "item_drop_share", 1.0) < 1:
        named.add(model_config.dropped_feature)
    shared = {key: value for key, value in features.items() if key not in ("feature", "word_drop", "modality")}
    ways: dict[str, dict[str, Any]] = {
        TEXT: {**shared, "modality": "text"},
        DROPPED_TEXT: {**shared, "modality": "text", "word_drop": getattr(model_config, "drop_ratio", 0.0)},
        IMAGE: {**shared, "modality": "image"},
    }
    if "feature" in features:
        ways[features["feature"]] = dict(features)
    return {name: keys for name, keys in ways.items() if name in named}


def has_pictures(work: Path, domain: str, config: RunConfig) -> bool:
    """Vectors of pictures are there, or a folder of pictures is named."""
    feature = domain_folder(work, domain) / "features" / f"{IMAGE}.json"
    return feature.exists() or "images" in config.features


def _said(section: Any, exclude: set[str] | None = None) -> dict[str, Any]:
    # What has its default goes without saying, so that a new key with a default changes no name.
    values: dict[str, Any] = section.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude=exclude)
    return values


def _trained_with(method: Method, train: TrainConfig) -> dict[str, Any]:
    """As `_said`, and what was said to be the default of all models where the method's own has another."""
    values = _said(train, set(train.NO_IDENTITY))
    model: Any = TEACHERS.get(method.model) if method.kind == "teacher" else model_class(method.model)
    for name in sorted(train.model_fields_set & set(getattr(model, "TRAIN_DEFAULTS", {})) - set(values)):
        values[name] = train.model_dump(mode="json")[name]
    return values


def resolve(method: Method, config: RunConfig, example: bool, seed: int) -> Settings:
    """The settings of one method: each layer wins over the ones before it.

    Defaults; the example's sizes; the user's sections, of which `student`, `teacher` and `baseline` reach every model
    that has such a key; `base`, for the base model; the user's `methods`, by model and by printed name, where what is
    said of CKD-MDSR goes for its variants too; the method's own overrides.

    Raises:
        ConfigError: a key of `methods` is no section.key, a value does not fit, or a student has more epochs than its
            plan.
    """
    values: Nested = {}
    said = config.model_dump(by_alias=True, exclude_unset=True)
    for section in ("student", "teacher", "baseline"):
        said[section] = known_keys(method, section, said.get(section, {}))
    base, own = said.pop("base", {}), said.pop("methods", {})
    _lay(values, {**said, "seed": seed})
    if method.kind == "student" and method.model == "sasrec" and not method.teachers:
        _lay(values, {"student": base})
    variant = method.kind == "student" and method.model == "sasrec" and method.teachers
    for name in dict.fromkeys((method.model, *([DISTILLED] if variant else []), method.name)):
        _lay(values, _nested(own.get(name, {}), f"methods.{name}"))
    _lay(values, _nested(method.overrides))
    own_epochs = "epochs" in values.get("train", {})
    if example:
        sizes = _nested(_example_layer(method))
        _lay(sizes, values)
        values = sizes
    pretrain = values.pop(PRETRAIN, {})
    resolved = parse(RunConfig, values, method.name)
    train, planned = resolved.train, resolved.plan.epochs
    if method.kind == "student" and train.epochs is not None and train.epochs > planned:
        # Known here, before the teachers are trained. The example's own epochs are no more than who plans fewer wants.
        if own_epochs:
            raise ConfigError(
                f"{method.name}: train.epochs={train.epochs}: its plan has plan.epochs={planned}. Give no more, or "
                "plan more."
            )
        resolved = resolved.model_copy(update={"train": train.model_copy(update={"epochs": planned})})
    return Settings(resolved, pretrain)


def known_keys(method: Method, section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a section's keys that the method's model has."""
    model = _config_class(method, section)
    return {} if model is None else {key: value for key, value in values.items() if key in model.model_fields}


def check_keys(config: RunConfig, teachers: Sequence[str]) -> None:
    """Refuse keys that no model could take: as each model takes what it has, a typo would else go unnoticed.

    Args:
        teachers: of the study, in their order, which variants with one of them alone are numbered by.

    Raises:
        ConfigError: a key of `student`, `base`, `teacher` or `baseline` that no model has, or a name in `methods` that
            nobody has.
    """
    students: list[Any] = [model.Config for model in cast(dict[str, Any], STUDENTS.all()).values()]
    for section, given, classes in (
        ("student", config.student, students),
        ("base", config.base, students),
        ("teacher", config.teacher, [TEACHERS.get(name).Config for name in TEACHERS.names()] if config.teacher else []),
        ("baseline", config.baseline, list(BASELINE_CLASSES.values())),
    ):
        fields = {name for each in classes for name in each.model_fields}
        for key in given:
            if key not in fields:
                raise ConfigError(f"{section}: no model has a key {key!r}.{did_you_mean(key, fields)}")
    every = TEACHERS.names()
    shared = [method for method in ablations(every) if len(method.teachers) == len(every)]
    methods = (*table3_methods(every), *universal(every), *shared, *ablations(teachers))
    known: dict[str, str] = {method.name: method.kind for method in methods}
    for kind, models in (("teacher", every), ("student", STUDENTS.names()), ("baseline", BASELINES)):
        known |= dict.fromkeys(models, kind)
    for name, overrides in config.methods.items():
        if name not in known:
            raise ConfigError(f"methods: no method {name!r}.{did_you_mean(name, known)}")
        where, sections = f"methods.{name}", SECTIONS[known[name]]
        nested = _nested(overrides, where)
        for section in nested:
            if section not in sections:
                raise ConfigError(f"{where}: a {known[name]} has nothing of {section!r}, but {', '.join(sections)}.")
        parse(TrainConfig, nested.get(PRETRAIN, {}), f"{where}: {PRETRAIN}")


def _config_class(method: Method, section: str) -> Any:
    """The pydantic class that a method's section is validated with; None where it has none."""
    if section == "teacher":
        return TEACHERS.get(method.model).Config if method.kind == "teacher" else None
    if section == "baseline":
        return BASELINE_CLASSES[method.model] if method.kind == "baseline" else None
    if method.kind == "baseline":
        return None if method.student is None else model_class(method.student).Config
    return model_class(method.model).Config if method.kind == "student" else None


def _example_layer(method: Method) -> dict[str, Any]:
    found = {f"train.{key}": value for key, value in EXAMPLE_TRAIN.items()}
    found |= {f"student.{key}": value for key, value in known_keys(method, "student", EXAMPLE_STUDENT).items()}
    if method.kind == "teacher":
        found |= {f"teacher.{key}": value for key, value in EXAMPLE_TEACHERS.get(method.model, {}).items()}
    return {**found, **EXAMPLE_METHODS.get(method.model, {})}


def _nested(flat: Mapping[str, Any], where: str = "method") -> Nested:
    """`{"plan.buckets": 4}` as `{"plan": {"buckets": 4}}`."""
    sections = (*RunConfig.model_fields, PRETRAIN)
    found: Nested = {}
    for key, value in flat.items():
        section, dot, rest = key.partition(".")
        if not dot or section not in sections:
            raise ConfigError(f"{where}: key {key!r}: write section.key.{did_you_mean(section, sections)}")
        *path, last = rest.split(".")
        at = found.setdefault(section, {})
        for part in path:
            at = at.setdefault(part, {})
        at[last] = value
    return found


def _lay(values: Nested, layer: Mapping[str, Any]) -> None:
    """Put a layer over the values, section by section and key by key."""
    for section, given in layer.items():
        if isinstance(given, Mapping) and isinstance(values.get(section), dict):
            values[section] = {**values[section], **given}
        else:
            values[section] = dict(given) if isinstance(given, Mapping) else given
