"""The sizes that students with self-attention have in common."""

from __future__ import annotations

from pydantic import Field, ValidationInfo, field_validator

from ckd.nn.recommender import ModelConfig


def heads_divide(n_heads: int, hidden_size: int) -> int:
    """`n_heads`, where that many heads share `hidden_size` evenly.

    Raises:
        ValueError: they do not.
    """
    if hidden_size % n_heads:
        raise ValueError(f"hidden_size {hidden_size} is no multiple of {n_heads} heads")
    return n_heads


class TransformerConfig(ModelConfig):
    """Sizes and dropout of the paper's section 4.1.4; inner size as in UniSRec."""

    hidden_size: int = Field(300, ge=1)
    inner_size: int = Field(256, ge=1)
    n_layers: int = Field(2, ge=1)
    n_heads: int = Field(2, ge=1, validate_default=True)
    hidden_dropout: float = Field(0.1, ge=0, lt=1)
    attention_dropout: float = Field(0.1, ge=0, lt=1)
    layer_norm_eps: float = Field(1e-12, gt=0)
    initializer_range: float = Field(0.02, gt=0)

    @field_validator("n_heads")
    @classmethod
    def _heads_divide(cls, n_heads: int, info: ValidationInfo) -> int:
        return heads_divide(n_heads, info.data.get("hidden_size", 0))
