"""Image vectors: open_clip's own for good pictures, and every odd file opened or counted."""

from __future__ import annotations

import errno
import io
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ckd.data.domain import Domain
from ckd.data.features import load_features
from ckd.errors import ConfigError, DataError
from ckd.pipelines import encode_items as encode_module
from ckd.pipelines.encode_items import EncodeConfig, encode_items
from ckd.teachers.encoders import image as image_module
from ckd.teachers.encoders.image import ImageEncoder, ImageEncoderConfig
from ckd.teachers.encoders.pictures import BACKGROUND, LONGEST_SHAPE, open_picture, pillow_warnings_counted

MODEL = "ckd-test-tiny"
TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of a tiny model that open_clip knows by name for as long as the tests run."""
    folder = tmp_path_factory.mktemp("tiny-clip")
    (folder / f"{MODEL}.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder / f"{MODEL}.json")
    torch.manual_seed(0)
    save_file(open_clip.create_model(MODEL).state_dict(), folder / "tiny.safetensors")
    return folder / "tiny.safetensors"


def encoder(tiny_clip: Path, **options: Any) -> ImageEncoder:
    return ImageEncoder(ImageEncoderConfig(model=MODEL, pretrained=str(tiny_clip), **options))


def noise(size: tuple[int, int] = (40, 50), mode: str = "RGB", seed: int = 0) -> Image.Image:
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size).convert(mode)


def to_bytes(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


PICTURES = [to_bytes(noise((30 + 7 * k, 64 - 5 * k), seed=k)) for k in range(7)]


def naive(tiny_clip: Path, pictures: list[bytes]) -> np.ndarray:
    """open_clip's own way, one picture at a time."""
    model, preprocess = open_clip.create_model_from_pretrained(MODEL, pretrained=str(tiny_clip))
    model.eval()
    with torch.inference_mode():
        vectors = [model.encode_image(preprocess(Image.open(io.BytesIO(one)))[None])[0].numpy() for one in pictures]
    return np.stack(vectors)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_equals_open_clip_one_picture_at_a_time(tiny_clip: Path, batch_size: int) -> None:
    vectors, opened = encoder(tiny_clip, batch_size=batch_size).encode(PICTURES)
    assert opened.all()
    assert (vectors.shape, vectors.dtype) == ((7, 8), np.float32)
    np.testing.assert_allclose(vectors, naive(tiny_clip, PICTURES), atol=1e-5)


def test_files_and_bytes_give_the_same(tiny_clip: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PICTURES[0])
    vectors, _ = encoder(tiny_clip).encode([tmp_path / "a.png", PICTURES[0]])
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)


def test_broken_pictures_do_not_move_the_others(tiny_clip: Path) -> None:
    broken = [b"", b"not a picture", PICTURES[0][:200], b"\x89PNG\r\n\x1a\n" + b"\0" * 50]
    mixed = [broken[0], PICTURES[0], broken[1], broken[2], PICTURES[1], broken[3]]
    some = encoder(tiny_clip, batch_size=2)
    vectors, opened = some.encode(mixed)
    assert opened.tolist() == [False, True, False, False, True, False]
    assert not vectors[~opened].any()
    np.testing.assert_allclose(vectors[opened], naive(tiny_clip, PICTURES[:2]), atol=1e-5)
    assert some.traits == {"undecodable": 4, "rgb": 2}


