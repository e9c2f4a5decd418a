"""The `ckd` command: each command builds a configuration, calls one pipeline function and prints the result.

Nothing heavy is imported here: `ckd --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckd.errors import CkdError

if TYPE_CHECKING:
    from ckd.config import RunConfig


def _app(help: str, **settings: Any) -> typer.Typer:
    # Plain help: rich, which would draw boxes around it, takes longer to import than everything else here.
    return typer.Typer(help=help, no_args_is_help=True, rich_markup_mode=None, **settings)


app = _app(
    "Distil several fine-tuned pre-trained recommendation models into one small sequential recommender.",
    name="ckd",
    add_completion=False,
    pretty_exceptions_enable=False,
)
store_app = _app("Look at score stores, and check them.")
teacher_app = _app("Bring in teachers that were trained elsewhere.")
reproduce_app = _app("The paper's tables, one command each.")
app.add_typer(store_app, name="store")
app.add_typer(teacher_app, name="teacher")
app.add_typer(reproduce_app, name="reproduce")

Work = Annotated[Path, typer.Option(envvar="CKD_WORK", help="Folder that holds all artefacts.")]
DomainName = Annotated[str, typer.Option(help="A prepared domain.")]
Config = Annotated[Path | None, typer.Option(help="YAML file; all keys are optional.")]
Override = Annotated[
    list[str] | None,
    typer.Option("-o", "--override", metavar="SECTION.KEY=VALUE", help="Sets one key, over the file; repeatable."),
]
Seed = Annotated[int | None, typer.Option(help="Overrides the configuration's seed.")]
PlanId = Annotated[str | None, typer.Option(help="Which plan; without, the domain's only one.")]
Scores = Annotated[str | None, typer.Option(help="Folder or URI of score stores, in place of the work folder's.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
WORK = Path("ckd-work")


def main() -> None:
    """Run the command; a user's error becomes one line on standard error and exit code 1."""
    try:
        app(prog_name="ckd")
    except CkdError as error:
        if os.environ.get("CKD_DEBUG") == "1":
            raise
        print(f"ckd: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if os.environ.get("CKD_DEBUG") == "1" or error.strerror is None:
            raise
        place = "" if error.filename is None else f"{error.filename}: "
        print(f"ckd: {place}{error.strerror}. Free or allow that place, then run again.", file=sys.stderr)
        sys.exit(1)


@app.command()
def prepare(
    source: Annotated[Path, typer.Argument(help="File or folder of interactions and items.")],
    name: Annotated[str | None, typer.Option(help="The domain's name; without, the source's.")] = None,
    format: Annotated[str | None, typer.Option(help="Ingest format; without, ckd looks.")] = None,
    work: Work = WORK,
    config: Config = None,
    override: Override = None,
    json: Json = False,
) -> None:
    """Read interactions and items, filter and split them, and save them as a domain."""
    from ckd import console, views
    from ckd.pipelines.prepare import prepare as run

    settings = _settings(config, override)
    with console.bars() as bars:
        prepared = run(
            work,
            source,
            name=name or source.name.split(".")[0].lower(),
            format=format,
            config=settings.prepare,
            progress=bars,
        )
    views.prepared(prepared, json)


@app.command()
def example(work: Work = WORK, seed: Seed = None, json: Json = False) -> None:
    """Generate the built-in example: two source domains and a target."""
    from ckd import views
    from ckd.pipelines.example import prepare_example

    views.domains(prepare_example(work, _settings(None, None, seed).seed), json)


@app.command("encode-items")
def encode_items(
    domain: DomainName,
    modality: Annotated[str | None, typer.Option(help="text, the default, or image.")] = None,
    feature: Annotated[str | None, typer.Option(help="Name of the feature; without, the modality's.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Folder or hub id of the encoder; for images an open_clip name.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of pictures named by raw item id.")] = None,
    vectors: Annotated[Path | None, typer.Option(help="Import ready-made vectors from this file instead.")] = None,
    ids: Annotated[Path | None, typer.Option(help="Raw item ids of the rows of --vectors.")] = None,
    dim: Annotated[int | None, typer.Option(help="Length of a vector in a raw float32 file.")] = None,
    vector_column: Annotated[
        str | None, typer.Option(help="Parquet column or safetensors name of the vectors.")
    ] = None,
    id_column: Annotated[str | None, typer.Option(help="Parquet column of the ids.")] = None,
    work: Work = WORK,
    config: Config = None,
    override: Override = None,
    json: Json = False,
) -> None:
    """Encode item texts or pictures into features, or import ready-made ones."""
    from ckd import console, views
    from ckd.config import parse
    from ckd.pipelines.encode_items import EncodeConfig, import_features
    from ckd.pipelines.encode_items import encode_items as run

    settings = _settings(config, override)
    modality = modality or settings.features.get("modality", "text")
    with console.bars() as bars:
        if vectors is not None:
            imported = import_features(
                work,
                domain,
                feature or modality,
                vectors,
                ids,
                dim=dim,
                vector_column=vector_column,
                id_column=id_column,
            )
            views.record(f"Feature {imported.feature} of {domain}", imported, json)
            return
        keys: dict[str, Any] = {**settings.features, "modality": modality}
        if feature is not None:
            keys["feature"] = feature
        if images is not None:
            keys["images"] = str(images)
        if model is not None:
            keys[modality] = {**keys.get(modality, {}), "model": model}
        encoded = run(work, domain, parse(EncodeConfig, keys, "features"), bars)
    views.record(f"Feature {encoded.feature} of {domain}", encoded, json)


@app.command("pretrain-teacher")
def pretrain_teacher(
    teacher: Annotated[str, typer.Option(help="A registered teacher.")],
    domains: Annotated[str, typer.Option(help="Source domains, separated by commas.")],
    run: Annotated[str | None, typer.Option(help="Name of the result; without, the teacher's.")] = None,
    work: Work = WORK,
    config: Config = None,
    override: Override = None,
    seed: Seed = None,
    json: Json = False,
) -> None:
    """Pre-train a teacher over several domains."""
    from ckd import console, views
    from ckd.pipelines.pretrain_teacher import pretrain_teacher as pretrain

    settings = _settings(config, override, seed)
    with console.bars() as bars:
        result = pretrain(work, teacher, _names(domains), settings, run=run, progress=bars)
    views.record(f"Pre-trained {teacher}", result, json)


@app.command("finetune-teacher")
def finetune_teacher(
    domain: DomainName,
    teacher: Annotated[str, typer.Option(help="A registered teacher.")],
    run: Annotated[str | None, typer.Option(help="Name of the result; without, the teacher's.")] = None,
    work: Work = WORK,
    config: Config = None,
    override: Override = None,
    seed: Seed = None,
    json: Json = False,
) -> None:
    """Fine-tune a teacher on a domain."""
    from ckd import console, views
    from ckd.pipelines.finetune_teacher import finetune_teacher as finetune

    settings = _settings(config, override, seed)
    with console.bars() as bars:
        result = finetune(work, domain, teacher, settings, run=run, progress=bars, on_epoch=views.epoch_printer(json))
    views.finetuned(result, json)


@app.command()
def plan(
    domain: DomainName,
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

    settings = _settings(config, override, seed)
    if dry_run:
        views.plan_estimate(pipeline.preview(work, domain, settings), json)
        return
    if figure:
        pipeline.check_picture(figure)
    with console.bars() as bars:
        planned = pipeline.make_plan(work, domain, settings, bars)
    drawn = None
    if show or figure:
        drawn = pipeline.draw(planned.plan, figure or planned.folder / "curriculum.png", title=domain)
    views.planned(planned, pipeline.describe(planned.plan) if show else [], drawn, json)


@app.command("teacher-score")
def teacher_score(
    domain: DomainName,
    teacher: Annotated[str, typer.Option(help="A fine-tuned teacher's run, or vectors with the two files below.")],
    plan: PlanId = None,
    user_vectors: Annotated[Path | None, typer.Option(help="Vectors of users or instances, from any model.")] = None,
    item_vectors: Annotated[Path | None, typer.Option(help="Vectors of items, from the same model.")] = None,
    run: Annotated[str | None, typer.Option(help="With vectors: name of the teacher they become.")] = None,
    codec: Annotated[str | None, typer.Option(help="f16, u8, vectors or tensor.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
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

    settings = _settings(config, [*(override or []), *([f"score.codec={codec}"] if codec else [])])
    if user_vectors or item_vectors:
        if teacher != "vectors" or not (user_vectors and item_vectors):
            raise typer.BadParameter("--user-vectors and --item-vectors go together, and with --teacher vectors")
        if dry_run:
            raise typer.BadParameter("--dry-run: ready-made vectors leave nothing to estimate")
        teacher = pipeline.adopt_vectors(work, domain, settings, user_vectors, item_vectors, run)
    if dry_run:
        views.record(
            f"Scoring {domain} with {teacher} would take",
            pipeline.estimate_scoring(work, domain, teacher, settings, plan),
            json,
        )
        return
    with console.bars() as bars:
        scored = pipeline.teacher_score(work, domain, teacher, settings, plan, scores, workers, bars)
    views.scored(scored, json)


@app.command("train-student")
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
    restart: Annotated[bool, typer.Option("--restart", help="Discard what is in the run's folder.")] = False,
    work: Work = WORK,
    config: Config = None,
    override: Override = None,
    seed: Seed = None,
    json: Json = False,
) -> None:
    """Stage two: train a student along the plan, with its teachers' scores or without."""
    from ckd import console, views
    from ckd.pipelines.train_student import scored_teachers
    from ckd.pipelines.train_student import train_student as train

    settings = _settings(config, override, seed)
    if no_distill and teachers:
        raise typer.BadParameter("--teachers and --no-distill contradict each other")
    if no_distill:
        chosen: list[str] = []
    else:
        chosen = _names(teachers) if teachers else scored_teachers(work, domain, plan, scores)
    with console.bars() as bars:
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
            on_step=lambda epoch, step, steps, rate: bars(step, steps, "step", f"epoch {epoch} · {rate:,.0f} inst/s"),
            on_epoch=views.epoch_printer(json),
        )
    views.trained(result, json)


@app.command()
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


@app.command()
def recommend(
    domain: DomainName,
    run: Annotated[str, typer.Option(help="A student's run.")],
    requests: Annotated[
        typer.FileText, typer.Argument(encoding="utf-8", errors="replace", help="JSON lines; - is standard input.")
    ] = sys.stdin,  # type: ignore[assignment]
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


@app.command()
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


@teacher_app.command("import")
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

    settings = _settings(config, override)
    views.record(f"Imported {teacher}", run_import(work, teacher, checkpoint, settings.teacher, run), json)


@store_app.command("inspect")
def inspect(
    location: Annotated[str, typer.Argument(help="A store's folder or URI.")],
    figure: Annotated[Path | None, typer.Option(help="Draw one batch's matrix here: .png or .svg.")] = None,
    batch: Annotated[int, typer.Option(min=0, help="Which batch to draw.")] = 0,
    json: Json = False,
) -> None:
    """What a store holds, for which teacher, plan and temperature, how large and how fast it reads."""
    from ckd import views
    from ckd.store.inspect import inspect_store

    views.record(location, inspect_store(location, figure=figure, batch=batch), json)


@store_app.command("verify")
def verify(
    location: Annotated[str | None, typer.Argument(help="A store's folder or URI.")] = None,
    sample: Annotated[str | None, typer.Option(help="Score this share again with the teacher, such as 1%.")] = None,
    domain: Annotated[str | None, typer.Option(help="With --sample: the domain.")] = None,
    teacher: Annotated[str | None, typer.Option(help="With --sample: the teacher's run.")] = None,
    plan: PlanId = None,
    work: Work = WORK,
    json: Json = False,
) -> None:
    """Check a store's structure and checksums, and with --sample its numbers against the teacher's."""
    from ckd import views
    from ckd.pipelines.verify_scores import verify_scores

    views.record("Verified", verify_scores(work, location, sample, domain, teacher, plan), json)


@reproduce_app.command("table3")
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

    settings = _settings(config, override)
    with console.bars() as bars:
        result = reproduce_table3(
            work,
            data,
            _names(domains) if domains else None,
            seeds,
            settings,
            dry_run=dry_run,
            progress=bars,
            say=views.say(json),
        )
    views.table3(result, json)


def _names(text: str) -> list[str]:
    """The names in a list with commas, each once."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise typer.BadParameter(f"{text!r} names nothing")
    return names


def _settings(config: Path | None, override: list[str] | None, seed: int | None = None) -> RunConfig:
    from ckd.config import load_config

    return load_config(config, [*(override or []), *([] if seed is None else [f"seed={seed}"])])


if __name__ == "__main__":
    main()
