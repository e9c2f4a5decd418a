"""The command that searches hyperparameters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ckd.commands.options import (
    UNDISTILLED,
    WORK,
    Config,
    DomainName,
    Json,
    Override,
    Scores,
    Seed,
    Work,
    names_if_given,
    planned,
    refuse,
    settings_of,
)

if TYPE_CHECKING:
    from ckd.tune.space import Kind


def tune(
    domain: DomainName,
    student: Annotated[str, typer.Option(help="A registered student.")] = "sasrec",
    teachers: Annotated[
        str | None, typer.Option(help="Teachers' runs, separated by commas; without, all scored ones.")
    ] = None,
    no_distill: Annotated[bool, typer.Option("--no-distill", help="Search for the base model.")] = False,
    both: Annotated[
        bool, typer.Option("--both", help="Search for the base model and for the distilled one, as many trials each.")
    ] = False,
    trials: Annotated[int, typer.Option(min=1, help="Settings to try; a search goes on where it has fewer.")] = 12,
    sampler: Annotated[str, typer.Option(help="grid, random or tpe; tpe needs Optuna.")] = "random",
    space: Annotated[
        Path | None, typer.Option(help="YAML file of what to search; without, dropout, lr, L2, lambda, temperature.")
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUES", help="Search this key, such as train.lr=[0.0003,0.001]; repeatable."),
    ] = None,
    plan: Annotated[
        str | None,
        typer.Option(
            help="Plan of the distilled student, or with --no-distill of the base; without, it is made as configured; "
            "the base's has no curriculum and fresh batches."
        ),
    ] = None,
    scores: Scores = None,
    name: Annotated[str | None, typer.Option(help="Name of the search.")] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Discard a search of this name.")] = False,
    work: Work = WORK,
    config: Config = None,
    override: Override = None,
    seed: Seed = None,
    json: Json = False,
) -> None:
    """Search hyperparameters on the validation part alone; every trial is kept."""
    from ckd import console, views
    from ckd.pipelines.tune import Request
    from ckd.pipelines.tune import tune as run

    if no_distill and (teachers is not None or both):
        raise typer.BadParameter("--no-distill contradicts --teachers and --both")
    if no_distill:
        refuse({"--scores": scores}, UNDISTILLED["distill"])
    kinds: tuple[Kind, ...] = ("base", "distilled") if both else ("base",) if no_distill else ("distilled",)
    request = Request(
        student=student,
        kinds=kinds,
        trials=trials,
        sampler=sampler,
        space=space,
        vary=tuple(vary or ()),
        teachers=names_if_given(teachers) or (),
        plan=plan,
        scores=scores,
        name=name,
        restart=restart,
    )
    settings = settings_of(
        config,
        override,
        seed,
        reads=("seed", "plan", "distill", "train", "student", "base"),
        unused=planned() | (UNDISTILLED if no_distill else {}),
    )
    with console.bars() as bars:
        found = run(work, domain, settings, request, progress=bars, on_trial=views.trial_printer(json))
    views.tuned(found, json)
