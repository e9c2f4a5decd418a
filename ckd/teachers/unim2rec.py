"""UniM²Rec (Sun et al., arXiv 2311.01831): items by text and image, histories by SASRec. A reconstruction.

The authors have published no code, so this is built from what is certain, and the rest is ours.

Certain: an item enters by its text and its image, and by its id where the model is transductive; behaviour is modelled
by SASRec; training is by cross-entropy (PRM-KD, Table 1). One model is pre-trained on the interactions of several
domains, learning both what items look like and what users prefer, and is transferred to new domains; items may lack
content (the abstract).

Ours, in the lineage of UniSRec: frozen text and image encoders; a mixture-of-experts adaptor for each modality; a
softmax gate over the modalities that an item has, so that a missing image costs nothing; modality dropout; cosine
scores over a temperature of 0.07; in fine-tuning, noise and dropout of adaptors and modalities drawn anew for every
position of a sequence; pre-training by in-batch contrast of sequences with their next items, and of items' texts with
their images; id embeddings added, in fine-tuning alone.
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
from ckd.nn.recommender import ModelConfig, Recommender
from ckd.nn.remembered import Remembered
from ckd.nn.transformer import TransformerEncoder, hidden_states, initialise
from ckd.nn.unit import unit
from ckd.nn.weights import put_weights, read_weights
from ckd.teachers.common.folder import INFO, WEIGHTS, Stage, read_info, write_teacher
from ckd.teachers.common.identity import without_places
from ckd.teachers.common.start import check_sizes
from ckd.teachers.protocol import Report, Similarity
from ckd.teachers.unim2rec_parts.config import UniM2RecPretrainConfig, UniM2RecSizes
from ckd.teachers.unim2rec_parts.modalities import ItemContent

NAME = "unim2rec"

#: Counts what the same weights have meant; 2: modalities are fused as adapted, and no longer at length one.
REVISION = 2

#: Items encoded at a time where no gradient is needed.
BLOCK_ITEMS = 1 << 16


class UniM2RecConfig(UniM2RecSizes):
    """Fine-tuning on a target domain."""

    mode: Literal["inductive", "transductive"] = Field(
        "inductive",
        description="inductive: text and image alone; transductive: an embedding of each item's id is added",
    )
    start: Path | None = Field(None, description="folder of pre-trained weights to start from; none: from scratch")
    freeze: Literal["encoder", "none"] = Field(
        "encoder", description="with start: encoder keeps the sequence encoder as pre-trained, none trains everything"
    )


class UniM2Rec(Recommender):
    """UniM²Rec over the items of one domain.

    Args:
        config: sizes, dropout, constants.
        features: frozen vectors of the items by modality. They are not stored with the model; their fingerprints are.
        max_length: longest history, in items.
    """

    Config = UniM2RecConfig
    PretrainConfig: ClassVar[type[ModelConfig]] = UniM2RecPretrainConfig
    TRAIN_DEFAULTS: ClassVar[dict[str, Any]] = {"batch_size": 2048}
    PRETRAIN_DEFAULTS: ClassVar[dict[str, Any]] = {"batch_size": 2048, "epochs": 30}

    pad_in_softmax: ClassVar[bool] = False
    similarity: Similarity = "cosine"
    temperature: float

    def __init__(self, config: UniM2RecSizes, features: Mapping[str, ItemFeatures], max_length: int) -> None:
        super().__init__()
        c = self.config = config
        self.temperature, self.logit_scale = c.temperature, 1.0 / c.temperature
        self.n_items = next(iter(features.values())).n_items
        self.content = ItemContent(features, c.hidden_size, c.n_experts, c.adaptor_dropout, c.modality_dropout)
        self.item_embedding: nn.Embedding | None = None
        if isinstance(c, UniM2RecConfig) and c.mode == "transductive":
            self.item_embedding = nn.Embedding(self.n_items + 1, c.hidden_size, padding_idx=0)
        self.position_embedding = nn.Embedding(max_length, c.hidden_size)
        self.trm_encoder = TransformerEncoder(c)
        self.LayerNorm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.dropout = Dropout(c.hidden_dropout)
        initialise(self, c.initializer_range)
        self.content.reset()
        self.feature_info = {
            modality: {"name": found.name, "size": found.dim, "fingerprint": found.fingerprint}
            for modality, found in features.items()
        }
        self.domain_fingerprint: str | None = None
        self._content = Remembered()

    # --- building and keeping ----------------------------------------------------------------------------------

    @classmethod
    def create(cls, config: UniM2RecConfig, domain: Domain) -> Self:
        """A model before fine-tuning: from scratch, or from the pre-trained weights that `config.start` names.

        A modality that pre-training had not begins anew here, one that the domain has not is left out.

        Raises:
            DataError: the domain lacks a feature, or there are no pre-trained weights.
            ConfigError: the pre-trained weights are of other sizes, or made for the vectors of another encoder.
        """
        features = read_features(config, domain)
        if config.start is None:
            return cls._of(config, domain, features, domain.history_cap)
        info = _read(config.start, "pre-trained")
        _check_start(config, info, features, domain)
        model = cls._of(config, domain, features, info["max_length"])
        tensors = read_weights(config.start / WEIGHTS)
        for modality in info["features"].keys() - features.keys():
            tensors = {name: value for name, value in tensors.items() if f".{modality}." not in name}
        begin_anew = ("item_embedding.weight", *(f".{modality}." for modality in features.keys() - info["features"]))
        where = str(config.start / WEIGHTS)
        put_weights(model, tensors, where, may_lack=lambda name: any(part in name for part in begin_anew))
        if config.freeze == "encoder":
            model.position_embedding.requires_grad_(False)
            model.trm_encoder.requires_grad_(False)
        return model

    @classmethod
    def load(cls, folder: Path, domain: Domain) -> Self:
        info = _read(folder, "fine-tuned", domain)
        config = parse(cls.Config, info["config"], str(folder / INFO))
        features = read_features(config, domain)
        for modality, found in features.items():
            bound = info["features"][modality]["fingerprint"]
            if found.fingerprint != bound:
                raise DataError(
                    f"{folder}: fine-tuned with feature {found.name!r} of content {bound}, the domain's is now "
                    f"{found.fingerprint}. Encode the items as before, or fine-tune again."
                )
        model = cls._of(config, domain, features, info["max_length"])
        put_weights(model, read_weights(folder / WEIGHTS), str(folder / WEIGHTS))
        return model.eval()

    @classmethod
    def _of(cls, config: UniM2RecConfig, domain: Domain, features: dict[str, ItemFeatures], max_length: int) -> Self:
        model = cls(config, features, max_length)
        model.domain_fingerprint = domain.fingerprint
        return model

    def save(self, folder: Path) -> None:
        """Write weights and description; the frozen vectors stay with the domain, bound by their fingerprints."""
        self._write(folder, "fine-tuned", {"domain": self.domain_fingerprint})

    def save_pretrained(self, folder: Path, origin: dict[str, Any]) -> None:
        """Write the weights as a folder that `start` takes; `origin` says where they come from."""
        self._write(folder, "pre-trained", {"origin": origin})

    def _write(self, folder: Path, stage: Stage, more: dict[str, Any]) -> None:
        info = {
            "config": without_places(self.config.model_dump(mode="json")),
            "revision": REVISION,
            "features": self.feature_info,
            "max_length": self.position_embedding.num_embeddings,
        }
        write_teacher(folder, NAME, stage, self, info | more)

    @classmethod
    def pretrain(
        cls,
        domains: Sequence[Domain],
        config: UniM2RecPretrainConfig,
        train: TrainConfig,
        seed: int,
        folder: Path,
        progress: Report,
    ) -> None:
        """Pre-train over several domains; see `unim2rec_parts.pretraining`."""
        # It builds on this class.
        from ckd.teachers.unim2rec_parts.pretraining import pretrain

        pretrain(domains, config, train, seed, folder, progress)

    # --- the model ---------------------------------------------------------------------------------------------

    def table(self) -> torch.Tensor:
        """(n_items + 1, D) vectors of all items as they enter the encoder, row 0 zero.

        With gradients the content is computed anew at every call, so once a step; without, once for as long as the
        weights stay the same.
        """
        if self.training or torch.is_grad_enabled():
            content = self._all_content()
        else:
            content = self._content.get(list(self.content.parameters()), self.content.frozen(), self._all_content)
        if self.item_embedding is not None:
            content = content + self.item_embedding.weight[1:]
        return F.pad(content, (0, 0, 1, 0))

    def _all_content(self) -> torch.Tensor:
        """(n_items, D) fused content of all items."""
        items = torch.arange(1, self.n_items + 1, device=self.LayerNorm.weight.device)
        blocks = [items] if torch.is_grad_enabled() else torch.split(items, BLOCK_ITEMS)
        return torch.cat([self.content(block).fused for block in blocks])

    def _drawn(self, items: torch.Tensor) -> torch.Tensor:
        """(..., D) vectors of the items (...) at positions of sequences, each with noise and dropout of its own.

        Item 0 fills the ends of packed rows, which nothing attends to.
        """
        content = self.content(items.flatten()).fused.unflatten(0, items.shape)
        return content if self.item_embedding is None else content + self.item_embedding(items)

    def contextualise(self, x_PWD: torch.Tensor, packed: Packed) -> torch.Tensor:
        """(B, D) user vectors of length one, from the vectors of the packed sequences' items."""
        return unit(packed.take(hidden_states(self, x_PWD, packed)))

    def encode(self, batch: Batch) -> torch.Tensor:
        return self.contextualise(F.embedding(batch.packed.items, self.table()), batch.packed)

    def item_table(self) -> torch.Tensor:
        # Row 0 is zero, and a zero takes no gradient here.
        return F.pad(unit(self.table()[1:]), (0, 0, 1, 0))

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        table, items = self.table(), batch.packed.items
        positions = self._drawn(items) if self.training else F.embedding(items, table)
        return self.contextualise(positions, batch.packed), F.pad(unit(table[1:]), (0, 0, 1, 0))

    def train(self, mode: bool = True) -> Self:
        if mode:
            self._content.forget()
        return super().train(mode)

    # --- the teacher -------------------------------------------------------------------------------------------

    def encode_instances(self, batch: Batch) -> torch.Tensor:
        with evaluating(self):
            return self.encode(batch.to(self.LayerNorm.weight.device)).float()

    def encode_items(self, items: torch.Tensor) -> torch.Tensor:
        with evaluating(self):
            return unit(self.table()[items.to(self.LayerNorm.weight.device)]).float()


