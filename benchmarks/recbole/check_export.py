"""Loads a student that ckd exported, and compares its ranking with ckd's. Runs in RecBole's own environment.

    python check_export.py FOLDER EXPECTED.npz

FOLDER holds what `ckd export --to recbole` wrote. EXPECTED.npz holds, for every row of the test file in order, the
target's `ranks`, and for the first rows the `scores` of all items by ckd's numbers. Prints one line of JSON; exits with
1 where a score differs by more than 1e-5 of the largest, or a rank by more than such a difference explains.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer

TOLERANCE = 1e-5
BATCH = 256


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("expected", type=Path)
    arguments = parser.parse_args()
    expected = np.load(arguments.expected.resolve())
    os.chdir(arguments.folder)
    sys.argv = sys.argv[:1]  # RecBole reads the command line too
    about = json.loads(Path("export.json").read_text())
    config = Config(
        model=about["model"],
        dataset=about["domain"],
        config_file_list=["recbole.yaml"],
        config_dict={"use_gpu": False, "show_progress": False, "state": "ERROR", "eval_batch_size": 2048},
    )
    train, _, test = data_preparation(config, create_dataset(config))
    model = get_model(config["model"])(config, train._dataset)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    # The way RecBole itself loads a checkpoint, in torch's safe mode.
    metrics = trainer.evaluate(test, model_file="model.pth", show_progress=False)
    trainer.resume_checkpoint("model.pth")
    found = compare(model, test.dataset, numbers(test.dataset, about["tokens"]), expected)
    print(json.dumps({"model": about["model"], **found, "metrics": dict(metrics)}))
    sys.exit(0 if found["agrees"] else 1)


def numbers(dataset: object, tokens: str) -> np.ndarray:
    """(n_items + 1,) ckd's number of each of RecBole's."""
    names = dataset.id2token(dataset.iid_field, np.arange(1, dataset.item_num))
    if tokens == "item numbers":
        return np.array([0, *map(int, names)])
    raw = {name: number for number, name in enumerate(json.loads(Path("items.json").read_text())) if number}
    return np.array([0, *(raw[name] for name in names)])


@torch.no_grad()
def compare(model: torch.nn.Module, dataset: object, numbers: np.ndarray, expected: dict) -> dict[str, object]:
    """Largest difference of a score, and how many ranks are the same."""
    model.eval()
    ranks, scores_of = expected["ranks"], expected["scores"]
    order = np.argsort(numbers)
    same, explained, difference = 0, 0, 0.0
    for start in range(0, len(ranks), BATCH):
        rows = dataset.inter_feat[torch.arange(start, min(start + BATCH, len(ranks)))]
        scores = model.full_sort_predict(rows).view(len(rows), -1).numpy()[:, order]
        scale = max(1.0, float(np.abs(scores[:, 1:]).max()))
        given = scores_of[start : start + BATCH]
        if len(given):
            difference = max(difference, float(np.abs(scores[: len(given), 1:] - given[:, 1:]).max()) / scale)
        at = numbers[rows[dataset.iid_field].numpy()]
        target = scores[np.arange(len(rows)), at][:, None]
        higher, tied = ((test[:, 1:]).sum(1) for test in (scores > target, scores == target))
        # Among items that tie with the target, itself one of them, ckd draws its place.
        same += _between(higher, ranks[start : start + BATCH], higher + tied)
        margin = TOLERANCE * scale
        low, high = ((test[:, 1:]).sum(1) for test in (scores > target + margin, scores >= target - margin))
        explained += _between(low, ranks[start : start + BATCH], high)
    return {
        "agrees": bool(difference <= TOLERANCE and explained == len(ranks)),
        "rows": len(ranks),
        "same_ranks": same,
        "ranks_within_tolerance": explained,
        "largest_difference": difference,
    }


def _between(low: np.ndarray, ranks: np.ndarray, high: np.ndarray) -> int:
    return int(((low < ranks) & (ranks <= high)).sum())


if __name__ == "__main__":
    main()
