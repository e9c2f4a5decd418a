"""Every built-in student keeps to the contract."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import polars as pl

from ckd.config import parse
from ckd.data.domain import Domain
from ckd.nn.recommender import Recommender
from ckd.students import STUDENTS
from ckd.testing.student_contract import StudentContract


class BuiltIn(StudentContract):
    """A student by its name, in a small configuration."""

    name: ClassVar[str]
    config: ClassVar[dict[str, Any]] = {}

    def make_student(self, domain: Domain) -> Recommender:
        student_class = STUDENTS.get(self.name)
        student: Recommender = student_class.create(parse(student_class.Config, self.config, "student"), domain)
        return student


class TestSASRec(BuiltIn):
    name = "sasrec"
    config: ClassVar = {"hidden_size": 16, "inner_size": 16}


class TestGRU4Rec(BuiltIn):
    name = "gru4rec"
    config: ClassVar = {"embedding_size": 12, "hidden_size": 16, "n_layers": 2}


class TestBERT4Rec(BuiltIn):
    name = "bert4rec"
    config: ClassVar = {"hidden_size": 16, "inner_size": 16}


class TestFMLPRec(BuiltIn):
    name = "fmlprec"
    config: ClassVar = {"hidden_size": 8, "dropout": 0.1}


class TestFMLPRecWithAttention(BuiltIn):
    name = "fmlprec"
    config: ClassVar = {"hidden_size": 8, "dropout": 0.1, "filters": False}


class TestFM(BuiltIn):
    name = "fm"
    config: ClassVar = {"embedding_size": 8}


class TestFMWithEveryKindOfField(BuiltIn):
    name = "fm"
    config: ClassVar = {"embedding_size": 8, "lists": ["title"], "separator": " ", "numbers": ["price"]}

    def make_domain(self) -> Domain:
        domain = super().make_domain()
        price = pl.Series("price", [None if item % 5 == 0 else f"{item * 1.5}" for item in range(domain.n_items)])
        return replace(domain, item_table=domain.item_table.with_columns(price))


class TestDeepFM(BuiltIn):
    name = "deepfm"
    config: ClassVar = {"embedding_size": 8, "mlp_sizes": [16, 8]}


class TestLightGCN(BuiltIn):
    name = "lightgcn"
    config: ClassVar = {"embedding_size": 16}


def test_every_built_in_student_is_held_to_the_contract() -> None:
    held = {cls.name for cls in BuiltIn.__subclasses__()}
    assert held == {name for name in STUDENTS.names() if STUDENTS.get(name).__module__.startswith("ckd.students.")}
