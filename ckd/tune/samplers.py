"""In which order a search tries its space. Trial n is a pure function of space, seed and the trials before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ckd.errors import ConfigError, did_you_mean
from ckd.tune.space import Choice, Dimension, Space, Value
from ckd.tune.trials import Trial

Sampler = Callable[[Space, int, int, Sequence[Trial]], dict[str, Value]]

#: Random trials before TPE begins to learn from them.
STARTUP = 5


def grid(space: Space, seed: int, number: int, before: Sequence[Trial]) -> dict[str, Value]:
    """The grid's points in a seeded random order, each once: whatever part of it is tried is spread over all of it."""
    points = [dimension.domain.points() or [] for dimension in space.dimensions]
    order = np.random.default_rng([seed]).permutation(math.prod(len(values) for values in points))
    chosen = np.unravel_index(order[number], [len(values) for values in points])
    return {d.name: values[int(at)] for d, values, at in zip(space.dimensions, points, chosen, strict=True)}


def grid_size(space: Space) -> int:
    """Number of points.

    Raises:
        ConfigError: a range does not say in how many steps.
    """
    size = 1
    for dimension in space.dimensions:
        points = dimension.domain.points()
        if points is None:
            raise ConfigError(f"space: {dimension.name}: a grid needs its steps. Add steps: 3, or list its values.")
        size *= len(points)
    return size


def random(space: Space, seed: int, number: int, before: Sequence[Trial]) -> dict[str, Value]:
    """Uniform values, on a range's own scale; the first trial is the configuration as it is."""
    if number == 0:
        return {}
    shares = np.random.default_rng([seed, number]).random(len(space.dimensions))
    return {d.name: d.domain.draw(float(share)) for d, share in zip(space.dimensions, shares, strict=True)}


def tpe(space: Space, seed: int, number: int, before: Sequence[Trial]) -> dict[str, Value]:
    """Tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011), by Optuna; begins like `random`.

    Every trial asks a study that is built anew from the finished ones, so that a search that was killed goes on with
    the values it would have tried.

    Raises:
        ConfigError: Optuna is not installed.
    """
    known = [trial for trial in before if trial.values and trial.metric is not None]
    if len(known) < STARTUP:
        return random(space, seed, number, before)
    optuna = require_optuna()
    distributions = {d.name: _distribution(optuna, d) for d in space.dimensions}
    state = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=state, n_startup_trials=STARTUP)
    )
    for trial in known:
        params = {d.name: _index_of(d, trial.values[d.name]) for d in space.dimensions}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=trial.metric))
    asked = study.ask(distributions).params
    return {
        d.name: d.domain.values[asked[d.name]] if isinstance(d.domain, Choice) else d.domain.tidy(asked[d.name])
        for d in space.dimensions
    }


def require_optuna() -> Any:
    """The library, silenced but for warnings.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            "--sampler tpe needs Optuna. Install it with `pip install 'ckd-mdsr[tune]'`, or take --sampler random."
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _distribution(optuna: Any, dimension: Dimension) -> Any:
    """Choices are told apart by their place in the list, so that any value can be one."""
    domain = dimension.domain
    if isinstance(domain, Choice):
        return optuna.distributions.CategoricalDistribution(range(len(domain.values)))
    if domain.whole:
        return optuna.distributions.IntDistribution(int(domain.low), int(domain.high), log=domain.log)
    return optuna.distributions.FloatDistribution(domain.low, domain.high, log=domain.log)


def _index_of(dimension: Dimension, value: Value) -> Any:
    if not isinstance(dimension.domain, Choice):
        return value
    return next(n for n, known in enumerate(dimension.domain.values) if known == value and type(known) is type(value))


SAMPLERS: dict[str, Sampler] = {"grid": grid, "random": random, "tpe": tpe}


def check_sampler(name: str, space: Space, trials: int) -> None:
    """Refuse, before anything is trained, a sampler that cannot make so many trials.

    Raises:
        ConfigError: unknown, not installed, or a grid that is too small.
    """
    if name not in SAMPLERS:
        raise ConfigError(f"unknown sampler {name!r}.{did_you_mean(name, SAMPLERS)}")
    if name == "tpe":
        require_optuna()
    if name == "grid" and (size := grid_size(space)) < trials:
        raise ConfigError(
            f"the grid has {size} points, fewer than {trials} trials. Give --trials {size} or more steps."
        )
