"""Published baselines that are trained in ways of their own: HetComp and RecGURU."""

from __future__ import annotations

from ckd.errors import ConfigError, did_you_mean
from ckd.nn.recommender import Recommender
from ckd.registry import Registry
from ckd.students import STUDENTS

#: What `ckd.pipelines.train_baseline` trains.
BASELINES = ("hetcomp", "recguru")

#: Models that only a baseline trains, found by file name.
MODELS = Registry(kind="model", package="ckd.baselines", attribute="MODEL", helpers=frozenset({"hetcomp"}))


def model_class(name: str) -> type[Recommender]:
    """The class of a student or of a baseline's own model.

    Raises:
        ConfigError: there is neither of that name.
    """
    found: type[Recommender] = MODELS.get(name) if name in MODELS.names() else STUDENTS.get(name)
    return found


def taught_class(name: str) -> type[Recommender]:
    """The class of what HetComp trains: any student, or a model here that no baseline trains in a way of its own.

    Raises:
        ConfigError: there is none of that name.
    """
    known = [*STUDENTS.names(), *(model for model in MODELS.names() if model not in BASELINES)]
    if name not in known:
        raise ConfigError(f"unknown student {name!r}.{did_you_mean(name, known)}")
    return model_class(name)
