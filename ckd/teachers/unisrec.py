"""UniSRec (Hou et al., KDD 2022): a teacher that knows items by their text alone, or by text and id.

Text vectors are frozen; a mixture-of-experts adaptor maps them into the space of a SASRec encoder, and cosines with a
temperature rank the catalogue. Pre-training over several domains is in `ckd.teachers.unisrec_parts.pretrain`.

Shapes: B instances, P packed rows of W positions, N items without padding, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from ckd.config import TrainConfig, parse
from ckd.data.batch import Batch, Packed
from ckd.data.domain import Domain
from ckd.data.features import ItemFeatures, load_features
from ckd.data.merge import same_encoder
from ckd.errors import ConfigError, DataError
from ckd.nn.dropout import Dropout
from ckd.nn.evaluating import evaluating
from ckd.nn.frozen import FrozenTable
from ckd.nn.moe_adaptor import MoEAdaptor
from ckd.nn.recommender import ModelConfig, Recommender
from ckd.nn.remembered import Remembered
from ckd.nn.transformer import TransformerEncoder, hidden_states, initialise
from ckd.nn.unit import unit
from ckd.nn.weights import put_weights, read_weights
from ckd.teachers.common.folder import WEIGHTS, read_info, write_teacher
from ckd.teachers.common.identity import without_places
from ckd.teachers.common.start import check_sizes
from ckd.teachers.protocol import Report, Similarity
from ckd.teachers.unisrec_parts.config import UniSRecPretrainConfig, UniSRecSizes
from ckd.teachers.unisrec_parts.published import infer_sizes

NAME = "unisrec"


class UniSRecConfig(UniSRecSizes):
    """Fine-tuning on a target domain (paper section 2.3)."""

    mode: Literal["inductive", "transductive"] = Field(
        "inductive", description="inductive: text alone; transductive: an embedding of each item's id is added"
    )
    start: Path | None = Field(None, description="folder of pre-trained weights to start from; none: from scratch")
    freeze: Literal["paper", "none"] = Field(
        "paper", description="with start: paper keeps the sequence encoder as pre-trained, none trains everything"
    )


class UniSRec(Recommender):
    """UniSRec; parameter names are those of the published checkpoints.

    Without gradients the adaptor runs once over the table of items, for sequences and candidates alike. In training it
    runs over the table for the candidates, and anew over the positions of the sequences: each occurrence of an item
    then has gate noise and dropout of its own, as published.

    Args:
        config: sizes, dropout and mode.
        features: (N + 1, P) text vectors, row 0 padding; frozen, and not part of the saved weights.
        n_items: N.
        max_length: longest history, in items.
    """

    Config = UniSRecConfig
    PretrainConfig: ClassVar[type[ModelConfig]] = UniSRecPretrainConfig
    TRAIN_DEFAULTS: ClassVar[dict[str, Any]] = {"batch_size": 2048, "weight_decay": 0.0}
    PRETRAIN_DEFAULTS: ClassVar[dict[str, Any]] = {"batch_size": 8192, "epochs": 300}

    similarity: Similarity = "cosine"
    temperature: float

    def __init__(self, config: UniSRecSizes, features: torch.Tensor, n_items: int, max_length: int) -> None:
        super().__init__()
        if features.shape[0] != n_items + 1:
            raise ValueError(f"{features.shape[0]} text vectors for {n_items} items and padding")
        c = self.config = config
        self.n_items = n_items
        self.temperature = c.temperature
        self.logit_scale = 1.0 / c.temperature
        self.position_embedding = nn.Embedding(max_length, c.hidden_size)
        self.trm_encoder = TransformerEncoder(c)
        self.LayerNorm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.dropout = Dropout(c.hidden_dropout)
        self.plm_embedding = FrozenTable(features)
        self.moe_adaptor = MoEAdaptor(features.shape[1], c.hidden_size, c.n_experts, c.adaptor_dropout)
        self.item_embedding: nn.Embedding | None = None
        if isinstance(c, UniSRecConfig) and c.mode == "transductive":
            self.item_embedding = nn.Embedding(n_items + 1, c.hidden_size, padding_idx=0)
        initialise(self, c.initializer_range)
        self.domain_fingerprint: str | None = None
        self.feature_fingerprint: str | None = None
        self._adapted = Remembered()

    # --- building and keeping ----------------------------------------------------------------------------------

    @classmethod
    def create(cls, config: UniSRecConfig, domain: Domain) -> Self:
        """A model before fine-tuning: from scratch, or from the pre-trained weights that `config.start` names.

        Raises:
            DataError: the domain has no such feature, or there are no pre-trained weights.
            ConfigError: the pre-trained weights are of other sizes.
        """
        features = load_features(domain, config.feature)
        if config.start is None:
            return cls._of(config, domain, features, domain.history_cap)
        info = read_info(config.start, NAME, stage="pre-trained")
        _check_start(config, info, features, domain)
        model = cls._of(config, domain, features, info["max_length"])
        path = config.start / WEIGHTS
        # Item ids are each domain's own: their embedding always starts anew.
        put_weights(model, read_weights(path), str(path), may_lack=lambda key: key == "item_embedding.weight")
        if config.freeze == "paper":
            model.position_embedding.requires_grad_(False)
            model.trm_encoder.requires_grad_(False)
        return model

    @classmethod
    def load(cls, folder: Path, domain: Domain) -> Self:
        info = read_info(folder, NAME, stage="fine-tuned")
        if info["domain"] != domain.fingerprint:
            raise DataError(
                f"{folder}: fine-tuned on content {info['domain']}, domain {domain.name!r} is {domain.fingerprint}. "
                "Fine-tune it on this domain."
            )
        config = parse(cls.Config, info["config"], f"{folder}/teacher.json")
        features = load_features(domain, config.feature)
        if info["feature"] != features.fingerprint:
            raise DataError(
                f"{folder}: fine-tuned with feature {config.feature!r} of content {info['feature']}, the domain's is "
                f"now {features.fingerprint}. Encode the items as before, or fine-tune again."
            )
        model = cls._of(config, domain, features, info["max_length"])
        put_weights(model, read_weights(folder / WEIGHTS), str(folder / WEIGHTS))
        return model.eval()

    @classmethod
    def _of(cls, config: UniSRecConfig, domain: Domain, features: ItemFeatures, max_length: int) -> Self:
        model = cls(config, torch.from_numpy(features.vectors), domain.n_items, max_length)
        model.domain_fingerprint, model.feature_fingerprint = domain.fingerprint, features.fingerprint
        return model

    def save(self, folder: Path) -> None:
        """Write weights and description; the frozen text vectors stay with the domain, bound by their fingerprint."""
        info = {
            "config": without_places(self.config.model_dump(mode="json")),
            "max_length": self.position_embedding.num_embeddings,
            "feature_size": self.plm_embedding.weight.shape[1],
            "domain": self.domain_fingerprint,
            "feature": self.feature_fingerprint,
        }
        write_teacher(folder, NAME, "fine-tuned", self, info)

    @classmethod
    def pretrain(
        cls,
        domains: Sequence[Domain],
        config: UniSRecPretrainConfig,
        train: TrainConfig,
        seed: int,
        folder: Path,
        progress: Report,
    ) -> None:
        """Pre-train over several domains (paper section 2.2); see `unisrec_parts.pretrain`."""
        from ckd.teachers.unisrec_parts.pretrain import Pretraining

        Pretraining(domains, config, train, seed, folder, progress).run()

    @classmethod
    def import_checkpoint(
        cls, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], where: str, folder: Path
    ) -> list[str]:
        """Write a published checkpoint's transferable weights to `folder` as pre-trained; returns the keys left out.

        Args:
            tensors: the checkpoint's state dict, of any stage.
            config: settings that no tensor's shape tells, such as `n_heads`.
            where: the checkpoint, for messages.

        Raises:
            DataError: names every key that is missing, unknown or of the wrong shape.
            ConfigError: `config` contradicts the shapes, or has an unknown key.
        """
        left_out = sorted(key for key in tensors if key in ("item_embedding.weight", "plm_embedding.weight"))
        kept = {key: value.float() for key, value in tensors.items() if key not in left_out}
        sizes, feature_size, max_length = infer_sizes(kept)
        for key in sizes.keys() & config.keys():
            if config[key] != sizes[key]:
                raise ConfigError(f"teacher: {key}={config[key]!r}, but {where} has {sizes[key]}. Leave the key out.")
        parsed = parse(UniSRecSizes, {**sizes, **config}, "teacher")
        model = cls(parsed, torch.zeros(1, feature_size), 0, max_length)
        put_weights(model, kept, where)
        model.save_pretrained(folder, {"imported_from": Path(where).name})
        return left_out

    def save_pretrained(self, folder: Path, origin: dict[str, Any]) -> None:
        """Write the transferable weights as a folder that `start` takes; `origin` says where they come from."""
        info = {
            "config": without_places(self.config.model_dump(mode="json")),
            "max_length": self.position_embedding.num_embeddings,
            "feature_size": self.plm_embedding.weight.shape[1],
            "origin": origin,
        }
        write_teacher(folder, NAME, "pre-trained", self, info)

    # --- the model ---------------------------------------------------------------------------------------------

    def vectors(self, items: torch.Tensor) -> torch.Tensor:
        """(..., D) vectors of `items` (...), not normalised: adapted text, plus the id in transductive mode."""
        features = self.plm_embedding(items)
        adapted = self.moe_adaptor(features.flatten(0, -2)).unflatten(0, items.shape)
        return adapted if self.item_embedding is None else adapted + self.item_embedding(items)

    def table(self) -> torch.Tensor:
        """(N + 1, D) `vectors` of all items; without gradients the adapted text is computed once and kept."""
        features = self.plm_embedding.weight
        if self.training or torch.is_grad_enabled():
            adapted = self.moe_adaptor(features)
        else:
            weights = list(self.moe_adaptor.parameters())
            adapted = self._adapted.get(weights, features, lambda: self.moe_adaptor(features))
        return adapted if self.item_embedding is None else adapted + self.item_embedding.weight

    def contextualise(self, x_PWD: torch.Tensor, packed: Packed) -> torch.Tensor:
        """(B, D) the sequence encoder's normalised state at the end of each history, from the vectors of its items."""
        return unit(packed.take(hidden_states(self, x_PWD, packed)))

    def encode(self, batch: Batch) -> torch.Tensor:
        if not self.training and not torch.is_grad_enabled():
            return self.contextualise(F.embedding(batch.packed.items, self.table()), batch.packed)
        items, places = torch.unique(batch.packed.items, return_inverse=True)
        return self.contextualise(F.embedding(places, self.vectors(items)), batch.packed)

    def item_table(self) -> torch.Tensor:
        return unit(self.table())

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        table, items = self.table(), batch.packed.items
        positions = self.vectors(items) if self.training else F.embedding(items, table)
        return self.contextualise(positions, batch.packed), unit(table)

    def train(self, mode: bool = True) -> Self:
        if mode:
            self._adapted.forget()
        return super().train(mode)

    # --- the teacher -------------------------------------------------------------------------------------------

    def encode_instances(self, batch: Batch) -> torch.Tensor:
        with evaluating(self):
            return self.encode(batch.to(self.LayerNorm.weight.device)).float()

    def encode_items(self, items: torch.Tensor) -> torch.Tensor:
        with evaluating(self):
            return unit(self.table()[items.to(self.LayerNorm.weight.device)]).float()


def _check_start(config: UniSRecConfig, info: Mapping[str, Any], features: ItemFeatures, domain: Domain) -> None:
    """Refuse pre-trained weights that cannot be this model's, naming the key that differs."""
    where = f"teacher.start={config.start}"
    check_sizes(where, config, info, domain)
    if info["feature_size"] != features.dim:
        raise ConfigError(
            f"{where}: pre-trained on text vectors of size {info['feature_size']}, feature {features.name!r} of domain "
            f"{domain.name!r} has {features.dim}. Encode the items with the encoder of the pre-training."
        )
    there, here = info["origin"].get("encoder"), features.source.get("encoder")
    if there and here and not same_encoder(there, here):
        raise ConfigError(
            f"{where}: pre-trained on the text vectors of another encoder than feature {features.name!r} of domain "
            f"{domain.name!r} comes from. Encode the items with the encoder of the pre-training: {there}."
        )


TEACHER = UniSRec
