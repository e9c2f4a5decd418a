"""Commands of the batch plan and of stage one: teachers' scores, and their stores."""

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
    PlanId,
    Scores,
    Seed,
    Work,
    device_alone,
    names_if_given,
    refuse,
    settings_of,
)


def plan(
    domain: DomainName,
    scored_plan: Annotated[
        str | None, typer.Option(help="With plan.difficulty=teacher_loss or teacher_disagreement: the scored plan.")
    ] = None,
    teachers: Annotated[
        str | None, typer.Option(help="With --scored-plan: whose scores, separated by commas; without, all that are.")
    ] = None,
    scores: Scores = None,
    show: Annotated[bool, typer.Option("--show", help="Print the curriculum stage by stage, and draw it.")] = False,
    figure: Annotated[Path | None, typer.Option(help="Where to draw it: .png, .svg or .pdf.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what scoring the plan would write, save nothing.")
    ] = False,
    work: Work = WORK,
    config: Config = None,
    override: Override = None,
    seed: Seed = None,
    json: Json = False,
) -> None:
    """Plan which instances share a batch and in which order batches are trained on."""
    from ckd import console, views
    from ckd.pipelines import plan as pipeline
    from ckd.pipelines.teacher_difficulty import scores_for_plan

    if dry_run:
        refuse({"--show": show, "--figure": figure}, "there is no plan to show or draw after a --dry-run")
    runs = names_if_given(teachers)
    settings = settings_of(config, override, seed, reads=("seed", "plan"))
    if figure:
        pipeline.check_picture(figure)
    with console.bars() as bars:
        known = scores_for_plan(work, domain, settings.plan, scored_plan, runs, scores, bars)
        if dry_run:
            views.plan_estimate(pipeline.preview(work, domain, settings, known), json)
            return
        planned = pipeline.make_plan(work, domain, settings, bars, known)
    drawn = None
    if show or figure:
        drawn = pipeline.draw(planned.plan, figure or planned.folder / "curriculum.png", title=domain)
    views.planned(planned, pipeline.describe(planned.plan) if show else [], drawn, json)


def teacher_score(
    domain: DomainName,
    teacher: Annotated[str, typer.Option(help="A fine-tuned teacher's run, or vectors with the two files below.")],
    plan: PlanId = None,
    user_vectors: Annotated[Path | None, typer.Option(help="Vectors of users or instances, from any model.")] = None,
    item_vectors: Annotated[Path | None, typer.Option(help="Vectors of items, from the same model.")] = None,
    run: Annotated[str | None, typer.Option(help="With vectors: name of the teacher they become.")] = None,
    codec: Annotated[str | None, typer.Option(help="f16, u8, vectors or tensor.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes on this machine; without, one.")] = None,
    scores: Scores = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be computed and written.")] = False,
    work: Work = WORK,
    config: Config = None,
    override: Override = None,
    json: Json = False,
) -> None:
    """Stage one: write a teacher's in-batch softmax scores of every planned batch."""
    from ckd import console, views
    from ckd.pipelines import teacher_score as pipeline
    from ckd.pipelines.score_estimate import estimate_scoring

    if dry_run:
        refuse({"--workers": workers, "--scores": scores}, "nothing is computed or written in a --dry-run")
    settings = settings_of(
        config,
        [*(override or []), *([f"score.codec={codec}"] if codec else [])],
        reads=("score", "distill", "train", *(("teacher",) if user_vectors else ())),
        unused={"plan": "`ckd plan` has made the plan"}
        | device_alone("the teacher is trained, and takes the device alone"),
    )
    if user_vectors or item_vectors:
        if teacher != "vectors" or not (user_vectors and item_vectors):
            raise typer.BadParameter("--user-vectors and --item-vectors go together, and with --teacher vectors")
        if dry_run:
            raise typer.BadParameter("--dry-run: ready-made vectors leave nothing to estimate")
        teacher = pipeline.adopt_vectors(work, domain, settings, user_vectors, item_vectors, run)
    else:
        refuse({"--run": run}, "names the teacher that --user-vectors and --item-vectors become")
    if dry_run:
        views.record(
            f"Scoring {domain} with {teacher} would take",
            estimate_scoring(work, domain, teacher, settings, plan),
            json,
        )
        return
    with console.bars() as bars:
        scored = pipeline.teacher_score(work, domain, teacher, settings, plan, scores, workers or 1, bars)
    views.scored(scored, json)


def inspect(
    location: Annotated[str, typer.Argument(help="A store's folder or URI.")],
    figure: Annotated[Path | None, typer.Option(help="Draw one batch's matrix here: .png or .svg.")] = None,
    batch: Annotated[int | None, typer.Option(min=0, help="Which batch to draw; without, the first.")] = None,
    json: Json = False,
) -> None:
    """What a store holds, for which teacher, plan and temperature, how large and how fast it reads."""
    from ckd import views
    from ckd.store.inspect import inspect_store

    if figure is None:
        refuse({"--batch": batch}, "nothing is drawn without --figure")
    views.record(location, inspect_store(location, figure=figure, batch=batch or 0), json)


def verify(
    location: Annotated[str | None, typer.Argument(help="A store's folder or URI.")] = None,
    sample: Annotated[str | None, typer.Option(help="Score this share again with the teacher, such as 1%.")] = None,
    domain: Annotated[str | None, typer.Option(help="In place of a location, and with --sample: the domain.")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="In place of a location, and with --sample: the teacher's run.")
    ] = None,
    plan: PlanId = None,
    work: Work = WORK,
    json: Json = False,
) -> None:
    """Check a store's structure and checksums, and with --sample its numbers against the teacher's."""
    from ckd import views
    from ckd.pipelines.verify_scores import verify_scores

    views.record("Verified", verify_scores(work, location, sample, domain, teacher, plan), json)
