"""Training settings that a teacher with a loop of its own does not know."""

from __future__ import annotations

from ckd.config import TrainConfig
from ckd.errors import ConfigError


def refuse_settings(train: TrainConfig, *names: str, what: str) -> None:
    """Refuse settings that would have no effect.

    Args:
        names: keys that `what` does nothing with.
        what: is trained, for the message.

    Raises:
        ConfigError: names the first such key that is not at its default.
    """
    for name in names:
        if (value := getattr(train, name)) != TrainConfig.model_fields[name].default:
            raise ConfigError(f"train.{name}={value!r}: {what} does nothing with it. Leave it out.")
