"""Reads stores by docs/store-format.md alone: plain Arrow, and none of the store's code."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ckd.store import write_vector_store


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def manifest_of(folder: Path) -> dict[str, Any]:
    values = json.loads((folder / "manifest.json").read_text())
    stated = values.pop("checksum")
    assert values["format"] == 1
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
    assert stated == hashlib.sha256(canonical).hexdigest()
    return values


def shards_of(folder: Path, manifest: dict[str, Any]) -> Iterator[tuple[dict[str, Any], pq.ParquetFile]]:
    for record in manifest["shards"]:
        content = (folder / record["file"]).read_bytes()
        assert len(content) == record["bytes"]
        assert hashlib.sha256(content).hexdigest() == record["sha256"]
        assert hashlib.sha256(content[-record["footer"] :]).hexdigest() == record["footer_sha256"]
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        own = json.loads(file.metadata.metadata[b"ckd.shard"])
        for key in ("format", "binding", "kind", "index", "batches", "shard_batches"):
            assert own[key] == manifest[key]
        assert own["shard"]["file"] == record["file"]
        assert [own["shard"][key] for key in ("first", "count")] == [record["first"], record["count"]]
        yield record, file


def decode_f16(payload: bytes, rows: int, cols: int) -> np.ndarray:
    mode, base, escapes = struct.unpack_from("<BBI", payload)
    n = rows * cols
    low, rest = payload[6 : 6 + n], payload[6 + n :]
    if mode == 1:
        high = list(pa.Codec("zstd").decompress(rest, n).to_pybytes())
    else:
        half = -(-n // 2)
        codes = [byte & 15 for byte in rest[:half]] + [byte >> 4 for byte in rest[:half]]
        escaped = iter(rest[half:])
        assert len(rest) == half + escapes
        high = [next(escaped) if code == 15 else base + code for code in codes[:n]]
    values = b"".join(bytes([a, b | 0x80]) for a, b in zip(low, high, strict=True))
    return np.frombuffer(values, "<f2").reshape(rows, cols)


def decode_u8(payload: bytes, rows: int, cols: int) -> np.ndarray:
    steps = np.frombuffer(payload[: 4 * rows], "<f4")[:, None]
    highest = np.frombuffer(payload[4 * rows : 6 * rows], "<f2")[:, None].astype(np.float32)
    mix = np.frombuffer(payload[6 * rows : 8 * rows], "<u2")[:, None] / np.float32(65535)
    codes = np.frombuffer(payload[8 * rows :], np.uint8).reshape(rows, cols).astype(np.float32)
    return log_softmax(highest - codes * (255 * (1 - mix) * steps + mix * steps * codes))


@pytest.mark.parametrize(("codec", "decode", "atol"), [("f16", decode_f16, 0.01), ("u8", decode_u8, 0.1)])
@pytest.mark.parametrize("hard", [False, True])
def test_payloads(tmp_path: Path, make_case: Any, codec: str, decode: Any, atol: float, hard: bool) -> None:
    case = make_case(codec=codec)
    if hard:
        # Half of the scores near zero and the others far below: what f16 leaves to zstd.
        case.exact = lambda b: np.where(
            np.arange(case.index.cols[b]) % 2, np.float32(-1e-3), type(case).exact(case, b)
        ).astype(np.float32)
    case.write(tmp_path)
    manifest, seen = manifest_of(tmp_path), 0
    for record, file in shards_of(tmp_path, manifest):
        assert file.num_row_groups == record["count"]
        for number in range(file.num_row_groups):
            (row,) = file.read_row_group(number).to_pylist()
            assert row["batch"] == record["first"] + number == seen
            assert row["batch"] // manifest["shard_batches"] == int(record["file"][5:10])
            assert row["hash"] == int(case.index.hashes[seen])
            found = decode(row["payload"], row["rows"], row["columns"])
            if not hard or codec == "f16":
                np.testing.assert_allclose(found, case.exact(seen), atol=atol)
            seen += 1
    assert seen == manifest["batches"] == case.batches
    digest = hashlib.blake2b(digest_size=16)
    for values, kind in ((case.index.hashes, "<u8"), (case.index.rows, "<i4"), (case.index.cols, "<i4")):
        digest.update(values.astype(kind).tobytes())
    assert manifest["index"] == digest.hexdigest()


def test_tensor(tmp_path: Path, make_case: Any) -> None:
    case = make_case(codec="tensor")
    case.write(tmp_path)
    seen = 0
    for _, file in shards_of(tmp_path, manifest_of(tmp_path)):
        for number in range(file.num_row_groups):
            rows = file.read_row_group(number).to_pylist()
            assert [row["row"] for row in rows] == list(range(len(rows)))
            assert {(row["batch"], row["hash"]) for row in rows} == {(seen, int(case.index.hashes[seen]))}
            scores = np.array([row["scores"] for row in rows], dtype=np.float64)
            width = rows[0]["columns"]
            np.testing.assert_allclose(scores[:, :width], case.exact(seen), atol=0.01)
            assert (scores[:, width:] == -np.inf).all()
            seen += 1
    assert seen == case.batches


def test_vectors(tmp_path: Path, make_case: Any) -> None:
    case = make_case(binding=replace(make_case().binding, similarity="cosine", temperature=0.1))
    rng = np.random.default_rng(0)
    users, items = (rng.standard_normal((n, 6)).astype(np.float32) for n in (100, 31))
    targets = rng.integers(1, 31, 100)
    write_vector_store(
        tmp_path,
        case.binding,
        case.index,
        lambda ids: users[ids.start : ids.stop],
        targets,
        items,
        shard_instances=64,
    )
    manifest = manifest_of(tmp_path)
    found: dict[str, list[Any]] = {"instances": [], "items": []}
    for _, file in shards_of(tmp_path, manifest):
        group = json.loads(file.metadata.metadata[b"ckd.shard"])["shard"]["group"]
        found[group] += file.read().to_pylist()
    assert [row["id"] for row in found["instances"]] == list(range(100))
    assert [row["id"] for row in found["items"]] == list(range(31))
    assert [row["target"] for row in found["instances"]] == targets.tolist()
    stored = [np.array([np.array(row["vector"]) * row["scale"] for row in found[key]]) for key in found]
    exact = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (users, items)]
    tau = manifest["binding"]["temperature"]
    np.testing.assert_allclose(
        log_softmax(stored[0] @ stored[1][targets].T / tau),
        log_softmax(exact[0] @ exact[1][targets].T / tau),
        atol=0.02,
    )


def test_the_document_names_every_column_and_key(tmp_path: Path, make_case: Any) -> None:
    text = (Path(__file__).parents[2] / "docs" / "store-format.md").read_text()
    for codec in ("f16", "u8", "tensor"):
        folder = tmp_path / codec
        make_case(codec=codec).write(folder)
        manifest = manifest_of(folder)
        names = [*manifest, *manifest["shards"][0], *pq.read_schema(folder / "part-00000.parquet").names]
        names += [*(manifest["quality"] or ()), codec]
        for name in names:
            assert f"`{name}`" in text or f"`{name}[]`" in text or name == "binding", name
        for name in manifest["binding"]:
            assert f".{name}`" in text, name
