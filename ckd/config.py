"""The typed configuration of a run.

One YAML file with optional keys, and `section.key=value` overrides. Defaults are the paper's section 4.1.4 where it
states a value. The resolved configuration is saved beside every artefact.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from ckd.errors import ConfigError, did_you_mean

Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Calibrated = Literal["calibrated"]


class Section(BaseModel):
    """Base of every section: frozen, and unknown keys are refused, as are numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and not _takes_truth(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError("input should not be true or false")
        return value


def _takes_truth(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(map(_takes_truth, get_args(annotation)))


class PrepareConfig(Section):
    """How a source becomes a domain (paper 4.1.1, 4.1.2)."""

    history_cap: int = Field(50, ge=1, description="longest history of an instance, in items")
    k_core_user: int | None = Field(
        None, ge=1, description="fewest interactions of a user, to a fixed point; none: 5 for raw reviews, else 1"
    )
    k_core_item: int | None = Field(None, ge=1, description="fewest interactions of an item; none: as for users")
    min_length: int = Field(1, ge=1, description="fewest interactions of a user, applied once after everything else")
    require_text: bool | None = Field(
        None, description="leave out items without text; none: where the source has item texts and no split of its own"
    )
    drop_duplicates: Literal["exact", "pair", "none"] = Field(
        "exact", description="exact: same user, item and time; pair: same user and item, the first is kept"
    )
    text_fields: tuple[str, ...] = Field(
        ("title", "category", "brand"), min_length=1, description="attributes that make an item's text, in this order"
    )
    items: Path | None = Field(None, description="the item file, where it does not lie beside the interactions")
    on_error: Literal["fail", "skip"] = Field("fail", description="a malformed row: fail, or skip and count it")


class PlanConfig(Section):
    """How instances are put into batches and in which order batches are trained on (paper 3.4, Alg. 1)."""

    batch_size: int = Field(512, ge=2, description="T, the most instances in a batch")
    layout: Literal["user", "instance"] = Field(
        "user", description="user: all instances of a user in one batch, sharing one pass; instance: each on its own"
    )
    difficulty: str = Field("ssl", description="difficulty measure that sorts the curriculum; none switches it off")
    alpha: float = Field(1.0, ge=0, description="weight of popularity in SSL, Eq. (1)")
    buckets: int = Field(
        4, ge=1, le=65_536, description="B, number of difficulty buckets; 1 switches the curriculum off"
    )
    epochs_per_stage: int = Field(1, ge=1, description="epochs on buckets 1..r before stage r + 1")
    epochs: int = Field(100, ge=1, description="epochs in all, the curriculum's included")
    pool: Annotated[int, Field(ge=1)] | Literal["fresh"] = Field(
        1, description="distinct compositions of the full data: a number, cycled, or fresh for one each epoch"
    )


class ScoreConfig(Section):
    """Stage one."""

    codec: str = Field("f16", description="how a batch's matrix is stored")
    temperature: float | None = Field(None, gt=0, description="tau of Eq. (2); none: the teacher's own")
    shard_batches: int = Field(64, ge=1, description="batches in one shard; shards of vectors have their own size")
    encode_batch: int = Field(1024, ge=1, description="instances in one forward pass of the teacher")


class DistillConfig(Section):
    """How teachers' scores become a target and a loss (paper 3.6, 3.7)."""

    weight: float = Field(10.0, ge=0, alias="lambda", description="lambda of Eq. (10)")
    weights: Literal["validation", "uniform"] | dict[str, Weight] = Field(
        "validation", description="teacher weights w_k: validation NDCG@10, uniform, or given"
    )
    normalisation: Literal["softmax", "minmax", "zscore"] = Field(
        "softmax", description="how teachers' scores are made comparable (paper 3.6.1)"
    )
    epsilon: float | None = Field(
        None, ge=0, description="threshold of the inconsistency; none: the quantile below decides"
    )
    epsilon_quantile: float = Field(0.5, ge=0, le=1, description="share of instances that keep every teacher")
    consistency: Literal["instance", "pair", "off"] = Field(
        "instance", description="for what the least consistent teacher is dropped, Eq. (4); off: for nothing"
    )
    direction: Literal["student", "teacher"] = Field("student", description="student: KL(p || q), Eq. (9)")
    temperature: Positive | Calibrated | dict[str, Positive | Calibrated] | None = Field(
        None,
        description="tau to re-normalise the stored scores to: a number, calibrated (each teacher's likeliest on the "
        "validation targets), or either by teacher; none: as stored",
    )
    scope: Literal["in-batch", "all"] = Field(
        "in-batch", description="items that are distilled over; all: the catalogue, from stores of codec vectors"
    )


class TrainConfig(Section):
    """The training loop, for students and for teachers."""

    lr: float = Field(1e-3, gt=0, description="learning rate")
    weight_decay: float = Field(1e-5, ge=0, description="L2 regularisation inside Adam")
    batch_size: int | None = Field(None, ge=2, description="instances a step when no plan gives it (teachers)")
    layout: Literal["user", "instance"] = Field(
        "instance", description="batches of whole users or of single instances when no plan gives them (teachers)"
    )
    epochs: int | None = Field(None, ge=1, description="most epochs; none: as planned")
    patience: int = Field(
        10, ge=1, description="validations without a better NDCG@10 before stopping; a curriculum's stages do not count"
    )
    validate_every: int = Field(1, ge=1, description="epochs between validations")
    clip_norm: float | None = Field(None, gt=0, description="largest norm of a step's gradient; none: any")
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay, at each step, of a moving average of the weights, which is validated and kept; none: the "
        "weights themselves are",
    )
    ce: Literal["full", "in-batch", "in-batch-logq"] = Field(
        "full",
        description="candidates of cross-entropy, Eq. (6): all items or the batch's; logq: corrected for popularity",
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16 multiplies in bfloat16; weights, softmax and losses are float32"
    )
    device: str = Field("auto", description="auto: cuda where there is one, else cpu")
    checkpoint_steps: int | None = Field(None, ge=1, description="steps between checkpoints; none: every epoch")
    tensorboard: bool = Field(
        False,
        description="TensorBoard events in the run's folder, of what this loop trains; needs the extra tensorboard",
    )

    #: Where a run is computed and how it is watched: it stays the same run with other values.
    NO_IDENTITY: ClassVar[frozenset[str]] = frozenset({"device", "tensorboard"})
    #: What a plan gives students, whose settings these are not.
    OF_A_PLAN: ClassVar[tuple[str, ...]] = ("batch_size", "layout")

    def identity(self, *without: str) -> dict[str, Any]:
        """The settings that tell one run from another, as JSON values; `without` leaves out further ones.

        `ema` is among them where it is set: a run from before there was this key is still the same run without it.
        `checkpoint_steps`, which changes nothing, was among them once, and stands as unset.
        """
        left_out = {*self.NO_IDENTITY, *without, *(["ema"] if self.ema is None else [])}
        settings = self.model_dump(mode="json", exclude=left_out)
        return settings if "checkpoint_steps" in left_out else settings | {"checkpoint_steps": None}


class RunConfig(Section):
    """Everything a command can be told."""

    seed: int = Field(2024, ge=0, lt=2**63)
    prepare: PrepareConfig = PrepareConfig()
    features: dict[str, Any] = Field(default_factory=dict, description="keys of `ckd encode-items`")
    plan: PlanConfig = PlanConfig()
    score: ScoreConfig = ScoreConfig()
    distill: DistillConfig = DistillConfig()
    train: TrainConfig = TrainConfig()
    student: dict[str, Any] = Field(default_factory=dict, description="the student's own keys")
    teacher: dict[str, Any] = Field(default_factory=dict, description="the teacher's own keys")
    baseline: dict[str, Any] = Field(default_factory=dict, description="keys of the baseline of `ckd train-baseline`")
    base: dict[str, Any] = Field(
        default_factory=dict, description="student keys of the base model of `ckd reproduce`, which is tuned for itself"
    )
    methods: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="for `ckd reproduce`: section.key: value of single models, such as recformer: {train.lr: 5e-5}",
    )


