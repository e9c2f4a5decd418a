from __future__ import annotations

import hashlib
import io
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ckd.data.domain import Domain, columns
from ckd.data.example import (
    MIN_LENGTH,
    SOURCES,
    TARGET,
    THEMES,
    TINY,
    ExampleSize,
    make_example,
)
from ckd.data.paint import COLOURS, PATTERNS, SHAPES, SIDE, paint, png
from ckd.errors import ConfigError, DataError
from ckd.evaluation.metrics import ranking_metrics
from ckd.pipelines.example import prepare_example

#: What seed 7 gives at TINY size, on any machine: hashes over the whole content.
RECORDED = {
    "example-kitchen": "733a15b1176a29ff",
    "example-garden": "45bf34c654f6c78e",
    "example-studio": "49b4f4b06d4bac45",
}

MEDIUM = ExampleSize(users=500, items=300, mean_length=8.0)


def content_hash(domain: Domain) -> str:
    """Over the sequences, every cell of the item table and the user ids."""
    digest = hashlib.blake2b(digest_size=8)
    for array in (domain.indptr, domain.items, domain.split):
        digest.update(array.astype("<i8").tobytes())
    for cell in (*domain.user_ids, *(cell for row in domain.item_table.iter_rows() for cell in row)):
        digest.update(cell if isinstance(cell, bytes) else repr(cell).encode())
    return digest.hexdigest()


def pixels(picture: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(picture))
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (32, 32))
    return np.asarray(image)


def test_the_bytes_are_those_recorded(tiny: dict[str, Domain]) -> None:
    assert {name: content_hash(domain) for name, domain in tiny.items()} == RECORDED


def test_the_seed_and_the_size_decide_everything(tiny: dict[str, Domain]) -> None:
    again = make_example(7, TINY)
    other = make_example(8, TINY)
    larger = make_example(7, replace(TINY, items=TINY.items + 1))
    for name, domain in tiny.items():
        assert content_hash(again[name]) == content_hash(domain)
        assert content_hash(other[name]) != content_hash(domain)
        assert content_hash(larger[name]) != content_hash(domain)
        assert domain.notes == {"source": "example", "recipe": 1, "seed": 7, "size": asdict(TINY)}


def test_two_sources_and_a_target_that_share_words_but_no_item_or_user(tiny: dict[str, Domain]) -> None:
    assert list(tiny) == [*SOURCES, TARGET]
    domains = list(tiny.values())
    for column in (columns.RAW, "users"):
        ids = [set(d.user_ids if column == "users" else d.item_table[column]) for d in domains]
        assert len(set.union(*ids)) == sum(map(len, ids))
    words = [set(" ".join(d.item_table[columns.TEXT]).split()) for d in domains]
    assert len(set.intersection(*words)) > 60


