"""The example of docs/new-student.md, installed and used as its reader would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
DOCUMENT = ROOT / "docs" / "new-student.md"

#: What the example must do once it is installed: be found, be trained, be loaded again, and rank better than chance.
USE = """
import sys
from pathlib import Path

from ckd.config import PlanConfig, RunConfig
from ckd.data.example import TINY, make_example
from ckd.evaluation.ranks import rank_targets
from ckd.pipelines.plan import make_plan
from ckd.pipelines.train_student import load_student, train_student
from ckd.students import STUDENTS

work = Path(sys.argv[1])
domain = list(make_example(seed=7, size=TINY).values())[-1]
domain = domain.save(work / "domains" / domain.name)
assert "recency" in STUDENTS.names()
assert STUDENTS.get("recency").__module__ == "ckd_recency"
config = RunConfig(student={"size": 16}, plan=PlanConfig(batch_size=64, epochs=8), train={"lr": 0.01, "device": "cpu"})
make_plan(work, domain.name, config)
done = train_student(work, domain.name, "recency", config)
assert train_student(work, domain.name, "recency", config).reused
student, described = load_student(work, domain, done.folder.name)
assert described["identity"]["config"] == {"size": 16, "dropout": 0.1}
assert len(rank_targets(student, domain, "test")) == domain.n_users
print("recall@10", done.trained.metrics["recall@10"], "by chance", 10 / domain.n_items)
assert done.trained.metrics["recall@10"] > 10 / domain.n_items
"""


def blocks(language: str) -> list[str]:
    """The document's blocks of code in a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on the module path that holds the example as an installer leaves it, and its contract test."""
    folder = tmp_path_factory.mktemp("site")
    (project,) = (tomllib.loads(text) for text in blocks("toml"))
    code, contract = blocks("python")
    (folder / "ckd_recency.py").write_text(code)
    (folder / "test_contract.py").write_text(contract)
    name, version = project["project"]["name"], project["project"]["version"]
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    groups = project["project"]["entry-points"].items()
    lines = [f"[{group}]\n" + "".join(f"{n} = {v}\n" for n, v in points.items()) for group, points in groups]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return folder


def run(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=site, env=environment, capture_output=True, text=True, timeout=240
    )


def test_the_student_example_is_complete_in_under_sixty_lines() -> None:
    code, _ = blocks("python")
    (project,) = blocks("toml")
    assert len((code + project).splitlines()) < 60


def test_the_student_example_is_found_and_trained_by_its_name(site: Path, tmp_path: Path) -> None:
    done = run(site, "-W", "error", "-c", USE, str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_student_example_passes_the_contract(site: Path) -> None:
    done = run(site, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "test_contract.py")
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 15
    assert "failed" not in done.stdout