def read_features(config: UniM2RecSizes, domain: Domain) -> dict[str, ItemFeatures]:
    """The domain's features by modality.

    Raises:
        DataError: one is missing or belongs to other items.
    """
    return {modality: load_features(domain, name) for modality, name in config.features.items()}


def _read(folder: Path, stage: Stage, domain: Domain | None = None) -> dict[str, Any]:
    """The description of a saved model, refused where its weights meant something else."""
    info = read_info(folder, NAME, stage, domain)
    if info.get("revision") != REVISION:
        raise DataError(
            f"{folder / INFO}: revision {info.get('revision')!r} of UniM²Rec, this version reads {REVISION}. "
            f"{'Pre-train' if stage == 'pre-trained' else 'Fine-tune'} it again."
        )
    return info


def _check_start(
    config: UniM2RecConfig, info: Mapping[str, Any], features: Mapping[str, ItemFeatures], domain: Domain
) -> None:
    """Refuse pre-trained weights that cannot be this model's, naming the key that differs."""
    where = f"teacher.start={config.start}"
    check_sizes(where, config, info, domain)
    for modality, found in features.items():
        size = info["features"].get(modality, {"size": found.dim})["size"]
        if size != found.dim:
            raise ConfigError(
                f"{where}: pre-trained on {modality} vectors of size {size}, feature {found.name!r} of domain "
                f"{domain.name!r} has {found.dim}. Encode the items with the encoder of the pre-training."
            )
        # Starts from before encoders were noted have none.
        there, here = info["origin"].get("encoders", {}).get(modality), found.source.get("encoder")
        if there and here and not same_encoder(there, here):
            raise ConfigError(
                f"{where}: pre-trained on the {modality} vectors of another encoder than feature {found.name!r} of "
                f"domain {domain.name!r} comes from. Encode the items with the encoder of the pre-training: {there}."
            )


TEACHER = UniM2Rec