def test_only_broken_pictures_need_no_model(tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(open_clip, "create_model_from_pretrained")
    vectors, opened = encoder(tiny_clip).encode([b"x", b"y"])
    assert not opened.any()
    assert vectors.shape == (2, 0)


def test_bf16_is_near_fp32(tiny_clip: Path) -> None:
    full, half = encoder(tiny_clip), encoder(tiny_clip, precision="bf16")
    assert full.identity != half.identity
    difference = np.abs(full.encode(PICTURES)[0] - half.encode(PICTURES)[0]).max()
    assert 0 < difference < 0.1


def opened(data: bytes, max_pixels: int = 50_000_000) -> tuple[np.ndarray, str]:
    with pillow_warnings_counted():
        picture = open_picture(data, max_pixels)
    assert picture.rgb is not None, picture.trait
    assert picture.rgb.mode == "RGB"
    return np.asarray(picture.rgb).astype(int), picture.trait


def test_colour_pictures_are_untouched() -> None:
    pixels, trait = opened(PICTURES[3])
    assert trait == "rgb"
    assert (pixels == np.asarray(Image.open(io.BytesIO(PICTURES[3])))).all()


@pytest.mark.parametrize("mode", ["1", "L", "I;16", "I"])
def test_grey_scale(mode: str) -> None:
    grey = noise(mode="L")
    expected = np.asarray(grey).astype(int)
    if mode == "1":
        grey = grey.convert("1")
        expected = np.asarray(grey).astype(int) * 255
    elif mode != "L":
        grey = Image.fromarray((expected * 257).astype(np.uint16 if mode == "I;16" else np.int32))
    pixels, trait = opened(to_bytes(grey, "TIFF" if mode == "I" else "PNG"))
    assert trait == "grey-scale"
    assert np.abs(pixels - expected[..., None]).max() <= 1


def test_floating_point_grey_is_stretched_to_its_range() -> None:
    values = np.linspace(-3, 5, 400, dtype=np.float32).reshape(20, 20)
    pixels, trait = opened(to_bytes(Image.fromarray(values), "TIFF"))
    assert trait == "grey-scale"
    assert (pixels[0, 0] == 0).all()
    assert (pixels[-1, -1] == 255).all()


def test_flat_floating_point_grey() -> None:
    pixels, _ = opened(to_bytes(Image.fromarray(np.full((4, 4), 2.5, dtype=np.float32)), "TIFF"))
    assert pixels.shape == (4, 4, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_show_the_background(mode: str) -> None:
    image = noise(mode=mode)
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (0, 0, 10, 10))
    image.putalpha(alpha)
    pixels, trait = opened(to_bytes(image))
    assert trait == "alpha"
    assert (pixels[:10, :10] == BACKGROUND[:3]).all()
    assert (pixels[10:, 10:] == np.asarray(image.convert("RGB"))[10:, 10:]).all()


def test_palettes() -> None:
    image = noise().quantize(16)
    pixels, trait = opened(to_bytes(image))
    assert trait == "palette"
    assert (pixels == np.asarray(image.convert("RGB"))).all()
    # A transparent colour given as bytes makes Pillow warn.
    transparent = to_bytes(image, transparency=bytes([0] * 16))
    pixels, trait = opened(transparent)
    assert trait == "alpha"
    assert (pixels == 255).all()


def test_cmyk_jpeg_and_animated_gif() -> None:
    assert opened(to_bytes(noise(mode="CMYK"), "JPEG"))[1] == "rgb"
    frames = [noise(seed=k) for k in range(3)]
    pixels, _ = opened(to_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert pixels.shape == (50, 40, 3)


def test_pictures_are_turned_as_their_exif_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels, _ = opened(to_bytes(noise((40, 50)), "PNG", exif=exif))
    assert pixels.shape == (40, 50, 3)
    assert (pixels == np.rot90(np.asarray(noise((40, 50))), -1)).all()


def test_a_large_jpeg_is_decoded_smaller() -> None:
    image = noise((400, 240))
    data = to_bytes(image, "JPEG", quality=95)
    pixels, trait = opened(data, max_pixels=400 * 240)
    assert (pixels.shape, trait) == ((240, 400, 3), "rgb")
    for limit in (400 * 240 - 1, 200 * 120, 100 * 60, 2000):
        pixels, trait = opened(data, max_pixels=limit)
        assert trait == "downscaled"
        assert pixels.shape[0] * pixels.shape[1] <= limit
        small = np.asarray(image.resize((pixels.shape[1], pixels.shape[0]), Image.Resampling.BOX)).astype(int)
        assert np.abs(pixels - small).mean() < 4, "the same picture, smaller"


def test_what_stays_too_large_is_refused_before_its_pixels_are_decoded() -> None:
    assert open_picture(to_bytes(noise((400, 240)), "JPEG"), 500).trait == "too large"
    # A bomb: a few kilobytes that would be 1.2 gigabytes of pixels.
    bomb = to_bytes(Image.new("1", (20_000, 20_000)), "PNG", optimize=False)
    assert len(bomb) < 100_000
    with pillow_warnings_counted():
        assert open_picture(bomb, 50_000_000).trait == "too large"
        warned = to_bytes(Image.new("1", (10_000, 10_000)), "PNG")
        assert open_picture(warned, 50_000_000).trait == "too large"


def test_a_thread_of_a_picture_does_not_fill_the_memory(tiny_clip: Path) -> None:
    """Scaling its shorter side up to the model's would make 32 x 320,000 pixels of it."""
    line = to_bytes(noise((10_000, 1)))
    pixels, _ = opened(line)
    assert pixels.shape == (1, LONGEST_SHAPE, 3)
    vectors, done = encoder(tiny_clip).encode([line])
    assert done.all()
    assert np.isfinite(vectors).all()


def test_programs_are_never_started_for_a_picture() -> None:
    """Pillow hands PostScript to Ghostscript."""
    postscript = to_bytes(noise(), "EPS")
    assert open_picture(postscript, 50_000_000).trait == "undecodable"


# -- which model ------------------------------------------------------------------------------------------------------


def test_unknown_models_and_tags(tiny_clip: Path, tmp_path: Path) -> None:
    cases = [
        ("ViT-B-33", "openai", ConfigError, "Did you mean 'ViT-B-32'"),
        (MODEL, "openai", ConfigError, "neither a file nor a tag"),
        (MODEL, None, ConfigError, "neither a file nor a tag"),
        ("ViT-B-32", "openaii", ConfigError, "Did you mean 'openai'"),
        ("ViT-B-32", "openai", ConfigError, "Use 'ViT-B-32-quickgelu'"),
        ("ViT-B-32-quickgelu", "laion2b_s34b_b79k", ConfigError, "neither a file nor a tag"),
        (f"local-dir:{tmp_path}", None, DataError, "no open_clip model"),
    ]
    for model, pretrained, kind, message in cases:
        with pytest.raises(kind, match=message) as error:
            ImageEncoder(ImageEncoderConfig(model=model, pretrained=pretrained))
        assert "\n" not in str(error.value)


def test_weights_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise FileNotFoundError("no route\nto the host")

    monkeypatch.setattr(open_clip, "download_pretrained", unreachable)
    with pytest.raises(DataError, match=r"weights 'openai' are not to be had .no route"):
        ImageEncoder(ImageEncoderConfig())


def test_a_tag_s_weights_come_with_its_preprocessing(tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tag is its file, prepared as the tag says; a bare file is prepared as the model's tags agree on."""
    tag = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bilinear", "resize_mode": "squash"}
    plain = encoder(tiny_clip)
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda _: ["one", "two"])
    tags = {"one": tag, "two": {**tag, "interpolation": "bicubic"}}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda _, name: tags[name])
    monkeypatch.setattr(open_clip, "download_pretrained", lambda _: str(tiny_clip))
    one = ImageEncoder(ImageEncoderConfig(model=MODEL, pretrained="one"))
    bare = encoder(tiny_clip)
    _, expected = open_clip.create_model_from_pretrained(
        MODEL,
        str(tiny_clip),
        image_mean=tag["mean"],
        image_std=tag["std"],
        image_interpolation="bilinear",
        image_resize_mode="squash",
    )
    assert str(one._loaded[1]) == str(expected)
    assert "interpolation=bicubic" in str(bare._loaded[1])
    assert "mean=(0.5, 0.5, 0.5)" in str(bare._loaded[1])
    assert len({str(each.identity) for each in (plain, one, bare)}) == 3


def test_local_folder(tiny_clip: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_clip, tmp_path / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": preprocess}))
    local = ImageEncoder(ImageEncoderConfig(model=f"local-dir:{tmp_path}"))
    vectors, done = local.encode(PICTURES)
    assert done.all()
    assert np.abs(vectors - naive(tiny_clip, PICTURES)).max() > 1e-3, "prepared in another way"
    model, prepare = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path}")
    with torch.inference_mode():
        expected = model.eval().encode_image(prepare(Image.open(io.BytesIO(PICTURES[0])))[None])[0]
    np.testing.assert_allclose(vectors[0], expected.numpy(), atol=1e-5)


def test_hub_model_is_its_snapshot(tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(tiny_clip, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": {}}))
    monkeypatch.setattr(image_module, "hub_snapshot", lambda name, _: tmp_path / name)
    hub = ImageEncoder(ImageEncoderConfig(model="hf-hub:."))
    np.testing.assert_allclose(hub.encode(PICTURES)[0], naive(tiny_clip, PICTURES), atol=1e-5)


def test_weights_of_another_model_and_pickles(tiny_clip: Path, tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (tmp_path / "harm",)

    other = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, other)
    harm = tmp_path / "harm.pt"
    with harm.open("wb") as file:
        pickle.dump({"x": Harm()}, file, protocol=2)
    for weights in (other, harm):
        with pytest.raises(DataError, match="cannot be loaded") as error:
            encoder(weights).encode(PICTURES)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "harm").exists()
    torch.save(open_clip.create_model(MODEL).state_dict(), tmp_path / "fine.pt")
    assert encoder(tmp_path / "fine.pt").encode(PICTURES)[1].all()


# -- the items of a domain --------------------------------------------------------------------------------------------


@pytest.fixture
def image_config(tiny_clip: Path) -> Callable[..., EncodeConfig]:
    settings = ImageEncoderConfig(model=MODEL, pretrained=str(tiny_clip))
    return lambda **options: EncodeConfig(modality="image", image=settings, **options)


def test_folder_of_files(
    image_config: Callable[..., EncodeConfig], save_domain: Callable[..., Domain], tmp_path: Path, tiny_clip: Path
) -> None:
    domain = save_domain(["x"] * 6)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, data in {
        "i0.png": PICTURES[0],
        "i1.PNG": PICTURES[0],
        "i3.jpg": b"broken",
        "i4.png": to_bytes(noise(mode="L")),
        "stranger.png": PICTURES[1],
        "i5.txt": b"no picture",
    }.items():
        (folder / name).write_bytes(data)
    result = encode_items(tmp_path, "toy", image_config(images=str(folder)))
    assert (result.encoded, result.cached, result.missing, result.undecodable, result.unknown) == (2, 1, 2, 1, 1)
    assert result.traits == {"grey-scale": 1, "rgb": 1, "undecodable": 1}
    features = load_features(domain, "image")
    assert features.present.tolist() == [False, True, True, False, False, True, False]
    np.testing.assert_allclose(features.vectors[1], naive(tiny_clip, PICTURES[:1])[0], atol=1e-5)
    assert (features.vectors[1] == features.vectors[2]).all()
    again = encode_items(tmp_path, "toy", image_config(images=str(folder)))
    assert (again.encoded, again.cached, again.missing, again.undecodable) == (0, 3, 2, 1)
    assert again.fingerprint == result.fingerprint
    # A mended picture is the only one that is encoded.
    (folder / "i3.jpg").write_bytes(PICTURES[2])
    mended = encode_items(tmp_path, "toy", image_config(images=str(folder)))
    assert (mended.encoded, mended.cached, mended.missing, mended.undecodable) == (1, 3, 2, 0)


@pytest.mark.parametrize("kind", ["path", "bytes"])
def test_image_column(
    image_config: Callable[..., EncodeConfig], save_domain: Callable[..., Domain], tmp_path: Path, kind: str
) -> None:
    values: list[object] = [PICTURES[0], None, PICTURES[1], b""]
    if kind == "path":
        values = ["images/a.png", None, "images/b.png", "images/absent.png"]
    domain = save_domain(["x"] * 4, image=values)
    assert domain.folder is not None
    if kind == "path":
        (domain.folder / "images").mkdir()
        for name, data in (("a", PICTURES[0]), ("b", PICTURES[1])):
            (domain.folder / "images" / f"{name}.png").write_bytes(data)
    result = encode_items(tmp_path, "toy", image_config())
    assert (result.encoded, result.cached, result.missing, result.unknown) == (2, 0, 2, 0)
    assert load_features(domain, "image").present.tolist() == [False, True, False, True, False]


@pytest.mark.parametrize(
    "value", ["data:image/png;base64," + "A" * 5000, "x" * 300 + ".jpg", "https://a.b/" + "c" * 300]
)
def test_a_value_too_long_to_name_a_file_names_none(
    image_config: Callable[..., EncodeConfig], save_domain: Callable[..., Domain], tmp_path: Path, value: str
) -> None:
    domain = save_domain(["x"] * 2, image=["a.png", value])
    assert domain.folder is not None
    (domain.folder / "a.png").write_bytes(PICTURES[0])
    result = encode_items(tmp_path, "toy", image_config())
    assert (result.encoded, result.missing) == (1, 1)


def test_a_picture_that_cannot_be_looked_up_is_no_missing_one(
    image_config: Callable[..., EncodeConfig],
    save_domain: Callable[..., Domain],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_domain(["x"] * 2, image=["a.png", "b.png"])
    is_file = Path.is_file

    def denied(self: Path) -> bool:
        if self.name == "b.png":
            raise PermissionError(errno.EACCES, "denied", str(self))
        return is_file(self)

    monkeypatch.setattr(Path, "is_file", denied)
    with pytest.raises(PermissionError):
        encode_items(tmp_path, "toy", image_config())


def test_domains_without_pictures(
    image_config: Callable[..., EncodeConfig],
    save_domain: Callable[..., Domain],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_domain(["x"] * 2)
    real = encode_module.ImageEncoder
    monkeypatch.setattr(encode_module, "ImageEncoder", lambda _: pytest.fail("a model was asked for"))
    with pytest.raises(DataError, match=r"items\.parquet: no column 'image'"):
        encode_items(tmp_path, "toy", image_config())
    with pytest.raises(DataError, match="no such folder"):
        encode_items(tmp_path, "toy", image_config(images=str(tmp_path / "absent")))
    folder = tmp_path / "pictures"
    folder.mkdir()
    with pytest.raises(DataError, match=r"no picture of any item.*'i0\.jpg'"):
        encode_items(tmp_path, "toy", image_config(images=str(folder)))
    monkeypatch.setattr(encode_module, "ImageEncoder", real)
    (folder / "i0.jpg").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"none of 1 pictures could be encoded .*undecodable"):
        encode_items(tmp_path, "toy", image_config(images=str(folder)))
    (folder / "i0.png").write_bytes(PICTURES[0])
    with pytest.raises(DataError, match=r"i0\.png: i0\.jpg is there as well"):
        encode_items(tmp_path, "toy", image_config(images=str(folder)))