@given(
    seed=st.integers(0, 2**40),
    users=st.integers(1, 30),
    items=st.integers(10, 50),
    mean_length=st.floats(5.1, 25, allow_nan=False),
)
@settings(max_examples=15, deadline=None)
def test_any_size_gives_whole_domains(seed: int, users: int, items: int, mean_length: float) -> None:
    for domain in make_example(seed, ExampleSize(users, items, mean_length)).values():
        assert (domain.n_users, domain.n_items) == (users, items)
        lengths = np.diff(domain.indptr)
        assert lengths.min() >= MIN_LENGTH
        assert lengths.max() <= max(MIN_LENGTH, items // 2)
        assert domain.items.min() >= 1
        assert domain.items.max() <= items
        for user in range(users):
            own = domain.items[domain.indptr[user] : domain.indptr[user + 1]]
            assert len(set(own.tolist())) == len(own)
        assert len(domain.instances("test")) == len(domain.instances("valid")) == users
        assert domain.item_table[columns.ITEM].to_list() == list(range(1, items + 1))
        assert domain.item_table[columns.TEXT].null_count() == 0


def test_the_item_table_has_texts_attributes_and_pictures(tiny: dict[str, Domain]) -> None:
    for domain in tiny.values():
        assert domain.attributes == ["title", "brand", "category", "description"]
        for row in domain.item_table.iter_rows(named=True):
            parts = [row[name] for name in domain.attributes if row[name] is not None]
            assert row[columns.TEXT] == " ".join(parts)
            assert any(word in row["title"] for synonyms in THEMES for word in synonyms)


def test_modalities_are_missing_for_some_items_only() -> None:
    for domain in make_example(3, MEDIUM).values():
        table = domain.item_table
        for column, least, most in ((columns.IMAGE, 0.06, 0.2), ("brand", 0.02, 0.12), ("description", 0.08, 0.25)):
            assert least < table[column].null_count() / domain.n_items < most
        assert table["title"].null_count() == table["category"].null_count() == 0


def test_colour_is_in_the_picture_and_in_no_word() -> None:
    """The middle of a plain picture has one of the ten colours; the same words come with all of them."""
    domain = make_example(3, MEDIUM)[TARGET]
    shown = domain.item_table.drop_nulls(columns.IMAGE)
    middles = np.stack([np.median(pixels(p)[13:19, 13:19].reshape(-1, 3), axis=0) for p in shown[columns.IMAGE]])
    # Hue survives shading and stripes: compare directions in colour space.
    directions = middles / np.linalg.norm(middles, axis=1, keepdims=True)
    palette = np.array(COLOURS, dtype=float)
    nearest = (directions @ (palette / np.linalg.norm(palette, axis=1, keepdims=True)).T).argmax(1)
    assert set(nearest) == set(range(len(COLOURS)))
    themes = [next(i for i, words in enumerate(THEMES) if any(w in t for w in words)) for t in shown["title"]]
    table = np.zeros((len(THEMES), len(COLOURS)))
    np.add.at(table, (themes, nearest), 1)
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    chi2 = ((table - expected) ** 2 / expected).sum()
    freedom = (len(THEMES) - 1) * (len(COLOURS) - 1)
    assert chi2 < freedom + 4 * np.sqrt(2 * freedom)


def test_popularity_has_a_long_tail() -> None:
    for domain in make_example(3, ExampleSize()).values():
        popularity = np.sort(domain.popularity[1:])[::-1]
        top = popularity[: domain.n_items // 10].sum() / popularity.sum()
        assert 0.2 < top < 0.5
        assert np.median(popularity) < 12
        assert popularity[0] > 5 * np.median(popularity)
        statistics = domain.statistics()
        assert 7.5 < statistics["average_length"] < 8.5
        assert statistics["sparsity"] > 0.99


def bag_of_words(domain: Domain) -> np.ndarray:
    """(n_items, words) of unit length, rare words weighing more."""
    texts = [re.findall(r"\w+", text.lower()) for text in domain.item_table[columns.TEXT]]
    numbers = {word: i for i, word in enumerate(sorted({word for text in texts for word in text}))}
    counts = np.zeros((domain.n_items, len(numbers)))
    for row, text in enumerate(texts):
        counts[row, [numbers[word] for word in text]] = 1
    counts *= np.log(domain.n_items / counts.sum(0))
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def colours(domain: Domain) -> np.ndarray:
    """(n_items, 3) mean colour around the middle, centred; zero without a picture."""
    table = np.zeros((domain.n_items, 3))
    for row, picture in enumerate(domain.item_table[columns.IMAGE]):
        if picture is not None:
            table[row] = pixels(picture)[10:22, 10:22].reshape(-1, 3).mean(0)
            table[row] -= table[row].mean()
    return table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-9)


def next_item_metrics(domain: Domain, item_scores: np.ndarray | None, vectors: np.ndarray | None) -> dict[str, float]:
    """Metrics of ranking by a score per item, or by likeness to the recent history; past items left out."""
    instances = domain.instances("test")
    ranks = []
    for start, stop, target in zip(instances.starts, instances.stops, instances.targets - 1, strict=True):
        past = domain.items[start:stop][::-1] - 1
        scores = np.zeros(domain.n_items) if item_scores is None else item_scores.astype(float).copy()
        if vectors is not None:
            scores += vectors @ (0.9 ** np.arange(len(past)) @ vectors[past])
        scores[past] = -np.inf
        ties = (scores == scores[target]).sum() - 1
        ranks.append(1 + (scores > scores[target]).sum() + (ties + 1) // 2)
    return ranking_metrics(np.array(ranks))


def test_words_and_pictures_tell_more_than_popularity() -> None:
    """Averaged over the three domains: text beats popularity, pictures beat chance and add to text."""
    found: dict[str, list[float]] = {"chance": [], "popularity": [], "text": [], "picture": [], "both": []}
    for domain in make_example(3, ExampleSize(users=1200, items=1200)).values():
        text, picture = bag_of_words(domain), colours(domain)
        found["chance"].append(50 / domain.n_items)
        for name, scores, vectors in (
            ("popularity", domain.popularity[1:], None),
            ("text", None, text),
            ("picture", None, picture),
            ("both", None, np.hstack([text, picture * 0.4])),
        ):
            found[name].append(next_item_metrics(domain, scores, vectors)["recall@50"])
    mean = {name: float(np.mean(values)) for name, values in found.items()}
    assert mean["popularity"] > 2 * mean["chance"]
    assert mean["text"] > 1.3 * mean["popularity"]
    assert mean["picture"] > 1.8 * mean["chance"]
    assert mean["both"] > 1.03 * mean["text"]


def test_what_comes_next_depends_on_what_came_last() -> None:
    """The category of the next item follows that of the last one, and not of one further back as much."""
    domain = make_example(3, ExampleSize(users=1000, items=300))[TARGET]
    category = np.unique(domain.item_table["category"].to_numpy(), return_inverse=True)[1][domain.items - 1]

    def dependence(lag: int) -> float:
        same = domain.user_of[lag:] == domain.user_of[:-lag]
        table = np.zeros((6, 6))
        np.add.at(table, (category[:-lag][same], category[lag:][same]), 1)
        table /= table.sum()
        return float((table * np.log(table / (table.sum(1, keepdims=True) * table.sum(0)))).sum())

    assert dependence(1) > 0.05
    assert dependence(1) > 3 * dependence(3)


def test_png_of_any_picture_reads_back() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (9, 5, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png(picture)))), picture)


