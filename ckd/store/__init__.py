"""The score store: teachers' log-scores, bound to the content that they were made from."""

from __future__ import annotations

from ckd.store.binding import BatchIndex, Binding, Members
from ckd.store.codecs import CODECS
from ckd.store.manifest import Manifest, Quality
from ckd.store.reader import ScoreReader, Stream, ZippedReaders, zip_readers
from ckd.store.vectors import VectorSource, write_vector_store
from ckd.store.writer import write_store

__all__ = [
    "CODECS",
    "BatchIndex",
    "Binding",
    "Manifest",
    "Members",
    "Quality",
    "ScoreReader",
    "Stream",
    "VectorSource",
    "ZippedReaders",
    "write_store",
    "write_vector_store",
    "zip_readers",
]
