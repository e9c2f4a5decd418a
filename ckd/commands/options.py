"""Options that several commands share, and what their values mean."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

#: What a base model is trained without, for `say_unused`.
UNDISTILLED = {"distill": "nothing is distilled with --no-distill"}


def names_in(text: str) -> list[str]:
    """The names in a list with commas, each once.

    Raises:
        typer.BadParameter: there is none.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise typer.BadParameter(f"{text!r} names nothing")
    return names


def names_if_given(text: str | None) -> tuple[str, ...] | None:
    """The same, and None of an option that was left out, which an empty list is not."""
    return None if text is None else tuple(names_in(text))


def refuse(options: Mapping[str, Any], why: str) -> None:
    """Refuse options that would have no effect.

    Args:
        options: values by option; None, or False of a flag, where it was not given.
        why: ends the line, before the remedy.

    Raises:
        typer.BadParameter: names the first that was given.
    """
    for option, value in options.items():
        if value is not None and value is not False:
            raise typer.BadParameter(f"{option if value is True else f'{option} {value}'}: {why}. Leave it out.")


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


def say_unused(override: list[str] | None, unused: Mapping[str, str]) -> None:
    """Say of overrides that they change nothing, and why; of a file, which may serve other commands, nothing is said.

    Args:
        unused: what the command does not read, `section` or `section.key`, and why.
    """
    for key in _keys_in(override or []):
        why = unused.get(key) or unused.get(key.split(".")[0])
        if why is not None:
            print(f"ckd: {key}: {why}; it changes nothing here.", file=sys.stderr)


def planned() -> dict[str, str]:
    """What a student's plan gives, which teachers alone are told, for `say_unused`."""
    from ckd.config import TrainConfig

    return {f"train.{name}": f"a student's batches are its plan's (plan.{name})" for name in TrainConfig.OF_A_PLAN}


def _keys_in(override: list[str]) -> list[str]:
    """`section.key` of overrides that `settings_of` has taken, each once; a whole section's are those it names."""
    import yaml

    found: dict[str, None] = {}
    for given in override:
        name, _, text = given.partition("=")
        section, dot, rest = name.partition(".")
        whole = yaml.safe_load(text) if not dot else None
        keys = whole if isinstance(whole, dict) else [rest.split(".")[0]]
        found |= dict.fromkeys(f"{section}.{key}" if key else section for key in keys)
    return list(found)
