"""Fixtures that every room shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckd.data.domain import Domain
from ckd.data.example import TINY, make_example

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Recorded numbers of the published models."""
    return Path(os.environ.get("CKD_GOLDEN_DIR", ROOT / "tests" / "golden"))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real Amazon domains; tests that need them skip where they are absent."""
    folder = Path(os.environ.get("CKD_DATA_DIR", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set CKD_DATA_DIR")
    return folder


@pytest.fixture(scope="session")
def tiny() -> dict[str, Domain]:
    """The example's three domains at their smallest, sources first; the target is the last."""
    return make_example(seed=7, size=TINY)
