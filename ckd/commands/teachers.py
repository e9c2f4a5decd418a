"""Commands that make teachers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ckd.commands.options import (
    WORK,
    Config,
    DomainName,
    Json,
    Override,
    Restart,
    Seed,
    Work,
    names_in,
    settings_of,
)


def pretrain_teacher(
    teacher: Annotated[str, typer.Option(help="A registered teacher.")],
    domains: Annotated[str, typer.Option(help="Source domains, separated by commas.")],
    run: Annotated[str | None, typer.Option(help="Name of the result; without, the teacher's.")] = None,
    restart: Restart = False,
    work: Work = WORK,
    config: Config = None,
    override: Override = None,
    seed: Seed = None,
    json: Json = False,
) -> None:
    """Pre-train a teacher over several domains."""
    from ckd import console, views
    from ckd.pipelines.pretrain_teacher import pretrain_teacher as pretrain

    settings = settings_of(config, override, seed, reads=("seed", "teacher", "train"))
    with console.bars() as bars:
        result = pretrain(work, teacher, names_in(domains), settings, run=run, progress=bars, restart=restart)
    views.record(f"Pre-trained {teacher}", result, json)


def finetune_teacher(
    domain: DomainName,
    teacher: Annotated[str, typer.Option(help="A registered teacher.")],
    run: Annotated[str | None, typer.Option(help="Name of the result; without, the teacher's.")] = None,
    keep_rankings: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Keep the users' ranking lists of every N-th epoch and the best one, for HetComp.",
        ),
    ] = None,
    restart: Restart = False,
    work: Work = WORK,
    config: Config = None,
    override: Override = None,
    seed: Seed = None,
    json: Json = False,
) -> None:
    """Fine-tune a teacher on a domain."""
    from ckd import console, views
    from ckd.pipelines.finetune_teacher import finetune_teacher as finetune

    settings = settings_of(config, override, seed, reads=("seed", "teacher", "train"))
    with console.bars() as bars:
        result = finetune(
            work,
            domain,
            teacher,
            settings,
            run=run,
            progress=bars,
            on_epoch=views.epoch_printer(json),
            keep_rankings=keep_rankings,
            restart=restart,
        )
    views.finetuned(result, json)


def import_teacher(
    checkpoint: Annotated[Path, typer.Argument(help="The published weights: safetensors, or a file of tensors alone.")],
    teacher: Annotated[str, typer.Option(help="A registered teacher.")],
    run: Annotated[str | None, typer.Option(help="Name of the result; without, the teacher's.")] = None,
    work: Work = WORK,
    config: Config = None,
    override: Override = None,
    json: Json = False,
) -> None:
    """Take over a published checkpoint, key by key, as a pre-trained teacher."""
    from ckd import views
    from ckd.pipelines.import_teacher import import_teacher as run_import

    settings = settings_of(config, override, reads=("teacher",))
    views.record(f"Imported {teacher}", run_import(work, teacher, checkpoint, settings.teacher, run), json)
