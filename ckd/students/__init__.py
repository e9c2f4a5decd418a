"""Students: the small recommenders that serve. One file each; `STUDENTS` finds them by file name or entry point."""

from ckd.registry import Registry

STUDENTS = Registry(kind="student", package="ckd.students", attribute="STUDENT")
