"""The score store against idiomatic Parquet, in one run: `python benchmarks/store.py [--scores FILE.npy]`.

Every figure is a median over interleaved repeats with its quartiles, on one thread and a warm page cache. Idiomatic is
a column FixedSizeList<float16>, a row group per batch, without CRC: as pyarrow writes it by default, and plain, without
compression and dictionary, which is the fastest that layout gets. Ours verifies CRC and batch hash at every read, and
writes checksums, syncs every shard and ends with a manifest.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ckd.store import BatchIndex, Binding, ScoreReader, write_store, write_vector_store
from ckd.store.codecs.base import divergence, log_softmax

BINDING = Binding("domain", "plan", "teacher", 0.07, None, "cosine")
PLAIN = {"compression": "none", "use_dictionary": False}

#: Epochs, and width of a vector, in the comparison of vectors with matrices.
EPOCHS, DIM = 30, 64


def synthetic(batches: int, size: int) -> np.ndarray:
    """(batches, size, size) float32 log-softmax of cosines over 0.07: users near the cluster of their own item."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((64, 64))
    scores = np.empty((batches, size, size), np.float32)
    for batch in range(batches):
        cluster = rng.integers(0, 64, size)
        items = centres[cluster] + 0.8 * rng.standard_normal((size, 64))
        users = 0.5 * items + 0.5 * centres[cluster] + 0.8 * rng.standard_normal((size, 64))
        users, items = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (users, items))
        scores[batch] = log_softmax(users @ items.T / 0.07)
    return scores


class Bench:
    """The same batches in every layout."""

    def __init__(self, scores: np.ndarray, folder: Path, repeats: int) -> None:
        self.scores = scores
        self.folder = folder
        self.repeats = repeats
        n, rows, cols = scores.shape
        hashes = np.arange(1, n + 1, dtype=np.uint64)
        self.index = BatchIndex(hashes, np.full(n, rows, np.int32), np.full(n, cols, np.int32))
        self.order = np.random.default_rng(1).permutation(n).tolist()
        self.raw = scores.size * 2

    def score(self, ids: range) -> Iterator[tuple[int, np.ndarray]]:
        for batch_id in ids:
            yield batch_id, self.scores[batch_id]

    def write(self, codec: str) -> Path:
        folder = self.folder / codec
        for path in folder.glob("*"):
            path.unlink()
        write_store(folder, BINDING, self.index, codec, self.score)
        return folder

    def read(self, codec: str) -> Callable[[], None]:
        reader = ScoreReader(self.folder / codec, BINDING, self.index)

        def run() -> None:
            for batch_id in self.order:
                reader.read(batch_id, np.float16 if codec != "u8" else np.float32)

        return run

    def write_idiomatic(self, name: str, **options: object) -> Path:
        path = self.folder / f"{name}.parquet"
        n, rows, cols = self.scores.shape
        kind = pa.list_(pa.float16(), cols)
        schema = pa.schema([("batch", pa.int64()), ("hash", pa.uint64()), ("scores", kind)])
        with pq.ParquetWriter(path, schema, **options) as writer:
            for batch_id in range(n):
                values = pa.array(self.scores[batch_id].astype(np.float16).reshape(-1))
                lists = pa.FixedSizeListArray.from_arrays(values, type=kind)
                ids = [np.full(rows, batch_id), np.full(rows, self.index.hashes[batch_id])]
                writer.write_table(pa.Table.from_arrays([*map(pa.array, ids), lists], schema=schema))
        return path

    def read_idiomatic(self, name: str) -> Callable[[], None]:
        file = pq.ParquetFile(self.folder / f"{name}.parquet")
        cols = self.scores.shape[2]

        def run() -> None:
            for batch_id in self.order:
                table = file.read_row_group(batch_id, columns=["scores"], use_threads=False)
                table["scores"].chunk(0).flatten().to_numpy().reshape(-1, cols)

        return run


def interleave(work: dict[str, Callable[[], object]], repeats: int) -> dict[str, np.ndarray]:
    """Seconds of every piece of work, taken in turns so that a busy machine disturbs all alike."""
    for run in work.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats):
        for name, run in work.items():
            before = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - before)
    return {name: np.array(values) for name, values in seconds.items()}


