"""What Recformer can be told."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator, model_validator

from ckd.nn.recommender import ModelConfig
from ckd.teachers.recformer_parts.tokenise import TokenLimits


class RecformerSizes(ModelConfig):
    """Sizes of the published code, and where the weights come from."""

    backbone: str | None = Field(
        None,
        description="folder or hub id of a Longformer, BERT or RoBERTa model; none: the MiniLM package. The published "
        "model starts from allenai/longformer-base-4096",
    )
    layers: int | None = Field(
        None, ge=1, description="keep so many layers: the lowest ones and the top one; none: all"
    )
    window: int = Field(64, ge=2, description="width of the attention window, in tokens, even")
    max_attributes: int = Field(3, ge=1, description="attributes of an item that are read, the first ones")
    max_attribute_length: int = Field(32, ge=2, description="tokens of an attribute, name and value together")
    max_items: int = Field(50, ge=1, description="items of a history, the newest ones")
    max_tokens: int = Field(1024, ge=2, description="tokens of a history")
    temperature: float = Field(0.05, gt=0)
    warmup_steps: int = Field(100, ge=0, description="steps over which the learning rate rises")
    pass_tokens: int = Field(8192, ge=1, description="tokens in one forward pass, padding included")

    @field_validator("window")
    @classmethod
    def _even(cls, window: int) -> int:
        if window % 2:
            raise ValueError("must be even: half the window lies on either side")
        return window

    @property
    def limits(self) -> TokenLimits:
        return TokenLimits(self.max_attributes, self.max_attribute_length, self.max_items, self.max_tokens)


class _Starting(RecformerSizes):
    start: Path | None = Field(
        None, description="folder of pre-trained or imported weights to start from; none: the backbone"
    )

    @model_validator(mode="after")
    def _one_origin(self) -> _Starting:
        if self.start is not None and self.backbone is not None:
            raise ValueError("give start or backbone, not both")
        return self


class RecformerConfig(_Starting):
    """Fine-tuning on a target domain (Recformer section 3.4)."""

    negatives: int | None = Field(None, ge=1, description="sampled negatives of an instance; none: the whole catalogue")
    patience_two: int = Field(3, ge=1, description="validations without a better NDCG@10 before stage two stops")


class RecformerPretrainConfig(_Starting):
    """Pre-training over several domains (Recformer section 3.3)."""

    mlm_weight: float = Field(0.1, ge=0, description="weight of the masked-token loss")
    mlm_probability: float = Field(0.15, gt=0, lt=1, description="share of tokens that are masked")
