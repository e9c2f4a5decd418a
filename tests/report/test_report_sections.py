"""What each section of the page says, word for word, of what lies in the work folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from ckd.pipelines.reproduce.result import Experiment
from ckd.report.page import Page
from ckd.report.work import Run, Work, read_work


def plain(markup: str) -> str:
    """Text with one blank for each run of tags and blanks."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", markup)).split())


def sections(html: str) -> dict[str, str]:
    """Each section's markup by its title."""
    return dict(
        re.findall(r'<section aria-labelledby="[^"]+"><h2 id="[^"]+">(.*?)</h2>(.*?)</section>', html, re.DOTALL)
    )


def pairs(markup: str, heading: str) -> dict[str, str]:
    """Names and values of the first list of definitions after a heading."""
    found = re.search(rf">{re.escape(heading)}</(?:h4|summary)>\s*<dl>(.*?)</dl>", markup, re.DOTALL)
    assert found is not None, heading
    return {unescape(k): unescape(v) for k, v in re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", found[1], re.DOTALL)}


@pytest.fixture(scope="module")
def work(finished_report: Any) -> Work:
    return read_work(finished_report.work)


@pytest.fixture(scope="module")
def html(work: Work) -> str:
    return Page(work).html()


def run_named(work: Work, name: str) -> Run:
    (found,) = [run for run in work.runs if run.name == name]
    return found


def part_of(html: str, run: Run) -> str:
    """The part of a run, which unfolds."""
    inner = sections(html)["Runs"]
    (found,) = [
        part
        for part in re.split(r'(?=<details class="run")', inner)[1:]
        if plain(part).startswith(f"{run.folder} {run.kind}")
    ]
    return found


def test_the_summary_counts_what_there_is(work: Work, html: str) -> None:
    lead = plain(re.search(r'<p class="lead">.*?</p>', html)[0])  # type: ignore[index]
    seeds = ", ".join(str(seed) for seed in sorted({run.seed for run in work.runs if run.seed is not None}))
    domains = f"{len(work.domains)} domain{'s' if len(work.domains) > 1 else ''}"
    assert lead == f"1 experiment · {len(work.runs)} runs · 1 search · {domains} · seeds {seeds}"
    seedless = replace(work, runs=[replace(run, seed=None) for run in work.runs], searches=work.searches * 2)
    lead = plain(re.search(r'<p class="lead">.*?</p>', Page(seedless).html())[0])  # type: ignore[index]
    assert lead == f"1 experiment · {len(work.runs)} runs · 2 searches · {domains}"


def test_the_sections_are_linked_in_their_order(html: str) -> None:
    nav = re.search(r'<nav aria-label="Sections"><ul>(.*?)</ul></nav>', html)
    assert nav is not None
    there = re.findall(r'<section aria-labelledby="([^"]+)"><h2 id="([^"]+)">(.*?)</h2>', html)
    assert [(ident, title) for ident, _, title in there] == re.findall(r'<a href="#([^"]+)">(.*?)</a>', nav[1])
    assert all(one == other for one, other, _ in there)


def test_what_is_not_there_has_no_section() -> None:
    html = Page(Work(problems=["lost.json: damaged"])).html()
    assert sections(html) == {}
    assert "0 experiments · 0 runs · 0 searches · 0 domains" in plain(html)
    assert '<p class="problem" role="note"><svg' in html
    assert "lost.json: damaged" in plain(html)


@pytest.fixture
def shown(work: Work) -> Callable[..., str]:
    """The section of the work folder's experiment, some of which is changed."""

    def of(**changes: Any) -> str:
        (experiment,) = work.experiments
        html = Page(replace(work, experiments=[replace(experiment, **changes)])).html()
        return sections(html)["Tables 3 and 4: methods"]

    return of


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, ""),
        (0.0, "0 s"),
        (119.4, "119 s"),
        (120.0, "2 min"),
        (7199.0, "120 min"),
        (7200.0, "2.0 h"),
        (9000, "2.5 h"),
    ],
)
def test_an_experiment_says_where_with_what_seeds_and_how_long(
    shown: Callable[..., str], work: Work, seconds: float | None, said: str
) -> None:
    domain = work.experiments[0].domains[0]
    after = f" · {said} of training" if said else ""
    for seeds, told in (((3,), "seed 3"), ((3, 4), "seeds 3, 4")):
        markup = shown(seconds=seconds, seeds=seeds)
        assert markup.startswith(f'<p class="lead">{domain} · {told}{after}</p><pre>ckd reproduce table3</pre>')


def test_the_example_is_told_from_results_that_mean_something(shown: Callable[..., str]) -> None:
    warning = "The built-in example, at the example's sizes"
    assert warning in plain(shown())
    assert warning not in plain(shown(example=False))


