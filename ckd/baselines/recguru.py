"""RecGURU (Li et al., WSDM 2022): user vectors that a critic cannot tell two domains apart by.

This is the model that serves, of one domain; `recguru_parts.training` makes it, from two. A history is encoded into
one user vector, and a decoder goes over the same history with that vector beside it; its last output scores the items.
"""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import nn

from ckd.baselines.recguru_parts.layers import Decoder, Encoder, sinusoids
from ckd.baselines.recguru_parts.pair import RecGURUPair, Side, decode, draw_tables, encode
from ckd.baselines.recguru_parts.sequences import end_with_mark
from ckd.data.batch import Batch
from ckd.data.domain import Domain
from ckd.nn.recommender import ModelConfig, Recommender
from ckd.students.common.transformer_config import heads_divide


class RecGURUConfig(ModelConfig):
    """Sizes, dropout and batch of the paper's section 4.1.4, for a fair comparison; the rest is RecGURU's own.

    RecGURU was published with 32 dimensions, 1 head, 3 blocks and dropout 0.5. The published program's lengths are
    those of a trial (200 steps of warm-up, 300 of everything else), so the phases have lengths in epochs of the target
    domain here: T = `epochs`, adversarial for 0.6 T, tuned for another 0.6 T, each published share of it.
    """

    hidden_size: int = Field(300, ge=2)
    inner_size: int = Field(512, ge=1)
    n_layers: int = Field(2, ge=1)
    n_heads: int = Field(2, ge=1, validate_default=True)
    dropout: float = Field(0.1, ge=0, lt=1, description="of attention weights; nothing else has any")
    critic_dropout: float = Field(0.2, ge=0, lt=1)
    batch_size: int = Field(512, ge=2, description="users of each domain in a step")
    recon_negatives: int = Field(30, ge=1, description="negatives of a position in the reconstruction")
    bpr_negatives: int = Field(5, ge=1, description="negatives of a position in the recommendation")
    warmup_epochs: int = Field(20, ge=0, description="epochs of reconstruction alone")
    noam_steps: int = Field(1000, ge=1, description="steps over which the rate rises in the warm-up")
    epochs: int = Field(100, ge=1, description="T: 0.6 T epochs against the critic, then at most 0.6 T of tuning")
    adversarial_lr: float = Field(1e-4, gt=0, description="of critic and encoder")
    lr: float = Field(1e-3, gt=0, description="of the tuning")
    critic_steps: int = Field(5, ge=1, description="steps of the critic to one of the rest")
    penalty_weight: float = Field(0.1, ge=0, description="of the critic's gradient penalty")
    overlap_weight: float = Field(1.0, ge=0, description="of the distance between the vectors of users in both domains")
    validate_every: int = Field(1, ge=1, description="epochs of tuning between validations")
    patience: int = Field(10, ge=1, description="validations without a better NDCG@10 before stopping")

    @field_validator("n_heads")
    @classmethod
    def _heads_divide(cls, n_heads: int, info: ValidationInfo) -> int:
        return heads_divide(n_heads, info.data.get("hidden_size", 0))

    @property
    def d_model(self) -> int:
        return self.hidden_size

    @property
    def d_ff(self) -> int:
        return self.inner_size

    @property
    def d_k(self) -> int:
        return self.hidden_size // self.n_heads

    @property
    def d_v(self) -> int:
        return self.hidden_size // self.n_heads

    @property
    def n_blocks(self) -> int:
        return self.n_layers


class RecGURU(Recommender):
    """What serves of RecGURU: the encoder and one domain's item table and recommendation decoder.

    As in training, the mask of the decoder's inputs is the encoder's: the first item is blank to it.

    Args:
        config: sizes and dropout.
        n_items: number of items without padding.
        max_length: longest history, in items.
    """

    Config = RecGURUConfig
    causal = False

    positions: torch.Tensor

    def __init__(self, config: RecGURUConfig, n_items: int, max_length: int) -> None:
        super().__init__()
        self.config = config
        self.mark = n_items + 1
        self.width = max_length + 1
        self.register_buffer("positions", sinusoids(self.width, config.d_model), persistent=False)
        self.src_emb = nn.Embedding(n_items + 2, config.d_model)
        self.encoder = Encoder(config)
        self.recommend = Decoder(config)
        draw_tables(self)

    @classmethod
    def create(cls, config: RecGURUConfig, domain: Domain) -> Self:
        return cls(config, domain.n_items, domain.history_cap)

    def share(self, pair: RecGURUPair, side: Side) -> Self:
        """This model made of the pair's own modules, so that it is always what the pair has learnt; returns itself."""
        self.src_emb = pair.get_submodule(f"src_emb_{side}")  # type: ignore[assignment]
        self.encoder = pair.encoder
        self.recommend = pair.get_submodule(f"recommend_{side}")  # type: ignore[assignment]
        return self

    def encode(self, batch: Batch) -> torch.Tensor:
        sequences = end_with_mark(batch.histories(), batch.lengths, self.width, self.mark)
        # One further than in training, where the last item is predicted: here it is the last that is read.
        inputs = torch.cat([torch.zeros_like(sequences[:, :1]), sequences[:, :-1]], dim=1)
        users = encode(self.encoder, self._embed(sequences), sequences, inputs, self.mark)[:, -1]
        return decode(self.recommend, self._embed(inputs), inputs, inputs, users)[:, -1]

    def _embed(self, sequences: torch.Tensor) -> torch.Tensor:
        return self.src_emb(sequences) + self.positions

    def item_table(self) -> torch.Tensor:
        return self.src_emb.weight[: self.mark]


MODEL = RecGURU
