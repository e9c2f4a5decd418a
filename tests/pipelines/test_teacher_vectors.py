"""Every instance and every item is encoded once, whoever encodes it and however often it is begun again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from ckd.data.batch import Batch, Batches
from ckd.data.domain import Domain
from ckd.errors import DataError
from ckd.pipelines import teacher_vectors
from ckd.pipelines.finetune_teacher import load_teacher
from ckd.pipelines.teacher_vectors import TeacherVectors, encode_teacher, gather

CPU = torch.device("cpu")


class Counting:
    """Encodes a history by its items, and remembers what it was asked for."""

    temperature = 0.5

    def __init__(self, similarity: str = "dot", causal: bool = False) -> None:
        self.similarity = similarity
        self.causal = causal
        self.instances: Counter[tuple[int, int, int]] = Counter()
        self.items: Counter[int] = Counter()
        self.sizes: list[int] = []

    def encode_instances(self, batch: Batch) -> torch.Tensor:
        self.sizes.append(len(batch))
        histories = batch.histories().double()
        rows = zip(batch.users.tolist(), batch.lengths.tolist(), batch.targets.tolist(), strict=True)
        self.instances.update(rows)
        powers = torch.stack([histories.sum(dim=1), (histories**2).sum(dim=1), batch.lengths.double()], dim=1)
        return (powers + 1).log().float()

    def encode_items(self, items: torch.Tensor) -> torch.Tensor:
        self.items.update(items.tolist())
        return torch.stack([items, items % 7, items % 3], dim=1).float()


@pytest.fixture
def domain(tiny: dict[str, Domain]) -> Domain:
    return list(tiny.values())[-1]


def whole(vectors: TeacherVectors) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate(vectors.instances), np.concatenate(vectors.items)


def expected(domain: Domain, similarity: str) -> tuple[np.ndarray, np.ndarray]:
    """Instance by instance, item by item."""
    teacher = Counting(similarity)
    instances = domain.instances("train")
    batches = Batches(domain, instances)
    users = torch.cat([teacher.encode_instances(batches(np.array([i]))) for i in range(len(instances))])
    items = torch.cat([torch.zeros(1, 3), teacher.encode_items(torch.arange(1, domain.n_items + 1))])
    if similarity == "cosine":
        users, items = F.normalize(users, dim=1), F.normalize(items, dim=1)
    return users.numpy(), items.numpy()


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("chunk", [50, 16384])
def test_everything_is_encoded_exactly_once(
    domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, similarity: str, causal: bool, chunk: int
) -> None:
    monkeypatch.setattr(teacher_vectors, "CHUNK", chunk)
    monkeypatch.setattr(teacher_vectors, "ITEM_BATCH", 9)
    teacher = Counting(similarity, causal)
    calls: list[tuple[int, int | None, str]] = []
    found = encode_teacher(
        tmp_path, teacher, domain, CPU, encode_batch=16, progress=lambda done, total, unit, note="": calls.append(
            (done, total, unit)
        )
    )  # fmt: skip
    n = len(domain.instances("train"))
    assert len(teacher.instances) == n
    assert set(teacher.instances.values()) == {1}
    # Padding is never asked for.
    assert teacher.items == Counter(range(1, domain.n_items + 1))
    assert max(teacher.sizes) == 16
    assert found.encoded == n + domain.n_items
    assert found.dim == 3
    for ours, theirs in zip(whole(found), expected(domain, similarity), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
        assert ours.dtype == np.float32
    assert not found.items[0][0].any()
    assert len(found.instances) == -(-n // chunk)
    total = n + domain.n_items
    assert calls[-1] == (total, total, "encoded")
    assert [done for done, _, _ in calls] == sorted({done for done, _, _ in calls})

    again = Counting(similarity, causal)
    reread = encode_teacher(tmp_path, again, domain, CPU)
    assert (again.instances, again.items, reread.encoded) == (Counter(), Counter(), 0)
    for ours, theirs in zip(whole(reread), whole(found), strict=True):
        assert np.array_equal(ours, theirs)


def test_only_what_is_missing_is_encoded(domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_vectors, "CHUNK", 50)
    first = whole(encode_teacher(tmp_path, Counting(), domain, CPU))
    (tmp_path / "instances-00002.npy").unlink()
    (tmp_path / "items-00000.npy").unlink()
    teacher = Counting()
    again = encode_teacher(tmp_path, teacher, domain, CPU)
    assert (sum(teacher.instances.values()), again.encoded) == (50, 50 + min(49, domain.n_items))
    assert all(np.array_equal(a, b) for a, b in zip(whole(again), first, strict=True))


def test_sharing_prefixes_changes_no_vector(studio: Any, tmp_path: Path) -> None:
    """UniSRec is causal; it must not matter that its encoder is told so."""
    teacher = load_teacher(studio.work, studio.domain, "unisrec-0")[0]
    shared = whole(encode_teacher(tmp_path / "shared", teacher, studio.domain, CPU))
    teacher.causal = False  # type: ignore[attr-defined]
    single = whole(encode_teacher(tmp_path / "single", teacher, studio.domain, CPU, encode_batch=7))
    np.testing.assert_allclose(shared[0], single[0], atol=1e-5)
    np.testing.assert_array_equal(shared[1], single[1])
    assert float(np.abs(shared[0]).max()) > 0.1


def test_log_scores_are_eq_2(domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_vectors, "CHUNK", 50)
    vectors = encode_teacher(tmp_path, Counting("cosine"), domain, CPU)
    users, items = expected(domain, "cosine")
    ids, chosen = np.array([3, 120, 49, 50, 3]), np.array([5, 1, 40, 5])
    logits = users[ids].astype(np.float64) @ items[chosen].astype(np.float64).T / 0.5
    exact = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(vectors.log_scores(ids, chosen, 0.5), exact, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 40), chunk=st.integers(1, 12), data=st.data())
def test_rows_are_gathered_across_chunks(size: int, chunk: int, data: st.DataObject) -> None:
    rows = np.array(data.draw(st.lists(st.integers(0, size - 1), max_size=30)), dtype=np.uint32)
    table = np.random.default_rng(size).normal(size=(size, 3)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher_vectors, "CHUNK", chunk)
        found = gather([table[at : at + chunk] for at in range(0, size, chunk)], rows)
    assert np.array_equal(found, table[rows])


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "rows", "type"])
def test_a_damaged_chunk_is_refused(domain: Domain, tmp_path: Path, damage: str) -> None:
    encode_teacher(tmp_path, Counting(), domain, CPU)
    path = tmp_path / "instances-00000.npy"
    content, values = path.read_bytes(), np.load(path)
    if damage == "rows":
        np.save(path, values[:-1])
    elif damage == "type":
        np.save(path, values.astype(np.float64))
    else:
        path.write_bytes({"empty": b"", "cut": content[:-40], "text": b"not numpy's"}[damage])
    with pytest.raises(DataError, match=r"instances-00000\.npy: .*Delete it to encode it again\."):
        encode_teacher(tmp_path, Counting(), domain, CPU)


#: A process with threads of its own cannot be forked safely.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}

#: Imports once, then forks: a process that is killed, and two at once that finish what it began.
SCRIPT = """
import importlib.util, json, os, signal, sys
from pathlib import Path
import torch
from ckd.data.domain import Domain
from ckd.pipelines import teacher_vectors
torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("here", sys.argv[1])
here = importlib.util.module_from_spec(spec)
sys.modules["here"] = here
spec.loader.exec_module(here)
teacher_vectors.CHUNK, teacher_vectors.POLL = 20, 0.01
folder = Path(sys.argv[2])

