"""Options that several commands share, and what their values mean."""

from __future__ import annotations

import os
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

#: What a base model is trained without, for `settings_of`.
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
    config: Path | None,
    override: list[str] | None,
    seed: int | None = None,
    *,
    reads: tuple[str, ...] | None,
    unused: Mapping[str, str] | None = None,
) -> RunConfig:
    """The configuration that the options name.

    Of overrides that change nothing it says so. Of a file, which may serve other commands, it says nothing, but for the
    sections that `ckd reproduce` gives its models settings from, `methods` and `base`, which could be meant for all.

    Args:
        reads: which sections the command reads; none: all.
        unused: what else it does not read, `section` or `section.key`, and why.
    """
    from ckd.config import RunConfig, load_config

    settings = load_config(config, [*(override or []), *([] if seed is None else [f"seed={seed}"])])
    everything = tuple(RunConfig.model_fields)
    reads = everything if reads is None else reads
    theirs = "methods", "base"
    aside = [name for name in theirs if name not in reads and getattr(settings, name)]
    if aside:
        _tell(f"{' and '.join(aside)}: settings of `ckd reproduce`, which change nothing here.")
    others = [name for name in everything if name not in (*reads, *theirs)]
    told = dict.fromkeys(others, f"of settings this command reads {', '.join(reads)}") | dict(unused or {})
    for key in _keys_in(override or []):
        why = told.get(key) or told.get(key.split(".")[0])
        if why is not None:
            _tell(f"{key}: {why}; it changes nothing here.")
    return settings


def planned() -> dict[str, str]:
    """What a student's plan gives, which teachers alone are told, for `settings_of`."""
    from ckd.config import TrainConfig

    return {f"train.{name}": f"a student's batches are its plan's (plan.{name})" for name in TrainConfig.OF_A_PLAN}


def device_alone(why: str) -> dict[str, str]:
    """Everything of `train` but the device, for `settings_of`."""
    from ckd.config import TrainConfig

    return {f"train.{name}": why for name in TrainConfig.model_fields if name != "device"}


def _tell(line: str) -> None:
    """Print a hint; of several processes that `torchrun` has started, the first alone does."""
    if os.environ.get("RANK", "0") == "0":
        print(f"ckd: {line}", file=sys.stderr)


def _keys_in(override: list[str]) -> list[str]:
    """`section.key` of overrides that `settings_of` has taken, each once; a whole section's are those it names."""
    from ckd.config import read_yaml

    found: dict[str, None] = {}
    for given in override:
        name, _, text = given.partition("=")
        section, dot, rest = name.partition(".")
        whole = read_yaml(text) if not dot else None
        keys = whole if isinstance(whole, dict) else [rest.split(".")[0]]
        found |= dict.fromkeys(f"{section}.{key}" if key else section for key in keys)
    return list(found)