def test_every_shape_pattern_and_colour_looks_different() -> None:
    still = np.zeros((SIDE, SIDE), dtype=np.int64)
    pictures = {
        paint(shape, colour, pattern, (0, 0), 0, still).tobytes()
        for shape in range(SHAPES)
        for colour in range(len(COLOURS))
        for pattern in range(PATTERNS)
    }
    assert len(pictures) == SHAPES * len(COLOURS) * PATTERNS


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"users": 0}, "users=0"),
        ({"items": 9}, "items=9"),
        ({"mean_length": 5.0}, "mean_length=5.0"),
        ({"mean_length": 26.0}, "mean_length=26.0"),
    ],
)
def test_sizes_that_make_no_domain_are_refused(bad: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        ExampleSize(**bad)  # type: ignore[arg-type]


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ConfigError, match="seed=-1"):
        make_example(-1, TINY)


def stamps(work: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in sorted(work.rglob("*")) if p.is_file()}


def test_prepare_writes_once_and_again_only_what_differs(tmp_path: Path, tiny: dict[str, Domain]) -> None:
    domains = prepare_example(tmp_path, 7, TINY)
    assert [d.name for d in domains] == list(tiny)
    for domain in domains:
        assert domain.folder == tmp_path / "domains" / domain.name
        assert content_hash(Domain.load(domain.folder)) == content_hash(tiny[domain.name])
    first = stamps(tmp_path)
    again = prepare_example(tmp_path, 7, TINY)
    assert stamps(tmp_path) == first
    assert [content_hash(d) for d in again] == [content_hash(d) for d in domains]
    # Plans and runs may belong to it.
    with pytest.raises(
        DataError, match=rf"{SOURCES[0]}: the example of seed 7, not 8; .*`ckd example --seed 8 --replace`"
    ):
        prepare_example(tmp_path, 8, TINY)
    assert stamps(tmp_path) == first
    for domain in prepare_example(tmp_path, 8, TINY, replace=True):
        assert domain.folder is not None
        assert Domain.load(domain.folder).notes["seed"] == 8


def test_prepare_mends_a_damaged_example(tmp_path: Path, tiny: dict[str, Domain]) -> None:
    prepare_example(tmp_path, 7, TINY)
    damaged = tmp_path / "domains" / TARGET
    Domain.load(damaged).item_table.with_columns(
        pl.col(columns.IMAGE).map_elements(lambda _: b"", return_dtype=pl.Binary)
    ).write_parquet(damaged / "items.parquet")
    lost = tmp_path / "domains" / SOURCES[0]
    (lost / "domain.json").write_text("{}")
    for domain in prepare_example(tmp_path, 7, TINY):
        assert content_hash(domain) == content_hash(tiny[domain.name])


def test_prepare_leaves_a_domain_of_the_same_name_alone(tmp_path: Path, tiny: dict[str, Domain]) -> None:
    folder = tmp_path / "domains" / TARGET
    replace(tiny[TARGET], notes={"source": "mine"}).save(folder)
    before = stamps(folder)
    with pytest.raises(DataError, match=rf"{TARGET}: holds a domain that is no example"):
        prepare_example(tmp_path, 7, TINY)
    assert stamps(folder) == before