def spread(values: np.ndarray, form: str = "{:.0f}") -> str:
    """Median and quartiles."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{form} ({form} to {form})".format(middle, low, high)


def row(what: str, found: str, target: str = "", met: bool | None = None) -> None:
    verdict = "" if met is None else ("met" if met else "MISSED")
    print(f"| {what} | {found} | {target} | {verdict} |")


def speeds(bench: Bench, what: str, target: float, ours: Callable[[], object], others: dict[str, Callable]) -> None:
    seconds = interleave({"f16": ours, **others}, bench.repeats)
    for name, values in seconds.items():
        row(f"{what} {name}, MB/s of fp16", spread(bench.raw / values / 1e6))
    for name in others:
        ratios = seconds[name] / seconds["f16"]
        met = bool(np.median(ratios) >= target)
        row(f"{what} f16 against {name}", spread(ratios, "{:.2f}"), f">= {target} times", met)


def sizes(bench: Bench) -> None:
    size = {codec: sum(p.stat().st_size for p in (bench.folder / codec).glob("part-*")) for codec in ("f16", "u8")}
    exact = ScoreReader(bench.folder / "f16", BINDING, bench.index)
    same = all(
        np.array_equal(exact.read(b, np.float16), bench.scores[b].astype(np.float16)) for b in range(len(bench.index))
    )
    row(
        "bytes f16 / raw fp16, bit-exact",
        f"{size['f16'] / bench.raw:.4f}, {same}",
        "<= 0.77",
        size["f16"] <= 0.77 * bench.raw and same,
    )
    row("bytes u8 / raw fp16", f"{size['u8'] / bench.raw:.4f}", "<= 0.51", size["u8"] <= 0.51 * bench.raw)
    lossy = ScoreReader(bench.folder / "u8", BINDING, bench.index)
    for name, reader in (("u8", lossy), ("f16", exact)):
        kl = np.concatenate([divergence(bench.scores[b], reader.read(b)) for b in range(len(bench.index))])
        shown = f"mean {kl.mean():.2e}, 99% {np.quantile(kl, 0.99):.2e}, max {kl.max():.2e}"
        row(f"KL {name} to exact, nats a row", shown, "<= 1e-4", bool(kl.mean() <= 1e-4))


def vectors(bench: Bench, f16: int) -> None:
    n, rows, _ = bench.scores.shape
    rng = np.random.default_rng(2)
    users, items = (rng.standard_normal((count, DIM)).astype(np.float32) for count in (n * rows, n * rows // 4))
    targets = rng.integers(1, len(items), len(users))
    manifest = write_vector_store(
        bench.folder / "vectors", BINDING, bench.index, lambda ids: users[ids.start : ids.stop], targets, items
    )
    ratio = EPOCHS * f16 / manifest.bytes
    row(f"bytes f16 / vectors, {EPOCHS} fresh epochs, d = {DIM}", f"{ratio:.1f}", ">= 20 times", ratio >= 20)


def hash_check(bench: Bench) -> None:
    reads = interleave({"read": bench.read("f16")}, bench.repeats)["read"] / len(bench.index)
    count = 10_000
    before = time.perf_counter()
    for _ in range(count):
        bench.index.check(3, 4, "part")
    each = (time.perf_counter() - before) / count
    share = each / float(np.median(reads))
    row("hash check, of reading its batch alone", f"{each * 1e6:.2f} us, {share:.2%}", "< 1% of a step", share < 0.01)


def memory(folder: Path, size: int) -> None:
    """Peak memory of processes that write and read stores of one size and of ten times it."""
    for what in ("write", "read"):
        peaks = []
        for batches in (64, 640):
            command = [sys.executable, __file__, "--peak", what, "--batches", str(batches), "--size", str(size)]
            done = subprocess.run(
                [*command, "--folder", str(folder / f"peak-{batches}")], stdout=subprocess.PIPE, check=True
            )
            peaks.append(int(done.stdout))
        grown = peaks[1] / peaks[0]
        shown = f"{peaks[0] / 1024:.0f} MB, {peaks[1] / 1024:.0f} MB"
        row(f"peak memory, {what}, 64 and 640 batches", shown, "flat", grown < 1.1)


def peak(what: str, batches: int, size: int, folder: Path) -> None:
    import resource

    some = synthetic(4, size)
    hashes = np.arange(1, batches + 1, dtype=np.uint64)
    index = BatchIndex(hashes, np.full(batches, size, np.int32), np.full(batches, size, np.int32))
    if what == "write":
        write_store(folder, BINDING, index, "f16", lambda ids: ((b, some[b % 4]) for b in ids))
    else:
        order = np.random.default_rng(0).permutation(batches).tolist()
        for _ in ScoreReader(folder, BINDING, index).stream(order, dtype=np.float16):
            pass
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scores", type=Path, help="(batches, T, T) log-scores as .npy, in place of synthetic ones")
    parser.add_argument("--batches", type=int, default=64)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--peak", choices=("write", "read"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="where the stores go; a temporary folder if not given")
    options = parser.parse_args()
    if options.peak:
        peak(options.peak, options.batches, options.size, options.folder)
        return
    pa.set_cpu_count(1)
    scores = np.load(options.scores).astype(np.float32) if options.scores else synthetic(options.batches, options.size)
    depth = np.median(scores.max(axis=2) - scores.min(axis=2))
    print(f"{len(scores)} batches of {scores.shape[1]} x {scores.shape[2]}, median range of a row {depth:.1f} nats")
    print(f"load before: {os.getloadavg()[0]:.1f}\n\n| what | found | target | |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        bench = Bench(scores, Path(name), options.repeats)
        idiomatic = {"idiomatic, pyarrow's defaults": {}, "idiomatic, plain": PLAIN}
        writers = {n: (lambda n=n, o=o: bench.write_idiomatic(n, **o)) for n, o in idiomatic.items()}
        speeds(bench, "write", 3.0, lambda: bench.write("f16"), writers)
        readers = {n: bench.read_idiomatic(n) for n in idiomatic}
        speeds(bench, "read", 2.5, bench.read("f16"), readers)
        bench.write("u8")
        sizes(bench)
        vectors(bench, sum(p.stat().st_size for p in (bench.folder / "f16").glob("part-*")))
        hash_check(bench)
        memory(bench.folder, scores.shape[1])
    print(f"\nload after: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
