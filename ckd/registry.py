"""Plug-ins by name: one file in a folder, or an entry point of an installed package.

A plug-in's name is its module's file name. Listing names imports nothing; a module is imported when it is asked for.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from ckd.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Registry:
    """The plug-ins of one kind.

    Attributes:
        kind: what a plug-in is called in messages, such as `"teacher"`.
        package: the package whose modules are plug-ins, and the entry-point group of foreign ones.
        attribute: the module attribute that holds the plug-in.
        helpers: modules of the package that are not plug-ins.
    """

    kind: str
    package: str
    attribute: str
    helpers: frozenset[str] = frozenset()

    @cached_property
    def _modules(self) -> list[str]:
        folder = Path(__file__).parent.joinpath(*self.package.split(".")[1:])
        found = pkgutil.iter_modules([str(folder)])
        return sorted(m.name for m in found if not m.ispkg and m.name not in self.helpers)

    @cached_property
    def _foreign(self) -> dict[str, EntryPoint]:
        found: dict[str, EntryPoint] = {}
        for point in entry_points(group=self.package):
            if point.name in found or point.name in self._modules:
                raise ConfigError(
                    f"two {self.kind}s are called {point.name!r}: the entry point {point.value} must be renamed."
                )
            found[point.name] = point
        return found

    def names(self) -> list[str]:
        """The names of all plug-ins, sorted, without importing any."""
        return sorted([*self._modules, *self._foreign])

    def get(self, name: str) -> Any:
        """Import and return the plug-in called `name`.

        Raises:
            ConfigError: no plug-in has this name, two have, or a foreign one cannot be imported.
        """
        if name in self._foreign:
            return self._load(self._foreign[name])
        if name not in self._modules:
            raise ConfigError(f"unknown {self.kind} {name!r}.{did_you_mean(name, self.names())}")
        return getattr(importlib.import_module(f"{self.package}.{name}"), self.attribute)

    def _load(self, point: EntryPoint) -> Any:
        try:
            return point.load()
        except (ImportError, AttributeError) as error:
            owner = point.dist.name if point.dist is not None else "its package"
            raise ConfigError(
                f"{self.kind} {point.name!r}: {point.value} of {owner} cannot be imported ({error}). "
                "Install that package again, or remove it."
            ) from error

    def all(self) -> dict[str, Callable[..., Any]]:
        """Every plug-in by name, imported."""
        return {name: self.get(name) for name in self.names()}
