"""Where Recformer's weights come from before any training of its own.

A Longformer as it is, or any BERT- or RoBERTa-like model turned into one, as Longformer itself was made from RoBERTa
(Longformer section 5: positions repeated, global projections copied from the local ones). In either case the
embeddings that Recformer adds start without effect: all token types are the model's type 0, all item positions are
zero. A converted model so gives the hidden states of the model it came from for every text that fits into half a
window.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import nn

from ckd.errors import DataError, first_line
from ckd.teachers.encoders.common import quiet_transformers
from ckd.teachers.encoders.text import model_folder
from ckd.teachers.recformer_parts.layers import cut_layers, kept_layers
from ckd.teachers.recformer_parts.model import Architecture
from ckd.teachers.recformer_parts.tokenise import N_TOKEN_TYPES, read_tokenizer

Weights = dict[str, torch.Tensor]

_REMEDY = "Give a folder or hub id of a Longformer, BERT or RoBERTa model with its tokenizer."


@dataclass(frozen=True)
class Start:
    """A network's shape, its weights under the published names (masked-token head included), and its tokenizer."""

    shape: Architecture
    weights: Weights
    tokenizer: Tokenizer


def read_backbone(model_name: str | None, layers: int | None, window: int, max_tokens: int, max_items: int) -> Start:
    """Read a language model and give it Recformer's embeddings, sliding windows and global projections.

    Args:
        model_name: a folder or hub id; none: the MiniLM package.
        layers: keep so many layers, see `kept_layers`; none: all.
        window: width of every layer's attention window, in tokens.
        max_tokens: most tokens of a sequence; the position table is repeated until it has as many.
        max_items: most items of a sequence.

    Raises:
        ConfigError: no model is named and the MiniLM package is not installed.
        DataError: there is no such model, it is of another kind, or it has fewer layers.
    """
    folder = model_folder(model_name)
    source = model_name or str(folder)
    model, tokenizer = _load(folder)
    encoder, config = model.base_model, model.config
    state = {name: tensor.detach().float() for name, tensor in encoder.state_dict().items()}
    depth = _check(source, state, config, layers)
    special = {name: getattr(tokenizer, f"{name}_token_id") for name in ("cls", "pad", "mask")}
    lacking = [name for name, number in special.items() if number is None]
    if lacking:
        raise DataError(f"{source}: the tokenizer has no {' and no '.join(lacking)} token. {_REMEDY}")
    weights = _embeddings(encoder, state, special["pad"], max_tokens, max_items)
    for layer in range(depth):
        weights.update(_layer(state, f"encoder.layer.{layer}."))
    kept = kept_layers(depth, layers)
    weights = cut_layers(weights, kept)
    weights.update(_head(model, weights["longformer.embeddings.word_embeddings.weight"], config.initializer_range))
    shape = Architecture(
        vocab_size=len(weights["longformer.embeddings.word_embeddings.weight"]),
        hidden_size=config.hidden_size,
        n_layers=len(kept),
        n_heads=config.num_attention_heads,
        inner_size=config.intermediate_size,
        activation=config.hidden_act,
        hidden_dropout=config.hidden_dropout_prob,
        attention_dropout=config.attention_probs_dropout_prob,
        layer_norm_eps=config.layer_norm_eps,
        initializer_range=config.initializer_range,
        windows=(window,) * len(kept),
        max_positions=len(weights["longformer.embeddings.position_embeddings.weight"]),
        max_item_positions=max_items + 1,
        first_token=special["cls"],
        pad_token=special["pad"],
        mask_token=special["mask"],
    )
    return Start(shape, weights, read_tokenizer(tokenizer.backend_tokenizer.to_str(), source))


