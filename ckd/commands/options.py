"""Options that several commands share, and what their values mean."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ckd.config import RunConfig

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
Restart = Annotated[bool, typer.Option("--restart", help="Discard what is in the run's folder.")]
WORK = Path("ckd-work")


def names_in(text: str) -> list[str]:
    """The names in a list with commas, each once."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise typer.BadParameter(f"{text!r} names nothing")
    return names


def settings_of(
    config: Path | None, override: list[str] | None, seed: int | None = None, *, used: tuple[str, ...] = ()
) -> RunConfig:
    """The configuration that the options name.

    Args:
        used: which of the sections that `ckd reproduce` gives its models settings from, `methods` and `base`, the
            command uses as well. Of the others it says that they change nothing.
    """
    from ckd.config import load_config

    settings = load_config(config, [*(override or []), *([] if seed is None else [f"seed={seed}"])])
    aside = [name for name in ("methods", "base") if name not in used and getattr(settings, name)]
    if aside:
        print(f"ckd: {' and '.join(aside)}: settings of `ckd reproduce`, which change nothing here.", file=sys.stderr)
    return settings


def say_planned(override: list[str] | None) -> None:
    """Say of overrides that a student's plan gives that they change nothing; a file may have them for teachers."""
    from ckd.config import TrainConfig

    for name in TrainConfig.OF_A_PLAN:
        if any(given.split("=")[0].strip() == f"train.{name}" for given in override or []):
            print(
                f"ckd: train.{name}: a student's batches are its plan's (plan.{name}); it changes nothing here.",
                file=sys.stderr,
            )
