"""Teachers: the pre-trained recommendation models. One file each; `TEACHERS` finds them by file name or entry point."""

from ckd.registry import Registry

TEACHERS = Registry(kind="teacher", package="ckd.teachers", attribute="TEACHER", helpers=frozenset({"protocol"}))
