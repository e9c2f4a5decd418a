"""Commands that reproduce the paper's tables and figures; `COMMANDS` names them.

All but `table2` take the same options, and some one more, so that their signatures are put together here.
"""

from __future__ import annotations

import inspect
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ckd.commands.options import WORK, Config, Json, Override, Work, names_if_given, settings_of

#: Of every command, before its own: the option and its default.
WHERE: dict[str, tuple[Any, Any]] = {
    "data": (
        Annotated[Path | None, typer.Option(help="Folder of real domains; without, the built-in example.")],
        None,
    ),
    "domains": (Annotated[str | None, typer.Option(help="Which of them, separated by commas.")], None),
}

#: Of every command, after its own.
HOW: dict[str, tuple[Any, Any]] = {
    "dry_run": (
        Annotated[bool, typer.Option("--dry-run", help="List the steps, which are done, and how long the rest takes.")],
        False,
    ),
    "work": (Work, WORK),
    "config": (Config, None),
    "override": (Override, None),
    "json": (Json, False),
}

#: Of every command that trains.
TRAINING: dict[str, tuple[Any, Any]] = {
    "seeds": (Annotated[int, typer.Option(min=1, help="Runs of everything, from different seeds.")], 1),
    "teachers": (
        Annotated[
            str | None,
            typer.Option(help="Teachers that are distilled; without, UniSRec, Recformer and, with pictures, UniM²Rec."),
        ],
        None,
    ),
    "sources": (
        Annotated[
            str | None,
            typer.Option(help="Domains to pre-train the teachers on; without, they are fine-tuned from scratch."),
        ],
        None,
    ),
    "teacher_seeds": (
        Annotated[
            int | None,
            typer.Option(
                min=1, help="Runs of each teacher, which the seeds' students take in turn; without, one for each seed."
            ),
        ],
        None,
    ),
}

#: Of commands whose rows can be chosen.
METHODS = {
    "methods": (
        Annotated[str | None, typer.Option(help="Methods as printed, separated by commas; without, all.")],
        None,
    )
}

#: Of commands that vary one setting at a time.
SETTINGS = {
    "what": (Annotated[str | None, typer.Option(help="Which settings, separated by commas; without, all.")], None)
}

#: In the paper's order: name, help, and the options beside the shared ones.
COMMANDS: tuple[tuple[str, str, dict[str, tuple[Any, Any]]], ...] = (
    ("table2", "Statistics of the domains, beside the paper's (Table 2).", {}),
    (
        "table3",
        "Teachers, students and baselines side by side (the paper's Tables 3 and 4).",
        {**TRAINING, **METHODS},
    ),
    ("table5", "Time and memory of serving: base, distilled student and teachers (Table 5).", TRAINING),
    ("figure1", "Quality against time and memory of serving (Figure 1).", TRAINING),
    ("figure3", "Ablations: what each part of the method brings (Figure 3).", {**TRAINING, **METHODS}),
    ("figure4", "FM, DeepFM and LightGCN without and with distillation (Figure 4).", {**TRAINING, **METHODS}),
    (
        "figure5",
        "The distilled student over temperature, lambda and dimension (Figure 5).",
        {**TRAINING, **SETTINGS},
    ),
    (
        "open-questions",
        "The distilled student over what the paper leaves open: buckets, alpha, epsilon, difficulty, normalisation, "
        "direction, pool.",
        {**TRAINING, **SETTINGS},
    ),
    ("cold-start", "Base against distilled, by length of users' history and popularity of items.", TRAINING),
)


def register(app: typer.Typer) -> None:
    """Add all commands, in the paper's order."""
    for name, text, extra in COMMANDS:
        app.command(name)(_command(name, text, {**WHERE, **extra, **HOW}))


def _command(name: str, text: str, options: dict[str, tuple[Any, Any]]) -> Callable[..., None]:
    """A function of these options, as typer reads it."""

    def command(**given: Any) -> None:
        _run(name, **given)

    command.__doc__ = text
    command.__annotations__ = {key: kind for key, (kind, _) in options.items()}
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for key, (kind, default) in options.items()
        ]
    )
    return command


def _command_line(work: Path) -> str:
    """What was typed, for a shell; with the work folder where the environment names it."""
    typed = ["ckd", *sys.argv[1:]]
    named = any(each.split("=")[0] == "--work" for each in typed)
    return shlex.join(typed if named or "CKD_WORK" not in os.environ else [*typed, "--work", str(work)])


def _run(
    name: str,
    *,
    data: Path | None,
    domains: str | None,
    dry_run: bool,
    work: Path,
    config: Path | None,
    override: list[str] | None,
    json: bool,
    seeds: int = 1,
    teachers: str | None = None,
    sources: str | None = None,
    teacher_seeds: int | None = None,
    **chosen: str | None,
) -> None:
    from ckd import console, views, views_reproduce
    from ckd.pipelines import reproduce as room
    from ckd.pipelines.reproduce.study import make_study

    settings = settings_of(config, override, reads=None)
    options = room.Options(**{key: names_if_given(text) for key, text in chosen.items()})
    with console.bars() as bars:
        study = make_study(
            work,
            data,
            names_if_given(domains),
            seeds,
            settings,
            teachers=names_if_given(teachers),
            sources=names_if_given(sources) or (),
            teacher_seeds=teacher_seeds,
            progress=bars,
            say=views.say(json),
        )
        if not dry_run:
            result = room.reproduce(name, study, options, _command_line(work))
    if dry_run:
        views_reproduce.dry_run(room.dry_run(name, study, options), json)
    else:
        views_reproduce.experiment(result, json)
