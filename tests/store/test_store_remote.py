"""Stores on Arrow file systems: a real S3 server on loopback, and `file://`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckd.errors import StoreError
from ckd.store.location import Location
from ckd.store.verify import verify_store


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """URI of a bucket, up to the path."""
    server = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    from pyarrow import fs

    with pytest.MonkeyPatch.context() as patch:
        for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(key, "testing")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        running.start()
        host, port = running.get_host_and_port()
        endpoint = f"{host}:{port}"
        s3 = fs.S3FileSystem(endpoint_override=endpoint, scheme="http", region="us-east-1", allow_bucket_creation=True)
        s3.create_dir("scores")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{endpoint}")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield "s3://scores"
        running.stop()


@pytest.mark.parametrize("codec", ["f16", "u8", "tensor"])
def test_round_trip(bucket: str, make_case: Any, tmp_path: Path, codec: str) -> None:
    case = make_case(codec=codec)
    manifest = case.write(f"{bucket}/{codec}")
    assert manifest == case.write(tmp_path)
    assert sorted(Location(f"{bucket}/{codec}").sizes()) == sorted(path.name for path in tmp_path.iterdir())
    for name in Location(f"{bucket}/{codec}").sizes():
        assert Location(f"{bucket}/{codec}").read(name) == (tmp_path / name).read_bytes()
    remote, local = case.open(f"{bucket}/{codec}"), case.open(tmp_path)
    for batch_id, scores in remote.stream([9, 3, 3, 0], threads=2):
        np.testing.assert_array_equal(scores, local.read(batch_id))
    assert verify_store(f"{bucket}/{codec}", case.binding, case.index).problems == ()


def test_what_was_begun_is_resumed(bucket: str, case: Any) -> None:
    whole = case.score

    def broken(ids: range) -> Any:
        for batch_id, scores in whole(ids):
            if batch_id == 6:
                raise RuntimeError("power cut")
            yield batch_id, scores

    case.score = broken
    with pytest.raises(RuntimeError, match="power cut"):
        case.write(f"{bucket}/resumed")
    with pytest.raises(StoreError, match=r"s3://scores/resumed/manifest.json: no such file"):
        case.open(f"{bucket}/resumed")
    case.score = whole
    case.scored.clear()
    case.write(f"{bucket}/resumed")
    assert case.scored == [4, 5, 6, 7, 8, 9]
    assert len(case.read(f"{bucket}/resumed")) == 10


def test_a_changed_object_is_refused_and_repaired(bucket: str, case: Any) -> None:
    location = Location(f"{bucket}/changed")
    case.write(f"{bucket}/changed")
    sound = location.read("part-00001.parquet")
    changed = bytearray(sound)
    changed[300] ^= 1
    with location.create("part-00001.parquet") as file:
        file.write(bytes(changed))
    with pytest.raises(StoreError, match=r"s3://scores/changed/part-00001.parquet: damaged"):
        case.read(f"{bucket}/changed")
    with location.create("part-00001.parquet") as file:
        file.write(sound[:300])
    with pytest.raises(StoreError, match=r"300 bytes, expected \d+ bytes"):
        case.open(f"{bucket}/changed")
    case.write(f"{bucket}/changed")
    assert location.read("part-00001.parquet") == sound


def test_a_local_uri(tmp_path: Path, case: Any) -> None:
    case.write(f"file://{tmp_path}/store")
    assert (tmp_path / "store" / "manifest.json").exists()
    assert len(case.read(tmp_path / "store")) == 10


@pytest.mark.parametrize("place", ["nothing://bucket/x", "s3://"])
def test_what_is_no_file_system_is_refused(place: str, case: Any) -> None:
    with pytest.raises(StoreError, match=r"^(nothing|s3):[^\n]*Use a path, or a URI that Arrow knows"):
        case.write(place)


def test_keys_never_show(case: Any) -> None:
    location = Location("s3://AKIA:secret@bucket/folder?region=eu-west-1&endpoint_override=127.0.0.1:9")
    assert location.path("x") == "s3://bucket/folder/x"