M = TypeVar("M", bound=BaseModel)

#: Numbers beyond these, whole ones and others, are no setting: what is counted or computed with them would overflow.
LARGEST, LARGEST_FLOAT = 2**31 - 1, 1e30


def parse(model: type[M], values: dict[str, Any], where: str) -> M:
    """Validate `values` as `model`.

    Raises:
        ConfigError: one line that names the key, the value and, for an unknown key, the nearest known one.
    """
    try:
        numbers = list(_numbers(values))
    except RecursionError:
        raise ConfigError(f"{where}: a value contains itself, by an alias. Write it out.") from None
    for name, number in numbers:
        most = LARGEST if isinstance(number, int) else LARGEST_FLOAT
        if most < abs(number) < math.inf and name.rpartition(".")[2] != "seed":
            raise ConfigError(f"{where}: {name}={number}: too large. Give at most {most}.")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        errors = error.errors()
        first = errors[0]
        key = _key(model, first["loc"])
        if first["type"] == "extra_forbidden":
            last = str(first["loc"][-1])
            deeper = _keys_below(model, last) if len(first["loc"]) == 1 else []
            hint = f" Did you mean {' or '.join(map(repr, deeper))}?" if deeper else None
            hint = hint or did_you_mean(last, _keys_beside(model, first["loc"]))
            raise ConfigError(f"{where}: unknown key {key!r}.{hint}") from None
        # A value that may be of several kinds and is of none has an error for each of them.
        reasons = [each["msg"].removeprefix("Value error, ") for each in errors if _key(model, each["loc"]) == key]
        if first["type"] == "missing":
            raise ConfigError(f"{where}: {key} has no default. Give it.") from None
        message = ", or ".join(dict.fromkeys(reason[0].lower() + reason[1:] for reason in reasons))
        subject = f"{key}={first['input']!r}: " if key else ""
        raise ConfigError(f"{where}: {subject}{message}.") from None


