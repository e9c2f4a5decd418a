"""A student as a checkpoint that RecBole 1.2.1 loads, with the data files that number the items the same way."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import yaml

from ckd.config import TrainConfig
from ckd.data.atomic import replace_file
from ckd.data.described import read_json
from ckd.data.domain import SPLITS, Domain, Split, columns
from ckd.errors import ConfigError, DataError
from ckd.nn.recommender import Recommender

MODEL_FILE = "model.pth"
CONFIG_FILE = "recbole.yaml"

#: What RecBole's reader takes for a missing value, and its own name of padding.
NOT_TOKENS = frozenset(
    (
        "[PAD]",
        "#N/A",
        "#N/A N/A",
        "N/A",
        "n/a",
        "NA",
        "<NA>",
        "#NA",
        "NULL",
        "null",
        "NaN",
        "-NaN",
        "nan",
        "-nan",
        "None",
    )
) | frozenset(("-1.#IND", "1.#QNAN", "1.#IND", "-1.#QNAN"))

#: Weights with a row for each item number.
BY_ITEM = ("item_embedding.weight", "output_bias")

USAGE = """\
# RecBole 1.2.1 ranks with this checkpoint as ckd does. In this folder:
#
#   from recbole.config import Config
#   from recbole.data import create_dataset, data_preparation
#   from recbole.utils import get_model, get_trainer
#
#   config = Config(model={model!r}, dataset={dataset!r}, config_file_list=[{config!r}])
#   train, valid, test = data_preparation(config, create_dataset(config))
#   model = get_model(config["model"])(config, train._dataset).to(config["device"])
#   trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
#   trainer.evaluate(test, model_file={file!r})
"""


def write_recbole(
    folder: Path, model: Recommender, domain: Domain, identity: dict[str, Any], source: Path
) -> dict[str, Any]:
    """Write the checkpoint `model.pth`, its settings `recbole.yaml`, and the domain in RecBole's benchmark form.

    RecBole numbers items in the order in which its data files name them; the item vectors are put into that order. The
    checkpoint has RecBole's entries and holds nothing but tensors and plain values, so that torch loads it safely.

    Raises:
        ConfigError: RecBole has no such model, or ranks with it otherwise.
        DataError: a split is empty, which RecBole cannot read.
    """
    name = identity["student"]
    if name not in MODELS:
        raise ConfigError(f"{name} cannot be exported to RecBole: only {', '.join(sorted(MODELS))} can.")
    recbole_name, settings_of = MODELS[name]
    # What HetComp has trained brings its own settings.
    train = TrainConfig.model_validate(identity.get("train") or _optimiser(identity["settings"]))
    items = _tokens(domain.item_table[columns.RAW])
    numbers = _write_data(folder / domain.name, domain, items)
    settings = {
        "data_path": ".",
        "benchmark_filename": list(SPLITS),
        "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id",
        "TIME_FIELD": None,
        "load_col": {"inter": ["user_id", "item_id_list", "item_id"], "item": ["item_id"]},
        "alias_of_item_id": ["item_id_list"],
        "MAX_ITEM_LIST_LENGTH": domain.history_cap,
        "train_neg_sample_args": None,
        "loss_type": "CE",
        "learning_rate": train.lr,
        "weight_decay": train.weight_decay,
        "eval_args": {"split": None, "group_by": "user", "order": "TO", "mode": "full"},
        "metrics": ["Recall", "NDCG", "MRR"],
        "topk": [5, 10, 20, 50],
        "valid_metric": "NDCG@10",
        "save_dataset": False,
        "save_dataloaders": False,
        **settings_of(model),
    }
    usage = USAGE.format(model=recbole_name, dataset=domain.name, config=CONFIG_FILE, file=MODEL_FILE)
    (folder / CONFIG_FILE).write_text(usage + yaml.safe_dump(settings, sort_keys=False))
    epoch, score = _best(source / "best.json")
    checkpoint = {
        "config": {"model": recbole_name, "dataset": domain.name, **settings},
        "epoch": epoch,
        "cur_step": 0,
        "best_valid_score": score,
        "state_dict": _renumbered(model, numbers),
        "other_parameter": {},
        "optimizer": torch.optim.Adam(model.parameters(), lr=train.lr, weight_decay=train.weight_decay).state_dict(),
    }
    with replace_file(folder / MODEL_FILE) as partial:
        torch.save(checkpoint, partial)
    raw = items == domain.item_table[columns.RAW].to_list()
    return {"model": recbole_name, "tokens": "raw ids" if raw else "item numbers"}


def _best(path: Path) -> tuple[int, float]:
    """The best epoch and its NDCG@10, as the run's log row of it says."""
    row = read_json(path, "Train the student again.")["log"]
    try:
        return int(row["epoch"]), float(row["valid_ndcg@10"])
    except (TypeError, ValueError):
        raise DataError(
            f"{path}: its log row has no numbers for epoch and valid_ndcg@10. Train the student again."
        ) from None


