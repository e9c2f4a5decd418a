"""Difficulty measures that sort a curriculum. One file each; `DIFFICULTIES` finds them by file name or entry point."""

from ckd.distill.difficulty.samples import Samples, TeacherScores
from ckd.registry import Registry

DIFFICULTIES = Registry(
    kind="difficulty measure",
    package="ckd.distill.difficulty",
    attribute="DIFFICULTY",
    helpers=frozenset({"samples"}),
)

__all__ = ["DIFFICULTIES", "Samples", "TeacherScores"]
