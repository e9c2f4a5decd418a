"""Several processes of `torchrun` train what one process trains, end together, and write once."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from ckd import cli
from ckd.distill.parallel import Parallel
from ckd.distill.trainer import Trainer

#: Against one process's: the gradients of a step, relative to the largest, which are sums of float32 in another order;
#: and weights after all steps, and logged losses, after what Adam makes of that, which divides a gradient by its size.
GRADIENTS = 2e-6
WEIGHTS = {"rtol": 1e-3, "atol": 2e-5}
LOSSES = {"rel": 1e-5}

PROCESSES = 2

NO_DROPOUT = {"hidden_dropout": 0.0, "attention_dropout": 0.0}

#: Name: settings of a run that must not depend on the number of processes.
EQUAL: dict[str, dict[str, Any]] = {
    "base": {"student": NO_DROPOUT},
    "distilled": {"student": NO_DROPOUT, "teachers": 3},
    "averaged": {"student": NO_DROPOUT, "teachers": 2, "ema": 0.8},
    "clipped": {"student": NO_DROPOUT, "teachers": 2, "clip_norm": 0.05},
    "instances": {"student": NO_DROPOUT, "teachers": 3, "plan": {"layout": "instance", "batch_size": 13}},
    "everywhere": {"student": NO_DROPOUT, "teachers": 3, "everywhere": True},
    "in-batch": {"student": NO_DROPOUT, "teachers": 1, "ce": "in-batch"},
    "logq": {"student": NO_DROPOUT, "ce": "in-batch-logq"},
    "one-row": {
        "student": NO_DROPOUT,
        "teachers": 1,
        "users": [4, 4, 4],
        "plan": {"layout": "instance", "batch_size": 2, "buckets": 1, "epochs": 2},
    },
    "large": {"student": {**NO_DROPOUT, "hidden_size": 64, "n_heads": 2}, "teachers": 1, "large": 500, "lr": 1e-3},
    "bert4rec": {"model": "bert4rec", "student": {**NO_DROPOUT, "last_share": 1.0}, "teachers": 1},
    "lightgcn": {"model": "lightgcn", "student": {"embedding_size": 8}, "teachers": 1},
    "deepfm": {"model": "deepfm", "student": {"embedding_size": 8, "mlp_sizes": (8,), "dropout": 0.0}, "teachers": 1},
}

#: Dropout on, and a checkpoint every second step.
DRAWN: dict[str, Any] = {"teachers": 3, "seed": 4, "checkpoint_steps": 2, "lr": 0.003}


class SameNegatives(nn.Module):
    """In place of a sampler: the negative depends on the user alone, not on who draws when."""

    def forward(self, users: torch.Tensor, n: int = 1) -> torch.Tensor:
        return (users[:, None] * 7 + 3) % 20 + 1


def load_toys(path: Path) -> ModuleType:
    """The builder of small trainers, in a process that pytest does not run."""
    spec = importlib.util.spec_from_file_location("toys", path)
    assert spec is not None
    assert spec.loader is not None
    toys = importlib.util.module_from_spec(spec)
    sys.modules["toys"] = toys
    spec.loader.exec_module(toys)
    return toys


def make(toys: ModuleType, folder: Path, options: dict[str, Any], parallel: Parallel | None = None) -> Trainer:
    """A trainer by the settings above."""
    from ckd.config import parse
    from ckd.distill import parallel as room
    from ckd.students import STUDENTS

    told = dict(options)
    room.LARGE = told.pop("large", 1 << 20)
    domain = toys._domain(told.pop("users", [4 + u * 7 % 9 for u in range(24)]), n_items=20)
    if name := told.pop("model", None):
        student = STUDENTS.get(name)
        sizes = {"hidden_size": 8, "inner_size": 8, "n_layers": 1} if name == "bert4rec" else {}
        torch.manual_seed(0)
        told["model"] = student.create(parse(student.Config, {**sizes, **told.pop("student")}, name), domain)
        if getattr(told["model"], "negatives", None) is not None:
            told["model"].negatives = SameNegatives()
    trainer: Trainer = toys.build_trainer(folder, domain=domain, parallel=parallel or Parallel(), **told)
    return trainer


SCRIPT = """
import importlib.util, json, os, signal, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("tests", sys.argv[1])
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
tests.play(Path(sys.argv[2]))
"""


def play(out: Path) -> None:
    """What each process of the launch does."""
    import ckd.data.atomic
    from ckd.distill.parallel import joined
    from ckd.errors import CkdError

    torch.set_num_threads(1)
    ckd.data.atomic.fsync_path = lambda path: None
    toys = load_toys(Path(__file__).with_name("conftest.py"))

    def stop(*_: Any) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    with joined("cpu") as here:
        (out / f"rank{here.rank}").mkdir()

        def fit(name: str, options: dict[str, Any], **changes: Any) -> None:
            trainer = make(toys, out / name, options, here)
            for attribute, value in changes.items():
                setattr(
                    trainer, attribute, value or keep_gradients(trainer, out / f"rank{here.rank}" / f"{name}-first")
                )
            try:
                trained = trainer.fit()
            except KeyboardInterrupt:
                return
            save_file(dict(trainer.model.state_dict()), out / f"rank{here.rank}" / f"{name}.safetensors")
            (out / f"rank{here.rank}" / f"{name}.json").write_text(json.dumps(trained.rows))

        for name, options in EQUAL.items():
            fit(name, options, on_step=None)
        fit("whole", DRAWN)
        for count in (5, 3, None):
            left = [count or -1]
            fit("stopped", DRAWN, on_step=stop)
        left = [9]
        fit("handed-over", {**DRAWN, "student": NO_DROPOUT}, on_step=stop)
        # Every process measures something else; the first one's counts.
        scripted = iter([0.1, 0.2, 0.2, 0.2] if here.first else [0.5, 0.4, 0.3, 0.6])
        fit("decided", {"plan": {"buckets": 1}, "patience": 2}, validate=lambda: {"ndcg@10": next(scripted)})
        draws = here.gather(float(torch.rand(())))
        (out / f"rank{here.rank}" / "draws.json").write_text(json.dumps(draws))
        # The last process is killed in the midst of an epoch.
        left = [3]
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        trainer = make(toys, out / "lost", {}, here)
        if not here.first:
            trainer.on_step = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        try:
            trainer.fit()
        except CkdError as error:
            (out / f"rank{here.rank}" / "lost.txt").write_text(str(error))
            os._exit(1)


def keep_gradients(trainer: Trainer, path: Path) -> Callable[..., None]:
    """Writes the gradients of the first step, when told of it."""

    def keep(*_: Any) -> None:
        if not path.exists():
            save_file({n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}, path)

    return keep


def torchrun(*words: Any, processes: int = PROCESSES) -> subprocess.CompletedProcess[str]:
    """Run a program in several processes."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)),
            *map(str, words),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


