"""The command that writes the report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ckd.commands.options import WORK, Json, Work


def report(
    out: Annotated[Path | None, typer.Option(help="The page; without, report.html in the work folder.")] = None,
    tables: Annotated[
        Path | None, typer.Option(help="Folder for each table as Markdown and LaTeX; without, only the page.")
    ] = None,
    work: Work = WORK,
    json: Json = False,
) -> None:
    """Write one HTML page of everything in the work folder: tables, figures with their data, and every run."""
    from ckd import views
    from ckd.report.build import make_report

    views.reported(make_report(work, out, tables), json)
