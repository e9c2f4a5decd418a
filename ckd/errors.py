"""The errors a user can cause.

The command line prints one as a single line and exits with code 1; everything else is a defect of ckd and
keeps its traceback. A message names the file, the offending value and the remedy.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class CkdError(Exception):
    """Something the user can mend: the message is one complete line."""


class ConfigError(CkdError):
    """A configuration key or value that does not exist or does not fit."""


class DataError(CkdError):
    """Input data that is malformed, missing or empty."""


class StoreError(CkdError):
    """A plan or score store that is incomplete, damaged or made for something else."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` or `" Known: a, b."`, to end a message about an unknown name."""
    names = sorted(known)
    folded = {known_name.casefold(): known_name for known_name in names}
    close = difflib.get_close_matches(name.casefold(), folded, n=1)
    return f" Did you mean {folded[close[0]]!r}?" if close else f" Known: {', '.join(names) or 'none'}."


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without its full stop, for a message of one line."""
    text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return text.strip().rstrip(".")


def file_name(kind: str, name: str, remedy: str = "") -> str:
    """`name`, if it can name a folder or file of its own.

    Args:
        remedy: ends the message.

    Raises:
        ConfigError: it holds something other than letters, digits, dots, dashes and underscores.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        rule = "use letters, digits, '.', '-' and '_', beginning with a letter or digit."
        raise ConfigError(f"{kind} {name!r}: {rule}{remedy and ' '}{remedy}")
    return name