def fork(name, kill_after):
    pid = os.fork()
    if pid:
        return pid
    teacher = here.Counting()
    encode = teacher.encode_instances

    def counted(batch):
        if kill_after is not None and len(teacher.sizes) == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(batch)

    teacher.encode_instances = counted
    domain = Domain.load(folder / "domain")
    found = teacher_vectors.encode_teacher(folder / "vectors", teacher, domain, here.CPU, encode_batch=5)
    told = [sorted(map(list, teacher.instances.elements())), sorted(teacher.items.elements()), found.encoded]
    (folder / f"{name}.json").write_text(json.dumps(told))
    os._exit(0)

def wait(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

killed = wait(fork("killed", 14))
left = sorted(os.listdir(folder / "vectors"))
both = [fork(name, None) for name in ("one", "two")]
print(json.dumps([killed, left, [wait(pid) for pid in both]]))
"""


def test_a_killed_process_leaves_whole_chunks_and_others_share_the_rest(domain: Domain, tmp_path: Path) -> None:
    domain.save(tmp_path / "domain")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, __file__, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **ONE_THREAD},
    )
    assert done.returncode == 0, done.stderr
    killed, left, both = json.loads(done.stdout)
    assert (killed, both) == (-signal.SIGKILL, [0, 0])
    # 14 batches of 5 are three chunks of 20 and a half; of the fourth there is a claim, and no file under its name.
    assert [name for name in left if not name.startswith(".")] == [f"instances-0000{n}.npy" for n in range(3)]
    assert any(name.startswith(".instances-00003") for name in left)
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    instances = domain.instances("train")
    everyone = sorted(
        [int(u), int(length), int(t)]
        for u, length, t in zip(instances.users, instances.lengths, instances.targets, strict=True)
    )
    kept = sorted([int(instances.users[i]), int(instances.lengths[i]), int(instances.targets[i])] for i in range(60))
    assert sorted([*kept, *one[0], *two[0]]) == everyone
    assert sorted([*one[1], *two[1]]) == list(range(1, domain.n_items + 1))
    assert one[2] + two[2] == len(everyone) - 60 + domain.n_items
    vectors = [np.load(tmp_path / "vectors" / f"instances-{n:05d}.npy") for n in range(-(-len(everyone) // 20))]
    np.testing.assert_allclose(np.concatenate(vectors), expected(domain, "dot")[0], rtol=1e-6)
    assert not [path for path in (tmp_path / "vectors").iterdir() if path.name.endswith(".partial")]
