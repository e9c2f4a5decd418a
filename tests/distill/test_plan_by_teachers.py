"""Which difficulty measures sort by teachers' scores."""

from __future__ import annotations

import pytest

from ckd.distill.difficulty import DIFFICULTIES, Samples, by_teachers, needs_teachers
from ckd.errors import ConfigError


def test_measures_say_whether_they_sort_by_teachers() -> None:
    found = {name for name in DIFFICULTIES.names() if needs_teachers(name)}
    assert found == {"teacher_loss", "teacher_disagreement"}


def test_a_measure_of_ones_own_may_say_so() -> None:
    def measure(samples: Samples) -> None:
        return None

    assert not hasattr(measure, "by_teachers")
    assert by_teachers(measure) is measure
    assert measure.by_teachers


def test_an_unknown_measure() -> None:
    with pytest.raises(ConfigError, match=r"'teacher_los'.* Did you mean 'teacher_loss'"):
        needs_teachers("teacher_los")