def test_an_experiment_unfolds_its_tests_runs_settings_and_versions(shown: Callable[..., str], work: Work) -> None:
    (experiment,) = work.experiments
    markup, domain = shown(versions={"python": "3.99"}), experiment.domains[0]
    tests = plain(re.search(r"<summary>Paired tests \(1\)</summary>.*?</table>", markup, re.DOTALL)[0])  # type: ignore[index]
    assert tests.endswith(f"CKD-MDSR SASRec {domain} ndcg@10 0.2000 0.1000 +100.00% 0.0500 0.1500 <0.0001 <0.0001 6")
    record = experiment.runs[0]
    table = re.search(r"<summary>Runs \(1\)</summary>.*?</table>", markup, re.DOTALL)
    assert table is not None
    assert plain(table[0]).endswith(f"{record.run} CKD-MDSR {domain} 3 – – 0.1000 – – no search")
    link = re.search(r'<a href="#([^"]+)">', table[0])
    assert link is not None
    linked = re.search(rf'<details class="run" id="{link[1]}"><summary>(.*?)</summary>', Page(work).html())
    assert linked is not None
    assert plain(linked[1]).startswith(f"{record.folder} ")
    assert pairs(markup, "Configuration") == {"train.lr": "0.001"}
    assert pairs(markup, "Versions and machine") == {"python": "3.99"}
    bare = shown(runs=(), differences=(), config={}, versions={})
    assert "<summary>Runs" not in bare
    assert "<summary>Paired" not in bare
    assert "<summary>Configuration" not in bare


def test_a_run_of_an_experiment_that_is_not_here_has_no_link(shown: Callable[..., str], work: Work) -> None:
    record = replace(work.experiments[0].runs[0], folder="students/elsewhere/run", overrides={"train": {"lr": 0.5}})
    table = re.search(r"<summary>Runs \(1\)</summary>.*?</table>", shown(runs=(record,)), re.DOTALL)
    assert table is not None
    assert "<a " not in table[0]
    assert plain(table[0]).endswith("3 – – 0.1000 – train.lr = 0.5 –")


def test_validation_while_training_is_drawn_of_the_first_seeds_runs_that_are_here(
    shown: Callable[..., str], work: Work
) -> None:
    (experiment,) = work.experiments
    record = experiment.runs[0]
    curves = f"{record.domain}: validation while training, seed 3"
    base = replace(record, method="SASRec", folder=f"students/{record.domain}/sasrec-seed3")
    second = replace(base, method="another seed's", seed=4)
    figures = re.findall(r"<figure>.*?</figure>", shown(runs=(record, base, second)), re.DOTALL)
    drawn = [figure for figure in figures if curves in figure]
    assert len(drawn) == 1
    assert {"CKD-MDSR", "SASRec"} <= set(re.findall(r"<td>([^<]*)</td>", drawn[0]))
    assert "another seed" not in drawn[0]
    assert curves not in shown(differences=())
    assert curves not in shown(runs=(replace(record, folder="students/elsewhere/run"),))
    assert curves not in shown(runs=(second,))


def searched(work: Work, **changes: Any) -> str:
    """The section of the work folder's search, some of which is changed."""
    (search,) = work.searches
    return sections(Page(replace(work, searches=[replace(search, **changes)])).html())["Search budgets"]


def test_a_search_lists_its_trials_and_its_best(work: Work) -> None:
    (search,) = work.searches
    assert search.best is not None
    trial = replace(search.trials[0], values={"train.lr": 0.01})
    diverged = replace(trial, number=1, state="diverged", metric=None, recall=None, values={})
    inner = searched(work, trials=[trial, diverged], best={**search.best, "values": {"train.lr": 0.01}})
    assert f"{search.name} {search.domain} sasrec base {search.identity['sampler']} 1 1 " in plain(inner)
    summary = re.search(r'<details class="run"><summary>(.*?)</summary>', inner)
    assert summary is not None
    spent = f"1 trials, {search.budget.epochs:,} epochs, {search.budget.seconds:,.0f} s"
    assert plain(summary[1]) == f"{search.domain} · {search.name} {spent} · train.lr = 0.01"
    table = re.search(r'aria-label="Trials of [^"]+"><table>(.*?)</table>', inner, re.DOTALL)
    assert table is not None
    counted = f"{trial.best_epoch} {trial.epochs} {trial.seconds:.6g}"
    assert plain(table[1]) == (
        "trial state valid NDCG@10 valid Recall@10 best epoch epochs seconds train.lr "
        f"{trial.number} {trial.state} {trial.metric:.6g} {trial.recall:.6g} {counted} 0.01 "
        f"1 diverged {counted} as configured"
    )
    assert pairs(inner, "What was searched, and from where")["student"] == "sasrec"
    assert f"<figcaption>{search.name} on {search.domain}" in inner


def test_a_search_without_a_finished_trial_says_so_and_draws_nothing(work: Work) -> None:
    lost = replace(work.searches[0].trials[0], metric=None, recall=None)
    inner = searched(work, best=None, trials=[lost])
    assert "no trial came to its end" in plain(inner)
    assert "<figure" not in inner


