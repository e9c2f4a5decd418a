"""A location keeps its promises on a disk and on a file system of Arrow's alike."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from ckd.errors import StoreError
from ckd.store import location as module
from ckd.store.location import Location

CONTENT = bytes(range(200))


@pytest.fixture(params=["disk", "arrow"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty folder on the disk, or in Arrow's file system of nothing but memory."""
    found = Location(tmp_path / "a" / "store" if request.param == "disk" else "mock:///a/store/")
    found.make()
    return found


def put(place: Location, name: str, content: bytes) -> None:
    with place.create(name) as file:
        file.write(content)


def test_what_is_put_is_read_whole_and_in_parts(place: Location) -> None:
    put(place, "x", CONTENT)
    put(place, "empty", b"")
    assert place.sizes() == {"x": len(CONTENT), "empty": 0}
    assert (place.read("x"), place.read("empty")) == (CONTENT, b"")
    for offset, size in ((0, 200), (0, 1), (3, 90), (150, 500), (200, 5)):
        assert place.read_range("x", offset, size) == CONTENT[offset : offset + size]
    with place.open("x") as file:
        assert file.size() == len(CONTENT)
        assert file.read_at(10, 20) == CONTENT[20:30]


def test_a_file_is_replaced_for_those_who_read_it_before(place: Location) -> None:
    put(place, "x", CONTENT)
    assert place.read_range("x", 0, 5) == CONTENT[:5]
    put(place, "x", b"something else")
    assert place.read_range("x", 0, 9) == b"something"
    assert place.sizes() == {"x": 14}


def test_a_block_that_raises_changes_nothing(place: Location) -> None:
    put(place, "x", CONTENT)

    def fail(name: str) -> None:
        with place.create(name) as file:
            file.write(b"half")
            raise RuntimeError("on the way")

    for name in ("x", "y"):
        with pytest.raises(RuntimeError, match="on the way"):
            fail(name)
    assert place.sizes() == {"x": len(CONTENT)}
    assert place.read("x") == CONTENT


def test_an_upload_goes_in_pieces(place: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 7)
    put(place, "x", CONTENT)
    assert place.read("x") == CONTENT


def test_one_of_two_creates_a_file(place: Location) -> None:
    assert place.create_exclusive("claim", b"first")
    assert not place.create_exclusive("claim", b"other")
    assert place.read("claim") == b"first"


def test_what_is_deleted_is_gone_and_may_be_deleted_again(place: Location) -> None:
    put(place, "x", CONTENT)
    assert place.read_range("x", 0, 1) == CONTENT[:1]
    assert place.modified("x") is not None
    for _ in range(2):
        place.delete("x")
    assert (place.sizes(), place.modified("x")) == ({}, None)
    with pytest.raises(FileNotFoundError):
        place.read_range("x", 0, 1)


def test_folders_are_no_files_and_an_absent_one_has_none(place: Location, tmp_path: Path) -> None:
    if place.local is not None:
        (place.local / "folder").mkdir()
        absent = Location(place.local / "absent")
    else:
        place.fs.create_dir("a/store/folder")
        absent = Location("mock:///absent")
    assert place.sizes() == absent.sizes() == {}


def test_names_are_shown_below_the_folder(place: Location) -> None:
    folder = "mock:///a/store" if place.local is None else str(place.local)
    assert place.path("x") == f"{folder}/x"


# --- on the disk alone -----------------------------------------------------------------------------------------------


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[int, bool]] = []
    fsync = os.fsync

    def note(fd: int) -> None:
        synced.append((os.fstat(fd).st_size, (tmp_path / "x").exists()))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", note)
    put(Location(tmp_path), "x", CONTENT)
    assert (len(CONTENT), False) in synced


def test_a_disk_that_fails_behind_the_writers_back_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system tells of a failed write-back once, to whoever asks first: here, in the background."""
    asked: list[int] = []

    def fail_once(fd: int) -> None:
        asked.append(fd)
        if len(asked) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail_once)
    monkeypatch.setattr(module, "SYNC", 1)
    with pytest.raises(StoreError, match="Input/output error"):
        put(Location(tmp_path), "x", CONTENT)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_taken_away_unfinished_is_an_error(tmp_path: Path) -> None:
    def lose() -> None:
        with Location(tmp_path).create("x") as file:
            file.write(CONTENT)
            for path in tmp_path.iterdir():
                path.unlink()

    with pytest.raises(StoreError, match=r"/x: No such file or directory"):
        lose()
    assert list(tmp_path.iterdir()) == []


def test_a_claim_that_cannot_be_written_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StoreError, match=r"/claim: No space left on device"):
        Location(tmp_path).create_exclusive("claim", b"mine")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_the_folder_holds_no_files(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert Location(tmp_path / "file").sizes() == {}


def test_a_sign_of_life_is_a_later_time_and_makes_no_claim(tmp_path: Path) -> None:
    place = Location(tmp_path)
    place.touch("claim", b"mine")
    assert list(tmp_path.iterdir()) == []
    place.create_exclusive("claim", b"mine")
    os.utime(tmp_path / "claim", ns=(5, 123_456_789))
    assert place.modified("claim") == 123_456_789
    place.touch("claim", b"mine")
    assert (place.modified("claim") or 0) > 10**18
    assert place.read("claim") == b"mine"
