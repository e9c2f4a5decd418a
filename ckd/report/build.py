"""Writes the report of a work folder, and its tables for papers and pages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ckd.data.atomic import replace_file
from ckd.pipelines.reproduce.result import Table
from ckd.report.overview import domains_table, runs_table, searches_table
from ckd.report.page import Page
from ckd.report.tables import to_latex, to_markdown
from ckd.report.work import Work, read_work


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        path: the page.
        bytes: its size.
        tables: Markdown and LaTeX files.
        experiments, runs, searches: how many the page shows.
        overrides: what `--allow-mismatch` let through, one line each.
        problems: files that could not be read, one line each.
    """

    path: Path
    bytes: int
    tables: list[Path]
    experiments: int
    runs: int
    searches: int
    overrides: list[str]
    problems: list[str]


def make_report(work: Path, out: Path | None = None, tables: Path | None = None) -> Report:
    """One HTML page of everything in the work folder, the same bytes for the same content.

    Args:
        out: the page; none: `report.html` in the work folder.
        tables: a folder for each table as Markdown and LaTeX; none: only the page.

    Raises:
        DataError: no such work folder, or nothing in it.
    """
    found = read_work(work)
    out = out or work / "report.html"
    text = Page(found).html()
    with replace_file(out) as partial:
        partial.write_text(text, encoding="utf-8")
    return Report(
        path=out,
        bytes=len(text.encode()),
        tables=[] if tables is None else write_tables(found, tables),
        experiments=len(found.experiments),
        runs=len(found.runs),
        searches=len(found.searches),
        overrides=[f"{run.folder}: {text}" for run in found.runs for text in run.stamps],
        problems=found.problems,
    )


def write_tables(found: Work, folder: Path) -> list[Path]:
    """`.md` and `.tex` of every experiment's tables, named as its result, and of the domains, runs and searches."""
    groups: dict[str, list[Table]] = {
        "domains": [domains_table(found.domains)] if found.domains else [],
        "runs": [runs_table(found.runs, found.searches)] if found.runs else [],
        "searches": [searches_table(found.searches)] if found.searches else [],
    }
    groups |= {e.stem: list(e.tables) for e in found.experiments}
    made = {e.stem: e.made_with for e in found.experiments}
    written = []
    for name, tables in sorted(groups.items()):
        if not tables:
            continue
        note = made.get(name)
        for path, text in ((f"{name}.md", to_markdown(tables, note)), (f"{name}.tex", to_latex(tables, name, note))):
            with replace_file(folder / path) as partial:
                partial.write_text(text, encoding="utf-8")
            written.append(folder / path)
    return written
