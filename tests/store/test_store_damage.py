"""Damaged stores: every damage is refused or repaired, and nothing good is deleted."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ckd.errors import StoreError
from ckd.store import ScoreReader
from ckd.store.verify import verify_store


def regions(path: Path) -> dict[str, range]:
    """Where headers, hash, payload and footer of a shard's second batch lie."""
    metadata = pq.read_metadata(path)
    columns = {metadata.row_group(1).column(i).path_in_schema: metadata.row_group(1).column(i) for i in range(5)}
    payload, digest = columns["payload"], columns["hash"]
    end = payload.data_page_offset + payload.total_compressed_size
    value = end - payload.total_uncompressed_size
    size = path.stat().st_size
    footer = size - 8 - int.from_bytes(path.read_bytes()[-8:-4], "little")
    # A page header takes 25 bytes of the hash's 33; the payload's is a few bytes longer.
    return {
        "hash header": range(digest.data_page_offset, digest.data_page_offset + 25),
        "hash": range(digest.data_page_offset + 25, payload.data_page_offset),
        "payload header": range(payload.data_page_offset, value + 27),
        "payload": range(value + 27, end),
        "footer": range(footer, size - 8),
        "length of the footer": range(size - 8, size - 4),
        "magic": range(size - 4, size),
    }


REGIONS = ["hash header", "hash", "payload header", "payload", "footer", "length of the footer", "magic"]


