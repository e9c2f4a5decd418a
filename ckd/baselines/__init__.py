"""Published baselines that are trained in ways of their own: HetComp and RecGURU."""

from __future__ import annotations

from ckd.nn.recommender import Recommender
from ckd.registry import Registry
from ckd.students import STUDENTS

#: What `ckd.pipelines.train_baseline` trains.
BASELINES = ("hetcomp", "recguru")

#: Models that only a baseline trains, found by file name; HetComp trains any student.
MODELS = Registry(kind="model", package="ckd.baselines", attribute="MODEL", helpers=frozenset({"hetcomp"}))


def model_class(name: str) -> type[Recommender]:
    """The class of a student or of a baseline's own model.

    Raises:
        ConfigError: there is neither of that name.
    """
    found: type[Recommender] = MODELS.get(name) if name in MODELS.names() else STUDENTS.get(name)
    return found
