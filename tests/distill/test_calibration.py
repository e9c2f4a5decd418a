"""The temperature by likelihood, against a plain search in float64."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.nn import functional as F

from ckd.distill import calibration
from ckd.distill.calibration import likeliest_temperature
from ckd.errors import DataError
from ckd.nn import chunks


def drawn(temperature: float, n: int = 600, items: int = 40, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Unit vectors, and targets that really follow the softmax of their cosines at `temperature`."""
    g = torch.Generator().manual_seed(seed)
    users = F.normalize(torch.randn(n, 6, generator=g), dim=1)
    table = F.normalize(torch.randn(items + 1, 6, generator=g), dim=1)
    p = (users @ table[1:].T / temperature).softmax(dim=1)
    return users, table, 1 + torch.multinomial(p, 1, generator=g)[:, 0]


def nll(users: torch.Tensor, table: torch.Tensor, targets: torch.Tensor, tau: float) -> float:
    scores = users.double() @ table[1:].double().T / tau
    return float(F.cross_entropy(scores, targets - 1))


@pytest.mark.parametrize("temperature", [0.03, 0.2, 1.5])
@pytest.mark.parametrize("block", [1, 1 << 24])
def test_it_is_the_minimum_of_the_negative_log_likelihood(
    temperature: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "BLOCK_ELEMENTS", block * 40 * 100)
    data = drawn(temperature)
    found = likeliest_temperature(*data)
    plain = minimize_scalar(lambda x: nll(*data, 10.0**x), bounds=(-3, 2), method="bounded", options={"xatol": 1e-7})
    assert found.temperature == pytest.approx(10.0**plain.x, rel=1e-3)
    assert found.nll == pytest.approx(nll(*data, found.temperature), abs=1e-5)
    assert found.instances == 600
    for other in (0.9, 1.1):
        assert nll(*data, found.temperature * other) > found.nll
    # What generated the targets is found again, as far as 600 of them tell.
    assert found.temperature == pytest.approx(temperature, rel=0.35)
    assert likeliest_temperature(*data) == found


def test_scores_of_any_scale_have_one() -> None:
    users, table, targets = drawn(0.2)
    unit = likeliest_temperature(users, table, targets).temperature
    for scale in (1e-4, 1e4):
        found = likeliest_temperature(users * scale, table, targets).temperature
        assert found == pytest.approx(unit * scale, rel=1e-4)


def test_padding_is_no_candidate() -> None:
    users, table, targets = drawn(0.2)
    changed = table.clone()
    changed[0] = 1e6
    assert likeliest_temperature(users, changed, targets) == likeliest_temperature(users, table, targets)


def test_of_very_many_scores_an_even_sample_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    users, table, targets = drawn(0.2, n=2100)
    monkeypatch.setattr(calibration, "SCORES", 1)
    found = likeliest_temperature(users, table, targets)
    assert found.instances == 1024
    every = torch.linspace(0, 2099, 1024, dtype=torch.float64).long()
    assert found == likeliest_temperature(users[every], table, targets[every])


def test_targets_that_are_always_first_have_the_sharpest() -> None:
    users = F.normalize(torch.randn(30, 8, generator=torch.Generator().manual_seed(1)), dim=1)
    table = torch.cat([torch.zeros(1, 8), users])
    found = likeliest_temperature(users, table, torch.arange(1, 31))
    assert found.temperature < 1e-2
    assert found.nll == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("factor", [math.nan, 1e-40])
def test_scores_that_are_no_numbers_or_all_alike_are_refused(factor: float) -> None:
    draw = torch.Generator().manual_seed(0)
    users, items = torch.randn(9, 4, generator=draw) * factor, torch.randn(8, 4, generator=draw)
    with pytest.raises(DataError, match=r"no finite numbers|no temperature is likeliest"):
        likeliest_temperature(users, items, torch.arange(9) % 7 + 1)


def test_what_has_no_likeliest_temperature_is_refused() -> None:
    users, table, targets = drawn(0.2)
    worst = (users @ table[1:].T).argmin(dim=1) + 1
    with pytest.raises(DataError, match=r"kitchen: teacher a: validation targets score no higher.*Give a number"):
        likeliest_temperature(users, table, worst, "kitchen: teacher a")
    with pytest.raises(DataError, match="score no higher than the average item"):
        likeliest_temperature(users, torch.ones_like(table), targets)
    with pytest.raises(DataError, match="no validation targets"):
        likeliest_temperature(users[:0], table, targets[:0])
