"""A student as an ONNX graph, checked against torch before it is kept."""

from __future__ import annotations

import copy
import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ckd.data.batch import Batch, Packed
from ckd.data.domain import Domain
from ckd.errors import CkdError, ConfigError
from ckd.nn.recommender import Recommender

MODEL_FILE = "model.onnx"

#: Largest difference of a score to torch's that is accepted, over the largest score where that is above 1. A model of
#: extreme weights rounds more than that in torch itself; then twice torch's own distance to double precision.
TOLERANCE = 1e-5

#: Histories whose scores are compared: rows and longest length, which the domain's cap limits.
CHECKED = ((1, 1), (3, 2), (17, 9), (4, 10**6))

#: A protobuf file holds 2 GiB at most; larger weights lie in a file of their own.
ONE_FILE = 1 << 30


def write_onnx(
    folder: Path, model: Recommender, domain: Domain, identity: dict[str, Any], source: Path
) -> dict[str, Any]:
    """Write `model.onnx` into `folder`.

    Inputs are `histories` (batch, length) int64, item numbers right-padded with 0, length at most the domain's history
    cap, and `lengths` (batch,) int64 from 1. Output is `scores` (batch, n_items + 1) float32, column by item number,
    minus infinity for column 0, padding. Batch and length are free.

    Raises:
        ConfigError: onnxscript or onnxruntime is missing, the student reads users, or torch cannot export it.
        CkdError: onnxruntime scores otherwise than torch.
    """
    name = identity["student"]
    if model.reads_users:
        raise ConfigError(
            f"{name} cannot be exported to ONNX: it scores for users by number, and the graph takes histories alone. "
            "Export a student that reads histories."
        )
    try:
        importlib.import_module("onnxscript")
        runtime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ConfigError(f"ONNX needs {error.name}: pip install 'ckd-mdsr[onnx]'.") from None
    path = folder / MODEL_FILE
    _export(model, domain, name).save(path, external_data=_bytes(model) > ONE_FILE)
    difference, rounding = _difference(runtime, path, model, domain)
    if not difference <= max(TOLERANCE, 2 * rounding):
        raise CkdError(
            f"{name}: onnxruntime's scores differ from torch's by {difference:.1e}, more than {TOLERANCE:.0e}; nothing "
            "was exported. Try other versions of torch and onnxruntime."
        )
    return {"difference": difference, "rounding": rounding, "onnxruntime": runtime.__version__}


class _Scorer(nn.Module):
    """From padded histories to the scores of all items, by operations that ONNX has."""

    def __init__(self, model: Recommender) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        for parent in list(self.model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.GRU):
                    setattr(parent, name, _OnnxGRU(child))

    def forward(self, histories: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        nobody = torch.zeros_like(lengths)
        rows = torch.arange(histories.shape[0])
        packed = Packed.unpacked(histories, lengths)
        scores = self.model.score_items(self.model.encode(Batch(nobody, nobody, histories, rows, lengths, packed)))
        padding = torch.full_like(scores[:, :1], -torch.inf)
        return torch.cat([padding, scores[:, 1:]], dim=1)


class _OnnxGRU(nn.Module):
    """An `nn.GRU` without biases as ONNX's own operator, where torch would unroll it to one fixed length."""

    def __init__(self, gru: nn.GRU) -> None:
        super().__init__()
        if gru.bias or gru.bidirectional or not gru.batch_first:
            raise ConfigError("this GRU cannot be exported: ckd exports one of one direction, batch first, no biases.")
        self.hidden_size, self.num_layers = gru.hidden_size, gru.num_layers
        for layer in range(gru.num_layers):
            for side in ("ih", "hh"):
                # torch has the gates in the order reset, update, new; ONNX has update, reset, new.
                reset, update, new = getattr(gru, f"weight_{side}_l{layer}").detach().chunk(3)
                self.register_buffer(f"{side}{layer}", torch.cat([update, reset, new])[None])

    def forward(self, x_BLD: torch.Tensor) -> tuple[torch.Tensor, None]:
        x_LBD = x_BLD.transpose(0, 1)
        for layer in range(self.num_layers):
            hidden = torch.onnx.ops.symbolic(
                "GRU",
                (x_LBD, self.get_buffer(f"ih{layer}"), self.get_buffer(f"hh{layer}")),
                {"hidden_size": self.hidden_size, "linear_before_reset": 1},
                dtype=x_LBD.dtype,
                shape=(x_LBD.shape[0], 1, x_LBD.shape[1], self.hidden_size),
                version=14,
            )
            x_LBD = hidden[:, 0]
        return x_LBD.transpose(0, 1), None


def _export(model: Recommender, domain: Domain, name: str) -> Any:
    """The ONNX program."""
    length = min(5, domain.history_cap)
    histories, lengths = _histories(domain, 2, length)
    with _quiet():
        try:
            program = torch.onnx.export(
                _Scorer(model).eval(),
                (histories, lengths),
                dynamo=True,
                input_names=["histories", "lengths"],
                output_names=["scores"],
                dynamic_shapes={"histories": {0: "batch", 1: "length"}, "lengths": {0: "batch"}},
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            cause = error.__cause__ or error
            reason = (str(cause).strip() or type(cause).__name__).split("\n")[0]
            raise ConfigError(f"{name} cannot be exported to ONNX: {reason}") from error
    assert program is not None
    # The exporter notes where each operation stands in the source: paths of this machine, and most of a small file.
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    program.model.metadata_props.update(
        {
            "student": name,
            "domain": domain.name,
            "fingerprint": domain.fingerprint,
            "history_cap": str(domain.history_cap),
        }
    )
    return program


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on its own workings."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _difference(runtime: Any, path: Path, model: Recommender, domain: Domain) -> tuple[float, float]:
    """Largest difference of a score, and of torch's own score to double precision; infinite if padding is ranked.

    Both are over the largest score where that is above 1.
    """
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    exact_model = copy.deepcopy(model).double()
    difference = rounding = 0.0
    for rows, longest in CHECKED:
        histories, lengths = _histories(domain, rows, min(longest, domain.history_cap))
        (scores,) = session.run(None, {"histories": histories.numpy(), "lengths": lengths.numpy()})
        # Not through the exported module: the packed rows that evaluation and training run on.
        batch = Batch.from_histories(histories, lengths, torch.zeros_like(lengths))
        with torch.no_grad():
            expected, exact = (each.score_items(each.encode(batch)).numpy() for each in (model, exact_model))
        if scores.shape != expected.shape or not np.isneginf(scores[:, 0]).all():
            return float("inf"), rounding
        scale = max(1.0, float(np.abs(exact[:, 1:]).max()))
        difference = max(difference, float(np.abs(scores - expected)[:, 1:].max()) / scale)
        rounding = max(rounding, float(np.abs(expected - exact)[:, 1:].max()) / scale)
    return difference, rounding


def _histories(domain: Domain, rows: int, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, longest) items drawn from the catalogue and (rows,) lengths, the first of them the longest."""
    draw = torch.Generator().manual_seed(rows)
    lengths = torch.randint(1, longest + 1, (rows,), generator=draw)
    lengths[0] = longest
    items = torch.randint(1, domain.n_items + 1, (rows, longest), generator=draw)
    return items * (torch.arange(longest) < lengths[:, None]), lengths


def _bytes(model: nn.Module) -> int:
    return sum(value.nbytes for value in model.state_dict().values())
