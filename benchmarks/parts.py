"""What each part of the trainer's speed brings: SASRec with all of them, and with one left out at a time.

    python -m benchmarks.parts --data FOLDER [--domain scientific] [--repeats 3] [-o section.key=value ...]

Each part is put back to what a plain implementation does; the arithmetic stays that of the same model. Variants take
turns, each in a process of its own; medians with minimum and maximum. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.device import memory_cells, memory_headers
from benchmarks.training import WORK, teachers
from ckd.pipelines.encode_items import EncodeConfig, encode_items
from ckd.pipelines.prepare import prepare
from ckd.pipelines.workspace import domain_folder


def without_shared_prefixes() -> None:
    """Every instance has a sequence of its own."""
    from ckd.students.sasrec import SASRec

    SASRec.causal = False


def without_packing() -> None:
    """Every sequence has a row of its own, padded to the batch's longest."""
    from ckd.data import batch

    def padded(sequences: np.ndarray, widths: np.ndarray, rows: np.ndarray, lengths: np.ndarray) -> batch.Packed:
        inside = np.arange(sequences.shape[1]) < widths[:, None]
        positions = np.arange(sequences.shape[1]) * inside
        last = rows * sequences.shape[1] + lengths - 1
        return batch.Packed(*(torch.from_numpy(part) for part in (sequences, positions, inside.astype(np.int64), last)))

    batch._pack = padded


def without_fused_losses() -> None:
    """Cross-entropy and divergence on logits of their own, by PyTorch's own functions."""
    from ckd.distill import objective
    from ckd.distill.losses import InBatchTarget, distillation_loss, masked_log_softmax

    def separate(
        encoded: torch.Tensor,
        table: torch.Tensor,
        targets: torch.Tensor,
        *,
        scale: float = 1.0,
        pad_in_softmax: bool = True,
        distill: InBatchTarget | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        first = 0 if pad_in_softmax else 1
        ce = F.cross_entropy((encoded @ table[first:].T).float() * scale, targets - first)
        if distill is None:
            return ce, ce.detach(), torch.zeros(())
        log_p = masked_log_softmax(encoded @ table[targets].T * scale, distill.mask)
        kd = distillation_loss(log_p, distill.log_q, direction=distill.direction)
        return ce + distill.weight * kd, ce.detach(), kd.detach()

    objective.full_softmax_loss = separate


def without_cheap_dropout() -> None:
    """torch's own dropout."""
    from ckd.nn import dropout, transformer

    def plain(x: torch.Tensor, p: float, training: bool = True) -> torch.Tensor:
        return F.dropout(x, p, training)

    dropout.dropout = transformer.dropout = plain


def without_targets_kept() -> None:
    """Targets are made anew whenever a batch comes again."""
    from ckd.distill import trainer

    trainer.TARGET_MEMORY = 0


PARTS: dict[str, Callable[[], None]] = {
    "prefixes of a user share one pass": without_shared_prefixes,
    "sequences packed end to end": without_packing,
    "both losses on one set of logits": without_fused_losses,
    "dropout from 16 bits an element": without_cheap_dropout,
    "targets kept between epochs": without_targets_kept,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--domain", default="scientific")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("-o", "--override", action="append", default=[])
    parser.add_argument("--without", choices=("nothing", *PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--teachers", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    name = options.domain
    if options.without:
        PARTS.get(options.without, lambda: None)()
        from benchmarks import ours

        sys.argv = ["ours", str(WORK), name, "--teachers", options.teachers, *options.override]
        ours.main()
        return
    if options.data is None:
        parser.error("--data: the folder that holds the domain")
    if not domain_folder(WORK, name).exists():
        prepare(WORK, options.data / name, name=name)
    encode_items(WORK, name, EncodeConfig())
    three = ",".join(teachers(name, 3))
    found: dict[str, list[dict[str, Any]]] = {part: [] for part in ("nothing", *PARTS)}
    for _ in range(options.repeats):
        for part, runs in found.items():
            command = [sys.executable, "-m", "benchmarks.parts", "--domain", name, "--without", part]
            command += ["--teachers", three, *(f"-o{each}" for each in options.override)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
    whole = statistics.median(run["epoch_seconds"] for run in found["nothing"])
    headers = ["without", "s/epoch (min–max)", "times as long", *memory_headers()]
    print(f"| {' | '.join(headers)} |\n{'|---' * len(headers)}|")
    for part, runs in found.items():
        seconds = [run["epoch_seconds"] for run in runs]
        middle = statistics.median(seconds)
        spread = f"{middle:.2f} ({min(seconds):.2f}–{max(seconds):.2f})"
        print(f"| {' | '.join([part, spread, f'{middle / whole:.2f}', *memory_cells(runs)])} |")


if __name__ == "__main__":
    main()
