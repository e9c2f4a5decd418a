"""Published checkpoints: read safely, compared key by key."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ckd.errors import ConfigError, DataError
from ckd.nn.weights import read_weights
from ckd.pipelines.import_teacher import import_teacher

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def published(golden_dir: Path) -> Tensors:
    """A state dict of the transductive stage, which holds all keys."""
    with safe_open(golden_dir / "unisrec_golden.safetensors", "pt") as file:
        keys = [key for key in file.keys() if key.startswith("param.")]  # noqa: SIM118
        return {key.removeprefix("param."): file.get_tensor(key) for key in keys}


TABLES = ("item_embedding.weight", "plm_embedding.weight")


@pytest.mark.parametrize("form", ["safetensors", "plain", "nested"])
@pytest.mark.parametrize("stage", ["pretrain", "inductive", "transductive"])
def test_golden_unisrec_checkpoint_imports(
    published: Tensors, golden_dir: Path, tmp_path: Path, form: str, stage: str
) -> None:
    keys = json.loads((golden_dir / "unisrec_state_dict_keys.json").read_text())
    tensors = {key: published[key] for key in keys[stage]}
    path = tmp_path / ("model.safetensors" if form == "safetensors" else "model.pth")
    if form == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors if form == "plain" else {"state_dict": tensors, "epoch": 7}, path)
    found = import_teacher(tmp_path, "unisrec", path, {"n_heads": 2}, run="official")
    assert found.folder == tmp_path / "pretrained" / "official"
    assert found.left_out == tuple(key for key in TABLES if key in tensors)
    stored = read_weights(found.folder / "model.safetensors")
    assert set(stored) == set(keys["pretrain"])
    assert all(torch.equal(stored[key], published[key]) for key in stored)
    assert found.parameters == sum(value.numel() for value in stored.values())
    info = json.loads((found.folder / "teacher.json").read_text())
    assert info["stage"] == "pre-trained"
    assert info["feature_size"] == published["moe_adaptor.w_gate"].shape[0]


def test_every_key_that_does_not_fit_is_named_in_one_line(published: Tensors, tmp_path: Path) -> None:
    del published["LayerNorm.bias"]
    del published["moe_adaptor.experts.0.lin.weight"]
    published["something.else"] = torch.zeros(3)
    published["moe_adaptor.w_noise"] = torch.zeros(3, 3)
    path = tmp_path / "bad.safetensors"
    save_file(published, path)
    with pytest.raises(DataError) as caught:
        import_teacher(tmp_path, "unisrec", path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "missing: LayerNorm.bias, moe_adaptor.experts.0.lin.weight;" in message
    assert "unknown: something.else;" in message
    assert "moe_adaptor.w_noise (3, 3) where (" in message
    assert "\n" not in message
    assert not (tmp_path / "pretrained" / "unisrec").exists()


class Settings:
    """What a training program pickles beside the weights."""

    learning_rate = 0.1


def test_pickled_objects_are_refused_with_the_way_out(published: Tensors, tmp_path: Path) -> None:
    path = tmp_path / "full.pth"
    torch.save({"config": Settings(), "state_dict": published}, path)
    with pytest.raises(DataError, match=r"never executes pickles.*weights_only=False.*state_dict"):
        import_teacher(tmp_path, "unisrec", path)
    # The way out, as the message says it.
    converted = tmp_path / "tensors.pth"
    torch.save(torch.load(path, weights_only=False)["state_dict"], converted)
    import_teacher(tmp_path, "unisrec", converted)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.pth", b"", "not a readable"),
        ("noise.pth", b"\x00\x01\x02 no checkpoint", "never executes pickles|not a readable"),
        ("noise.safetensors", b"no checkpoint at all", "not a readable safetensors"),
        ("pickle.pth", pickle.dumps({"a": 1}), "never executes pickles|without any tensors|not a readable"),
    ],
)
def test_files_that_are_no_checkpoint_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        import_teacher(tmp_path, "unisrec", tmp_path / name)


@pytest.mark.parametrize("value", [[1, 2], {"epoch": 3}, {"state_dict": {}}])
def test_a_file_without_tensors_is_refused(tmp_path: Path, value: Any) -> None:
    torch.save(value, tmp_path / "odd.pth")
    with pytest.raises(DataError, match="without any tensors"):
        import_teacher(tmp_path, "unisrec", tmp_path / "odd.pth")


def test_refusals_of_the_pipeline(published: Tensors, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(published, path)
    with pytest.raises(DataError, match=r"absent\.pth: no such file"):
        import_teacher(tmp_path, "unisrec", tmp_path / "absent.pth")
    with pytest.raises(DataError, match=r"absent\.safetensors: no such file"):
        import_teacher(tmp_path, "unisrec", tmp_path / "absent.safetensors")
    with pytest.raises(ConfigError, match=r"no published checkpoint layout"):
        import_teacher(tmp_path, "vectors", path)
    with pytest.raises(ConfigError, match=r"unknown key 'n_head'.*Did you mean 'n_heads'"):
        import_teacher(tmp_path, "unisrec", path, {"n_head": 2})
    hidden = len(published["LayerNorm.weight"])
    with pytest.raises(ConfigError, match=rf"hidden_size={2 * hidden}, but .* has {hidden}"):
        import_teacher(tmp_path, "unisrec", path, {"hidden_size": 2 * hidden})
    import_teacher(tmp_path, "unisrec", path)
    with pytest.raises(DataError, match="exists already"):
        import_teacher(tmp_path, "unisrec", path)
