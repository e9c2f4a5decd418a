"""What is wrong in a source: a clear refusal, or a count when rows may be skipped."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ckd.errors import DataError

OnError = Literal["fail", "skip"]


@dataclass(frozen=True)
class Malformed:
    """One kind of trouble in one file.

    Attributes:
        file: where it is.
        kind: what it is, in words.
        rows: how many rows have it.
        first: line number of the first such row.
        example: the first message, complete with its value.
    """

    file: Path
    kind: str
    rows: int
    first: int
    example: str


@dataclass
class Problems:
    """Receives every malformed row of a source.

    Args:
        on_error: `fail` raises at the first row; `skip` counts it, and the reader leaves the row out.
    """

    on_error: OnError = "fail"
    _found: dict[tuple[Path, str], Malformed] = field(default_factory=dict)

    def row(self, file: Path, line: int, kind: str, detail: str = "", remedy: str = "", rows: int = 1) -> None:
        """Note that `line` of `file` is malformed.

        Args:
            file: the file.
            line: number of the (first) malformed line, from 1.
            kind: what is wrong, the same words for every such row.
            detail: the offending value.
            remedy: what to do; by default to mend the row or skip it.
            rows: how many rows this stands for.

        Raises:
            DataError: rows may not be skipped; one line with file, line, value and remedy.
        """
        message = f"{kind}: {detail}" if detail else kind
        if self.on_error == "fail":
            remedy = remedy or "Mend the row, or leave such rows out with prepare.on_error=skip."
            raise DataError(f"{file}:{line}: {one_line(message)}. {remedy}")
        known = self._found.get((file, kind))
        if known is None:
            self._found[file, kind] = Malformed(file, kind, rows, line, one_line(message))
        else:
            self._found[file, kind] = Malformed(file, kind, known.rows + rows, known.first, known.example)

    @property
    def malformed(self) -> tuple[Malformed, ...]:
        """Everything counted, in the order of the first occurrence."""
        return tuple(self._found.values())


def one_line(text: str, most: int = 160) -> str:
    """`text` without line breaks or control characters, cut to `most` characters."""
    shown = "".join(c if c.isprintable() else " " for c in text)
    shown = " ".join(shown.split())
    return shown if len(shown) <= most else shown[: most - 1] + "…"
