"""Progress on a terminal, and silence elsewhere."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from importlib.metadata import version

import pytest
from rich.console import Console

from ckd import console
from ckd.cli import main

NOTE = "epoch 7 stage 2 · loss 6.2500 (CE 5.0000, KL 0.1250) · dropped unisrec 25%, recformer 3% · 12,346 inst/s"


def drawn(monkeypatch: pytest.MonkeyPatch, width: int, terminal: bool = True, shown: bool = True) -> str:
    """What three steps of an epoch leave on the screen, without colours and movements."""
    file = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=file, force_terminal=terminal, width=width))
    with console.bars(shown) as bars:
        for step in range(1, 4):
            bars(step, 412, "step", NOTE)
        bars.progress.refresh()
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", file.getvalue())


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_note_is_shown_whole_beneath_its_bar(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    lines = drawn(monkeypatch, width).splitlines()
    bar = max(number for number, line in enumerate(lines) if "3/412" in line)
    assert " ".join(" ".join(lines[bar + 1 :]).split()).startswith(NOTE)
    assert max(map(len, lines[bar + 1 :])) <= width


def test_nothing_is_drawn_without_a_terminal_or_by_further_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert drawn(monkeypatch, 80, terminal=False).strip() == ""
    assert drawn(monkeypatch, 80, shown=False) == ""


def test_the_rate_is_of_the_units_since_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(console, "err", Console(file=io.StringIO(), force_terminal=True))
    rates = []
    with console.bars() as bars:
        for step in (1, 2, 6, 1, 3):
            bars(step, 6, "step")
            (task,) = bars.progress.tasks
            rates.append((task.completed, task.fields["rate"]))
            now[0] += 0.5
    assert rates == [(1, ""), (2, "2/s"), (6, "5/s"), (1, ""), (3, "4/s")]


def test_a_table_in_a_pipe_is_not_folded() -> None:
    script = "from ckd.console import print_table; print_table('t', ['name', 'a' * 60, 'b' * 60], [['x', 1, 2]])"
    env = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=env)
    assert any("a" * 60 in line and "b" * 60 in line for line in found.stdout.splitlines())


def test_a_narrow_terminal_folds_names_and_cuts_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(console, "out", Console(file=file, width=60))
    runs = ["deepfm-seed2024-157eaa9a", "deepfm-ckd-seed2024-cc1f108c"]
    console.print_table("t", ["Metric", *runs, "Relative", "p"], [["recall@10", 0.0192, 0.0460, "+140.00%", "<0.0001"]])
    (row,) = (line.split() for line in file.getvalue().splitlines() if "0.0192" in line)
    assert row == ["recall@10", "0.0192", "0.0460", "+140.00%", "<0.0001"]


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["ckd", "--version"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"ckd {version('ckd-mdsr')}\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0000"),
        (5e-5, "0.0001"),
        (4.9e-5, "4.9e-05"),
        (-2.6e-7, "-2.6e-07"),
        (0.1234567, "0.1235"),
        (-9.99996, "-10.0000"),
        (12_345.678, "12,345.7"),
        (1_234_567, "1,234,567"),
        (None, "–"),
        (True, "yes"),
        (False, "no"),
        ("raw", "raw"),
    ],
)
def test_a_value_is_shown_as_a_person_reads_it(value: object, text: str) -> None:
    assert console.show(value) == text
