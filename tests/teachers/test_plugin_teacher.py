"""The example of docs/new-teacher.md, installed and used as its reader would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
DOCUMENT = ROOT / "docs" / "new-teacher.md"

#: What the example must do once it is installed: be found, be fine-tuned, and rank better than chance.
USE = """
import sys
from pathlib import Path

from ckd.config import RunConfig
from ckd.data.example import TINY, make_example
from ckd.pipelines.finetune_teacher import finetune_teacher, load_teacher
from ckd.teachers import TEACHERS
from ckd.teachers.protocol import SelfFinetuning, Teacher

work = Path(sys.argv[1])
domain = list(make_example(seed=7, size=TINY).values())[-1]
domain = domain.save(work / "domains" / domain.name)
assert "transitions" in TEACHERS.names()
assert TEACHERS.get("transitions").__module__ == "ckd_transitions"
done = finetune_teacher(work, domain.name, "transitions", RunConfig(teacher={"size": 16}))
teacher, fingerprint, result = load_teacher(work, domain, "transitions")
assert isinstance(teacher, Teacher) and isinstance(teacher, SelfFinetuning)
assert fingerprint == done.fingerprint
assert finetune_teacher(work, domain.name, "transitions", RunConfig(teacher={"size": 16})).reused
print("recall@10", done.metrics["valid"]["recall@10"], "by chance", 10 / domain.n_items)
assert done.metrics["valid"]["recall@10"] > 10 / domain.n_items
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
    (folder / "ckd_transitions.py").write_text(code)
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


def test_the_example_is_complete_in_under_sixty_lines() -> None:
    code, _ = blocks("python")
    (project,) = blocks("toml")
    assert len((code + project).splitlines()) < 60


def test_the_example_is_found_and_fine_tuned_by_its_name(site: Path, tmp_path: Path) -> None:
    done = run(site, "-W", "error", "-c", USE, str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_example_passes_the_contract(site: Path) -> None:
    done = run(site, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "test_contract.py")
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 15
    assert "failed" not in done.stdout


def test_an_example_that_takes_a_taken_name_is_refused(site: Path, tmp_path: Path) -> None:
    other = tmp_path / "other-1.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1\n")
    (other / "entry_points.txt").write_text("[ckd.teachers]\nunisrec = ckd_transitions:Transitions\n")
    ask = "from ckd.teachers import TEACHERS; TEACHERS.get('unisrec')"
    done = run(tmp_path, "-c", ask)
    assert done.returncode != 0
    assert "two teachers are called 'unisrec'" in done.stderr.splitlines()[-1]
