"""The configuration: defaults, files, overrides, and one clear line for whatever does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, Field, model_validator

from ckd.config import RunConfig, Section, load_config, parse
from ckd.errors import ConfigError
from ckd.students.sasrec import SASRecConfig


def test_defaults_are_the_papers() -> None:
    """Section 4.1.4 (Adam, batch, learning rate, L2, dimension, heads, layers, drop rate) and 4.1.2 (history of 50)."""
    config = RunConfig()
    assert config.plan.batch_size == 512
    assert config.train.lr == 0.001
    assert config.train.weight_decay == 1e-5
    assert config.prepare.history_cap == 50
    student = SASRecConfig()
    assert (student.hidden_size, student.n_heads, student.n_layers) == (300, 2, 2)
    assert (student.hidden_dropout, student.attention_dropout) == (0.1, 0.1)
    # The direction of Eq. (9), the difficulty of Eq. (1), the weights of Eq. (3), full data composed once.
    assert (config.distill.direction, config.plan.difficulty, config.distill.weights) == (
        "student",
        "ssl",
        "validation",
    )
    assert (config.distill.normalisation, config.distill.consistency) == ("softmax", "instance")


def test_nothing_given_is_the_default(tmp_path: Path) -> None:
    empty = tmp_path / "empty.yaml"
    empty.write_text("# nothing\nplan:\n  # buckets: 3\ntrain:\nseed:\n")
    assert load_config() == load_config(empty) == load_config(None, []) == RunConfig()


def test_overrides_win_over_the_file_and_later_over_earlier(tmp_path: Path) -> None:
    path = tmp_path / "ckd.yaml"
    path.write_text("seed: 1\nplan:\n  buckets: 3\n  epochs: 7\nstudent:\n  hidden_size: 64\n")
    config = load_config(path, ["plan.buckets=5", "seed=2", "plan.buckets=6", "student.n_heads=4"])
    assert (config.seed, config.plan.buckets, config.plan.epochs) == (2, 6, 7)
    assert config.student == {"hidden_size": 64, "n_heads": 4}


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("train.lr=1e-4", "train", "lr", 1e-4),
        ("train.clip_norm=null", "train", "clip_norm", None),
        ("plan.pool=fresh", "plan", "pool", "fresh"),
        ("plan.pool=3", "plan", "pool", 3),
        ("distill.lambda=2", "distill", "weight", 2.0),
        ("distill.weights={a: 1, b: 0.5}", "distill", "weights", {"a": 1.0, "b": 0.5}),
        ("prepare.text_fields=[title, brand]", "prepare", "text_fields", ("title", "brand")),
        ("prepare.require_text=false", "prepare", "require_text", False),
        ("distill.consistency=off", "distill", "consistency", "off"),
        ("train.tensorboard=on", "train", "tensorboard", True),
        ("prepare.items=a=b.csv", "prepare", "items", Path("a=b.csv")),
    ],
)
def test_overrides_are_yaml(override: str, section: str, key: str, value: Any) -> None:
    found = getattr(getattr(load_config(None, [override]), section), key)
    assert found == value
    assert type(found) is type(value)


def test_off_in_a_file_is_a_word(tmp_path: Path) -> None:
    path = tmp_path / "ckd.yaml"
    path.write_text("distill:\n  consistency: off\n  weights: uniform\ntrain:\n  tensorboard: False\n")
    config = load_config(path)
    assert (config.distill.consistency, config.train.tensorboard) == ("off", False)


def test_a_saved_configuration_reads_back(tmp_path: Path) -> None:
    config = load_config(
        None, ["plan.pool=fresh", "distill.consistency=off", "distill.weights={a: 1}", "teacher.start=x"]
    )
    path = tmp_path / "saved.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", by_alias=True)))
    assert load_config(path) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("plan.bukets=3", "unknown key 'plan.bukets'. Did you mean 'buckets'?"),
        ("pln.buckets=3", "unknown key 'pln'. Did you mean 'plan'?"),
        ("distill.lamda=3", "unknown key 'distill.lamda'. Did you mean 'lambda'?"),
        ("train.lr=-1", "train.lr=-1: input should be greater than 0."),
        ("plan.buckets=2.5", "plan.buckets=2.5: input should be a valid integer, got a number with a "),
        ("plan.pool=often", "plan.pool='often': input should be a valid integer, "),
        (
            "plan.pool=0",
            "plan.pool=0: input should be greater than or equal to 1, or input should be 'f",
        ),
        ("distill.weights=best", "distill.weights='best': input should be 'validation' or 'uniform', o"),
        ("prepare.text_fields=[1]", "prepare.text_fields=1: input should be a valid string"),
        ("plan=3", "plan=3: input should be a valid dictionary"),
        ("plan.buckets", "write section.key=value, such as plan.buckets=4."),
        ("=3", "write section.key=value"),
        ("plan.buckets=[", "'[' is not valid YAML."),
        ("lr=1", "unknown key 'lr'. Did you mean 'train.lr'?"),
        ("epochs=1", "unknown key 'epochs'. Did you mean 'plan.epochs' or 'train.epochs'?"),
        ("lambda=1", "unknown key 'lambda'. Did you mean 'distill.lambda'?"),
        ("plan.epochs=4294967296", "plan.epochs=4294967296: too large. Give at most 2147483647."),
        ("train.weight_decay=1.0e+308", "train.weight_decay=1e+308: too large. Give at most 1e+30."),
        ("plan.buckets=true", "plan.buckets=True: input should not be true or false."),
        ("train.tensorboard=2", "train.tensorboard=2: input should be a valid boolean"),
        ("distill.epsilon=false", "distill.epsilon=False: input should not be true or false."),
        ("student.mlp_sizes=[8, 4294967296]", "student.mlp_sizes=4294967296: too large."),
        ("seed=9223372036854775808", "seed=9223372036854775808: input should be less than 9223372036854775808."),
        ("seed=" + "9" * 5000, "'999"),
        ("seed.x=1", "seed={'x': 1}: input should be a valid integer."),
        ("plan.alpha=.inf", "plan.alpha=inf: input should be a finite number."),
        ("train.lr=.nan", "train.lr=nan: input should be a finite number."),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(None, [override])
    assert str(raised.value).startswith(f"override {override!r}: {message}")
    assert "\n" not in str(raised.value)


def test_the_file_is_named_where_the_file_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "ckd.yaml"
    path.write_text("plan:\n  buckets: 0\n")
    with pytest.raises(ConfigError, match=r"ckd\.yaml: plan\.buckets=0: "):
        load_config(path, ["plan.buckets=3"])


def test_what_changes_nothing_is_no_part_of_a_run() -> None:
    settings = load_config(None, ["train.checkpoint_steps=5", "train.device=cpu"]).train
    assert settings.identity() == load_config().train.identity()
    assert "checkpoint_steps" in settings.identity()
    assert "checkpoint_steps" not in settings.identity("checkpoint_steps")


def test_a_far_off_key_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'score\.xyzzy'\. Known: codec, encode_batch, shard_batches, t"):
        load_config(None, ["score.xyzzy=1"])


def test_a_value_is_no_section(tmp_path: Path) -> None:
    path = tmp_path / "ckd.yaml"
    path.write_text("seed: 3\n")
    with pytest.raises(ConfigError, match=r"override 'seed\.x=1': 'seed' is a value, not a section\."):
        load_config(path, ["seed.x=1"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"plan: [", "not valid YAML: while parsing"),
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"plan: \x00", "not valid YAML: unacceptable character"),
        (b"- 1\n- 2\n", "expected a mapping of sections, found list."),
        (b"just words", "expected a mapping of sections, found str."),
        (b"a: &a [*a]", "a value contains itself"),
        (b"student: &a\n  hidden_size: *a\n", "a value contains itself"),
        (b"1: 2", "1=1: keys should be strings."),
        (b"plan:\n  buckts: 2\n", "unknown key 'plan.buckts'. Did you mean 'buckets'?"),
        (b"!!python/object/apply:os.system ['true']", "not valid YAML: could not determine a constructor"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "ckd.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        load_config(path)
    assert str(raised.value).startswith(f"{path}: {message}")
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: no such configuration file\."):
        load_config(tmp_path / "absent.yaml")


class Inner(Section):
    depth: int = Field(1, ge=1)


class Outer(Section):
    inner: Inner = Inner()
    other: int | None = None

    @model_validator(mode="after")
    def _together(self) -> Outer:
        if self.other == self.inner.depth:
            raise ValueError("other and inner.depth are equal")
        return self


def test_parsing_other_sections() -> None:
    assert parse(Outer, {"inner": {"depth": 2}}, "outer").inner.depth == 2
    with pytest.raises(ConfigError, match=r"^outer: inner\.depth=0: input should be greater than or equal to 1\.$"):
        parse(Outer, {"inner": {"depth": 0}}, "outer")
    with pytest.raises(ConfigError, match=r"^outer: unknown key 'inner\.dept'\. Did you mean 'depth'\?$"):
        parse(Outer, {"inner": {"dept": 0}}, "outer")
    with pytest.raises(ConfigError, match=r"^outer: other and inner\.depth are equal\.$"):
        parse(Outer, {"other": 1}, "outer")


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(Exception, match="frozen"):
        RunConfig().plan.buckets = 2  # type: ignore[misc]


#: What nobody means, in YAML.
NONSENSE = [
    *["-1", "0", "1e308", ".nan", ".inf", "''", "x", "[]", "{}", "null", "true", "99999999999"],
    "[1, 2]",
    "{a: 1}",
]


def every_key() -> Iterator[str]:
    for section, field in RunConfig.model_fields.items():
        of: Any = field.annotation
        if isinstance(of, type) and issubclass(of, BaseModel):
            yield from (f"{section}.{inner.alias or name}" for name, inner in of.model_fields.items())
        else:
            yield section


def refusal(override: str) -> str | None:
    try:
        load_config(None, [override])
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize("key", list(every_key()))
def test_nonsense_is_taken_or_refused_in_a_line(key: str) -> None:
    refused = [(override, line) for value in NONSENSE if (line := refusal(override := f"{key}={value}")) is not None]
    assert len(refused) >= 3
    for override, line in refused:
        assert line.startswith(f"override {override!r}: ")
        assert "\n" not in line
