"""Commands that reproduce the paper's tables and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ckd.commands.options import WORK, Config, Json, Override, Work, names_in, settings_of


def table3(
    data: Annotated[Path | None, typer.Option(help="Folder of real domains; without, the built-in example.")] = None,
    domains: Annotated[str | None, typer.Option(help="Which of them, separated by commas.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of everything, from different seeds.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the steps and which are done.")] = False,
    work: Work = WORK,
    config: Config = None,
    override: Override = None,
    json: Json = False,
) -> None:
    """Teachers, base student and distilled student side by side (the paper's Table 3)."""
    from ckd import console, views
    from ckd.pipelines.reproduce import reproduce_table3

    settings = settings_of(config, override)
    with console.bars() as bars:
        result = reproduce_table3(
            work,
            data,
            names_in(domains) if domains else None,
            seeds,
            settings,
            dry_run=dry_run,
            progress=bars,
            say=views.say(json),
        )
    views.table3(result, json)
