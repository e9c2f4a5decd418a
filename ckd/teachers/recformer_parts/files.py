"""A Recformer as a folder: a teacher's usual files, and its tokenizer."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from ckd.data.atomic import replace_file
from ckd.errors import DataError
from ckd.nn.weights import put_weights, read_weights
from ckd.teachers.common.folder import INFO, WEIGHTS, Stage, read_info, write_teacher
from ckd.teachers.common.identity import without_places
from ckd.teachers.recformer_parts.config import RecformerConfig, RecformerPretrainConfig, RecformerSizes
from ckd.teachers.recformer_parts.convert import Start, read_backbone, tile_positions
from ckd.teachers.recformer_parts.layers import cut_layers, kept_layers
from ckd.teachers.recformer_parts.model import Architecture, PretrainingModel
from ckd.teachers.recformer_parts.tokenise import read_tokenizer

NAME = "recformer"
TOKENIZER = "tokenizer.json"

#: The best weights so far, and everything that a run needs to go on, below its folder.
LAST = "last.safetensors"

_REMEDY = "Pre-train or fine-tune the teacher again."


def write_recformer(
    folder: Path, stage: Stage, model: nn.Module, start: Start, config: RecformerSizes, info: dict[str, Any]
) -> None:
    """Write a model into an existing folder. `teacher.json` comes last and binds the tokenizer."""
    text = start.tokenizer.to_str()
    with replace_file(folder / TOKENIZER) as partial:
        partial.write_text(text, encoding="utf-8")
    description = {
        "config": without_places(config.model_dump(mode="json")),
        "shape": start.shape.model_dump(mode="json"),
        "tokenizer": _hash(text),
        **info,
    }
    write_teacher(folder, NAME, stage, model, description)


def read_recformer(folder: Path, stage: Stage) -> tuple[Start, dict[str, Any]]:
    """What `write_recformer` wrote: shape, tensors and tokenizer, and the content of `teacher.json`.

    Raises:
        DataError: nothing of this stage lies there, or a file is missing or damaged.
    """
    info = read_info(folder, NAME, stage)
    try:
        shape = Architecture.model_validate(info["shape"])
        expected = info["tokenizer"]
    except (KeyError, ValidationError):
        raise DataError(f"{folder / INFO}: does not describe a Recformer's shape. {_REMEDY}") from None
    path = folder / TOKENIZER
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        raise DataError(f"{path}: no such file, or no text. {_REMEDY}") from None
    if _hash(text) != expected:
        raise DataError(f"{path}: is not the tokenizer that the teacher was saved with. {_REMEDY}")
    return Start(shape, read_weights(folder / WEIGHTS), read_tokenizer(text, str(path))), info


def read_start(config: RecformerConfig | RecformerPretrainConfig) -> Start:
    """The weights before any training of this run: those of `config.start`, or of the backbone.

    Raises:
        ConfigError, DataError: see `read_backbone` and `read_recformer`; or fewer layers or item positions than asked
            for.
    """
    if config.start is None:
        return read_backbone(config.backbone, config.layers, config.window, config.max_tokens, config.max_items)
    start, _ = read_recformer(config.start, "pre-trained")
    model = PretrainingModel(start.shape)
    put_weights(model, start.weights, str(config.start / WEIGHTS))
    return _resized(start, config, str(config.start))


def _resized(start: Start, config: RecformerSizes, where: str) -> Start:
    """`start` with the layers, window and limits of `config`."""
    shape, weights = start.shape, start.weights
    if config.layers is not None and config.layers > shape.n_layers:
        raise DataError(f"{where}: has {shape.n_layers} layers, {config.layers} were asked for. Ask for fewer.")
    if config.max_items + 1 > shape.max_item_positions:
        raise DataError(
            f"{where}: knows {shape.max_item_positions - 1} item positions, {config.max_items} were asked for. "
            "Lower max_items, or pre-train with more."
        )
    kept = kept_layers(shape.n_layers, config.layers)
    weights = cut_layers(weights, kept)
    items, positions = (f"longformer.embeddings.{kind}_embeddings.weight" for kind in ("item_position", "position"))
    weights[items] = weights[items][: config.max_items + 1].clone()
    first = shape.pad_token + 1
    if config.max_tokens > len(weights[positions]) - first:
        weights[positions] = tile_positions(weights[positions][first:], shape.pad_token, config.max_tokens)
    shape = shape.model_copy(
        update={
            "n_layers": len(kept),
            "windows": (config.window,) * len(kept),
            "max_positions": len(weights[positions]),
            "max_item_positions": config.max_items + 1,
        }
    )
    return replace(start, shape=shape, weights=weights)


def load_pretraining_model(start: Start) -> PretrainingModel:
    """A model of this shape that takes over these weights, without a copy."""
    with torch.device("meta"):
        model = PretrainingModel(start.shape)
    model.load_state_dict(start.weights, assign=True)
    return model


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