# --- the same training -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs of two processes."""
    folder = tmp_path_factory.mktemp("parallel")
    (folder / "play.py").write_text(SCRIPT)
    done = torchrun(folder / "play.py", Path(__file__), folder)
    assert (folder / "rank0" / "lost.txt").exists(), done.stderr
    assert done.returncode == 1
    return folder


@pytest.fixture(scope="module")
def toys() -> ModuleType:
    return load_toys(Path(__file__).with_name("conftest.py"))


TIMING = ("seconds", "instances_per_second", "waiting_share")


def rows(folder: Path, name: str, rank: int = 0) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / f"rank{rank}" / f"{name}.json").read_text())
    return found


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """All weights but the bias of an attention's key, which a softmax forgets: rounding is all the gradient it has."""
    assert found.keys() == expected.keys()
    for name in found.keys() - {name for name in found if name.endswith("key.bias")}:
        torch.testing.assert_close(found[name], expected[name], **WEIGHTS, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("name", EQUAL)
def test_processes_together_train_what_one_trains(played: Path, toys: ModuleType, tmp_path: Path, name: str) -> None:
    trainer = make(toys, tmp_path / name, EQUAL[name])
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    sizes = trainer.plan.sizes
    trainer.on_step = keep_gradients(trainer, tmp_path / "first")
    alone = trainer.fit().rows
    expected = load_file(tmp_path / "first")
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for rank in range(PROCESSES):
        gradients = load_file(played / f"rank{rank}" / f"{name}-first")
        assert gradients.keys() == expected.keys()
        for key in gradients:
            torch.testing.assert_close(gradients[key], expected[key], rtol=GRADIENTS, atol=GRADIENTS * largest)
    last = {k: v for k, v in load_file(tmp_path / name / "last.safetensors").items() if k.startswith("model.")}
    found = {k: v for k, v in load_file(played / name / "last.safetensors").items() if k.startswith("model.")}
    close(found, last)
    moved = max(float((value - before[key.removeprefix("model.")]).abs().max()) for key, value in last.items())
    assert moved > 100 * WEIGHTS["atol"]
    together = rows(played, name)
    assert len(together) == len(alone) > 1
    for a, b in zip(together, alone, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - set(TIMING):
            near = pytest.approx(b[key], abs=0.02) if key.startswith("valid") else pytest.approx(b[key], **LOSSES)
            assert a[key] == near, key
    if name == "one-row":
        assert 1 in sizes


def test_every_process_ends_with_the_same_bits(played: Path) -> None:
    for name in (*EQUAL, "whole", "stopped", "decided"):
        first, other = (load_file(played / f"rank{rank}" / f"{name}.safetensors") for rank in range(PROCESSES))
        assert all(torch.equal(first[key], other[key]) for key in first), name
        # The log is the first process's, times and all.
        assert rows(played, name, 0) == rows(played, name, 1)


def test_processes_draw_for_themselves(played: Path) -> None:
    first, other = json.loads((played / "rank0" / "draws.json").read_text())
    assert first != other


def test_only_the_first_process_writes(played: Path) -> None:
    names = ["best.json", "best.safetensors", "last.json", "last.safetensors", "log.csv"]
    for name in (*EQUAL, "whole", "stopped", "decided"):
        assert sorted(path.name for path in (played / name).iterdir()) == names


def test_stopped_and_resumed_together_ends_in_the_same_bits(played: Path) -> None:
    assert (played / "stopped" / "best.safetensors").read_bytes() == (
        played / "whole" / "best.safetensors"
    ).read_bytes()
    stopped, whole = (load_file(played / name / "last.safetensors") for name in ("stopped", "whole"))
    assert {"rng.cpu", "rng.cpu.1"} <= stopped.keys() == whole.keys()
    assert not torch.equal(whole["rng.cpu"], whole["rng.cpu.1"])
    assert [key for key in whole if not torch.equal(stopped[key], whole[key])] == []


def test_another_number_of_processes_goes_on(played: Path, toys: ModuleType, tmp_path: Path) -> None:
    options = {**DRAWN, "student": NO_DROPOUT}
    state = json.loads((played / "handed-over" / "last.json").read_text())
    assert (state["epoch"], state["finished"]) != (0, True)
    make(toys, played / "handed-over", options).fit()
    make(toys, tmp_path / "alone", options).fit()
    close(*(load_file(folder / "best.safetensors") for folder in (played / "handed-over", tmp_path / "alone")))


def test_the_first_process_decides_when_to_stop(played: Path) -> None:
    found = rows(played, "decided")
    assert [row["valid_ndcg@10"] for row in found] == [0.1, 0.2, 0.2, 0.2]
    assert json.loads((played / "decided" / "best.json").read_text())["log"]["epoch"] == 1


def test_a_lost_process_is_an_error_of_one_line(played: Path) -> None:
    message = (played / "rank0" / "lost.txt").read_text()
    assert message.startswith("process 0 lost the others it trains with (")
    assert "\n" not in message


# --- shares ----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 600), st.integers(1, 17))
def test_shares_make_up_the_batch(n: int, size: int) -> None:
    shares = [Parallel(rank, size).share(n) for rank in range(size)]
    counted = np.zeros(n, dtype=int)
    for share in shares:
        rows = len(range(n)[share.rows])
        assert rows > 0
        assert share.size == n
        assert share.weight in (0.0, rows / n)
        if share.weight:
            counted[share.rows] += 1
            assert n // size <= rows <= -(-n // size)
    assert (counted == 1).all()
    assert sum(share.weight for share in shares) == pytest.approx(1)


def test_seeds_of_processes() -> None:
    seeds = {Parallel(rank, 4).seed(seed) for rank in range(4) for seed in range(3)}
    assert len(seeds) == 12
    assert [Parallel(0, 4).seed(seed) for seed in range(3)] == [0, 1, 2]
    assert all(0 <= seed < 2**64 for seed in seeds)


# --- the command -----------------------------------------------------------------------------------------------------


def command(studio: Any, config: Path, *more: str) -> list[str]:
    words = ["train-student", "--domain", studio.domain.name, "--work", studio.work, "--config", config, "--json"]
    student = ["-o", "student.hidden_dropout=0", "-o", "student.attention_dropout=0"]
    return [*map(str, words), *student, *more]


@pytest.fixture
def config(studio: Any, tmp_path: Path) -> Path:
    path = tmp_path / "ckd.yaml"
    path.write_text(json.dumps(studio.config.model_dump(mode="json", by_alias=True, exclude_unset=True)))
    return path


#: The second process fails in the second epoch, unless `torchrun` has started it anew.
BROKEN = """
import os
from ckd.distill.trainer import Trainer
from ckd.errors import StoreError
whole = Trainer._prepare
def broken(self, raw):
    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and self.state.epoch == 1:
        raise StoreError("part-00000.parquet: damaged.")
    return whole(self, raw)
Trainer._prepare = broken
from ckd.cli import main
main()
"""


def test_the_command_in_two_processes_one_of_which_fails_at_first(
    studio: Any,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The failure ends both with one line; started anew, they go on and end as one process does."""
    (tmp_path / "broken.py").write_text(BROKEN)
    words = command(studio, config, "-o", "train.checkpoint_steps=1")
    done = torchrun("--max-restarts", 1, "--", tmp_path / "broken.py", *words, "--run", "two")
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "ckd:" in line] == ["ckd: part-00000.parquet: damaged."]
    assert "failed (exitcode: 1)" in done.stderr
    assert "Traceback" not in done.stderr
    together = json.loads(done.stdout)
    monkeypatch.setattr(sys, "argv", ["ckd", *words, "--run", "one"])
    cli_ended(0)
    alone = json.loads(capsys.readouterr().out)
    for a, b in zip(together["log"], alone["log"], strict=True):
        assert (a["loss"], a["kd"]) == (pytest.approx(b["loss"], **LOSSES), pytest.approx(b["kd"], **LOSSES))
    one, two = (studio.work / "students" / studio.domain.name / run for run in ("one", "two"))
    close(load_file(two / "best.safetensors"), load_file(one / "best.safetensors"))
    described = [json.loads((folder / "student.json").read_text()) for folder in (one, two)]
    assert [each["processes"] for each in described] == [1, 2]
    assert described[0]["identity"] == described[1]["identity"]
    (parts,) = {tuple(sorted(path.name for path in folder.iterdir())) for folder in (one, two)}
    assert not any("partial" in name for name in parts)


def cli_ended(code: int) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert int(ended.value.code or 0) == code


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes this process one of several that `torchrun` has started; their store lies here."""
    store = TCPStore("127.0.0.1", 0, is_master=True)

    def set_up(rank: int, **environment: str) -> None:
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": store.port}
        names = {**own, "TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", **environment}
        for name, value in names.items():
            monkeypatch.setenv(name, str(value))

    return set_up


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("finetune-teacher --domain d --teacher t", "ckd finetune-teacher: only train-student can be started by tor"),
        (
            "train-student --domain d -o train.lr=-1",
            "ckd: override 'train.lr=-1': train.lr=-1: input should be greater than 0",
        ),
        (
            "train-student --domain d -o train.device=cuda:0 --no-distill",
            "ckd: train.device='cuda:0': 2 processes need",
        ),
        pytest.param(
            "train-student --domain d -o train.device=cuda --no-distill",
            "ckd: train.device='cuda': 2 processes on a machine with 0 GPUs. Start one process for each GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs"),
        ),
    ],
)
def test_an_error_of_all_is_said_once(
    launch: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
    message: str,
) -> None:
    told = []
    for rank in (1, 0):
        launch(rank)
        monkeypatch.setattr(sys, "argv", ["ckd", *words.split()])
        cli_ended(1)
        told.append(capsys.readouterr().err)
    assert message in told[0]
    assert told[0].count("\n") == 1
    assert told[1] == ""


def test_an_error_is_said_where_nobody_is_left_to_ask(
    launch: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launch(0, MASTER_PORT="no port")
    monkeypatch.setattr(sys, "argv", ["ckd", "plan"])
    cli_ended(1)
    assert "only train-student" in capsys.readouterr().err
