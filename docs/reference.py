"""Writes reference.md beside it: every command, option, key and default, from what the code says of them.

make reference
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer.main
from pydantic import BaseModel

from ckd import cli
from ckd.baselines.hetcomp import HetCompConfig
from ckd.baselines.recguru import RecGURUConfig
from ckd.config import RunConfig
from ckd.pipelines.encode_items import EncodeConfig
from ckd.registry import Registry
from ckd.students import STUDENTS
from ckd.teachers import TEACHERS

PAGE = Path(__file__).with_name("reference.md")

HEAD = """# Commands and settings

Written by `make reference` from the code's own words; `ckd COMMAND --help` says the same of a command.

Settings come from one YAML file (`--config`), whose sections and keys are below, and from `-o section.key=value`, which
goes over the file. All keys are optional, unknown ones are refused, and of an override that a command does not read it
is said so. Values are YAML: where a description says none, write `null` (of `prepare.drop_duplicates` and
`plan.difficulty` it is the word `none`). What `ckd reproduce` trains gets the same settings, and those of `methods`
over them, by model:

```yaml
plan:
  epochs: 30
student:
  hidden_size: 64
base:                       # of the base model, which is tuned for itself
  hidden_dropout: 0.3
methods:
  gru4rec:
    plan.epochs: 60         # section.key: value
  unisrec:
    teacher.mode: transductive
    pretrain.epochs: 10     # of its pre-training, with --sources
```
"""

REQUESTS = """A request is one JSON object a line, and so is its answer:

```console
$ echo '{"history": ["B00", "B17"], "id": 7}' | ckd recommend --domain toys --run distilled -k 3
{"line": 1, "id": 7, "items": ["B42", "B05", "B31"], "scores": [9.1, 8.7, 8.2], "unknown": 0}
```

The history's oldest item is first; `{"user": "A1"}` asks for the history that the domain knows of a user.
"""

#: Options that most commands have, in this order.
COMMON = ("--work", "--config", "--override", "--seed", "--json")


def main() -> None:
    PAGE.write_text(page())


def page() -> str:
    """The whole page as Markdown."""
    return "\n".join([HEAD, "## Commands\n", *commands(), "## Settings\n", *settings()]).rstrip() + "\n"


def commands() -> Iterator[str]:
    root = typer.main.get_command(cli.app)
    leaves = list(_leaves((), root))
    options = {opts: help for _, command in leaves for opts, help in _options(command) if _long(opts) in COMMON}
    yield "These are options of most commands; the others are listed with their own.\n"
    yield from _table(("option", ""), sorted(options.items(), key=lambda pair: COMMON.index(_long(pair[0]))))
    for name, group in [("", root), *_groups(root)]:
        below = [(path, command) for path, command in leaves if path[:-1] == tuple(name.split())]
        shared = _shared([command for _, command in below]) if name == "reproduce" else set()
        if name:
            yield f"### `ckd {name}`\n\n{_flat(group.help)}\n"
        if shared:
            yield "These take, but where it says otherwise:\n"
            most = max((command for _, command in below), key=lambda command: len(shared & set(_options(command))))
            yield from _table(("option", ""), [pair for pair in _own(most) if pair in shared])
        for path, command in below:
            arguments = "".join(f" {p.name.upper()}" for p in command.params if p.param_type_name == "argument")
            yield f"{'####' if name else '###'} `ckd {' '.join(path)}{arguments}`\n\n{_flat(command.help)}\n"
            if path == ("recommend",):
                yield REQUESTS
            own = [pair for pair in _own(command) if pair not in shared]
            if lacking := sorted(shared - set(_options(command))):
                yield f"It takes no {', '.join(names for names, _ in lacking)}.\n"
            yield from _table(("option", ""), own) if own else ()


def settings() -> Iterator[str]:
    for name, field in RunConfig.model_fields.items():
        model = field.annotation
        if isinstance(model, type) and issubclass(model, BaseModel):
            yield from _keys(name, model, _flat((model.__doc__ or "").split("\n\n")[0]))
    yield from _keys("features", EncodeConfig, "What `ckd encode-items` encodes, and with what.")
    for name, student in _own_plugins(STUDENTS):
        yield from _keys(f"student, {name}", student.Config)
    for name, teacher in _own_plugins(TEACHERS):
        yield from _keys(f"teacher, {name}", teacher.Config)
        pretraining = getattr(teacher, "PretrainConfig", None)
        if pretraining is not None:
            yield from _keys(f"teacher, {name} in pre-training", pretraining)
    yield from _keys("baseline, hetcomp", HetCompConfig)
    yield from _keys("baseline, recguru", RecGURUConfig)


def _own_plugins(registry: Registry) -> Iterator[tuple[str, Any]]:
    """Those of this package: whatever else is installed here is not documented here."""
    found = ((name, registry.get(name)) for name in registry.names())
    return ((name, plugin) for name, plugin in found if plugin.__module__.startswith("ckd."))


def _keys(name: str, model: type[BaseModel], what: str = "") -> Iterator[str]:
    yield f"### {name}\n"
    if what:
        yield f"{what}\n"
    yield from _table(("key", "default", "values", ""), list(_rows(model)))


def _rows(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    for key, field in model.model_fields.items():
        name = f"{prefix}{field.alias or key}"
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            yield from _rows(nested, f"{name}.")
        else:
            default = "needed" if field.is_required() else f"`{_value(field.get_default(call_default_factory=True))}`"
            choices = ", ".join(f"`{choice}`" for choice in get_args(nested)) if get_origin(nested) is Literal else ""
            yield f"`{name}`", default, choices, field.description or ""


def _value(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)


def _leaves(path: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield path, command
    for name, child in (children or {}).items():
        yield from _leaves((*path, name), child)


def _groups(root: Any) -> list[tuple[str, Any]]:
    return [(name, child) for name, child in root.commands.items() if hasattr(child, "commands")]


def _options(command: Any) -> list[tuple[str, str]]:
    """Names and words of a command's options and arguments."""
    found = []
    for parameter in command.params:
        names = parameter.opts if parameter.param_type_name == "option" else [parameter.name.upper()]
        if "--help" not in names:
            more = "needed" if parameter.required else ""
            if not more and parameter.default not in (None, False, ()):
                more = f"default `{parameter.default}`"
            words = " ".join(filter(None, [parameter.help, more and f"({more})"]))
            found.append((", ".join(f"`{name}`" for name in names), words))
    return found


def _shared(commands: list[Any]) -> set[tuple[str, str]]:
    """Options that most of them have, but for those that every command has."""
    counted = Counter(pair for command in commands for pair in _own(command))
    return {pair for pair, count in counted.items() if count > len(commands) * 2 / 3}


def _own(command: Any) -> list[tuple[str, str]]:
    return [pair for pair in _options(command) if _long(pair[0]) not in COMMON]


def _long(names: str) -> str:
    return names.split("`")[-2]


def _flat(text: str | None) -> str:
    return "\n\n".join(" ".join(part.split()) for part in (text or "").split("\n\n")).strip()


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |\n|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
    yield ""


if __name__ == "__main__":
    main()