@pytest.mark.parametrize("region", REGIONS)
def test_a_flipped_bit(whole: Path, case: Any, region: str) -> None:
    path = whole / "part-00001.parquet"
    sound, good = path.read_bytes(), case.read(whole)
    places = regions(path)[region]
    for at in places[:: max(1, len(places) // 40)]:
        changed = bytearray(sound)
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        with pytest.raises(
            StoreError, match=r"part-00001.parquet: .*[Ee]xpected|part-00001.parquet: damaged"
        ) as refused:
            case.open(whole).read(5)
        assert "\n" not in str(refused.value)
        assert "part-00001.parquet" in verify_store(whole).problems[0]
    before = case.files(whole)
    case.write(whole)
    assert case.scored == [4, 5, 6, 7]
    assert path.read_bytes() == sound
    assert {n: c for n, c in before.items() if n != path.name} == {
        n: c for n, c in case.files(whole).items() if n != path.name
    }
    for found, wanted in zip(case.read(whole), good, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("region", REGIONS)
def test_a_flipped_bit_before_there_is_a_manifest(tmp_path: Path, whole: Path, case: Any, region: str) -> None:
    path = whole / "part-00001.parquet"
    sound = case.files(whole)
    places = regions(path)[region]
    for at in places[:: max(1, len(places) // 8)]:
        changed = bytearray(sound[path.name])
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        (whole / "manifest.json").unlink()
        try:
            case.write(whole)
        except StoreError as error:
            # The bit made the shard say that it belongs elsewhere; then it is left for a person to look at.
            assert "part-00001.parquet: " in str(error)  # noqa: PT017
            assert path.read_bytes() == bytes(changed)
            path.unlink()
            case.write(whole)
        assert case.files(whole) == sound


def test_a_flipped_bit_in_the_manifest(whole: Path, case: Any) -> None:
    path = whole / "manifest.json"
    sound = case.files(whole)
    for at in range(0, len(sound[path.name]) - 1, 5):
        changed = bytearray(sound[path.name])
        changed[at] ^= 1 << at % 7
        path.write_bytes(changed)
        try:
            same = json.loads(changed) == json.loads(sound[path.name])
        except ValueError:
            same = False
        if same:
            continue
        with pytest.raises(StoreError, match=r"manifest.json: ") as refused:
            case.open(whole)
        assert "\n" not in str(refused.value)
    case.write(whole)
    assert case.scored == []
    assert case.files(whole) == sound


@pytest.mark.parametrize("kept", [0, 3, 200, -1])
def test_truncation(whole: Path, case: Any, kept: int) -> None:
    path = whole / "part-00000.parquet"
    sound = case.files(whole)
    path.write_bytes(sound[path.name][:kept])
    size = len(sound[path.name])
    with pytest.raises(StoreError, match=rf"part-00000.parquet: {path.stat().st_size} bytes, expected {size} bytes"):
        case.open(whole)
    case.write(whole)
    assert case.scored == [0, 1, 2, 3]
    assert case.files(whole) == sound


def test_truncation_while_it_is_being_read(whole: Path, case: Any) -> None:
    reader = case.open(whole)
    reader.read(0)
    path = whole / "part-00000.parquet"
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(StoreError, match=r"part-00000.parquet: damaged: batch 3: file ends at \d+, expected \d+"):
        reader.read(3)
    path.unlink()
    with pytest.raises(StoreError, match=r"part-00000.parquet: No such file"):
        reader.read(3)


def test_a_truncated_manifest(whole: Path, case: Any) -> None:
    path = whole / "manifest.json"
    sound = case.files(whole)
    for kept in (0, 1, len(sound[path.name]) // 2):
        path.write_bytes(sound[path.name][:kept])
        with pytest.raises(StoreError, match=r"manifest.json: damaged: not JSON"):
            case.open(whole)
    case.write(whole)
    assert case.scored == []
    assert case.files(whole) == sound


def test_two_shards_swapped(whole: Path, case: Any) -> None:
    one, two = whole / "part-00000.parquet", whole / "part-00001.parquet"
    sound = case.files(whole)
    one.write_bytes(sound[two.name])
    two.write_bytes(sound[one.name])
    with pytest.raises(StoreError, match=r"part-0000\d.parquet: .*expected"):
        case.open(whole)
    # Both are good: neither may be overwritten, with the manifest or without.
    for _ in range(2):
        with pytest.raises(StoreError, match=r"holds what was written as part-0000\d.parquet, expected part-0000\d"):
            case.write(whole)
        assert one.read_bytes() == sound[two.name]
        (whole / "manifest.json").unlink(missing_ok=True)


@pytest.mark.parametrize("key", ["domain", "plan", "teacher", "temperature"])
def test_a_shard_of_another_store(tmp_path: Path, whole: Path, case: Any, key: str) -> None:
    other = 0.09 if key == "temperature" else f"{key}-b"
    foreign = replace(case, binding=replace(case.binding, **{key: other}))
    foreign.write(tmp_path / "other")
    stray = whole / "part-00001.parquet"
    shutil.copy(tmp_path / "other" / stray.name, stray)
    line = rf"part-00001.parquet: made for {key} {other}, expected {key} {getattr(case.binding, key)}"
    with pytest.raises(StoreError, match=line):
        case.open(whole)
    assert line.split(":")[1][:20] in verify_store(whole).problems[0]
    for _ in range(2):
        with pytest.raises(StoreError, match=line):
            case.write(whole)
        assert stray.read_bytes() == (tmp_path / "other" / stray.name).read_bytes()
        (whole / "manifest.json").unlink(missing_ok=True)


def test_a_missing_shard(whole: Path, case: Any) -> None:
    sound = case.files(whole)
    (whole / "part-00002.parquet").unlink()
    with pytest.raises(StoreError, match=r"part-00002.parquet: no such file, expected \d+ bytes"):
        case.open(whole)
    assert "part-00002.parquet: no such file" in verify_store(whole).problems[0]
    case.write(whole)
    assert case.scored == [8, 9]
    assert case.files(whole) == sound


def test_a_surplus_shard(whole: Path, case: Any) -> None:
    stray = whole / "part-00003.parquet"
    shutil.copy(whole / "part-00000.parquet", stray)
    # What begins with a dot is no part of a store.
    (whole / ".manifest.json.claim.0").touch()
    (problem,) = verify_store(whole).problems
    assert "part-00003.parquet: belongs to no shard" in problem
    (whole / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"part-00003.parquet: belongs to no shard of this store, which has 3"):
        case.write(whole)
    assert stray.exists()


def test_an_unknown_format(whole: Path, case: Any) -> None:
    path = whole / "manifest.json"
    values = json.loads(path.read_text())
    values["format"] = 99
    path.write_text(json.dumps(values))
    with pytest.raises(StoreError, match=r"manifest.json: store format 99, expected 1"):
        case.open(whole)


def test_a_store_of_a_later_version_is_neither_read_nor_overwritten(
    tmp_path: Path, case: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as later:
        later.setattr("ckd.store.manifest.FORMAT", 2)
        case.write(tmp_path)
    before = case.files(tmp_path)
    with pytest.raises(StoreError, match=r"manifest.json: store format 2, expected 1"):
        case.open(tmp_path)
    with pytest.raises(StoreError, match=r"part-00000.parquet: store format 2, expected 1"):
        case.write(tmp_path)
    assert case.files(tmp_path) == before


def test_another_shard_size_is_refused(whole: Path, case: Any) -> None:
    with pytest.raises(StoreError, match="made with shard_batches 4, expected shard_batches 5"):
        replace(case, shard_batches=5).write(whole)


def test_weights_changed_under_the_store(whole: Path, case: Any) -> None:
    with pytest.raises(StoreError, match=r"made for teacher teacher-a, expected teacher retrained"):
        ScoreReader(whole, replace(case.binding, teacher="retrained"), case.index)


@pytest.mark.parametrize("codec", ["u8", "tensor"])
def test_flipped_bits_of_the_other_codecs(tmp_path: Path, make_case: Any, codec: str) -> None:
    case = make_case(codec=codec)
    case.write(tmp_path)
    path = tmp_path / "part-00000.parquet"
    sound, good = path.read_bytes(), case.read(tmp_path)[:4]
    for at in range(4, len(sound), 97):
        changed = bytearray(sound)
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        try:
            reader = case.open(tmp_path)
            found = [reader.read(batch_id) for batch_id in range(4)]
        except StoreError as error:
            assert "part-00000.parquet" in str(error)  # noqa: PT017
            continue
        # The bit lies in what reading does not use.
        for a, b in zip(found, good, strict=True):
            np.testing.assert_array_equal(a, b)
    assert verify_store(tmp_path).problems
    case.write(tmp_path)
    assert path.read_bytes() == sound
