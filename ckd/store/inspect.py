"""What a store holds, for people."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ckd.data.atomic import replace_file
from ckd.errors import StoreError
from ckd.store.binding import BatchIndex
from ckd.store.codecs.base import Float
from ckd.store.layout import check_footer, columns, footer_metadata
from ckd.store.location import Location
from ckd.store.manifest import Manifest, Quality, damaged
from ckd.store.reader import ScoreReader

#: Batches that are read to measure the speed.
MEASURED = 64

PICTURES = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Summary:
    """A store in numbers.

    Attributes:
        location, domain, plan, teacher, similarity, temperature, codec: where it lies and what it was made for.
        batches: in the plan.
        rows: of all matrices (of vectors: instances and items).
        shards: number of files.
        bytes: of all files.
        bound: the codec's statement of its error.
        quality: measured divergence from exact scores, for codecs that lose something.
        batches_per_s: how fast a sample was read in random order with every check, on one thread; None for vectors.
        mb_per_s: the same in 10^6 bytes of float16 matrix; for vectors None.
    """

    location: str
    domain: str
    plan: str
    teacher: str
    similarity: str | None
    temperature: float
    codec: str
    batches: int
    rows: int
    shards: int
    bytes: int
    bound: str
    quality: Quality | None
    batches_per_s: float | None
    mb_per_s: float | None


def inspect_store(location: str | Path, *, figure: Path | None = None, batch: int = 0) -> Summary:
    """Describe a store and measure how fast it reads.

    Args:
        location: the store's folder, a path or a URI.
        figure: where to draw one batch's matrix, as PNG, SVG or PDF.
        batch: which batch to draw.

    Raises:
        StoreError: it is unfinished, damaged or of an unknown format, or there is no such batch or picture format.
    """
    place = Location(location)
    manifest = Manifest.load(place)
    if figure is not None:
        if not 0 <= batch < manifest.header.batches:
            raise StoreError(f"{place.text}: no batch {batch}, expected 0..{manifest.header.batches - 1}.")
        draw_matrix(open_store(location).read(batch), figure, f"batch {batch}")
    binding = manifest.header.binding
    batches_per_s = mb_per_s = None
    if manifest.header.kind == "matrices":
        reader = open_store(location)
        order = np.random.default_rng(0).permutation(len(reader))[:MEASURED].tolist()
        before = time.perf_counter()
        size = sum(reader.read(batch_id, np.float16).nbytes for batch_id in order)
        elapsed = time.perf_counter() - before
        batches_per_s, mb_per_s = len(order) / elapsed, size / elapsed / 1e6
    return Summary(
        location=place.text,
        domain=binding.domain,
        plan=binding.plan,
        teacher=binding.teacher,
        similarity=binding.similarity,
        temperature=float(binding.temperature or 0.0),
        codec=str(binding.codec),
        batches=manifest.header.batches,
        rows=manifest.rows,
        shards=len(manifest.shards),
        bytes=manifest.bytes,
        bound=manifest.bound,
        quality=manifest.quality,
        batches_per_s=batches_per_s,
        mb_per_s=mb_per_s,
    )


def open_store(location: str | Path) -> ScoreReader:
    """A reader of whatever the store was made for: for looking at, not for training on.

    Raises:
        StoreError: it is unfinished or damaged, or holds vectors, which need the plan.
    """
    place = Location(location)
    manifest = Manifest.load(place)
    return ScoreReader(location, manifest.header.binding, stored_index(place, manifest))


def stored_index(location: Location, manifest: Manifest) -> BatchIndex:
    """Hashes, rows and columns of every batch as the shards state them.

    Raises:
        StoreError: a shard is damaged, or the store holds vectors.
    """
    if manifest.header.kind == "vectors":
        raise StoreError(f"{location.text}: holds vectors, expected matrices. Its batches are in the plan.")
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for record in manifest.shards:
        metadata = footer_metadata(check_footer(location, record, manifest))
        names = {metadata.schema.column(i).path.split(".")[0] for i in range(metadata.num_columns)}
        wanted = [columns.HASH, columns.COLUMNS, columns.ROWS if columns.ROWS in names else columns.BATCH]
        try:
            with location.open(record.file) as file:
                table = pq.ParquetFile(file, page_checksum_verification=True).read(wanted, use_threads=False)
        except (OSError, ValueError) as error:
            raise damaged(location.path(record.file), " ".join(str(error).split())) from None
        hashes, cols, last = (table[name].to_numpy() for name in wanted)
        if columns.ROWS in names:
            parts.append((hashes, last, cols))
        else:
            _, first, counts = np.unique(last, return_index=True, return_counts=True)
            parts.append((hashes[first], counts.astype(np.int32), cols[first]))
    hashes, rows, cols = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return BatchIndex(hashes, rows, cols)


def draw_matrix(log_scores: Float, path: Path, title: str = "") -> Path:
    """Draw one batch's matrix of log-scores, its best column in each row marked, as PNG, SVG or PDF.

    Args:
        log_scores: (rows, cols).
        path: where to; its suffix says in which format.
        title: above the picture.

    Raises:
        StoreError: the suffix is none of these.
    """
    if path.suffix.lower() not in PICTURES:
        raise StoreError(f"{path}: a picture ends in {', '.join(PICTURES)}, found {path.suffix or 'no suffix'!r}.")
    scores = np.asarray(log_scores, dtype=np.float32)
    figure = Figure(figsize=(7, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # The palest tenth of the scores would take most of the colours.
    image = axes.imshow(scores, cmap="magma", vmin=float(np.quantile(scores, 0.1)), vmax=0.0, interpolation="nearest")
    axes.plot(scores.argmax(axis=1), np.arange(len(scores)), ".", markersize=1.5, color="#4fd1ff", label="best column")
    axes.set(xlabel="column: item of the batch", ylabel="row: instance of the batch", title=title)
    axes.legend(loc="upper right", fontsize="small")
    figure.colorbar(image, ax=axes, label="log-score (nats)")
    with replace_file(path) as partial:
        figure.savefig(partial, format=path.suffix[1:].lower(), dpi=150)
    return path
