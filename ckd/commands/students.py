"""Commands of stage two, and of what serves its result."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ckd.commands.options import (
    UNDISTILLED,
    WORK,
    Config,
    DomainName,
    Json,
    Override,
    PlanId,
    Restart,
    Scores,
    Seed,
    Work,
    device_alone,
    names_if_given,
    names_in,
    planned,
    refuse,
    settings_of,
)


def train_student(
    domain: DomainName,
    student: Annotated[str, typer.Option(help="A registered student.")] = "sasrec",
    teachers: Annotated[
        str | None, typer.Option(help="Teachers' runs, separated by commas; without, all scored ones.")
    ] = None,
    no_distill: Annotated[
        bool, typer.Option("--no-distill", help="Train the base model through the same loop.")
    ] = False,
    plan: PlanId = None,
    run: Annotated[str | None, typer.Option(help="Name of the result.")] = None,
    scores: Scores = None,
    allow_mismatch: Annotated[
        bool,
        typer.Option("--allow-mismatch", help="Train on scores made for something else; stamped into the checkpoint."),
    ] = False,
    restart: Restart = False,
    work: Work = WORK,
    config: Config = None,
    override: Override = None,
    seed: Seed = None,
    json: Json = False,
) -> None:
    """Stage two: train a student along the plan, with its teachers' scores or without.

    On several GPUs or machines: torchrun --nproc-per-node N -m -- ckd train-student ... splits the rows of every batch
    over N processes; the work folder must be the same for all. Without that --, torchrun takes --run for its own.
    """
    from ckd import console, views
    from ckd.distill import live, parallel
    from ckd.pipelines.train_student import scored_teachers
    from ckd.pipelines.train_student import train_student as train

    if no_distill and teachers is not None:
        raise typer.BadParameter("--teachers and --no-distill contradict each other")
    if no_distill:
        refuse({"--scores": scores, "--allow-mismatch": allow_mismatch}, UNDISTILLED["distill"])
    named = names_if_given(teachers)
    settings = settings_of(
        config,
        override,
        seed,
        reads=("seed", "distill", "train", "student"),
        unused={"plan": "`ckd plan` has made the plan"} | planned() | (UNDISTILLED if no_distill else {}),
    )
    chosen = () if no_distill else named or scored_teachers(work, domain, plan, scores)
    with parallel.joined(settings.train.device) as processes, console.bars(processes.first) as bars:
        result = train(
            work,
            domain,
            student,
            settings,
            teachers=chosen,
            plan_id=plan,
            run=run,
            scores=scores,
            allow_mismatch=allow_mismatch,
            restart=restart,
            on_step=lambda epoch, step, steps, row: bars(step, steps, "step", live.note(row)),
            on_epoch=views.epoch_printer(json),
            parallel=processes,
        )
    if processes.first:
        views.trained(result, json)


def train_baseline(
    domain: DomainName,
    baseline: Annotated[str, typer.Option(help="hetcomp or recguru")],
    teachers: Annotated[
        str | None,
        typer.Option(help="HetComp: teachers' runs, separated by commas; without, all that kept ranking lists."),
    ] = None,
    student: Annotated[str | None, typer.Option(help="HetComp: what it trains; without, mf.")] = None,
    source: Annotated[str | None, typer.Option(help="RecGURU: the domain that shares the encoder.")] = None,
    run: Annotated[str | None, typer.Option(help="Name of the result.")] = None,
    restart: Restart = False,
    work: Work = WORK,
    config: Config = None,
    override: Override = None,
    seed: Seed = None,
    json: Json = False,
) -> None:
    """Train a published baseline, HetComp or RecGURU; its own keys are the section `baseline`."""
    from ckd import console, views
    from ckd.pipelines.train_baseline import listed_teachers
    from ckd.pipelines.train_baseline import train_baseline as train

    chosen = names_if_given(teachers) or ()
    unused = device_alone("a baseline's settings are its section baseline, and of train the device")
    if baseline == "recguru":
        unused["student"] = "recguru trains a model of its own"
    reads = ("seed", "baseline", "student", "train")
    settings = settings_of(config, override, seed, reads=reads, unused=unused)
    if teachers is None and baseline == "hetcomp" and source is None:
        chosen = tuple(listed_teachers(work, domain))
    with console.bars() as bars:
        result = train(
            work,
            domain,
            baseline,
            settings,
            student=student,
            teachers=chosen,
            source=source,
            run=run,
            restart=restart,
            progress=bars,
            on_epoch=views.baseline_epoch_printer(json),
        )
    views.trained(result, json)


def evaluate(
    domain: DomainName,
    run: Annotated[str, typer.Option(help="A student's or teacher's run.")],
    split: Annotated[str, typer.Option(help="test or valid")] = "test",
    against: Annotated[str | None, typer.Option(help="Another run, compared user by user.")] = None,
    mask_history: Annotated[bool, typer.Option("--mask-history", help="Leave out items of the user's past.")] = False,
    work: Work = WORK,
    json: Json = False,
) -> None:
    """Rank every item for every user; Recall and NDCG at 5, 10, 20, 50."""
    from ckd import views
    from ckd.errors import ConfigError
    from ckd.pipelines.evaluate import evaluate as run_evaluation

    if split not in ("test", "valid"):
        raise ConfigError(f"--split {split}: test or valid.")
    result = run_evaluation(work, domain, run, split, against, mask_history)  # type: ignore[arg-type]
    views.evaluated(result, run, against, json)


def recommend(
    domain: DomainName,
    run: Annotated[str, typer.Option(help="A student's run.")],
    requests: Annotated[
        typer.FileText, typer.Argument(encoding="utf-8-sig", errors="replace", help="JSON lines; - is standard input.")
    ] = "-",  # type: ignore[assignment]
    k: Annotated[int, typer.Option("-k", min=1, help="Most items in an answer.")] = 10,
    exclude_history: Annotated[bool, typer.Option("--exclude-history", help="Leave out items of the history.")] = False,
    ids: Annotated[str, typer.Option(help="Items are named by raw id, or by number: raw or number.")] = "raw",
    unknown: Annotated[str, typer.Option(help="Unknown items: skip and count them, or refuse the request.")] = "skip",
    on_error: Annotated[
        str, typer.Option(help="A request that cannot be answered: fail, or skip with a note.")
    ] = "fail",
    batch_size: Annotated[int, typer.Option(min=1, help="Requests answered at a time; 1 answers at once.")] = 256,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    work: Work = WORK,
) -> None:
    """Answer histories with the best items: JSON lines in, JSON lines out."""
    from ckd.errors import ConfigError
    from ckd.pipelines.recommend import recommend as answer

    for option, value, known in (
        ("--ids", ids, ("raw", "number")),
        ("--unknown", unknown, ("skip", "refuse")),
        ("--on-error", on_error, ("fail", "skip")),
    ):
        if value not in known:
            raise ConfigError(f"{option} {value}: {' or '.join(known)}.")
    answers = answer(
        work,
        domain,
        run,
        requests,
        k,
        exclude_history=exclude_history,
        ids=ids,  # type: ignore[arg-type]
        on_unknown=unknown,  # type: ignore[arg-type]
        on_error=on_error,  # type: ignore[arg-type]
        batch_size=batch_size,
        device=device,
    )
    for line in answers:
        print(line, flush=True)


def export(
    domain: DomainName,
    run: Annotated[str, typer.Option(help="A student's run.")],
    to: Annotated[str, typer.Option(help="onnx or recbole")] = "onnx",
    out: Annotated[Path | None, typer.Option(help="Folder of the export; without, in the run's.")] = None,
    work: Work = WORK,
    json: Json = False,
) -> None:
    """Write a student for other programs: an ONNX graph, or a checkpoint that RecBole loads."""
    from ckd import views
    from ckd.pipelines.export import export_student

    views.record(f"Exported {run}", export_student(work, domain, run, to, out), json)  # type: ignore[arg-type]


def serving(
    domain: DomainName,
    runs: Annotated[str, typer.Option(help="Students' and teachers' runs; the others are compared with the first.")],
    batch_sizes: Annotated[str, typer.Option(help="Users in a request, separated by commas.")] = "1,256",
    repeats: Annotated[int, typer.Option(min=1, help="Requests of each run and size.")] = 50,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    work: Work = WORK,
    json: Json = False,
) -> None:
    """Parameters, operations, memory and time of a request, side by side (the paper's Table 5)."""
    from ckd import console, views
    from ckd.pipelines.serving_cost import MOST_USERS, serving_cost

    sizes = names_in(batch_sizes)
    if not all(size.isdecimal() and len(size) <= len(str(MOST_USERS)) for size in sizes):
        raise typer.BadParameter(
            f"--batch-sizes {batch_sizes}: write whole numbers up to {MOST_USERS:,}, such as 1,256"
        )
    with console.bars() as bars:
        counts = [int(size) for size in sizes]
        table = serving_cost(work, domain, names_in(runs), counts, repeats, device, bars, key="--device")
    views.serving(table, json)
