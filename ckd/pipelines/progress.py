"""How long work reports where it is, so that the command line can draw it and tests can ignore it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the state of one piece of work, as often as the work likes."""

    def __call__(self, done: int, total: int | None, unit: str, note: str = "") -> None:
        """`done` of `total` units (None where the end is not known), with a short note such as the current loss."""
        ...


def silent(done: int, total: int | None, unit: str, note: str = "") -> None:
    """Reports nothing."""
