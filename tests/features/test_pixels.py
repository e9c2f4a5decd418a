"""The image encoder without weights: what its vectors tell apart, and what leaves them as they are."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from ckd.data.domain import Domain
from ckd.data.example import ExampleSize, make_example
from ckd.data.features import IMAGE, ItemFeatures, load_features, save_features
from ckd.data.paint import COLOURS, PATTERNS, SHAPES, paint
from ckd.errors import ConfigError
from ckd.pipelines.encode_items import EncodeConfig, encode_items
from ckd.pipelines.example import prepare_example
from ckd.teachers.encoders.image import PIXELS, ImageEncoder, ImageEncoderConfig
from ckd.teachers.encoders.pixels import CELLS, DIM, LEVELS, SIDE

#: Where the three blocks of a vector begin.
CUTS = [CELLS**2, CELLS**2 + LEVELS**3]

QUIET = np.zeros((SIDE, SIDE), dtype=np.int64)


def png(pixels: np.ndarray, size: tuple[int, int] | None = None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image if size is None else image.resize(size, Image.Resampling.NEAREST)).save(buffer, "PNG")
    return buffer.getvalue()


def blocks(*pictures: bytes) -> list[np.ndarray]:
    """Outline, colours and texture of each picture, a row each."""
    vectors, opened = ImageEncoder(ImageEncoderConfig(model=PIXELS, device="cpu")).encode(pictures)
    assert opened.all()
    assert (vectors.shape, vectors.dtype) == ((len(pictures), DIM), np.float32)
    return np.split(vectors, CUTS, axis=1)


@pytest.fixture(autouse=True)
def no_open_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("create_model_from_pretrained", "list_models", "download_pretrained"):
        monkeypatch.delattr(open_clip, name)


@pytest.fixture(scope="module")
def gallery() -> tuple[list[bytes], np.ndarray]:
    """400 pictures, moved, lit and noisy, and (400, 3) their shape, colour and pattern."""
    rng = np.random.default_rng(5)
    facets = np.stack([rng.integers(n, size=400) for n in (SHAPES, len(COLOURS), PATTERNS)], axis=1)
    pictures = []
    for shape, colour, pattern in facets:
        dx, dy = rng.integers(-3, 4, size=2)
        noise = rng.integers(-8, 9, size=(SIDE, SIDE))
        light = int(rng.integers(-20, 21))
        pictures.append(png(paint(int(shape), int(colour), int(pattern), (int(dx), int(dy)), light, noise)))
    return pictures, facets


@pytest.mark.parametrize(("facet", "least"), [(0, 0.95), (1, 0.95), (2, 0.9)], ids=["shape", "colour", "pattern"])
def test_a_linear_probe_tells_the_example_s_pictures_apart(
    gallery: tuple[list[bytes], np.ndarray], facet: int, least: float
) -> None:
    pictures, facets = gallery
    vectors = np.concatenate([*blocks(*pictures), np.ones((len(pictures), 1))], axis=1)
    wanted = np.eye(int(facets[:, facet].max()) + 1)[facets[:, facet]]
    known, new = slice(0, 300), slice(300, None)
    gram = vectors[known].T @ vectors[known] + 0.01 * np.eye(vectors.shape[1])
    weights = np.linalg.solve(gram, vectors[known].T @ wanted[known])
    assert ((vectors[new] @ weights).argmax(axis=1) == facets[new, facet]).mean() >= least


def test_every_block_has_length_one(gallery: tuple[list[bytes], np.ndarray]) -> None:
    for block in blocks(*gallery[0][:50]):
        np.testing.assert_allclose(np.linalg.norm(block, axis=1), 1, rtol=1e-5)


def test_each_block_sees_its_own() -> None:
    square = paint(1, 0, 1, (0, 0), 0, QUIET)
    outline, colours, texture = blocks(
        png(square),
        png(paint(1, 6, 1, (0, 0), 0, QUIET)),  # another colour
        png(paint(1, 0, 2, (0, 0), 0, QUIET)),  # columns for rows
        png(np.roll(square, 4, axis=1)),  # moved by a cell
        png(square.transpose(1, 0, 2).copy()),
    )

    def alike(block: np.ndarray, row: int) -> float:
        return float(block[0] @ block[row])

    assert alike(colours, 1) < 0.2
    assert alike(outline, 1) > 0.95
    assert alike(colours, 2) > 0.99
    assert alike(texture, 2) < 0.96
    assert alike(outline, 3) < 0.95
    assert alike(colours, 3) == pytest.approx(1, abs=1e-5)
    assert alike(texture, 3) > 0.97
    np.testing.assert_allclose(outline[4].reshape(CELLS, CELLS), outline[0].reshape(CELLS, CELLS).T, atol=1e-6)


def test_size_does_not_matter() -> None:
    picture = paint(4, 3, 4, (1, -2), 0, QUIET)
    for block in blocks(png(picture), png(picture, (SIDE * 8, SIDE * 8)), png(picture, (SIDE * 3, SIDE * 5))):
        np.testing.assert_allclose(block[1:], block[[0, 0]], atol=1e-5)


def test_a_plain_picture_has_neither_outline_nor_colours() -> None:
    outline, colours, texture = blocks(png(np.full((9, 7, 3), 90, np.uint8)), png(np.full((1, 1, 3), 255, np.uint8)))
    assert not outline.any()
    assert not colours.any()
    assert np.isfinite(texture).all()


def test_batches_do_not_matter(gallery: tuple[list[bytes], np.ndarray]) -> None:
    pictures = gallery[0][:20]
    one = ImageEncoder(ImageEncoderConfig(model=PIXELS, device="cpu", batch_size=1)).encode(pictures)[0]
    all_at_once = ImageEncoder(ImageEncoderConfig(model=PIXELS, device="cpu")).encode(pictures)[0]
    np.testing.assert_allclose(one, all_at_once, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pretrained": "openai"}, r"pretrained='openai': pixels has no weights"),
        ({"precision": "bf16"}, r"precision='bf16': pixels computes in fp32"),
    ],
)
def test_options_that_go_with_weights_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ImageEncoder(ImageEncoderConfig.model_validate({"model": PIXELS, **options}))


def test_broken_pictures_are_counted(save_domain: Callable[..., Domain], tmp_path: Path) -> None:
    good = png(paint(0, 0, 0, (0, 0), 0, QUIET))
    domain = save_domain(["x"] * 4, image=[good, None, b"broken", png(np.zeros((5, 5), np.uint8))])
    config = EncodeConfig(modality="image", image=ImageEncoderConfig(model=PIXELS))
    found = encode_items(tmp_path, "toy", config)
    assert (found.encoded, found.missing, found.undecodable, found.dim) == (2, 1, 1, DIM)
    assert found.traits == {"grey-scale": 1, "rgb": 1, "undecodable": 1}
    assert load_features(domain, IMAGE).present.tolist() == [False, True, False, False, True]


def test_the_example_comes_with_its_pictures_encoded(tmp_path: Path) -> None:
    size = ExampleSize(users=12, items=24, mean_length=6.0)
    for domain in prepare_example(tmp_path, 7, size):
        features = load_features(domain, IMAGE)
        pictures = make_example(7, size)[domain.name].item_table["image"]
        assert features.present[1:].tolist() == [picture is not None for picture in pictures]
        assert features.source["model"] == PIXELS

    # Another seed paints others under the same item ids.
    (other, *_) = prepare_example(tmp_path, 8, size, replace=True)
    encoded = load_features(other, IMAGE)
    assert encoded.present[1:].tolist() == [picture is not None for picture in other.item_table["image"]]

    # Somebody's own features stay, as long as the pictures do.
    assert other.folder is not None
    mine = ItemFeatures(IMAGE, np.eye(size.items + 1, 4, k=-1, dtype=np.float32), np.arange(size.items + 1) > 0)
    save_features(other.folder, mine)
    (again, *_) = prepare_example(tmp_path, 8, size)
    assert load_features(again, IMAGE).fingerprint == mine.fingerprint
    (anew, *_) = prepare_example(tmp_path, 7, size, replace=True)
    assert load_features(anew, IMAGE).source["model"] == PIXELS


def test_vectors_are_the_same_every_time(gallery: tuple[list[bytes], np.ndarray]) -> None:
    first, second = (np.concatenate(blocks(*gallery[0][:8]), axis=1) for _ in range(2))
    assert torch.equal(torch.from_numpy(first), torch.from_numpy(second))
