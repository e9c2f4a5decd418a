"""Values that make no student are refused in one line that names the key."""

from __future__ import annotations

from typing import Any

import pytest

from ckd.config import parse
from ckd.errors import ConfigError
from ckd.students import STUDENTS

BAD: list[tuple[str, dict[str, Any], str]] = [
    ("sasrec", {"hidden_size": 0}, "hidden_size=0"),
    ("sasrec", {"n_heads": 7}, "n_heads=7: .*hidden_size 300 is no multiple of 7 heads"),
    ("sasrec", {"hidden_size": 63}, "n_heads=2: .*hidden_size 63 is no multiple of 2 heads"),
    ("sasrec", {"hidden_dropout": 1.0}, "hidden_dropout=1.0"),
    ("sasrec", {"layer_norm_eps": 0}, "layer_norm_eps=0"),
    ("bert4rec", {"n_heads": 7}, "n_heads=7"),
    ("bert4rec", {"mask_ratio": 0}, "mask_ratio=0"),
    ("bert4rec", {"mask_ratio": 1.1}, "mask_ratio=1.1"),
    ("bert4rec", {"last_share": -0.1}, "last_share=-0.1"),
    ("bert4rec", {"drop_first": "never"}, "drop_first='never'"),
    ("gru4rec", {"n_layers": 0}, "n_layers=0"),
    ("gru4rec", {"dropout": "much"}, "dropout='much'"),
    ("fmlprec", {"filters": False, "n_heads": 7}, "n_heads=7"),
    ("fm", {"embedding_size": 0}, "embedding_size=0"),
    ("fm", {"separator": ""}, "separator=''"),
    ("deepfm", {"mlp_sizes": []}, "mlp_sizes="),
    ("deepfm", {"mlp_sizes": [8, 0]}, "mlp_sizes.*=0"),
    ("lightgcn", {"n_layers": -1}, "n_layers=-1"),
    ("lightgcn", {"reg_weight": -1}, "reg_weight=-1"),
]


@pytest.mark.parametrize(("name", "values", "message"), BAD)
def test_a_bad_value_is_refused(name: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^student: {message}") as caught:
        parse(STUDENTS.get(name).Config, values, "student")
    assert "\n" not in str(caught.value)


def test_filters_do_not_care_for_heads() -> None:
    parse(STUDENTS.get("fmlprec").Config, {"n_heads": 7}, "student")


@pytest.mark.parametrize("name", STUDENTS.names())
def test_the_defaults_are_valid_and_survive_a_round_trip(name: str) -> None:
    config_class = STUDENTS.get(name).Config
    config = parse(config_class, {}, "student")
    assert parse(config_class, config.model_dump(mode="json"), "student") == config
