"""The page: what it shows of a work folder, and that it needs nothing but itself."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ckd.errors import DataError
from ckd.pipelines.reproduce.made import Made
from ckd.pipelines.reproduce.result import Experiment
from ckd.report.build import make_report
from ckd.report.markup import Anchors, esc
from ckd.report.overview import unequal
from ckd.report.page import titles
from ckd.report.style import CSS
from ckd.report.work import SEARCHED, Run, SearchInfo, read_work
from ckd.tune.trials import Budget

VOID = {"meta", "br", "hr", "link", "img", "input"}


class Read(HTMLParser):
    """Elements with their attributes, the text of each kind of element, and whether all are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        self.found.append((tag, dict(attrs)))
        if tag not in VOID and not (self.get_starttag_text() or "").endswith("/>"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def page(finished_report: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Read]:
    out = tmp_path_factory.mktemp("page") / "report.html"
    make_report(finished_report.work, out)
    text = out.read_text(encoding="utf-8")
    return text, Read(text)


def test_it_opens_offline_and_holds_nothing_that_runs(page: tuple[str, Read]) -> None:
    text, read = page
    assert not {tag for tag, _ in read.found} & {"script", "link", "img", "iframe", "object", "embed", "base"}
    for tag, attributes in read.found:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("href", "src", "xlink:href", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:text/csv;")), (tag, value)
    assert not re.search(r"url\(|@import|https?://", text)


def test_ids_are_unique_and_links_lead_somewhere(page: tuple[str, Read]) -> None:
    _, read = page
    ids = [a["id"] for _, a in read.found if "id" in a]
    assert len(ids) == len(set(ids))
    links = {a["href"] for a in read.all("a") if (a["href"] or "").startswith("#")}
    assert links
    assert links <= {f"#{ident}" for ident in ids}


def test_names_from_data_are_text_and_nothing_else(page: tuple[str, Read]) -> None:
    text, read = page
    assert "alert(" in text
    assert "<script" not in text
    assert "\x07" not in text
    shown = "".join("".join(parts) for parts in read.texts.values())
    assert "<script>alert('x')</script> & \"50%\" _a_ *b* | $c$ #d {e} \\f ~^ [g] =H1 \ufffd λ²" in shown


def test_the_override_is_stamped_in_words_with_a_sign_and_in_red(page: tuple[str, Read], finished_report: Any) -> None:
    text, read = page
    stamps = re.findall(r'<p class="stamp" role="note">(.*?)</p>', text, re.DOTALL)
    # At the top, at the experiment whose table holds the run, and at the run.
    assert len(stamps) == 3
    for stamp in stamps:
        assert stamp.startswith("<svg")
        assert "Override: " in stamp
        assert finished_report.stamp in stamp
    assert re.search(r"\.stamp \{ border: 2px solid var\(--red\); color: var\(--red\)", CSS)
    assert text.index('class="stamp"') < text.index("<main>")
    assert "finished, override" in "".join(read.texts["td"])


def test_it_shows_every_part(page: tuple[str, Read], finished_report: Any) -> None:
    _, read = page
    titles = read.texts["h2"]
    assert titles == [
        *("Tables 3 and 4: methods", "Search budgets", "Curriculum", "Runs", "Machines and versions", "Domains")
    ]
    captions = " ".join(read.texts["figcaption"])
    for expected in (
        *("Loss while training", "KL to the teachers", "Validation", "Which teacher was dropped"),
        *("Training instances in an epoch", "Difficulty (ssl)", "Items in a sequence", "sasrec-base"),
    ):
        assert expected in captions
    shown = "".join("".join(parts) for parts in read.texts.values())
    work, domain = finished_report.work, finished_report.domain
    described = json.loads((work / "students" / domain / "ckd-seed3" / "student.json").read_text())
    identity = described["identity"]
    for value in (
        *(identity["domain"], identity["plan"], identity["teachers"]["unisrec-0"]["teacher"]),
        json.loads((work / "students" / domain / "ckd-seed3" / "ranks-test.json").read_text())["weights"],
        *described["versions"].values(),
        *("distill.lambda", "config.hidden_size", "teacher_weights", "cores", "2.0 h of training"),
        "sasrec on example-studio: 1 trials for the base model, 0 for the distilled one",
    ):
        assert str(value) in shown, value
    assert {"0.1500 ±0.0707", "+25.00%", "<0.0001"} <= set(read.texts["td"])
    assert "search sasrec-base: 1 trials, 3 epochs" in shown
    assert "no search" in shown


def table_behind(markup: str) -> list[list[str]]:
    """The rows of the CSV below a picture, the names first; they are those of the table beside it."""
    found = re.search(r'href="data:text/csv;charset=utf-8;base64,([^"]+)" download="([^"]+)\.csv"', markup)
    assert found is not None
    rows = list(csv.reader(io.StringIO(base64.b64decode(found[1]).decode())))
    assert len({len(row) for row in rows}) == 1
    assert len(rows) - 1 == markup[markup.index("<tbody>") :].count("<tr>")
    assert rows[0] == [unescape(name) for name in re.findall(r'<th scope="col">([^<]*)</th>', markup)]
    return rows


def test_every_figure_is_an_image_with_a_name_and_its_data(page: tuple[str, Read]) -> None:
    text, _ = page
    figures = re.findall(r"<figure>.*?</figure>", text, re.DOTALL)
    assert len(figures) > 15
    for figure in figures:
        assert len(re.findall(r'<svg viewBox="0 0 420 [^>]*role="img" aria-label="[^"]+"><title>', figure)) == 1
        assert not re.search(r"\b(nan|inf)\b", figure.split("<details>")[0])
    bare = [figure for figure in figures if "<details>" not in figure]
    for figure in set(figures) - set(bare):
        assert len(table_behind(figure)[0]) > 1
    # The pictures of a run share its log, which follows them.
    pictures = r"((?:<figure>(?:(?!</?details>).)*?</figure>)+)</div>"
    shared = re.findall(pictures + "<details>(.*?)</details>", text, re.DOTALL)
    assert sum(drawn.count("<figure>") for drawn, _ in shared) == len(bare)
    for drawn, log in shared:
        assert log.startswith("<summary>Data: the whole log</summary>")
        header, *rows = table_behind(log)
        loss = re.search(r"Loss while training.*?</figure>", drawn, re.DOTALL)
        assert loss is not None
        points = loss[0].split("</ul>")[-1].count('<circle class="dot"')
        assert points == sum(bool(row[header.index("loss")]) for row in rows)


def test_the_data_behind_a_panel_is_what_was_measured(page: tuple[str, Read]) -> None:
    text, _ = page
    figure = next(f for f in re.findall(r"<figure>.*?</figure>", text, re.DOTALL) if "table3-example-studio-3.csv" in f)
    found = re.search(r"base64,([^\"]+)", figure)
    assert found is not None
    header, *rows = csv.reader(io.StringIO(base64.b64decode(found[1]).decode()))
    assert header == ["series", "ms", "N@10", "std", "run 1", "run 2", "MB", "label", "source"]
    assert [float(row[2]) for row in rows] == pytest.approx([0.15, 1.05, 10.05])
    assert [row[6] for row in rows] == ["0.1", "1.0", "10.0"]


def test_series_differ_without_colour(page: tuple[str, Read]) -> None:
    text, _ = page
    figure = next(f for f in re.findall(r"<figure>.*?</figure>", text, re.DOTALL) if "table3-example-studio-1.csv" in f)
    lines = re.findall(r'<polyline class="line" points="[^"]+"(?: stroke-dasharray="([^"]+)")?>', figure)
    assert len(set(lines)) == 2
    assert '<circle class="dot"' in figure
    assert '<polygon class="dot"' in figure
    assert 'class="s1 paper"' in figure
    assert "theirs (the paper&#x27;s)" in figure


def test_the_same_folder_gives_the_same_bytes(reported: Any, tmp_path: Path) -> None:
    first = make_report(reported.work, tmp_path / "a.html", tmp_path / "tables-a")
    second = make_report(reported.work, tmp_path / "b.html", tmp_path / "tables-b")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    for one, other in zip(first.tables, second.tables, strict=True):
        assert one.read_bytes() == other.read_bytes()
    (override,) = first.overrides
    assert override.startswith(f"students/{reported.domain}/wrong: {reported.stamp} <script>alert('x')")
    assert override.endswith("λ²")
    default = make_report(reported.work)
    assert default.path == reported.work / "report.html"
    assert default.bytes == (tmp_path / "a.html").stat().st_size
    assert str(tmp_path) not in default.path.read_text()


def test_the_stamp_is_found_wherever_the_run_states_it(reported: Any, tmp_path: Path) -> None:
    folder = reported.work / "students" / reported.domain / "ckd-seed3"
    described = json.loads((folder / "student.json").read_text())
    described["identity"]["mismatches"] = {"unisrec-0": "made for plan 1"}
    (folder / "student.json").write_text(json.dumps(described))
    found = make_report(reported.work, tmp_path / "r.html")
    assert f"students/{reported.domain}/ckd-seed3: trained on scores of unisrec-0 that were made for plan 1" in (
        found.overrides
    )


def test_what_cannot_be_read_is_named_and_left_out(reported: Any, tmp_path: Path) -> None:
    domain = reported.domain
    (reported.work / "students" / domain / "wrong" / "student.json").write_text("{")
    (reported.work / "experiments" / f"table3-{domain}.json").write_text('{"format": 0}')
    (reported.work / "tune" / domain / "sasrec-base" / "trials.parquet").write_bytes(b"lost")
    (reported.work / "students" / domain / "sasrec-seed3" / "last.safetensors").write_bytes(b"lost")
    plan = next((reported.work / "plans" / domain).glob("*/plan.json"))
    plan.write_text('{"seed": 1}')
    found = make_report(reported.work, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert (found.experiments, found.searches) == (0, 0)
    assert len(found.problems) == 5
    for problem, place in zip(
        sorted(found.problems),
        [
            f"experiments/table3-{domain}.json: not of format",
            f"plans/{domain}/{plan.parent.name}/plan.json: has no 'fingerprint'",
            f"students/{domain}/sasrec-seed3/last.safetensors: not a readable checkpoint",
            f"students/{domain}/wrong/student.json: not valid JSON",
            f"tune/{domain}/sasrec-base/trials.parquet: damaged",
        ],
        strict=True,
    ):
        assert problem.startswith(place)
        assert esc(problem) in text


def test_an_unfinished_run_says_so(reported: Any, tmp_path: Path) -> None:
    folder = reported.work / "students" / reported.domain / "sasrec-seed3"
    for name in ("last.json", "best.json", "last.safetensors", "ranks-test.json"):
        (folder / name).unlink()
    (folder / "log.csv").write_text(
        "epoch,stage,loss,ce,seconds,valid_ndcg@10\n0,1,2.5,2.5,0.1,\n1,0,2.0,2.0,0.1,0.3\n"
    )
    make_report(reported.work, tmp_path / "r.html")
    read = Read((tmp_path / "r.html").read_text())
    assert "unfinished" in read.texts["td"]


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        make_report(tmp_path / "absent")
    with pytest.raises(DataError, match="nothing to report"):
        make_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_anchors() -> None:
    anchor = Anchors()
    assert [anchor("a b"), anchor("A", "b"), anchor("<>"), anchor("é")] == ["a-b", "a-b-2", "part", "part-2"]


def test_experiments_of_one_title_are_told_apart(finished_report: Any) -> None:
    path = next((finished_report.work / "experiments").glob("*.json"))
    experiment = Experiment.load(path)
    other = replace(experiment, domains=("elsewhere",))
    fewer = replace(experiment, runs=(replace(experiment.runs[0], method="alone"),))
    plain = f"{experiment.element}: {experiment.title}"
    assert titles([experiment]) == [plain]
    assert titles([experiment, other]) == [f"{plain}, on {', '.join(experiment.domains)}", f"{plain}, on elsewhere"]
    found = titles([experiment, other, fewer])
    assert found[1] == f"{plain}, on elsewhere"
    assert found[2] == f"{plain}, on {', '.join(experiment.domains)}: alone"
    assert len(set(found)) == 3
    marked = replace(experiment, mark="3seeds-1a2b3c4d")
    here = f"{plain}, on {', '.join(experiment.domains)}"
    assert titles([experiment, marked]) == [here, f"{here} (3seeds-1a2b3c4d)"]


def test_a_result_is_shown_with_what_it_was_made_with(reported: Any, tmp_path: Path) -> None:
    (path,) = (reported.work / "experiments").glob("*.json")
    experiment = Experiment.load(path)
    # Of a result that does not say, nothing is said.
    assert "Made with" not in make_report(reported.work, tmp_path / "before.html").path.read_text()
    made = Made(("unisrec",), (3,), ("a_b",), {"plan.epochs": 40, "train.precision": "bf16"})
    replace(experiment, seeds=(3, 4), made=made, mark="2seeds-1a2b3c4d").save(reported.work)
    line = "Made with seeds 3, 4; teachers unisrec of seed 3, pre-trained on a_b; plan.epochs=40, train.precision=bf16."
    found = make_report(reported.work, tmp_path / "r.html", tmp_path / "tables")
    assert found.experiments == 2
    assert found.path.read_text().count(line) == 1
    stem = f"table3-{reported.domain}-2seeds-1a2b3c4d"
    assert (tmp_path / "tables" / f"{stem}.md").read_text().endswith(f"\n{line.replace('_', chr(92) + '_')}\n")
    assert f"\n% {line}\n" in (tmp_path / "tables" / f"{stem}.tex").read_text()
    assert "Made with" not in (tmp_path / "tables" / f"{path.stem}.md").read_text()


def a_search(kind: str, trials: int, lr: float) -> SearchInfo:
    identity = {"student": "sasrec", "kind": kind}
    return SearchInfo("d", f"{kind}-{trials}", identity, [], Budget(trials, 1, 1.0), {"run": trained_with(lr)}, {})


def trained_with(lr: float) -> dict[str, Any]:
    return {**dict.fromkeys(SEARCHED), "train": {"lr": lr}}


@pytest.mark.parametrize(
    ("others", "given"), [([], None), ([(1, 0.9)], None), ([(5, 0.1)], (5, 3)), ([(2, 0.1), (9, 0.8)], None)]
)
def test_budgets_are_compared_of_searches_that_were_used(
    others: list[tuple[int, float]], given: tuple[int, int] | None
) -> None:
    searches = [a_search("base", 3, 0.1), a_search("distilled", 3, 0.2)]
    searches += [a_search("base", trials, lr) for trials, lr in others]
    runs = [cast(Run, SimpleNamespace(kind="student", domain="d", identity=trained_with(lr))) for lr in (0.1, 0.2)]
    lines = unequal(searches, runs)
    if given is None:
        assert lines == []
    else:
        (line,) = lines
        assert f"sasrec on d: {given[0]} trials for the base model, {given[1]} for the distilled one" in line


def test_runs_of_a_domain_that_was_prepared_anew_are_told(reported: Any) -> None:
    path = reported.work / "domains" / reported.domain / "domain.json"
    described = json.loads(path.read_text())
    assert read_work(reported.work).problems == []
    path.write_text(json.dumps({**described, "fingerprint": "other"}))
    found = read_work(reported.work)
    told = [line for line in found.problems if "trained on content" in line]
    assert len(told) == len([run for run in found.runs if run.kind != "pretrained teacher"])
    assert f"of {reported.domain}, which now has other" in told[0]
