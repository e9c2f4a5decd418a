"""The `ckd` command: each command builds a configuration, calls one pipeline function and prints the result.

Nothing heavy is imported here: `ckd --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import typer

from ckd.commands import data, reproduce, scores, students, teachers
from ckd.errors import CkdError


def _app(help: str, **settings: Any) -> typer.Typer:
    # Plain help: rich, which would draw boxes around it, takes longer to import than everything else here.
    return typer.Typer(help=help, no_args_is_help=True, rich_markup_mode=None, **settings)


app = _app(
    "Distil several fine-tuned pre-trained recommendation models into one small sequential recommender.",
    name="ckd",
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
app.command("evaluate")(students.evaluate)
app.command("recommend")(students.recommend)
app.command("export")(students.export)

store_app = _app("Look at score stores, and check them.")
store_app.command("inspect")(scores.inspect)
store_app.command("verify")(scores.verify)
app.add_typer(store_app, name="store")

teacher_app = _app("Bring in teachers that were trained elsewhere.")
teacher_app.command("import")(teachers.import_teacher)
app.add_typer(teacher_app, name="teacher")

reproduce_app = _app("The paper's tables and figures, one command each.")
reproduce_app.command("table3")(reproduce.table3)
app.add_typer(reproduce_app, name="reproduce")


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


if __name__ == "__main__":
    main()