def _key(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """The key as a user writes it: pydantic's location ends in the kinds and the parts of a value."""
    parts = []
    for part in location:
        parts.append(str(part))
        field = next((f for name, f in model.model_fields.items() if part in (name, f.alias)), None)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            break
        model = field.annotation
    return ".".join(parts)


def _numbers(values: Any, name: str = "") -> Iterator[tuple[str, int | float]]:
    """All numbers in a nested value, each with its dotted key."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from _numbers(value, f"{name}.{key}" if name else str(key))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _numbers(value, name)
    elif isinstance(values, int | float) and not isinstance(values, bool):
        yield name, values


def _keys_below(model: type[BaseModel], key: str) -> list[str]:
    """`section.key` of the sections that have such a key."""
    return [
        f"{name}.{key}"
        for name, field in model.model_fields.items()
        if isinstance(field.annotation, type)
        and issubclass(field.annotation, BaseModel)
        and any(key in (own, of.alias) for own, of in field.annotation.model_fields.items())
    ]


def _keys_beside(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    for part in location[:-1]:
        annotation = model.model_fields[str(part)].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        model = annotation
    return [field.alias or name for name, field in model.model_fields.items()]


class _Loader(yaml.SafeLoader):
    """YAML whose truth values are true and false alone, as in version 1.2: `off`, which is false in 1.1, is a word."""


_TRUTH = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TRUTH]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_TRUTH, re.compile("true|True|TRUE|false|False|FALSE"), list("tTfF"))


def read_yaml(text: str) -> Any:
    """What a text of YAML says.

    Raises:
        yaml.YAMLError: it is none.
        ValueError: a date or a number that is none.
    """
    return yaml.load(text, Loader=_Loader)


def load_config(path: Path | None = None, overrides: list[str] | None = None) -> RunConfig:
    """The configuration from a YAML file and `section.key=value` overrides, later ones winning.

    Raises:
        ConfigError: the file is no YAML mapping, or a key or value does not fit.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            loaded = read_yaml(path.read_text())
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such configuration file.") from None
        except IsADirectoryError:
            raise ConfigError(f"{path}: a folder, expected a configuration file.") from None
        except (yaml.YAMLError, ValueError) as error:
            raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}.") from None
        if loaded is not None and not isinstance(loaded, dict):
            raise ConfigError(f"{path}: expected a mapping of sections, found {type(loaded).__name__}.")
        # A section whose keys are all commented out is there, and empty.
        values = {key: value for key, value in (loaded or {}).items() if value is not None}
    config = parse(RunConfig, values, str(path) if path else "configuration")
    for override in overrides or []:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"override {override!r}: write section.key=value, such as plan.buckets=4.")
        *sections, last = key.split(".")
        target = values
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise ConfigError(f"override {override!r}: {section!r} is a value, not a section.")
        try:
            target[last] = read_yaml(text)
        except (yaml.YAMLError, ValueError):
            raise ConfigError(f"override {override!r}: {text!r} is not valid YAML.") from None
        # One at a time: what does not fit is said of the one that has set it.
        config = parse(RunConfig, values, f"override {override!r}")
    return config
