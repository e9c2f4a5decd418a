"""Image encoders: any open_clip model, with that model's own preprocessing, and one that needs no weights."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from ckd.config import Section
from ckd.errors import ConfigError, DataError, did_you_mean, first_line
from ckd.nn.device import pick_device
from ckd.teachers.encoders import pictures, pixels
from ckd.teachers.encoders.common import (
    DTYPES,
    Precision,
    Report,
    files_hash,
    hub_snapshot,
    json_hash,
    unreported,
)

#: A picture: a file, or its bytes.
Source = Path | bytes

#: The model that needs no weights, see `ckd.teachers.encoders.pixels`.
PIXELS = "pixels"

_LOCAL, _HUB = "local-dir:", "hf-hub:"
_CONFIG = "open_clip_config.json"
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
_PREPROCESS = ("mean", "std", "interpolation", "resize_mode")


class ImageEncoderConfig(Section):
    """Which open_clip model, and how it is run."""

    model: str = Field(
        "ViT-B-32-quickgelu",
        description="open_clip model, or local-dir:FOLDER, or hf-hub:ID; pixels: outline, colours and texture, which "
        "needs no weights",
    )
    pretrained: str | None = Field(
        "openai",
        description="tag or local file of the weights; local-dir: and hf-hub: bring their own, pixels has none",
    )
    precision: Precision = "fp32"
    device: str = Field("auto", description="auto: cuda where there is one, else cpu")
    batch_size: int = Field(64, ge=1, description="pictures in one forward pass")
    max_pixels: int = Field(50_000_000, ge=1, description="larger JPEGs are decoded smaller, other pictures left out")


class ImageEncoder:
    """Turns pictures into vectors (not normalised). The model is loaded when the first picture is encoded.

    Attributes:
        name: the model as the user called it.
        identity: everything that a picture's vector depends on besides its bytes; the key of caches.
        traits: how many of the pictures given to `encode` were of which kind, see `pictures.Picture`.

    Raises:
        ConfigError: open_clip has no such model or tag, or an option does not go with the model.
        DataError: the weights cannot be had.
    """

    def __init__(self, config: ImageEncoderConfig) -> None:
        self.config = config
        self.traits: Counter[str] = Counter()
        self._loading = Lock()
        self._from: dict[str, Any] = {}
        if config.model == PIXELS:
            _check_pixels(config)
            self.name, weights = PIXELS, f"{PIXELS} {pixels.VERSION}"
        elif config.model.startswith((_LOCAL, _HUB)):
            self.name = config.model
            self._from, weights = _from_folder(config.model)
        else:
            self.name = f"{config.model} {config.pretrained}"
            self._from, weights = _from_name(config.model, config.pretrained)
        self.identity: dict[str, Any] = {
            "kind": "image",
            "weights": weights,
            "precision": config.precision,
            "max_pixels": config.max_pixels,
            "pictures": pictures.VERSION,
        }

    def encode(
        self, sources: Sequence[Source], report: Report = unreported
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """(n, d) float32 vectors of n pictures, and (n,) bool which could be opened; the others' rows are zero.

        d is 0 where none could be opened and no model was needed so far.
        """
        opened = np.zeros(len(sources), dtype=np.bool_)
        parts: list[npt.NDArray[np.float32]] = []
        with pictures.pillow_warnings_counted(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for start, batch in self._read_ahead(pool, sources):
                for row, (picture, _) in enumerate(batch, start):
                    self.traits[picture.trait] += 1
                    opened[row] = picture.rgb is not None
                tensors = [tensor for _, tensor in batch if tensor is not None]
                if tensors:
                    parts.append(self._forward(torch.stack(tensors)))
                report(len(batch))
        vectors = np.zeros((len(sources), parts[0].shape[1] if parts else 0), dtype=np.float32)
        if parts:
            vectors[opened] = np.concatenate(parts)
        return vectors, opened

    def _read_ahead(
        self, pool: ThreadPoolExecutor, sources: Sequence[Source]
    ) -> Iterator[tuple[int, list[tuple[pictures.Picture, torch.Tensor | None]]]]:
        """Batches of opened pictures; while one is being encoded, the next is being read."""
        size = self.config.batch_size
        waiting = None
        for start in range(0, len(sources), size):
            # Submitting is what starts the work: list first, wait later.
            following = [pool.submit(self._open, source) for source in sources[start : start + size]]
            if waiting is not None:
                yield waiting[0], [task.result() for task in waiting[1]]
            waiting = (start, following)
        if waiting is not None:
            yield waiting[0], [task.result() for task in waiting[1]]

    def _open(self, source: Source) -> tuple[pictures.Picture, torch.Tensor | None]:
        data = source if isinstance(source, bytes) else source.read_bytes()
        picture = pictures.open_picture(data, self.config.max_pixels)
        if picture.rgb is None:
            return picture, None
        with self._loading:
            preprocess = self._loaded[1]
        return picture, preprocess(picture.rgb)

    def _forward(self, tensors: torch.Tensor) -> npt.NDArray[np.float32]:
        model, device = self._loaded[0], pick_device(self.config.device, "device")
        with torch.inference_mode():
            given = tensors.to(device, DTYPES[self.config.precision])
            vectors: npt.NDArray[np.float32] = model.encode_image(given).float().cpu().numpy()
        return vectors

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """Model and preprocessing."""
        device = pick_device(self.config.device, "device")
        if self.config.model == PIXELS:
            return pixels.Pixels().to(device), pixels.prepare
        import open_clip

        try:
            model, preprocess = open_clip.create_model_from_pretrained(
                **self._from, precision=self.config.precision, device=device, weights_only=True
            )
        # A checkpoint of another model shows as KeyError, RuntimeError, AttributeError, UnpicklingError, ...
        except Exception as error:
            raise DataError(f"{self.name}: the weights cannot be loaded ({first_line(error)}).") from None
        return model.eval(), preprocess


def _check_pixels(config: ImageEncoderConfig) -> None:
    if config.precision != "fp32":
        raise ConfigError(f"precision={config.precision!r}: {PIXELS} computes in fp32. Leave it out.")
    if "pretrained" in config.model_fields_set and config.pretrained is not None:
        raise ConfigError(f"pretrained={config.pretrained!r}: {PIXELS} has no weights. Leave it out.")


def _from_folder(model: str) -> tuple[dict[str, Any], str]:
    """Arguments of open_clip for a folder of its own layout or the hub's snapshot of one, and the weights' hash."""
    if model.startswith(_HUB):
        folder = hub_snapshot(model.removeprefix(_HUB), [_CONFIG, *_WEIGHTS])
    else:
        folder = Path(model.removeprefix(_LOCAL)).expanduser()
    weights = sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern))
    if not (folder / _CONFIG).is_file() or not weights:
        raise DataError(f"{folder}: no open_clip model ({_CONFIG} and weights beside it). Give a folder that has both.")
    return {"model_name": f"{_LOCAL}{folder}"}, files_hash([folder / _CONFIG, *weights])


def _from_name(model: str, pretrained: str | None) -> tuple[dict[str, Any], str]:
    """Arguments of open_clip for one of its models and a tag or a file, and a hash of configuration and weights."""
    import open_clip

    if model not in open_clip.list_models():
        known = [*open_clip.list_models(), PIXELS]
        raise ConfigError(f"open_clip has no model {model!r}.{did_you_mean(model, known)}")
    tags = open_clip.list_pretrained_tags_by_model(model)
    given = {tag: open_clip.get_pretrained_cfg(model, tag) for tag in tags}
    file = Path(pretrained or "").expanduser()
    if pretrained is not None and pretrained in given:
        asked = given[pretrained]
        _check_activation(model, pretrained, asked)
        try:
            file = Path(open_clip.download_pretrained(asked))
        # Whatever the two clients of open_clip raise without a network.
        except Exception as error:
            raise DataError(f"{model}: weights {pretrained!r} are not to be had ({first_line(error)}).") from None
        preprocess = {key: asked[key] for key in _PREPROCESS if asked.get(key)}
    elif file.is_file():
        preprocess = _common_preprocess(list(given.values()))
    else:
        raise ConfigError(
            f"pretrained={pretrained!r}: neither a file nor a tag of {model!r}.{did_you_mean(str(pretrained), tags)}"
        )
    told = {f"image_{key}": value for key, value in preprocess.items()}
    weights = json_hash([open_clip.get_model_config(model), preprocess, files_hash([file])])
    return {"model_name": model, "pretrained": str(file), **told}, weights


def _common_preprocess(tags: list[dict[str, Any]]) -> dict[str, Any]:
    """How pictures are prepared for weights from a file: as for every tag of this model, where all agree."""
    found = {}
    for key in _PREPROCESS:
        values = {repr(tag.get(key)): tag.get(key) for tag in tags}
        if len(values) == 1 and (value := next(iter(values.values()))):
            found[key] = value
    return found


def _check_activation(model: str, tag: str, given: dict[str, Any]) -> None:
    """open_clip only warns when weights trained with QuickGELU meet a model without, and the vectors are then wrong."""
    import open_clip

    needs, has = (bool(cfg.get("quick_gelu")) for cfg in (given, open_clip.get_model_config(model)))
    if needs != has:
        other = f"{model}-quickgelu" if needs else model.removesuffix("-quickgelu")
        raise ConfigError(f"model={model!r}: weights {tag!r} were trained with another activation. Use {other!r}.")
