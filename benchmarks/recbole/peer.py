"""Trains a RecBole model and prints what it cost as one line of JSON. Runs in RecBole's own environment.

    python peer.py DATA NAME MODEL --steps 20 [--trim] [--epochs N] -- key=value ...

DATA/NAME holds NAME.train.inter, NAME.valid.inter and NAME.test.inter. Without --epochs, `--steps` training steps are
timed after three of warm-up, and one validation pass; with it, the model is trained to early stopping and tested.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import time
from pathlib import Path

import scipy.sparse
import torch
import yaml
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed

# RecBole's LightGCN fills its graph by a method that scipy has dropped.
if not hasattr(scipy.sparse.dok_matrix, "_update"):
    scipy.sparse.dok_matrix._update = lambda matrix, values: matrix._dict.update(values)

WARM_UP = 3
LENGTHS = (2, 4, 8, 16, 50)


def peak_memory() -> dict[str, float]:
    """Most memory this process has held, and a GPU's tensors where there is one, as `benchmarks/device.py` has it."""
    status = Path("/proc/self/status").read_text()
    found = {"peak_memory_mb": int(status.split("VmHWM:")[1].split()[0]) / 1024}
    if torch.cuda.is_available():
        found["peak_gpu_mb"] = torch.cuda.max_memory_allocated() / 2**20
    return found


def clock(device: torch.device) -> float:
    """Seconds, once a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def trim(model: torch.nn.Module) -> None:
    """Run the encoder over histories cut to the length buckets 2, 4, 8, 16 and 50: the same results, less padding."""
    whole = model.forward

    def forward(items: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        result = None
        low = 0
        for high in LENGTHS:
            rows = ((lengths > low) & (lengths <= high)).nonzero().flatten()
            low = high
            if len(rows):
                part = whole(items[rows][:, :high], lengths[rows])
                if result is None:
                    result = part.new_empty(len(items), part.shape[1])
                result = result.index_copy(0, rows, part)
        return result

    model.forward = forward


def settings(arguments: argparse.Namespace) -> dict[str, object]:
    chosen = {
        "data_path": arguments.data,
        "benchmark_filename": ["train", "valid", "test"],
        "alias_of_item_id": ["item_id_list"],
        "load_col": {"inter": ["user_id", "item_id_list", "item_id"]},
        "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id",
        "TIME_FIELD": None,
        "MAX_ITEM_LIST_LENGTH": 50,
        "train_neg_sample_args": None,
        "eval_args": {"split": None, "group_by": "user", "order": "TO", "mode": "full"},
        "metrics": ["Recall", "NDCG"],
        "topk": [5, 10, 20, 50],
        "valid_metric": "NDCG@10",
        "stopping_step": 10,
        "use_gpu": torch.cuda.is_available(),
        "show_progress": False,
        "state": "ERROR",
        "save_dataset": False,
        "checkpoint_dir": arguments.data,
    }
    for pair in arguments.override:
        key, value = pair.split("=", 1)
        chosen[key] = yaml.safe_load(value)
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("name")
    parser.add_argument("model")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--trim", action="store_true")
    parser.add_argument("--train-only", action="store_true")
    parser.add_argument("override", nargs="*")
    arguments = parser.parse_intermixed_args()
    arguments.data = str(Path(arguments.data).resolve())
    os.chdir(arguments.data)  # RecBole leaves its logs where it is started
    config = Config(
        model=arguments.model,
        dataset=arguments.name,
        config_dict={**settings(arguments), "epochs": arguments.epochs or 1},
    )
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    train, valid, test = data_preparation(config, dataset)
    model = get_model(config["model"])(config, train._dataset).to(config["device"])
    if arguments.trim:
        # Importing RecBole's sequential models switches anomaly detection on for the process; as shipped it stays on.
        torch.autograd.set_detect_anomaly(False)
        trim(model)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    result: dict[str, object] = {
        "model": arguments.model,
        "trimmed": arguments.trim,
        "anomaly_mode": torch.is_anomaly_enabled(),
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    if arguments.epochs:
        began = time.perf_counter()
        _, best = trainer.fit(train, valid, saved=True, show_progress=False)
        seconds = time.perf_counter() - began
        # RecBole reads the checkpoint that it has just written by a plain torch.load, which today refuses its contents.
        torch.load = functools.partial(torch.load, weights_only=False)
        tested = trainer.evaluate(test, load_best_model=True, show_progress=False)
        result |= {"seconds": seconds, "valid": dict(best), "test": dict(tested)}
    else:
        result |= measure(trainer, model, train, None if arguments.train_only else valid, arguments.steps)
    result |= peak_memory()
    print(json.dumps(result))


def measure(
    trainer: object, model: torch.nn.Module, train: object, valid: object | None, steps: int
) -> dict[str, float]:
    """Instances a second in training, and seconds of one validation pass, where there is something to validate on."""
    model.train()
    device = torch.device(trainer.device)
    count = seconds = 0.0
    for number, batch in enumerate(train):
        if number == steps + WARM_UP:
            break
        batch = batch.to(device)
        began = clock(device)
        trainer.optimizer.zero_grad()
        loss = model.calculate_loss(batch)
        loss.backward()
        trainer.optimizer.step()
        if number >= WARM_UP:
            seconds += clock(device) - began
            count += len(batch)
    found = {"instances_per_second": count / seconds, "epoch_seconds": len(train.dataset) * seconds / count}
    if valid is not None:
        began = clock(device)
        trainer.evaluate(valid, load_best_model=False, show_progress=False)
        found["evaluate_seconds"] = clock(device) - began
    return found


if __name__ == "__main__":
    main()
