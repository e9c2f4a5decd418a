"""Difficulty measures that sort a curriculum. One file each; `DIFFICULTIES` finds them by file name or entry point."""

from ckd.distill.difficulty.samples import Samples, TeacherScores, by_teachers
from ckd.registry import Registry

DIFFICULTIES = Registry(
    kind="difficulty measure",
    package="ckd.distill.difficulty",
    attribute="DIFFICULTY",
    helpers=frozenset({"samples"}),
)


def needs_teachers(name: str) -> bool:
    """Whether the measure of that name sorts by teachers' scores.

    Raises:
        ConfigError: there is no such measure.
    """
    return bool(getattr(DIFFICULTIES.get(name), "by_teachers", False))


__all__ = ["DIFFICULTIES", "Samples", "TeacherScores", "by_teachers", "needs_teachers"]