def _optimiser(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: settings[name] for name in ("lr", "weight_decay")}


def _sasrec(model: Any) -> dict[str, Any]:
    c = model.config
    return {
        "n_layers": c.n_layers,
        "n_heads": c.n_heads,
        "hidden_size": c.hidden_size,
        "inner_size": c.inner_size,
        "hidden_dropout_prob": c.hidden_dropout,
        "attn_dropout_prob": c.attention_dropout,
        "hidden_act": "gelu",
        "layer_norm_eps": c.layer_norm_eps,
        "initializer_range": c.initializer_range,
    }


def _bert4rec(model: Any) -> dict[str, Any]:
    c = model.config
    if c.drop_first != "always":
        raise ConfigError(
            "this bert4rec ranks otherwise in RecBole, which drops the oldest item of every history to make room for "
            "the mask. Train with -o student.drop_first=always to export to RecBole."
        )
    return {**_sasrec(model), "mask_ratio": c.mask_ratio, "ft_ratio": c.last_share, "transform": "mask_itemseq"}


def _gru4rec(model: Any) -> dict[str, Any]:
    c = model.config
    return {
        "embedding_size": c.embedding_size,
        "hidden_size": c.hidden_size,
        "num_layers": c.n_layers,
        "dropout_prob": c.dropout,
    }


#: By ckd's name of a student, RecBole's and how its settings follow from the model.
MODELS: dict[str, tuple[str, Callable[[Any], dict[str, Any]]]] = {
    "bert4rec": ("BERT4Rec", _bert4rec),
    "gru4rec": ("GRU4Rec", _gru4rec),
    "sasrec": ("SASRec", _sasrec),
}


def _tokens(raw: pl.Series) -> list[str]:
    """The raw ids where RecBole reads every one of them back as it is, else numbers from 1."""
    found = raw.to_list()
    if all(re.fullmatch(r'[^\s"]+', token) and token not in NOT_TOKENS for token in found):
        return found
    return [str(number) for number in range(1, len(found) + 1)]


def _write_data(folder: Path, domain: Domain, items: list[str]) -> np.ndarray:
    """Write the split files and the item file; (n_items + 1,) ckd's number of each of RecBole's."""
    folder.mkdir()
    named = np.array(["", *items], dtype=object)
    users = np.array(_tokens(domain.user_ids), dtype=object)
    targets = []
    for split in SPLITS:
        found = domain.instances(split)
        if not len(found):
            raise DataError(f"{domain.name}: no {split} target with a history, and RecBole cannot read an empty split.")
        targets.append(found.targets)
        _write(
            folder / f"{domain.name}.{split}.inter",
            "user_id:token\titem_id_list:token_seq\titem_id:token",
            _rows(domain, split, named, users),
        )
    _write(folder / f"{domain.name}.item", "item_id:token", items)
    # RecBole numbers the targets of all split files first, as they come, and then the rest of the item file.
    appearing = np.concatenate([*targets, np.arange(1, domain.n_items + 1, dtype=np.int32)])
    first = np.unique(appearing, return_index=True)[1]
    return np.concatenate([[0], appearing[np.sort(first)]])


def _rows(domain: Domain, split: Split, items: np.ndarray, users: np.ndarray) -> Iterator[str]:
    found = domain.instances(split)
    for user, target, start, stop in zip(found.users, found.targets, found.starts, found.stops, strict=True):
        yield f"{users[user]}\t{' '.join(items[domain.items[start:stop]])}\t{items[target]}"


def _write(path: Path, header: str, rows: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(header + "\n")
        file.writelines(f"{row}\n" for row in rows)


def _renumbered(model: Recommender, numbers: np.ndarray) -> dict[str, torch.Tensor]:
    """The state dict with the items' rows in RecBole's order; rows after them, as BERT4Rec's mask, stay."""
    state = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    order = torch.from_numpy(numbers.astype(np.int64))
    for name in BY_ITEM:
        if name in state:
            state[name][: len(order)] = state[name][order]
    return state
