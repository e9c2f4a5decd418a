"""Sizes for the built-in example, which is a tenth of a real domain, and the minutes that they take on two cores."""

from __future__ import annotations

from typing import Any

#: Keys of students, for those that have them.
EXAMPLE_STUDENT: dict[str, Any] = {
    "hidden_size": 64,
    "inner_size": 64,
    "embedding_size": 64,
    "hidden_dropout": 0.3,
    "attention_dropout": 0.3,
}

#: Keys of each teacher.
EXAMPLE_TEACHERS: dict[str, dict[str, Any]] = {
    "unisrec": {
        "hidden_size": 64,
        "inner_size": 64,
        "n_experts": 2,
        "hidden_dropout": 0.2,
        "attention_dropout": 0.2,
    },
    "recformer": {
        "layers": 1,
        "window": 32,
        "max_attributes": 1,
        "max_attribute_length": 20,
        "max_items": 5,
        "max_tokens": 128,
    },
    "unim2rec": {
        "hidden_size": 64,
        "inner_size": 64,
        "n_experts": 2,
        "hidden_dropout": 0.2,
        "attention_dropout": 0.2,
    },
}

#: Keys of `train`, for students and teachers. A distilled student rests for ten epochs before it goes on rising.
EXAMPLE_TRAIN: dict[str, Any] = {"epochs": 60, "patience": 15}

#: What single models need otherwise, by `section.key`; `baseline` is a baseline's own section.
EXAMPLE_METHODS: dict[str, dict[str, Any]] = {
    "recformer": {"train.lr": 5e-4, "train.epochs": 30, "train.validate_every": 2, "train.patience": 3},
    "unisrec": {"train.batch_size": 512, "train.lr": 3e-3, "train.epochs": 30, "train.patience": 5},
    "unim2rec": {"train.batch_size": 512, "train.lr": 3e-3, "train.epochs": 30, "train.patience": 5},
    "bert4rec": {"train.epochs": 30},
    "hetcomp": {"baseline.epochs": 30, "baseline.period": 5},
    "recguru": {
        "baseline.hidden_size": 64,
        "baseline.inner_size": 64,
        "baseline.epochs": 4,
        "baseline.warmup_epochs": 2,
    },
}

#: Training instances of a domain of the example, for estimates before it is made.
EXAMPLE_INSTANCES = 10_000

#: Seconds of a step at these sizes on two cores: of training, by model; of the others, by action. All are measured but
#: those of the distilled DeepFM, of which half was.
EXAMPLE_SECONDS: dict[str, float] = {
    "prepare": 4,
    "encode": 10,
    "plan": 0.1,
    "score": 0.5,
    "unisrec": 68,
    "recformer": 99,
    "unim2rec": 31,
    "sasrec": 7,
    "sasrec-ckd": 20,
    "sasrec-ckd-all": 70,
    "gru4rec": 5,
    "bert4rec": 21,
    "hetcomp": 23,
    "recguru": 40,
    "fm": 8,
    "fm-ckd": 21,
    "deepfm": 40,
    "deepfm-ckd": 600,
    "lightgcn": 10,
    "lightgcn-ckd": 23,
}
