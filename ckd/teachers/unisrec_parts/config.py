"""What UniSRec can be told; defaults are the published ones."""

from __future__ import annotations

from pydantic import Field, ValidationInfo, field_validator

from ckd.data.features import DROPPED_TEXT, TEXT
from ckd.nn.recommender import ModelConfig


class UniSRecSizes(ModelConfig):
    """The parts that pre-training and fine-tuning have in common."""

    feature: str = Field(TEXT, description="item feature that holds the text vectors")
    hidden_size: int = Field(300, ge=1)
    inner_size: int = Field(256, ge=1)
    n_layers: int = Field(2, ge=1)
    n_heads: int = Field(2, ge=1)
    n_experts: int = Field(8, ge=1, description="experts of the adaptor")
    hidden_dropout: float = Field(0.5, ge=0, lt=1)
    attention_dropout: float = Field(0.5, ge=0, lt=1)
    adaptor_dropout: float = Field(0.2, ge=0, lt=1)
    temperature: float = Field(0.07, gt=0)
    layer_norm_eps: float = Field(1e-12, gt=0)
    initializer_range: float = Field(0.02, gt=0)

    @field_validator("n_heads")
    @classmethod
    def _heads_divide_the_hidden_size(cls, n_heads: int, info: ValidationInfo) -> int:
        hidden = info.data.get("hidden_size", n_heads)
        if hidden % n_heads:
            raise ValueError(f"hidden_size={hidden} is no multiple of it")
        return n_heads


class UniSRecPretrainConfig(UniSRecSizes):
    """Pre-training over several domains (paper section 2.2)."""

    sequence_weight: float = Field(1e-3, ge=0, description="lambda, weight of the sequence-sequence task, Eq. (9)")
    drop_ratio: float = Field(0.2, ge=0, lt=1, description="share of items, or of items' words, that a view drops")
    item_drop_share: float = Field(
        0.9, ge=0, le=1, description="share of batches whose view drops items; the others drop words"
    )
    dropped_feature: str = Field(DROPPED_TEXT, description="item feature of texts with words dropped")
