"""ckd: distil several fine-tuned pre-trained recommendation models into one small sequential recommender."""

__version__ = "0.1.0"
