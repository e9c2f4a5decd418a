"""A run that is killed anywhere and goes on ends in the very bits of one that was never interrupted."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

TIMING = ("seconds", "instances_per_second", "waiting_share")

#: A process with threads of its own cannot be forked safely.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}

#: Imports once, then forks a process for every run: some kill themselves, and are begun again until they end.
SCRIPT = """
import importlib.util, json, os, signal, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
import ckd.data.atomic, ckd.distill.trainer, ckd.nn.weights
torch.set_num_threads(1)
ckd.data.atomic.fsync_path = lambda path: None  # what the system has taken survives a kill
spec = importlib.util.spec_from_file_location("toys", sys.argv[1])
toys = importlib.util.module_from_spec(spec)
sys.modules["toys"] = toys
spec.loader.exec_module(toys)

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def arm(trainer, fault):
    kind, _, count = (fault or "").partition(":")
    left = [int(count or 1)]

    def counted(*_):
        left[0] -= 1
        if left[0] == 0:
            die()

    if kind == "step":
        trainer.on_step = counted
    elif kind == "epoch":
        trainer.on_epoch = counted
    elif kind == "between":  # the best checkpoint is there, the last one is not
        trainer._save_best = lambda row, save=trainer._save_best: (save(row), counted())
    elif kind == "described":  # the checkpoint is there, what people read of it is not
        trainer._write_state = counted
    elif kind == "writing":  # half of a checkpoint is on the disk
        def torn(tensors, path, metadata):
            save_file(tensors, path, metadata)
            if metadata is not None:
                size = os.path.getsize(path)
                left[0] -= 1
                if left[0] == 0:
                    os.truncate(path, size // 2)
                    die()
        ckd.nn.weights.save_file = torn

def run(folder, options, fault):
    pid = os.fork()
    if not pid:
        try:
            trainer = toys.build_trainer(folder, **options)
            arm(trainer, fault)
            trainer.fit()
            if loaded := {"torch._dynamo", "sympy"} & set(sys.modules):
                raise AssertionError(f"training has loaded {loaded}")
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

for name, options, faults in json.load(sys.stdin):
    print(json.dumps([name, [run(Path(sys.argv[2]) / name, options, fault) for fault in [*faults, None]]]), flush=True)
"""

#: Two curriculum stages and two full epochs.
STEPS: dict[str, Any] = {"teachers": 3, "seed": 4, "checkpoint_steps": 2, "patience": 2, "lr": 0.003}
EPOCHS: dict[str, Any] = {**STEPS, "checkpoint_steps": None}
EVERY: dict[str, Any] = {**STEPS, "checkpoint_steps": 1}
AVERAGED: dict[str, Any] = {**STEPS, "ema": 0.8}

#: Name: settings, and where each process in turn is killed.
RUNS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "whole": (STEPS, []),
    "whole-epochs": (EPOCHS, []),
    "whole-every": (EVERY, []),
    "whole-averaged": (AVERAGED, []),
    "before-any-checkpoint": (STEPS, ["step:1"]),
    "on-a-checkpoint": (STEPS, ["step:3"]),
    "in-the-middle": (STEPS, ["step:6", "step:5", "step:9"]),
    "every-step": (EVERY, [f"step:{n}" for n in (1, 2, 1, 3, 8, 4)]),
    "without-step-checkpoints": (EPOCHS, ["step:2", "step:8", "step:20"]),
    "after-an-epoch": (STEPS, ["epoch:1", "epoch:2"]),
    "between-best-and-last": (STEPS, ["between:1", "between:2"]),
    "in-the-middle-of-writing": (STEPS, ["writing:2", "writing:5"]),
    "before-the-description": (STEPS, ["described:3", "described:2"]),
    "after-the-last-epoch": (STEPS, ["epoch:4"]),
    "last-state-undescribed": (EPOCHS, ["described:4"]),
    "averaging": (AVERAGED, ["step:5", "between:1", "writing:3", "epoch:2"]),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[int]]]:
    """The folder of all runs, and how each of their processes ended."""
    folder = tmp_path_factory.mktemp("killed")
    conftest = Path(__file__).with_name("conftest.py")
    told = json.dumps([[name, options, faults] for name, (options, faults) in RUNS.items()])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(conftest), str(folder)],
        input=told,
        env={**os.environ, **ONE_THREAD},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder, dict(json.loads(line) for line in done.stdout.splitlines())


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in TIMING}


def log(folder: Path) -> list[dict[str, Any]]:
    with (folder / "log.csv").open(newline="") as file:
        return [timeless(row) for row in csv.DictReader(file)]


def test_the_reference_takes_every_kind_of_step(runs: tuple[Path, dict[str, list[int]]]) -> None:
    """The kills below hit what they are meant to hit only if this is so."""
    folder, _ = runs
    rows = json.loads((folder / "whole" / "last.json").read_text())["rows"]
    assert [row["stage"] for row in rows] == [1, 2, 0, 0]
    assert any(row["dropped_teacher-0"] for row in rows)
    best = json.loads((folder / "whole" / "best.json").read_text())["log"]["epoch"]
    assert best >= 1


@pytest.mark.parametrize("name", [name for name, (_, faults) in RUNS.items() if faults])
def test_a_killed_run_ends_as_if_it_had_not_been(runs: tuple[Path, dict[str, list[int]]], name: str) -> None:
    folder, ended = runs
    options, faults = RUNS[name]
    assert ended[name] == [-signal.SIGKILL] * len(faults) + [0]
    whole_name = next(whole for whole, (theirs, faults) in RUNS.items() if theirs == options and not faults)
    found, whole = folder / name, folder / whole_name
    assert (found / "best.safetensors").read_bytes() == (whole / "best.safetensors").read_bytes()
    ours, theirs = load_file(found / "last.safetensors"), load_file(whole / "last.safetensors")
    assert ours.keys() == theirs.keys()
    # Weights, the optimiser's moments and the random generator, to the bit.
    assert [key for key in ours if ours[key].numpy().tobytes() != theirs[key].numpy().tobytes()] == []
    states = [json.loads((each / "last.json").read_text()) for each in (found, whole)]
    rows = [[timeless(row) for row in state.pop("rows")] for state in states]
    assert rows[0] == rows[1]
    assert states[0] == states[1]
    assert log(found) == log(whole)
    bests = [json.loads((each / "best.json").read_text()) for each in (found, whole)]
    assert timeless(bests[0]["log"]) == timeless(bests[1]["log"])
    assert sorted(path.name for path in found.iterdir()) == sorted(path.name for path in whole.iterdir())


def test_checkpoints_do_not_change_what_is_trained(runs: tuple[Path, dict[str, list[int]]]) -> None:
    folder, _ = runs
    weights = {(folder / name / "best.safetensors").read_bytes() for name in ("whole", "whole-epochs", "whole-every")}
    assert len(weights) == 1
