"""Formats that a domain can be prepared from: one file each, found by the registry."""

from __future__ import annotations

from pathlib import Path

from ckd.data.ingest.raw import IngestFormat
from ckd.errors import DataError, did_you_mean
from ckd.registry import Registry

FORMATS = Registry(
    kind="ingest format",
    package="ckd.data.ingest",
    attribute="FORMAT",
    helpers=frozenset({"delimited", "expanded", "lines", "problems", "raw", "spool", "text"}),
)


def find_format(source: Path, name: str | None = None) -> tuple[str, IngestFormat]:
    """The format called `name`, or the one that `source` looks like.

    Raises:
        DataError: there is no such source, no format fits, or several do.
        ConfigError: no format is called `name`.
    """
    if name is not None:
        return name, FORMATS.get(name)
    if not source.exists():
        raise DataError(f"{source}: no such file or folder.")
    known: dict[str, IngestFormat] = {each: FORMATS.get(each) for each in FORMATS.names()}
    fitting = {each: found for each, found in known.items() if found.detect(source)}
    if not fitting:
        raise DataError(
            f"{source}: no ingest format fits. Choose one with --format.{did_you_mean('', FORMATS.names())}"
        )
    if len(fitting) > 1:
        raise DataError(f"{source}: fits {' and '.join(fitting)}. Choose one with --format, or give one file's path.")
    return next(iter(fitting.items()))
