"""What UniM²Rec can be told; sizes are UniSRec's."""

from __future__ import annotations

from pydantic import Field

from ckd.data.features import IMAGE, TEXT
from ckd.nn.recommender import ModelConfig


class UniM2RecSizes(ModelConfig):
    """The parts that pre-training and fine-tuning have in common."""

    text_feature: str = Field(TEXT, description="item feature that holds the texts' vectors")
    image_feature: str | None = Field(IMAGE, description="item feature that holds the images' vectors; none: text only")
    hidden_size: int = Field(300, ge=1)
    inner_size: int = Field(256, ge=1)
    n_layers: int = Field(2, ge=1)
    n_heads: int = Field(2, ge=1)
    n_experts: int = Field(8, ge=1, description="experts of each modality's adaptor")
    hidden_dropout: float = Field(0.5, ge=0, lt=1)
    attention_dropout: float = Field(0.5, ge=0, lt=1)
    adaptor_dropout: float = Field(0.2, ge=0, lt=1)
    modality_dropout: float = Field(
        0.2, ge=0, le=1, description="chance that an item with several modalities loses one, in training"
    )
    temperature: float = Field(0.07, gt=0)
    layer_norm_eps: float = Field(1e-12, gt=0)
    initializer_range: float = Field(0.02, gt=0)

    @property
    def features(self) -> dict[str, str]:
        """Feature names by modality."""
        names = {"text": self.text_feature}
        return names if self.image_feature is None else {**names, "image": self.image_feature}


class UniM2RecPretrainConfig(UniM2RecSizes):
    """Pre-training over several domains."""

    alignment_weight: float = Field(0.1, ge=0, description="weight of text-image alignment beside the next item")
