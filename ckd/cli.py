"""The `ckd` command: each command builds a configuration, calls one pipeline function and prints the result.

Nothing heavy is imported here: `ckd --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from ckd.commands import data, report, reproduce, scores, students, teachers, tune
from ckd.errors import CkdError, ConfigError, first_line
from ckd.nn.memory import keep_few_kernels

#: Set by `torchrun` in the processes that it starts.
TORCHRUN = "TORCHELASTIC_RUN_ID"
#: How many these are, set by it too.
SIZE = "WORLD_SIZE"
#: What shells expect of a program that was ended by Ctrl-C.
INTERRUPTED = 130


class Interruptible(TyperGroup):
    """Commands that say so when they are interrupted from the keyboard."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            if os.environ.get("CKD_DEBUG") == "1":
                raise
            print(
                "\nckd: interrupted; nothing half-made counts. The same command goes on where training or scoring was.",
                file=sys.stderr,
            )
            raise typer.Exit(INTERRUPTED) from None


def _app(help: str, **settings: Any) -> typer.Typer:
    # Plain help: rich, which would draw boxes around it, takes longer to import than everything else here.
    return typer.Typer(help=help, no_args_is_help=True, rich_markup_mode=None, **settings)


app = _app(
    "Distil several fine-tuned pre-trained recommendation models into one small sequential recommender.",
    name="ckd",
    cls=Interruptible,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("prepare")(data.prepare)
app.command("example")(data.example)
app.command("encode-items")(data.encode_items)
app.command("pretrain-teacher")(teachers.pretrain_teacher)
app.command("finetune-teacher")(teachers.finetune_teacher)
app.command("plan")(scores.plan)
app.command("teacher-score")(scores.teacher_score)
app.command("train-student")(students.train_student)
app.command("tune")(tune.tune)
app.command("train-baseline")(students.train_baseline)
app.command("evaluate")(students.evaluate)
app.command("recommend")(students.recommend)
app.command("export")(students.export)
app.command("report")(report.report)
app.command("serving")(students.serving)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"ckd {version('ckd-mdsr')}")
        raise typer.Exit


@app.callback(help=app.info.help)
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version, and end.")
    ] = False,
) -> None:
    """What `ckd` takes before a command."""


store_app = _app("Look at score stores, and check them.")
store_app.command("inspect")(scores.inspect)
store_app.command("verify")(scores.verify)
app.add_typer(store_app, name="store")

teacher_app = _app("Bring in teachers that were trained elsewhere.")
teacher_app.command("import")(teachers.import_teacher)
app.add_typer(teacher_app, name="teacher")

reproduce_app = _app("The paper's tables and figures, one command each.")
reproduce.register(reproduce_app)
app.add_typer(reproduce_app, name="reproduce")


def main() -> None:
    """Run the command; a user's error becomes one line on standard error and exit code 1."""
    keep_few_kernels()  # besides the trainer, teachers with loops of their own and encoders compute in bf16
    try:
        _refuse_several(sys.argv[1:])
        app(prog_name="ckd")
    except CkdError as error:
        if os.environ.get("CKD_DEBUG") == "1":
            raise
        _fail(" ".join(str(error).split()))
    except OSError as error:
        if os.environ.get("CKD_DEBUG") == "1" or error.strerror is None:
            raise
        place = "" if error.filename is None else f"{error.filename}: "
        _fail(f"{place}{error.strerror}. Free or allow that place, then run again.")
    except (MemoryError, RuntimeError) as error:
        if os.environ.get("CKD_DEBUG") == "1" or not _ran_out(error):
            raise
        _fail(f"out of memory ({first_line(error)}). Take smaller batches or a smaller model, and run it again.")


def _ran_out(error: Exception) -> bool:
    """Whether memory ran out, a processor's or a GPU's: torch, which is not imported here, has errors of its own."""
    text = str(error)
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def _refuse_several(words: list[str]) -> None:
    """Only training can be shared by several processes."""
    if TORCHRUN not in os.environ:
        return  # others set WORLD_SIZE as well, for programs of their own
    size = os.environ.get(SIZE, "")
    if not size.isdecimal():
        raise ConfigError(f"{SIZE}={size}: no number of processes. Leave it as torchrun sets it.")
    if int(size) > 1 and words[:1] != ["train-student"]:
        raise ConfigError(f"ckd {' '.join(words[:1])}: only train-student can be started by torchrun; use ckd alone.")


def _fail(message: str) -> NoReturn:
    """End with one line; of several processes of `torchrun`, the first that fails says it, and the others just end."""
    if TORCHRUN in os.environ and os.environ.get(SIZE, "").isdecimal():
        from ckd.distill.parallel import fails_first

        if not fails_first():
            sys.exit(1)
    print(f"ckd: {message}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
