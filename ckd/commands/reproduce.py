"""Commands that reproduce the paper's tables and figures; `TABLES`, `METHODS` and `SETTINGS` name them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ckd.commands.options import WORK, Config, Json, Override, Work, names_in, settings_of

Data = Annotated[Path | None, typer.Option(help="Folder of real domains; without, the built-in example.")]
Domains = Annotated[str | None, typer.Option(help="Which of them, separated by commas.")]
Seeds = Annotated[int, typer.Option(min=1, help="Runs of everything, from different seeds.")]
Teachers = Annotated[
    str | None,
    typer.Option(help="Teachers that are distilled; without, UniSRec, Recformer and, with pictures, UniM²Rec."),
]
Sources = Annotated[
    str | None, typer.Option(help="Domains to pre-train the teachers on; without, they are fine-tuned from scratch.")
]
TeacherSeeds = Annotated[
    int | None,
    typer.Option(
        min=1, help="Runs of each teacher, which the seeds' students take in turn; without, one for each seed."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="List the steps, which are done, and how long the rest takes.")]
Methods = Annotated[str | None, typer.Option(help="Methods as printed, separated by commas; without, all.")]
What = Annotated[str | None, typer.Option(help="Which settings, separated by commas; without, all.")]

#: Commands whose rows can be chosen, with their help.
METHODS = {
    "table3": "Teachers, students and baselines side by side (the paper's Tables 3 and 4).",
    "figure3": "Ablations: what each part of the method brings (Figure 3).",
    "figure4": "FM, DeepFM and LightGCN without and with distillation (Figure 4).",
}
#: Commands whose rows are fixed.
TABLES = {
    "table5": "Time and memory of serving: base, distilled student and teachers (Table 5).",
    "figure1": "Quality against time and memory of serving (Figure 1).",
    "cold-start": "Base against distilled, by length of users' history and popularity of items.",
}
#: Commands that vary one setting at a time.
SETTINGS = {
    "figure5": "The distilled student over temperature, lambda and dimension (Figure 5).",
    "open-questions": "The distilled student over what the paper leaves open: buckets, alpha, epsilon, difficulty, "
    "normalisation, direction, pool.",
}


def table2(
    data: Data = None,
    domains: Domains = None,
    dry_run: DryRun = False,
    work: Work = WORK,
    config: Config = None,
    override: Override = None,
    json: Json = False,
) -> None:
    """Statistics of the domains, beside the paper's (Table 2)."""
    _run("table2", data, domains, 1, None, None, None, dry_run, work, config, override, json)


def with_methods(name: str) -> Callable[..., None]:
    """The command of that name in `METHODS`."""

    def command(
        data: Data = None,
        domains: Domains = None,
        seeds: Seeds = 1,
        methods: Methods = None,
        teachers: Teachers = None,
        sources: Sources = None,
        teacher_seeds: TeacherSeeds = None,
        dry_run: DryRun = False,
        work: Work = WORK,
        config: Config = None,
        override: Override = None,
        json: Json = False,
    ) -> None:
        chosen = {"methods": methods}
        _run(
            name, data, domains, seeds, teachers, sources, teacher_seeds, dry_run, work, config, override, json, chosen
        )

    command.__doc__ = METHODS[name]
    return command


def with_settings(name: str) -> Callable[..., None]:
    """The command of that name in `SETTINGS`."""

    def command(
        data: Data = None,
        domains: Domains = None,
        seeds: Seeds = 1,
        what: What = None,
        teachers: Teachers = None,
        sources: Sources = None,
        teacher_seeds: TeacherSeeds = None,
        dry_run: DryRun = False,
        work: Work = WORK,
        config: Config = None,
        override: Override = None,
        json: Json = False,
    ) -> None:
        chosen = {"what": what}
        _run(
            name, data, domains, seeds, teachers, sources, teacher_seeds, dry_run, work, config, override, json, chosen
        )

    command.__doc__ = SETTINGS[name]
    return command


def fixed(name: str) -> Callable[..., None]:
    """The command of that name in `TABLES`."""

    def command(
        data: Data = None,
        domains: Domains = None,
        seeds: Seeds = 1,
        teachers: Teachers = None,
        sources: Sources = None,
        teacher_seeds: TeacherSeeds = None,
        dry_run: DryRun = False,
        work: Work = WORK,
        config: Config = None,
        override: Override = None,
        json: Json = False,
    ) -> None:
        _run(name, data, domains, seeds, teachers, sources, teacher_seeds, dry_run, work, config, override, json)

    command.__doc__ = TABLES[name]
    return command


def register(app: typer.Typer) -> None:
    """Add all commands, in the paper's order."""
    app.command("table2")(table2)
    for name in ("table3", "table5", "figure1", "figure3", "figure4", "figure5", "open-questions", "cold-start"):
        make = with_methods if name in METHODS else with_settings if name in SETTINGS else fixed
        app.command(name)(make(name))


def _run(
    name: str,
    data: Path | None,
    domains: str | None,
    seeds: int,
    teachers: str | None,
    sources: str | None,
    teacher_seeds: int | None,
    dry: bool,
    work: Path,
    config: Path | None,
    override: list[str] | None,
    json: bool,
    chosen: dict[str, Any] | None = None,
) -> None:
    from ckd import console, views, views_reproduce
    from ckd.pipelines.reproduce import Options, dry_run, reproduce
    from ckd.pipelines.reproduce.study import make_study

    settings = settings_of(config, override)
    options = Options(**{key: tuple(names_in(text)) if text else None for key, text in (chosen or {}).items()})
    with console.bars() as bars:
        study = make_study(
            work,
            data,
            names_in(domains) if domains else None,
            seeds,
            settings,
            teachers=names_in(teachers) if teachers else None,
            sources=names_in(sources) if sources else (),
            teacher_seeds=teacher_seeds,
            progress=bars,
            say=views.say(json),
        )
        if not dry:
            result = reproduce(name, study, options, " ".join(["ckd", *sys.argv[1:]]))
    if dry:
        views_reproduce.dry_run(dry_run(name, study, options), json)
    else:
        views_reproduce.experiment(result, json)