def _load(folder: Path) -> tuple[Any, Any]:
    """The model with its masked-token head, and the tokenizer."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    try:
        with quiet_transformers():
            model, info = AutoModelForMaskedLM.from_pretrained(
                folder, dtype=torch.float32, weights_only=True, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(folder)
    except pickle.UnpicklingError:
        raise DataError(f"{folder}: the pickled weights hold more than tensors. Give safetensors.") from None
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise DataError(f"{folder}: cannot be read as a language model ({first_line(error)}). {_REMEDY}") from None
    # Many published models come without the masked-token head; the pooler is not used.
    encoder = f"{model.base_model_prefix}."
    absent = sorted(key for key in info["missing_keys"] if key.startswith(encoder) and ".pooler." not in key)
    if absent:
        raise DataError(
            f"{folder}: the weights of {len(absent)} tensors are missing (first: {absent[0]}). "
            "Give the folder of a complete model."
        )
    return model, tokenizer


_EMBEDDINGS = ("word_embeddings.weight", "position_embeddings.weight", "token_type_embeddings.weight")
_NORM = ("LayerNorm.weight", "LayerNorm.bias")
_LAYER = tuple(
    f"{part}.{kind}"
    for part in (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "attention.output.LayerNorm",
        "intermediate.dense",
        "output.dense",
        "output.LayerNorm",
    )
    for kind in ("weight", "bias")
)


def _check(source: str, state: Weights, config: Any, layers: int | None) -> int:
    """Number of layers of a model that has what is needed."""
    wanted = [f"embeddings.{name}" for name in _EMBEDDINGS + _NORM]
    wanted += [f"encoder.layer.{layer}.{name}" for layer in range(config.num_hidden_layers) for name in _LAYER]
    missing = [name for name in wanted if name not in state]
    if missing:
        raise DataError(f"{source}: a {config.model_type} model, without {listed(missing)}. {_REMEDY}")
    if getattr(config, "position_embedding_type", "absolute") not in (None, "absolute"):
        raise DataError(f"{source}: its positions are {config.position_embedding_type}, not absolute. {_REMEDY}")
    if state["embeddings.word_embeddings.weight"].shape[1] != config.hidden_size:
        raise DataError(f"{source}: its embeddings are narrower than its layers. {_REMEDY}")
    if layers is not None and layers > config.num_hidden_layers:
        raise DataError(f"{source}: has {config.num_hidden_layers} layers, {layers} were asked for. Ask for fewer.")
    return int(config.num_hidden_layers)


def _embeddings(encoder: nn.Module, state: Weights, pad: int, max_tokens: int, max_items: int) -> Weights:
    old: Any = encoder.embeddings
    # RoBERTa and Longformer number positions from padding_idx + 1, BERT from 0.
    first = 0 if old.position_embeddings.padding_idx is None else old.position_embeddings.padding_idx + 1
    usable = state["embeddings.position_embeddings.weight"][first:]
    words = state["embeddings.word_embeddings.weight"]
    prefix = "longformer.embeddings."
    return {
        f"{prefix}word_embeddings.weight": words,
        f"{prefix}position_embeddings.weight": tile_positions(usable, pad, max_tokens),
        f"{prefix}token_type_embeddings.weight": state["embeddings.token_type_embeddings.weight"][:1].repeat(
            N_TOKEN_TYPES, 1
        ),
        f"{prefix}item_position_embeddings.weight": words.new_zeros(max_items + 1, words.shape[1]),
        **{prefix + name: state[f"embeddings.{name}"] for name in _NORM},
    }


def tile_positions(usable: torch.Tensor, pad: int, max_tokens: int) -> torch.Tensor:
    """A position table whose row `pad + 1` is the first position, repeated until it has `max_tokens` of them.

    A model that has more keeps them. Rows up to `pad` belong to padding and are zero.
    """
    count = max(len(usable), max_tokens)
    rows = usable[torch.arange(count) % len(usable)]
    return torch.cat([usable.new_zeros(pad + 1, usable.shape[1]), rows])


def _layer(state: Weights, prefix: str) -> Weights:
    """One layer; what a Longformer has of its own global projections is kept, others copy the local ones."""
    result = {f"longformer.{prefix}{name}": state[prefix + name] for name in _LAYER}
    for part in ("query", "key", "value"):
        for kind in ("weight", "bias"):
            own, local = f"{prefix}attention.self.{part}_global.{kind}", f"{prefix}attention.self.{part}.{kind}"
            result[f"longformer.{own}"] = state.get(own, state[local]).clone()
    return result


def _head(model: Any, words: torch.Tensor, std: float) -> Weights:
    """The masked-token head: RoBERTa's, BERT's, or a new one over the word embeddings."""
    if hasattr(model, "lm_head"):
        dense, norm, decoder = model.lm_head.dense, model.lm_head.layer_norm, model.lm_head.decoder
    elif hasattr(model, "cls"):
        transform = model.cls.predictions.transform
        dense, norm, decoder = transform.dense, transform.LayerNorm, model.cls.predictions.decoder
    else:
        size = words.shape[1]
        dense, norm, decoder = nn.Linear(size, size), nn.LayerNorm(size), nn.Linear(size, len(words))
        nn.init.normal_(dense.weight, std=std)
        for bias in (dense.bias, decoder.bias):
            nn.init.zeros_(bias)
        decoder.weight.data.copy_(words)
    parts = {"dense": dense, "layer_norm": norm, "decoder": decoder}
    return {f"lm_head.{n}.{k}": getattr(m, k).detach().clone() for n, m in parts.items() for k in ("weight", "bias")}


def published_names(tensors: Mapping[str, torch.Tensor]) -> tuple[Weights, list[str]]:
    """An official checkpoint's tensors that transfer, under bare names, and the keys that are left out.

    A training program's prefix is cut. Left out are the buffer of position ids, the head's second name for its bias,
    and a fine-tuned model's table of other items.
    """
    kept: Weights = {}
    left_out = []
    for name, tensor in tensors.items():
        short = re.sub(r"^.*?(?=\b(?:longformer|lm_head|item_embedding)\.)", "", name)
        if short in _NOT_TRANSFERRED:
            left_out.append(name)
        else:
            kept[short] = tensor.float()
    return kept, sorted(left_out)


_NOT_TRANSFERRED = ("longformer.embeddings.position_ids", "lm_head.bias", "item_embedding.weight")


def listed(names: list[str], most: int = 8) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
