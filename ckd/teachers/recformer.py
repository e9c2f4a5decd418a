"""Recformer (Li et al., KDD 2023): items are texts, a user is the text of the items, both read by one Longformer.

A history is the tokens of its items' attributes, newest item first, behind a first token whose last hidden state is
the user's vector; an item's vector is that of a history of this item alone; the score is their cosine over a
temperature of 0.05 (Recformer sections 3.1 to 3.3).

Where this departs from the published code, which has plain bugs there:
- The learning rate of fine-tuning falls over both stages together; there, it reaches zero when stage one has used all
  its epochs, and stage two learns nothing.
- A batch without a masked token adds nothing to the loss of pre-training; there, its loss is not a number. Tokens to
  mask are drawn among real tokens only; there, padding is drawn too and dropped afterwards.
- The first token of an attribute begins a word of its own when whole words are masked; there, it is glued to the
  last word of the attribute before.
- A pre-training pair always has a history; there, it may be empty for users of two items.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import nn

from ckd.config import TrainConfig, parse
from ckd.data.batch import Batch
from ckd.data.domain import Domain
from ckd.errors import DataError
from ckd.nn.evaluating import evaluating
from ckd.nn.weights import put_weights
from ckd.teachers.common.by_length import by_length
from ckd.teachers.common.folder import INFO, WEIGHTS
from ckd.teachers.protocol import FinetuneResult, Keep, Report, Similarity
from ckd.teachers.recformer_parts.config import RecformerConfig, RecformerPretrainConfig, RecformerSizes
from ckd.teachers.recformer_parts.convert import Start, published_names, read_backbone
from ckd.teachers.recformer_parts.files import (
    load_pretraining_model,
    read_recformer,
    read_start,
    write_recformer,
)
from ckd.teachers.recformer_parts.layers import cut_layers, kept_layers, layer_of
from ckd.teachers.recformer_parts.model import Longformer
from ckd.teachers.recformer_parts.tokenise import (
    Ints,
    ItemTokens,
    TokenBatch,
    compose,
    newest_first,
    token_lengths,
)


class Recformer(nn.Module):
    """Recformer over the items of one domain.

    Args:
        config: limits and constants.
        start: shape and tokenizer; its weights are not looked at.
        tokens: the domain's items, tokenised.

    Attributes:
        item_embedding: (n, D) vectors of the items as fine-tuning left them; none before it: items are encoded when
            they are asked for. The state dict is that of the published fine-tuned model.
    """

    Config: ClassVar[type[Any]] = RecformerConfig
    PretrainConfig: ClassVar[type[RecformerPretrainConfig]] = RecformerPretrainConfig
    similarity: Similarity = "cosine"
    TRAIN_DEFAULTS: ClassVar[dict[str, Any]] = {
        "lr": 5e-5,
        "weight_decay": 0.0,
        "batch_size": 128,
        "epochs": 128,
        "validate_every": 3,
        "patience": 5,
    }
    PRETRAIN_DEFAULTS: ClassVar[dict[str, Any]] = {
        "lr": 5e-5,
        "weight_decay": 0.0,
        "batch_size": 64,
        "epochs": 32,
        "patience": 5,
        "clip_norm": 1.0,
    }

    def __init__(self, config: RecformerSizes, start: Start, tokens: ItemTokens) -> None:
        super().__init__()
        self.config, self.temperature = config, config.temperature
        self.start, self.tokens = replace(start, weights={}), tokens
        self.longformer = Longformer(start.shape)
        self.item_embedding: nn.Embedding | None = None
        self.eval()

    @classmethod
    def create(cls, config: RecformerConfig, domain: Domain) -> Self:
        """The model before fine-tuning: from a backbone, or from a pre-trained or imported one."""
        start = read_start(config)
        model = cls(config, start, ItemTokens.of(domain.item_table, start.tokenizer, config.limits))
        model.longformer = load_pretraining_model(start).longformer.eval()
        return model

    @classmethod
    def load(cls, folder: Path, domain: Domain) -> Self:
        start, info = read_recformer(folder, "fine-tuned")
        config = parse(RecformerConfig, info.get("config", {}), str(folder / INFO))
        tokens = ItemTokens.of(domain.item_table, start.tokenizer, config.limits)
        if info.get("items") != tokens.fingerprint:
            raise DataError(
                f"{folder}: made for items whose tokens hash to {info.get('items')}, those of domain {domain.name!r} "
                f"to {tokens.fingerprint}. Fine-tune it on this domain."
            )
        model = cls(config, start, tokens)
        if _TABLE in start.weights:
            model.set_table(torch.empty(tokens.n_items, start.shape.hidden_size))
        put_weights(model, start.weights, str(folder / WEIGHTS))
        return model

    def save(self, folder: Path) -> None:
        write_recformer(folder, "fine-tuned", self, self.start, self.config, {"items": self.tokens.fingerprint})

    def set_table(self, vectors: torch.Tensor | None) -> None:
        """Fix the items' vectors (n, D) as they are, frozen; none: items are encoded whenever asked for."""
        self.item_embedding = None
        if vectors is not None:
            self.item_embedding = nn.Embedding(len(vectors), vectors.shape[1], _weight=vectors).requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return next(self.longformer.parameters()).device

    def compose(self, recent: Ints) -> TokenBatch:
        """The token sequences of (B, S) items, newest first, on the model's device."""
        return compose(self.tokens, recent, self.config.limits, self.start.shape.special).to(self.device)

    def passes(self, recent: Ints) -> Iterator[Ints]:
        """Rows of (B, S) items in groups of similar length, one forward pass each."""
        return by_length(token_lengths(self.tokens, recent, self.config.limits), self.config.pass_tokens)

    def vectors(self, recent: Ints) -> torch.Tensor:
        """(B, D) float32 vectors of (B, S) items, newest first, in evaluation mode, in passes of bounded memory."""
        result = torch.empty(len(recent), self.start.shape.hidden_size, device=self.device)
        with evaluating(self):
            for rows in self.passes(recent):
                result[torch.from_numpy(rows).to(self.device)] = self.longformer.pooled(
                    self.compose(recent[rows])
                ).float()
        return result

    def encode_instances(self, batch: Batch) -> torch.Tensor:
        histories, lengths = batch.histories().cpu().numpy(), batch.lengths.cpu().numpy()
        starts = np.arange(len(histories)) * histories.shape[1]
        return self.vectors(newest_first(histories.ravel(), starts, starts + lengths, self.config.max_items))

    def encode_items(self, items: torch.Tensor) -> torch.Tensor:
        if self.item_embedding is not None:
            return self.item_embedding.weight[items.to(self.device) - 1].float()
        return self.vectors(items.cpu().numpy()[:, None])

    def encode_catalogue(self) -> torch.Tensor:
        """(n, D) vectors of all items by the present weights, whatever the table holds."""
        return self.vectors(np.arange(1, self.tokens.n_items + 1)[:, None])

    @classmethod
    def pretrain(
        cls,
        domains: Sequence[Domain],
        config: RecformerPretrainConfig,
        train: TrainConfig,
        seed: int,
        folder: Path,
        progress: Report,
    ) -> None:
        """Pre-train on several domains; see `recformer_parts.pretrain`."""
        from ckd.teachers.recformer_parts.pretrain import Pretraining

        Pretraining(domains, config, train, seed, folder, progress).run()

    def finetune(
        self,
        domain: Domain,
        train: TrainConfig,
        seed: int,
        folder: Path,
        progress: Report,
        keep: Keep | None = None,
    ) -> FinetuneResult:
        """Two stages of next-item training; see `recformer_parts.finetune`."""
        from ckd.teachers.recformer_parts.finetune import Finetuning

        return Finetuning(self, domain, train, seed, folder, progress, keep).run()

    @classmethod
    def import_checkpoint(
        cls, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], where: str, folder: Path
    ) -> list[str]:
        """Write an official checkpoint's network to `folder` as pre-trained; returns the keys left out.

        The backbone it was trained from gives what no tensor tells: heads, tokenizer, and the masked-token head of a
        fine-tuned checkpoint, which has none.

        Args:
            tensors: the state dict of the published pre-training or fine-tuned model.
            config: sizes; `backbone` names the language model, `layers` cuts it.
            where: the checkpoint, for messages.

        Raises:
            ConfigError: an unknown key.
            DataError: no such backbone; or names every key that is missing, unknown or of the wrong shape.
        """
        parsed = parse(RecformerSizes, dict(config), "teacher")
        start = read_backbone(parsed.backbone, parsed.layers, parsed.window, parsed.max_tokens, parsed.max_items)
        found, left_out = published_names(tensors)
        if parsed.layers is not None:
            depth = 1 + max((layer_of(name) for name in found), default=-1)
            found = cut_layers(found, kept_layers(depth, parsed.layers))
        model = load_pretraining_model(start)
        headless = not any(name.startswith("lm_head.") for name in found)
        put_weights(model, found, where, may_lack=lambda name: headless and name.startswith("lm_head."))
        write_recformer(folder, "pre-trained", model, start, parsed, {"origin": {"imported_from": Path(where).name}})
        return left_out


#: The key of the items' vectors, as published.
_TABLE = "item_embedding.weight"

TEACHER = Recformer
