"""GRU4Rec, BERT4Rec and LightGCN beside RecBole's, as shipped, at RecBole's own default sizes.

    python -m benchmarks.models --data FOLDER [--domain scientific] [--repeats 3]

Every measurement is a process of its own, ours and theirs in turn; medians with minimum and maximum, and ratios of
medians. An epoch of LightGCN here and there visits every training interaction once. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.device import memory_cells, memory_headers
from benchmarks.training import WORK, peer, prepared, run


@dataclass(frozen=True)
class Peers:
    """A model of RecBole's and ours at the same sizes: those of RecBole's defaults, batches of 2,048.

    Attributes:
        steps: of theirs that are timed.
        theirs: settings that they need besides.
        student: ours.
        ours: its settings.
    """

    steps: int
    theirs: tuple[str, ...]
    student: str
    ours: tuple[str, ...]


SIZES = ("student.hidden_size=64", "student.inner_size=256")
DROPOUT = ("student.hidden_dropout=0.2", "student.attention_dropout=0.2")

MODELS = {
    "GRU4Rec": Peers(
        12,
        (),
        "gru4rec",
        ("student.embedding_size=64", "student.hidden_size=128", "student.dropout=0.3"),
    ),
    "BERT4Rec": Peers(6, (), "bert4rec", (*SIZES, *DROPOUT)),
    "LightGCN": Peers(
        12,
        ("train_neg_sample_args={distribution: uniform, sample_num: 1}",),
        "lightgcn",
        ("student.embedding_size=64",),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--domain", default="scientific")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    name = arguments.domain
    prepared(arguments.data, name)
    headers = ["model", "", "inst/s (min–max)", "s/epoch", "s/validation", *memory_headers()]
    print(f"| {' | '.join(headers)} |\n{'|---' * len(headers)}|")
    for model, peers in MODELS.items():
        theirs = [*peer(arguments.data, name, model), "--steps", peers.steps]
        ours = [sys.executable, "-m", "benchmarks.ours", WORK, name, "--student", peers.student]
        commands = {
            "RecBole": [*theirs, "train_batch_size=2048", *peers.theirs],
            "ckd": [*ours, "plan.batch_size=2048", *peers.ours],
        }
        found: dict[str, list[dict[str, Any]]] = {side: [] for side in commands}
        for _ in range(arguments.repeats):
            for side, command in commands.items():
                found[side].append(run(command))
        medians = {side: _row(model, side, runs) for side, runs in found.items()}
        ratios = [medians["ckd"][0] / medians["RecBole"][0], medians["RecBole"][1] / medians["ckd"][1]]
        print(f"| {model} | ratio | {ratios[0]:.1f} | | {ratios[1]:.1f} |{' |' * len(memory_headers())}", flush=True)


def _row(model: str, side: str, runs: list[dict[str, Any]]) -> tuple[float, float]:
    """Prints one side; its instances a second and seconds of a validation pass."""
    rates = [each["instances_per_second"] for each in runs]
    rate, epoch, validation = (
        statistics.median(each[key] for each in runs)
        for key in ("instances_per_second", "epoch_seconds", "evaluate_seconds")
    )
    spread = f"{rate:,.0f} ({min(rates):,.0f}–{max(rates):,.0f})"
    cells = [model, side, spread, f"{epoch:.2f}", f"{validation:.2f}", *memory_cells(runs)]
    print(f"| {' | '.join(cells)} |", flush=True)
    return rate, validation


if __name__ == "__main__":
    main()
