"""From a source to a saved domain."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ckd.config import PrepareConfig, load_config
from ckd.data.domain import Domain
from ckd.errors import ConfigError, DataError
from ckd.pipelines.prepare import prepare


def test_every_filter_reports_what_it_took(tmp_path: Path) -> None:
    rows = [(f"u{u}", f"i{i}", 10 * u + i) for u in range(4) for i in range(4)]
    rows += [("u0", "i0", 0), ("u0", "i0", 99), ("u1", "bare", 5), ("u9", "i0", 1), ("u0", "rare", 9)]
    (tmp_path / "events.csv").write_text("user,item,time\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))
    items = ["item,title", *(f"i{n},Thing {n}" for n in range(4)), "bare,", "rare,Rare"]
    (tmp_path / "items.csv").write_text("\n".join(items))
    config = PrepareConfig(k_core_user=2, k_core_item=2, min_length=5)
    prepared = prepare(tmp_path / "work", tmp_path / "events.csv", name="toy", config=config)
    taken = [(each.filter, each.interactions, each.users, each.items) for each in prepared.removed]
    assert taken == [
        ("duplicates", 1, 0, 0),
        ("items without metadata", 0, 0, 0),
        ("items without text", 1, 0, 1),
        ("2-core users, 2-core items", 2, 1, 1),
        ("users shorter than 5", 12, 3, 0),
    ]
    assert prepared.read == 21
    assert prepared.statistics == {
        "users": 1,
        "items": 4,
        "interactions": 5,
        "average_length": 5.0,
        "sparsity": pytest.approx(-0.25),
    }
    assert prepared.domain.item_table["raw_id"].to_list() == ["i0", "i1", "i2", "i3"]
    meta = json.loads((tmp_path / "work" / "domains" / "toy" / "domain.json").read_text())
    assert meta["notes"]["removed"][2] == {
        "filter": "items without text",
        "interactions": 1,
        "users": 0,
        "items": 1,
    }
    assert meta["notes"]["config"]["min_length"] == 5


def test_pairs_keep_the_first_and_nothing_keeps_all(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("user,item,time\na,i,3\na,i,1\na,j,2\na,i,1\n")
    lengths = {}
    for how in ("none", "exact", "pair"):
        config = PrepareConfig(drop_duplicates=how)
        domain = prepare(tmp_path / how, tmp_path / "events.csv", name="toy", config=config).domain
        lengths[how] = [domain.item_table["raw_id"][int(n) - 1] for n in domain.items]
    assert lengths == {"none": ["i", "i", "j", "i"], "exact": ["i", "j", "i"], "pair": ["i", "j"]}


def test_events_of_one_time_keep_the_files_order(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("user,item,time\na,z,1\na,b,1\na,m,1\n")
    domain = prepare(tmp_path / "work", tmp_path / "events.csv", name="toy", config=PrepareConfig()).domain
    assert [domain.item_table["raw_id"][int(n) - 1] for n in domain.items] == ["z", "b", "m"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            PrepareConfig(k_core_user=9),
            r"no interaction is left of 10 after filtering \(9-core users, 1-core items: 10\)",
        ),
        (PrepareConfig(min_length=9), r"no interaction is left of 10 after filtering \(users shorter than 9: 10\)"),
    ],
)
def test_nothing_left_names_the_filters(config: PrepareConfig, message: str, toy: Any, tmp_path: Path) -> None:
    folder = toy.write["sequences"](tmp_path / "source")
    with pytest.raises(DataError, match=message):
        prepare(tmp_path / "work", folder, name="toy", config=config)
    assert not (tmp_path / "work" / "domains" / "toy").exists()


def test_a_header_without_rows_is_no_interactions(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("user,item,time\n")
    with pytest.raises(DataError, match=r"events\.csv: no interactions\.$"):
        prepare(tmp_path, tmp_path / "events.csv", name="toy")


def test_items_without_metadata_stay_where_no_text_is_required(toy: Any, tmp_path: Path) -> None:
    folder = toy.write["sequences"](tmp_path / "source")
    path = folder / "item_text.txt"
    path.write_text(path.read_text().replace("i2 blue kettle\n", ""))
    line = r"user_sequence\.txt:1: an item without metadata in item_text\.txt: 'i2'\. Add it, or leave"
    with pytest.raises(DataError, match=line):
        prepare(tmp_path, folder, name="toy")
    prepared = prepare(tmp_path, folder, name="toy", config=PrepareConfig(require_text=False))
    assert prepared.statistics["interactions"] == 10
    assert prepared.domain.item_table["text"].to_list() == ["garden hose", "", "chair", "lamp"]
    assert not prepared.malformed
    dropped = prepare(tmp_path, folder, name="other", config=PrepareConfig(on_error="skip"))
    assert dropped.statistics["interactions"] == 7
    assert [(each.filter, each.interactions) for each in dropped.removed][1] == ("items without metadata", 3)


def test_an_item_without_a_text_of_its_own_takes_its_title(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("user,item,time\na,i1,1\na,i2,2\na,i3,3\n")
    (tmp_path / "items.csv").write_text("item,title,brand,text\ni1,Hose,Acme,A long hose\ni2,Lamp,,\ni3,,,\n")
    config = PrepareConfig(require_text=False)
    texts = prepare(tmp_path, tmp_path / "events.csv", name="toy", config=config).domain.item_table["text"]
    assert texts.to_list() == ["A long hose", "Lamp.", ""]


def test_items_without_text_go_unless_told_to_stay(toy: Any, tmp_path: Path) -> None:
    folder = toy.write["sequences"](tmp_path / "source")
    path = folder / "item_text.txt"
    path.write_text(path.read_text().replace("i2 blue kettle", "i2"))
    assert prepare(tmp_path, folder, name="toy").statistics["items"] == 3
    config = PrepareConfig(require_text=False)
    assert prepare(tmp_path, folder, name="other", config=config).statistics["items"] == 4


@pytest.mark.parametrize(
    "config",
    [
        PrepareConfig(k_core_user=5),
        PrepareConfig(k_core_item=2),
        PrepareConfig(min_length=3),
        PrepareConfig(drop_duplicates="pair"),
        PrepareConfig(require_text=True),
    ],
)
def test_filters_may_not_break_a_given_split(config: PrepareConfig, toy: Any, tmp_path: Path) -> None:
    folder = toy.write["unisrec"](tmp_path / "source")
    key = next(iter(config.model_fields_set))
    with pytest.raises(ConfigError, match=rf"prepare\.{key}=.*: format unisrec gives a split, which is kept as given"):
        prepare(tmp_path, folder, name="toy", config=config)


def test_a_given_split_keeps_items_that_nobody_has_and_its_numbers(toy: Any, tmp_path: Path) -> None:
    folder = toy.write["unisrec"](tmp_path / "source")
    index = folder / "Toy.item2index"
    index.write_text(index.read_text() + "a0\t9\n")
    text = folder / "Toy.text"
    text.write_text(text.read_text() + "a0\tNever bought\n")
    users = folder / "Toy.user2index"
    users.write_text(users.read_text() + "zed\t3\n")
    prepared = prepare(tmp_path, folder, name="toy")
    # Item n of the source is item n + 1; numbers close ranks; a user without instances is no user.
    assert prepared.domain.item_table["raw_id"].to_list() == ["i1", "i2", "i3", "i4", "a0"]
    assert prepared.domain.user_ids.to_list() == ["ann", "bob", "cid"]
    assert prepared.domain.item_table["text"][4] == "Never bought"


@pytest.mark.parametrize("name", ["", "a/b", "../up", ".hidden", "a b", "x\n"])
def test_a_name_that_is_no_file_name_is_refused(name: str, toy: Any, tmp_path: Path) -> None:
    folder = toy.write["sequences"](tmp_path / "source")
    with pytest.raises(ConfigError, match="use letters"):
        prepare(tmp_path / "work", folder, name=name)
    assert not (tmp_path / "work").exists()


def test_the_history_cap_is_the_domains(toy: Any, tmp_path: Path) -> None:
    folder = toy.write["sequences"](tmp_path / "source")
    domain = prepare(tmp_path, folder, name="toy", config=PrepareConfig(history_cap=2)).domain
    assert domain.history_cap == 2
    assert domain.instances("test").lengths.tolist() == [2, 2, 2]


def test_preparing_again_keeps_features_and_gives_the_same_bytes(toy: Any, tmp_path: Path) -> None:
    folder = toy.write["amazon-2018"](tmp_path / "source")
    config = PrepareConfig(k_core_user=1, k_core_item=1)
    target = tmp_path / "domains" / "toy"
    prepare(tmp_path, folder, name="toy", config=config)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    (target / "features").mkdir()
    prepare(tmp_path, folder, name="toy", config=config)
    assert {path.name: path.read_bytes() for path in target.iterdir() if path.is_file()} == before
    assert (target / "features").is_dir()


def test_another_domain_takes_no_place_unasked(toy: Any, tmp_path: Path) -> None:
    folder = toy.write["sequences"](tmp_path / "source")
    first = prepare(tmp_path, folder, name="toy").domain.fingerprint
    # What comes out the same is the same, wherever its files lie.
    moved = folder.rename(tmp_path / "moved")
    assert prepare(tmp_path, moved, name="toy").domain.fingerprint == first
    described = tmp_path / "domains" / "toy" / "domain.json"
    notes = json.loads(described.read_text())["notes"]
    assert (notes["source"], sorted(notes["inputs"])) == (str(moved), ["item_text.txt", "user_sequence.txt"])
    shorter = PrepareConfig(history_cap=2)
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, moved, name="toy", config=shorter)
    assert str(caught.value).startswith(f"{described}: is another domain, prepared from {moved} with prepare.history_")
    assert re.search(r"history_cap=50, to which plans, .* or say --replace\.$", str(caught.value))
    other = moved / "user_sequence.txt"
    other.write_text(other.read_text() + "zoe i1 i2 i3\n")
    with pytest.raises(DataError, match=r"is another domain, prepared from \S+moved, to which"):
        prepare(tmp_path, moved, name="toy")
    assert Domain.load(described.parent).fingerprint == first
    replaced = prepare(tmp_path, moved, name="toy", replace=True)
    assert Domain.load(described.parent).fingerprint == replaced.domain.fingerprint != first
    # What cannot be read is in nobody's way: preparing again is how it is mended.
    (described.parent / "items.parquet").unlink()
    assert prepare(tmp_path, moved, name="toy", config=shorter).domain.history_cap == 2


def test_every_file_that_was_read_is_remembered(toy: Any, tmp_path: Path) -> None:
    folder = toy.write["unisrec"](tmp_path / "source")
    notes: Any = prepare(tmp_path, folder, name="toy").domain.notes
    ends = ("train.inter", "valid.inter", "test.inter", "user2index", "item2index", "text")
    assert set(notes["inputs"]) == {f"Toy.{end}" for end in ends}


def test_a_failure_leaves_the_old_domain(toy: Any, tmp_path: Path) -> None:
    folder = toy.write["sequences"](tmp_path / "source")
    expected = prepare(tmp_path, folder, name="toy").domain.fingerprint
    (folder / "user_sequence.txt").write_text("ann\n")
    with pytest.raises(DataError):
        prepare(tmp_path, folder, name="toy")
    assert Domain.load(tmp_path / "domains" / "toy").fingerprint == expected
    assert [path.name for path in (tmp_path / "domains").iterdir()] == ["toy"]


def test_one_thread_gives_the_same_ids_as_many(tmp_path: Path) -> None:
    rows = [f"u{n * 7919 % 211},i{n * 104729 % 97},{n * 31 % 53}" for n in range(20_000)]
    (tmp_path / "events.csv").write_text("user,item,time\n" + "\n".join(rows))
    code = (
        "import sys; from pathlib import Path; from ckd.pipelines.prepare import prepare; "
        "print(prepare(Path(sys.argv[1]), Path(sys.argv[2]), name='toy').domain.fingerprint)"
    )
    environment = {**os.environ, "POLARS_MAX_THREADS": "1"}
    command = [sys.executable, "-c", code, str(tmp_path / "one"), str(tmp_path / "events.csv")]
    one = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    assert one == prepare(tmp_path / "many", tmp_path / "events.csv", name="toy").domain.fingerprint


def test_the_section_is_part_of_the_run_configuration(tmp_path: Path) -> None:
    overrides = ["prepare.k_core_user=5", "prepare.on_error=skip", f"prepare.items={tmp_path}"]
    config = load_config(overrides=overrides).prepare
    assert (config.k_core_user, config.on_error, config.items) == (5, "skip", tmp_path)
    with pytest.raises(ConfigError, match=r"unknown key 'prepare.k_core'\. Did you mean 'k_core_"):
        load_config(overrides=["prepare.k_core=5"])
    for bad in ({"history_cap": 0}, {"k_core_user": 0}, {"on_error": "ask"}, {"text_fields": ()}):
        with pytest.raises(ValidationError):
            PrepareConfig(**bad)
