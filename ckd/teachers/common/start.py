"""What pre-trained weights and the model that starts from them must have in common: the sizes of their encoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from ckd.data.domain import Domain
from ckd.errors import ConfigError

#: Keys of a sequence encoder and its adaptor that weights depend on.
SIZES = ("hidden_size", "inner_size", "n_layers", "n_heads", "n_experts")


def check_sizes(where: str, config: BaseModel, info: Mapping[str, Any], domain: Domain) -> None:
    """Refuse pre-trained weights of other sizes.

    Args:
        where: begins the message.
        config: of the model that starts from them.
        info: describes the weights.

    Raises:
        ConfigError: names the key that differs, or the longest history.
    """
    for key in SIZES:
        here, there = getattr(config, key), info["config"][key]
        if here != there:
            raise ConfigError(f"{where}: pre-trained with {key}={there}, not {here}. Set teacher.{key}={there}.")
    if info["max_length"] < domain.history_cap:
        raise ConfigError(
            f"{where}: pre-trained on histories of at most {info['max_length']} items, domain {domain.name!r} has up "
            f"to {domain.history_cap}. Prepare it with a lower cap."
        )
