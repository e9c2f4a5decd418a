"""Text files as lines: whatever the blocks they are read in, the same lines with the same numbers."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckd.data.ingest import lines
from ckd.data.ingest.problems import Problems
from ckd.errors import DataError

#: Values hold marks and separators that are no line ends.
LINE = st.text(st.sampled_from("ab \t\ufeff\u2028é"), max_size=6)


def read(path: Path, block: int, piece: int = 3) -> list[tuple[int, str]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK_BYTES", block)
        patch.setattr(lines, "PIECE_BYTES", piece)
        return list(lines.lines(path, Problems()))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(LINE, min_size=1, max_size=8).filter(any),
    st.integers(4, 40),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_lines_are_those_of_the_whole_text_in_blocks_of_any_size(
    tmp_path: Path, texts: list[str], block: int, end: str, ended: bool, marked: bool, zipped: bool
) -> None:
    data = (end.join(texts) + (end if ended else "")).encode()
    data = b"\xef\xbb\xbf" + data if marked or texts[0].startswith("\ufeff") else data
    path = tmp_path / "text"
    path.write_bytes(gzip.compress(data) if zipped else data)
    assert read(path, block) == [(n, text) for n, text in enumerate(texts, start=1) if text and not text.isspace()]


def test_a_carriage_return_at_the_end_of_the_file_belongs_to_its_last_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"a\r\nb\r")
    assert read(tmp_path / "text", 100) == [(1, "a"), (2, "b")]


def test_the_head_of_a_file_is_its_first_lines_that_are_not_blank(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbfa\r\n\r\n b\r\nc\r\nd")
    assert lines.head(tmp_path / "text", 3) == ["a", " b", "c"]
    assert lines.head(tmp_path / "absent") == []


def test_a_folder_is_no_file_of_lines(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r": a folder, expected a file\.$"):
        read(tmp_path, 100)
