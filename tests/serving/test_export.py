"""Exports: what is in them, that they score as the student does, and what is refused."""

from __future__ import annotations

import importlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from ckd.data.domain import Domain, columns
from ckd.errors import CkdError, ConfigError, DataError
from ckd.pipelines import export_onnx
from ckd.pipelines.export import export_student
from ckd.pipelines.export_onnx import _OnnxGRU
from ckd.pipelines.recommend import batch_of
from ckd.pipelines.train_student import load_student

Serving = tuple[Path, Domain]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- ONNX ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("student", ["sasrec", "bert4rec", "gru4rec", "fmlprec"])
def test_an_onnx_graph_scores_as_the_student(serving: Serving, tmp_path: Path, student: str) -> None:
    pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    work, domain = serving
    done = export_student(work, domain.name, student, "onnx", tmp_path / "out")
    assert done.files == ("export.json", "items.json", "model.onnx")
    assert done.about["difference"] <= 1e-5
    assert done.about["rounding"] <= 1e-6
    assert done.bytes == sum(len(content) for content in contents(done.folder).values())
    assert json.loads((done.folder / "items.json").read_text()) == [None, *domain.item_table[columns.RAW].to_list()]
    session = runtime.InferenceSession(str(done.folder / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [(each.name, each.shape) for each in session.get_inputs()] == [
        ("histories", ["batch", "length"]),
        ("lengths", ["batch"]),
    ]
    assert session.get_modelmeta().custom_metadata_map["fingerprint"] == domain.fingerprint
    histories = [[3], [5, 1, 5, 2], [1 + n % 9 for n in range(domain.history_cap)]]
    batch = batch_of(histories, domain.history_cap)
    feeds = {"histories": batch.sequences.numpy(), "lengths": batch.lengths.numpy()}
    (scores,) = session.run(["scores"], feeds)
    model, _ = load_student(work, domain, student)
    with torch.no_grad():
        expected = model.score_items(model.encode(batch)).numpy()
    np.testing.assert_allclose(scores[:, 1:], expected[:, 1:], atol=1e-5 * max(1, np.abs(expected).max()), rtol=0)
    assert np.isneginf(scores[:, 0]).all()
    # Nothing of this machine is in it.
    assert str(Path(export_onnx.__file__).parent).encode() not in (done.folder / "model.onnx").read_bytes()


def test_the_same_student_gives_the_same_graph_and_no_remarks(
    serving: Serving, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    torchs = logging.getLogger("torch.onnx")
    before = torchs.level
    with caplog.at_level(logging.INFO, "torch.onnx"):
        one, other = (export_student(*_of(serving), "gru4rec", "onnx", tmp_path / name) for name in "ab")
        assert torchs.level == logging.INFO
    assert torchs.level == before
    assert [record for record in caplog.records if record.name.startswith("torch.onnx")] == []
    assert contents(one.folder) == contents(other.folder)


def test_a_graph_that_scores_otherwise_is_not_kept(
    serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    wrong = _OnnxGRU.forward

    def forward(self: _OnnxGRU, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        return wrong(self, x)[0] * 1.001, None

    monkeypatch.setattr(_OnnxGRU, "forward", forward)
    with pytest.raises(
        CkdError, match=r"gru4rec: onnxruntime's scores differ from torch's by \d.*nothing was exported"
    ):
        export_student(*_of(serving), "gru4rec", "onnx", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("difference", "rounding", "kept"),
    [(1e-5, 0.0, True), (1.1e-5, 0.0, False), (1.9e-5, 1e-5, True), (2.1e-5, 1e-5, False), (float("nan"), 0.0, False)],
)
def test_what_difference_is_accepted(
    serving: Serving,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    difference: float,
    rounding: float,
    kept: bool,
) -> None:
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")

    class Program:
        def save(self, path: Path, external_data: bool) -> None:
            assert not external_data
            path.touch()

    monkeypatch.setattr(export_onnx, "_export", lambda *_: Program())
    monkeypatch.setattr(export_onnx, "_difference", lambda *_: (difference, rounding))
    if kept:
        assert export_student(*_of(serving), "sasrec", "onnx", tmp_path / "out").about["difference"] == difference
    else:
        with pytest.raises(CkdError, match="differ"):
            export_student(*_of(serving), "sasrec", "onnx", tmp_path / "out")
    assert (tmp_path / "out").exists() == kept


@pytest.mark.parametrize("student", ["fm", "deepfm", "lightgcn"])
def test_no_graph_of_a_student_that_reads_users(serving: Serving, tmp_path: Path, student: str) -> None:
    with pytest.raises(ConfigError, match=f"{student} cannot be exported to ONNX: it scores for users by number"):
        export_student(*_of(serving), student, "onnx", tmp_path / "out")


def test_a_student_that_torch_cannot_export(serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    monkeypatch.setattr(_OnnxGRU, "forward", lambda self, x: (x[: int(x.sum())], None))
    with pytest.raises(ConfigError, match=r"^gru4rec cannot be exported to ONNX: ") as caught:
        export_student(*_of(serving), "gru4rec", "onnx", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_onnx_without_its_packages(serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = importlib.import_module

    def missing(name: str, *rest: Any) -> Any:
        if name == "onnxscript":
            raise ModuleNotFoundError(name="onnxscript")
        return load(name, *rest)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"ONNX needs onnxscript: pip install 'ckd-mdsr\[onnx\]'"):
        export_student(*_of(serving), "sasrec", "onnx", tmp_path / "out")


# --- RecBole ---------------------------------------------------------------------------------------------------------


def appearing(folder: Path, name: str) -> list[str]:
    """Items in RecBole's order: the targets of the split files as they come, then the item file."""
    found = [
        line.split("\t")[2]
        for split in ("train", "valid", "test")
        for line in (folder / name / f"{name}.{split}.inter").read_text().splitlines()[1:]
    ]
    return list(dict.fromkeys([*found, *(folder / name / f"{name}.item").read_text().splitlines()[1:]]))


@pytest.mark.parametrize("student", ["sasrec", "gru4rec"])
def test_a_recbole_checkpoint(serving: Serving, tmp_path: Path, student: str) -> None:
    work, domain = serving
    done = export_student(work, domain.name, student, "recbole", tmp_path / "out")
    name = domain.name
    assert [file for file in done.files if "/" in file] == [
        f"{name}/{name}.item",
        *(f"{name}/{name}.{split}.inter" for split in ("test", "train", "valid")),
    ]
    found = torch.load(done.folder / "model.pth", weights_only=True)
    assert list(found) == [
        *("config", "epoch", "cur_step", "best_valid_score"),
        *("state_dict", "other_parameter", "optimizer"),
    ]
    assert (found["epoch"], found["best_valid_score"]) == (4, 0.25)
    assert found["config"]["model"] == done.about["model"] == {"sasrec": "SASRec", "gru4rec": "GRU4Rec"}[student]
    model, _ = load_student(work, domain, student)
    assert found["state_dict"].keys() == model.state_dict().keys()
    order = appearing(done.folder, name)
    raw = domain.item_table[columns.RAW].to_list()
    assert sorted(order) == sorted(raw)
    assert order != raw
    for key, value in model.state_dict().items():
        if key == "item_embedding.weight":
            value = value[[0, *(1 + raw.index(token) for token in order)]]
        assert torch.equal(found["state_dict"][key], value), key
    torch.optim.Adam(model.parameters()).load_state_dict(found["optimizer"])
    settings = yaml.safe_load((done.folder / "recbole.yaml").read_text())
    assert settings["MAX_ITEM_LIST_LENGTH"] == domain.history_cap
    assert float(settings.get("layer_norm_eps", 1e-12)) == 1e-12
    assert {"model": found["config"]["model"], "dataset": name, **settings} == found["config"]


def test_the_rows_of_the_split_files(serving: Serving, tmp_path: Path) -> None:
    domain = serving[1]
    folder = export_student(*_of(serving), "sasrec", "recbole", tmp_path / "out").folder
    raw = ["", *domain.item_table[columns.RAW].to_list()]
    for split in ("train", "valid", "test"):
        header, *rows = (folder / domain.name / f"{domain.name}.{split}.inter").read_text().splitlines()
        assert header == "user_id:token\titem_id_list:token_seq\titem_id:token"
        instances = domain.instances(split)
        assert len(rows) == len(instances)
        for row in (0, len(rows) - 1):
            history = domain.items[instances.starts[row] : instances.stops[row]]
            user = domain.user_ids[int(instances.users[row])]
            assert rows[row] == f"{user}\t{' '.join(raw[i] for i in history)}\t{raw[instances.targets[row]]}"


def test_bert4rec_as_recbole_ranks_with_it(serving: Serving, tmp_path: Path, save_run: Any) -> None:
    with pytest.raises(ConfigError, match=r"ranks otherwise in RecBole.*student.drop_first=always"):
        export_student(*_of(serving), "bert4rec", "recbole", tmp_path / "out")
    domain = serving[1].save(tmp_path / "domains" / serving[1].name)
    model = save_run(tmp_path, domain, "bert4rec", drop_first="always")
    folder = export_student(tmp_path, domain.name, "bert4rec", "recbole").folder
    assert folder == tmp_path / "students" / domain.name / "bert4rec" / "export-recbole"
    state = torch.load(folder / "model.pth", weights_only=True)["state_dict"]
    raw = domain.item_table[columns.RAW].to_list()
    order = [0, *(1 + raw.index(token) for token in appearing(folder, domain.name))]
    assert torch.equal(state["output_bias"], model.output_bias[order])
    assert torch.equal(state["item_embedding.weight"], model.item_embedding.weight[[*order, domain.n_items + 1]])


@pytest.mark.parametrize("awkward", ["a b", "NA", 'say "x"', "tab\tbed", ""])
def test_ids_that_recbole_would_misread_become_numbers(
    serving: Serving, tmp_path: Path, save_run: Any, awkward: str
) -> None:
    table = serving[1].item_table
    renamed = table.with_columns(pl.Series(columns.RAW, [awkward, *table[columns.RAW].to_list()[1:]]))
    domain = Domain(**{**_fields(serving[1]), "item_table": renamed}).save(tmp_path / "domains" / serving[1].name)
    save_run(tmp_path, domain, "gru4rec")
    done = export_student(tmp_path, domain.name, "gru4rec", "recbole")
    assert done.about["tokens"] == "item numbers"
    assert sorted(map(int, appearing(done.folder, domain.name))) == list(range(1, domain.n_items + 1))
    assert json.loads((done.folder / "items.json").read_text())[1] == awkward


def test_what_recbole_has_no_model_for(serving: Serving, tmp_path: Path) -> None:
    for student in ("fmlprec", "fm", "lightgcn"):
        with pytest.raises(
            ConfigError, match=f"{student} cannot be exported to RecBole: only bert4rec, gru4rec, sasrec"
        ):
            export_student(*_of(serving), student, "recbole", tmp_path / "out")


def test_an_empty_split_is_refused(serving: Serving, tmp_path: Path, save_run: Any) -> None:
    split = np.where(serving[1].split == 1, 0, serving[1].split).astype(np.uint8)
    domain = Domain(**{**_fields(serving[1]), "split": split}).save(tmp_path / "domains" / serving[1].name)
    save_run(tmp_path, domain, "sasrec")
    with pytest.raises(DataError, match="no valid target with a history"):
        export_student(tmp_path, domain.name, "sasrec", "recbole", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- both ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listing", [True, False])
def test_an_export_replaces_an_export_and_nothing_else(serving: Serving, tmp_path: Path, listing: bool) -> None:
    out = tmp_path / "out"
    out.mkdir()
    done = export_student(*_of(serving), "sasrec", "recbole", out)
    first = contents(out)
    about = json.loads(first["export.json"])
    assert about == {**done.about, "files": sorted(first)} == {**done.about, "files": list(done.files)}
    if not listing:
        (out / "export.json").write_text(json.dumps(done.about))
    assert contents(export_student(*_of(serving), "sasrec", "recbole", out).folder) == first
    if not listing:
        (out / "export.json").write_text(json.dumps(done.about))
    for foreign in (out / "notes.md", out / serving[1].name / "deep" / "notes.md"):
        foreign.parent.mkdir(exist_ok=True)
        foreign.write_text("years")
        with pytest.raises(ConfigError, match=rf"{foreign}: not of the export in this folder.*Move it away, or name"):
            export_student(*_of(serving), "sasrec", "recbole", out)
        assert foreign.read_text() == "years"
        foreign.unlink()
    (out / "mine").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match=rf"{out / 'mine'}: not of the export"):
        export_student(*_of(serving), "sasrec", "recbole", out)


def test_an_export_without_a_list_of_files_may_have_what_its_kind_has(serving: Serving, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = export_student(*_of(serving), "sasrec", "recbole", out)
    for path in out.rglob("*.*"):
        path.unlink()
    (out / "export.json").write_text(json.dumps({**done.about, "to": "onnx"}))
    for name in ("items.json", "model.onnx", "model.onnx.data"):
        (out / name).touch()
    assert export_student(*_of(serving), "sasrec", "recbole", out).files == done.files
    (out / "export.json").write_text(json.dumps({**done.about, "to": "onnx"}))
    with pytest.raises(ConfigError, match=r"model\.pth: not of the export|\.item: not of the export"):
        export_student(*_of(serving), "sasrec", "recbole", out)


@pytest.mark.parametrize(
    "described",
    [None, "", "[]", '{"name": "my bookmarks"}', '{"to": "onnx"}', "another", "unlisted"],
)
def test_what_is_no_export_is_refused(serving: Serving, tmp_path: Path, described: str | None) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years")
    if described in ("another", "unlisted"):
        about = export_student(*_of(serving), "sasrec", "recbole", tmp_path / "other").about
        wrong = {"to": ["onnx"]} if described == "another" else {"files": [["thesis.tex"]]}
        described = json.dumps({**about, **wrong})
    if described is not None:
        (out / "export.json").write_text(described)
    before = contents(out)
    with pytest.raises(ConfigError, match="something here that is no export"):
        export_student(*_of(serving), "sasrec", "recbole", out)
    assert contents(out) == before


def test_a_file_is_no_place_for_an_export(serving: Serving, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="something here that is no export"):
        export_student(*_of(serving), "sasrec", "recbole", tmp_path / "file")


def test_an_export_goes_where_a_link_leads(serving: Serving, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for _ in range(2):
        done = export_student(*_of(serving), "sasrec", "recbole", tmp_path / "link")
        assert sorted(contents(tmp_path / "real")) == list(done.files)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]
        assert (tmp_path / "link").is_symlink()
    assert done.bytes == sum(len(content) for content in contents(tmp_path / "real").values()) > 0


@pytest.mark.parametrize("out", [".", "..", "../..", "../../link"])
def test_the_folder_that_a_command_is_run_in_is_left_alone(
    serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a")
    monkeypatch.chdir(tmp_path / "a" / "b")
    with pytest.raises(ConfigError, match="where the command is run, or above it"):
        export_student(*_of(serving), "sasrec", "recbole", Path(out))
    assert export_student(*_of(serving), "sasrec", "recbole", Path("c")).folder == tmp_path / "a" / "b" / "c"


@pytest.mark.parametrize("row", [None, {"epoch": 4, "valid_ndcg@10": None}, {"epoch": "x", "valid_ndcg@10": 0.5}])
def test_a_best_epoch_without_numbers_is_told_in_a_line(
    serving: Serving, tmp_path: Path, save_run: Any, row: dict[str, Any] | None
) -> None:
    domain = serving[1].save(tmp_path / "domains" / serving[1].name)
    save_run(tmp_path, domain, "gru4rec")
    best = tmp_path / "students" / domain.name / "gru4rec" / "best.json"
    best.write_text(json.dumps({"log": row}))
    with pytest.raises(DataError, match=r"best\.json: its log row has no numbers for epoch and valid_ndcg@10"):
        export_student(tmp_path, domain.name, "gru4rec", "recbole")


def test_wrong_names_are_refused(serving: Serving, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="export to 'tflite': onnx or recbole"):
        export_student(*_of(serving), "sasrec", "tflite", tmp_path / "out")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no such file"):
        export_student(*_of(serving), "nothing", "recbole", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def _of(serving: Serving) -> tuple[Path, str]:
    return serving[0], serving[1].name


def _fields(domain: Domain) -> dict[str, Any]:
    names = ("name", "indptr", "items", "split", "item_table", "user_ids", "history_cap")
    return {name: getattr(domain, name) for name in names}