def test_the_best_so_far_is_of_the_trials_until_then(work: Work) -> None:
    trials = [replace(work.searches[0].trials[0], number=n, metric=value) for n, value in enumerate((0.2, 0.1, 0.3))]
    drawn = plain(searched(work, trials=trials))
    assert "each trial 0 0.2" in drawn
    assert re.search(r"best so far 0 0\.2 .*best so far 1 0\.2 .*best so far 2 0\.3 ", drawn)


def test_a_run_says_what_it_is_and_how_well_it_did(work: Work, html: str) -> None:
    for name in ("ckd-seed3", "sasrec-seed3"):
        run = run_named(work, name)
        summary = plain(re.search(r"<summary>(.*?)</summary>", part_of(html, run))[1])  # type: ignore[index]
        assert summary == f"{run.folder} student · sasrec · seed 3 · valid N@10 {run.valid['ndcg@10']:.4f}"
    wrong = run_named(work, "wrong")
    summary = plain(re.search(r"<summary>(.*?)</summary>", part_of(html, wrong))[1])  # type: ignore[index]
    assert summary.endswith(" · OVERRIDE")
    begun = replace(run_named(work, "ckd-seed3"), finished=False, valid={}, seed=None)
    other = Page(replace(work, runs=[begun], experiments=[])).html()
    summary = plain(re.search(r"<summary>(.*?)</summary>", part_of(other, begun))[1])  # type: ignore[index]
    assert summary == f"{begun.folder} student · sasrec · unfinished"


def test_a_run_tells_its_settings_from_its_inputs(work: Work, html: str) -> None:
    run = run_named(work, "ckd-seed3")
    part = part_of(html, run)
    config, inputs = pairs(part, "Configuration"), pairs(part, "Fingerprints of inputs and weights")
    assert config["student"] == "sasrec"
    assert config["distill.lambda"] == f"{run.identity['distill']['lambda']:g}"
    assert not {key.partition(".")[0] for key in config} & {"domain", "plan", "teachers", "weights"}
    assert (inputs["domain"], inputs["plan"]) == (run.identity["domain"], run.identity["plan"])
    assert inputs["weights"] == run.weights
    assert {key.split(".")[1] for key in inputs if key.startswith("teachers.")} == set(run.teachers)
    assert pairs(part, "Measured")["parameters"] == str(run.facts["parameters"])
    machine = pairs(part, "Versions and machine")
    assert machine["torch"] == run.versions["torch"]
    assert "<h4>Measured</h4>" not in part_of(
        Page(replace(work, runs=[replace(run, facts={})], experiments=[])).html(), run
    )
    nowhere = replace(run, versions={})
    assert pairs(
        part_of(Page(replace(work, runs=[nowhere], experiments=[])).html(), nowhere), "Versions and machine"
    ) == {"cpu": "not recorded"}


def test_machines_name_the_results_that_they_made(work: Work) -> None:
    first, *others = work.runs
    elsewhere = replace(first, versions={"cpu": "another"})
    inner = sections(Page(replace(work, runs=[elsewhere, *others])).html())["Machines and versions"]
    one, many = inner.split("<hr>")
    assert plain(one) == f"cpu another 1 result made so {first.folder}"
    search = work.searches[0]
    made = [*(run.folder for run in others), f"tune/{search.domain}/{search.name}"]
    assert plain(many).endswith(f"{len(made)} results made so {', '.join(made)}")
    assert f"torch {others[0].versions['torch']} " in plain(many)


def test_domains_are_listed_with_what_they_are_known_by(work: Work, html: str) -> None:
    inner = plain(sections(html)["Domains"])
    for domain in work.domains:
        s = domain.statistics
        assert f"{domain.name} {s['users']:,} {s['items']:,} {s['interactions']:,} " in inner
        assert domain.fingerprint in inner


def test_plans_of_one_setting_share_their_curriculum(work: Work) -> None:
    plan = next(plan for plan in work.plans if len(plan.curriculum) > 1)
    again = replace(plan, id="another", seed=plan.seed + 1)
    other = replace(plan, id="third", config=plan.config.model_copy(update={"alpha": 0.25}))
    flat = replace(plan, id="flat", curriculum=plan.curriculum[:1])
    inner = sections(Page(replace(work, plans=[plan, again, other, flat])).html())["Curriculum"]
    said = re.findall(r"Plans of these settings: (.*?)\. Boxes", plain(inner))
    assert said == [f"{plan.id} (seed {plan.seed}), another (seed {plan.seed + 1})", f"third (seed {plan.seed})"]
    buckets = f"{len(plan.curriculum)} buckets by {plan.config.difficulty}"
    assert plain(inner).count(f"{plan.domain}: {buckets}") == 2
    assert pairs(inner, "Settings of the plan")["alpha"] == f"{plan.config.alpha:g}"


def test_titles_of_experiments_come_from_their_files(finished_report: Any, tmp_path: Path) -> None:
    (path,) = (finished_report.work / "experiments").glob("*.json")
    values = json.loads(path.read_text())
    copy = tmp_path / path.name
    copy.write_text(json.dumps({**values, "element": ""}))
    assert "methods" in sections(Page(Work(experiments=[Experiment.load(copy)])).html())
