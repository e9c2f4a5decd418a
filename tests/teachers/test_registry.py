"""Plug-ins by name: files of a folder and entry points of installed packages."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ckd.errors import ConfigError
from ckd.registry import Registry
from ckd.students import STUDENTS
from ckd.teachers import TEACHERS

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a distribution with entry points, and a module of its own, on the path."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def put(package: str, group: str, points: dict[str, str], code: str = "") -> None:
        (tmp_path / f"{package}.py").write_text(code)
        info = tmp_path / f"{package}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
        lines = [f"{name} = {value}" for name, value in points.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))

    return put


def teachers() -> Registry:
    """A registry that has not looked for entry points yet."""
    return Registry(TEACHERS.kind, TEACHERS.package, TEACHERS.attribute, TEACHERS.helpers)


def test_a_folders_modules_are_plug_ins_by_file_name() -> None:
    names = teachers().names()
    assert names == sorted(names)
    assert {"unim2rec", "vectors"} <= set(names)
    assert not {"protocol", "encoders", "common", "__init__"} & set(names)
    for name in ("unim2rec", "vectors"):
        assert TEACHERS.get(name).__module__ == f"ckd.teachers.{name}"


def test_every_built_in_plug_in_can_be_imported() -> None:
    for registry in (TEACHERS, STUDENTS):
        assert all(isinstance(plug_in, type) for plug_in in registry.all().values())


def test_listing_names_imports_nothing() -> None:
    code = (
        "import sys; from ckd.teachers import TEACHERS; assert TEACHERS.names(); "
        "assert not {'torch', 'transformers', 'ckd.teachers.vectors'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("asked", "answer"), [("unim2rek", "'unim2rec'"), ("UniSRec", "'unisrec'"), ("vector", "'vectors'")]
)
def test_a_slip_of_the_keyboard_is_answered_with_the_nearest_name(asked: str, answer: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown teacher {asked!r}. Did you mean {answer}"):
        TEACHERS.get(asked)


def test_a_name_like_no_other_is_answered_with_all_names() -> None:
    with pytest.raises(ConfigError, match=r"unknown teacher 'xyz'\. Known: .*unim2rec, .*vectors"):
        TEACHERS.get("xyz")


@pytest.mark.parametrize("name", ["protocol", "__init__", "common", "../students/sasrec", ""])
def test_what_is_no_plug_in_is_not_imported(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown teacher"):
        TEACHERS.get(name)


def test_an_entry_point_is_a_plug_in(install: Install) -> None:
    install("foreign_one", "ckd.teachers", {"abacus": "foreign_one:Abacus"}, "class Abacus: ...")
    registry = teachers()
    assert "abacus" in registry.names()
    assert registry.names() == sorted(registry.names())
    assert registry.get("abacus").__name__ == "Abacus"
    with pytest.raises(ConfigError, match="Did you mean 'abacus'"):
        registry.get("abacuss")


def test_entry_points_of_another_kind_are_not(install: Install) -> None:
    install("foreign_two", "ckd.students", {"abacus": "foreign_two:Abacus"}, "class Abacus: ...")
    assert "abacus" not in teachers().names()


def test_a_name_taken_by_a_module_is_refused(install: Install) -> None:
    install("foreign_three", "ckd.teachers", {"vectors": "foreign_three:Vectors"}, "class Vectors: ...")
    for ask in (lambda r: r.names(), lambda r: r.get("vectors"), lambda r: r.get("unim2rec")):
        with pytest.raises(ConfigError, match=r"two teachers are called 'vectors': .* foreign_three:Vectors must be"):
            ask(teachers())


def test_a_name_taken_by_another_package_is_refused(install: Install) -> None:
    install("foreign_four", "ckd.teachers", {"abacus": "foreign_four:Abacus"}, "class Abacus: ...")
    install("foreign_five", "ckd.teachers", {"abacus": "foreign_five:Abacus"}, "class Abacus: ...")
    with pytest.raises(ConfigError, match="two teachers are called 'abacus'"):
        teachers().names()


@pytest.mark.parametrize("value", ["foreign_six:Missing", "foreign_six.nowhere:Abacus", "no_such_package:Abacus"])
def test_an_entry_point_that_leads_nowhere_is_refused_in_one_line(install: Install, value: str) -> None:
    install("foreign_six", "ckd.teachers", {"abacus": value})
    registry = teachers()
    assert "abacus" in registry.names()
    with pytest.raises(ConfigError, match=f"teacher 'abacus': {value} of foreign_six cannot be imported") as caught:
        registry.get("abacus")
    assert "\n" not in str(caught.value)
