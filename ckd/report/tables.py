"""A table as HTML, Markdown and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ckd.pipelines.reproduce.result import Table
from ckd.report.markup import FORBIDDEN, element, esc, scrolling

#: What marks the paper's own figures.
PAPER = "the paper's"

#: How a number begins, with its sign or "less than".
NUMERIC = re.compile(r"^(–$|[+−<>-]?\.?\d)")

#: Text that is longer is folded.
FOLDED = 22


def to_html(table: Table, links: Sequence[str | None] = ()) -> str:
    """The table in a box that scrolls; the first column names the rows, the paper's own rows and columns say so.

    Args:
        links: where the name of each row leads.
    """
    numeric = _right(table)
    head = "".join(
        element("th", esc(column.name) + _badge(column.paper), scope="col", class_="n" if right else None)
        for column, right in zip(table.columns, numeric, strict=True)
    )
    rows = []
    for number in range(len(table.rows)):
        cells = []
        for at, column in enumerate(table.columns):
            text = esc(table.text(number, at))
            if at == 0:
                if number < len(links) and links[number]:
                    text = element("a", text, href=links[number])
                cells.append(element("th", text, scope="row", class_=_wide(table.text(number, at))))
            else:
                wide = None if numeric[at] else _wide(table.text(number, at))
                paper = column.paper or number in table.paper_rows
                kinds = " ".join(n for n, on in (("n", numeric[at]), ("w", wide), ("paper", paper)) if on)
                cells.append(element("td", text, class_=kinds or None))
        rows.append(f"<tr>{''.join(cells)}</tr>")
    title = element("p", esc(table.title), class_="title")
    body = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    notes = "".join(element("p", esc(note), class_="note") for note in table.notes)
    return title + scrolling(body, table.title) + notes


def _wide(text: str) -> str | None:
    """Class of a cell whose text has to be folded, at a width that can still be read."""
    return "w" if len(text) > FOLDED else None


def _badge(paper: bool) -> str:
    return f' <span class="badge">{PAPER}</span>' if paper else ""


def _headers(table: Table) -> list[str]:
    return [f"{column.name} ({PAPER})" if column.paper else column.name for column in table.columns]


def _texts(table: Table) -> list[list[str]]:
    return [[table.text(row, at) for at in range(len(table.columns))] for row in range(len(table.rows))]


def _right(table: Table) -> list[bool]:
    """Which columns hold numbers, be it as text."""
    return [
        at > 0
        and all(NUMERIC.match(table.text(row, at)) or table.rows[row][at] is None for row in range(len(table.rows)))
        for at in range(len(table.columns))
    ]


# --- Markdown --------------------------------------------------------------------------------------------------------


def to_markdown(tables: Sequence[Table], note: str | None = None) -> str:
    """The tables one below the other, each with its title and notes; `note` is said of all of them, at the end."""
    said = [] if note is None else [markdown(note) + "\n"]
    return "\n".join([*(_markdown(table) for table in tables), *said])


def _markdown(table: Table) -> str:
    lines = [f"**{markdown(table.title)}**", ""]
    lines.append(_line(markdown(name) for name in _headers(table)))
    lines.append(_line("---:" if right else "---" for right in _right(table)))
    lines += [_line(markdown(cell) for cell in row) for row in _texts(table)]
    for note in table.notes:
        lines += ["", markdown(note)]
    return "\n".join([*lines, ""])


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def markdown(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    plain = " ".join(FORBIDDEN.sub("\ufffd", text).split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_{}\[\]|#>~$])", r"\\\1", plain)


# --- LaTeX -----------------------------------------------------------------------------------------------------------

#: What LaTeX would read as a command, and signs that its text fonts lack.
LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "&": r"\&",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "–": "--",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"\textperiodcentered{}",
    "²": r"\textsuperscript{2}",
    "₁": r"\textsubscript{1}",
    "₂": r"\textsubscript{2}",
    "₃": r"\textsubscript{3}",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "−": r"$-$",
    "…": r"\ldots{}",
    "’": "'",
    "‖": r"$\|$",
    "α": r"$\alpha$",
    "ε": r"$\varepsilon$",
    "λ": r"$\lambda$",
    "τ": r"$\tau$",
    "⟨": r"$\langle$",
    "⟩": r"$\rangle$",
}


def to_latex(tables: Sequence[Table], name: str, note: str | None = None) -> str:
    """The tables as booktabs floats; `name` begins their labels, and `note` is a comment above them.

    They need the packages booktabs, graphicx (a table wider than the page is brought to its width), and T1 fontenc for
    signs such as a straight quotation mark.
    """
    head = "% Needs \\usepackage{booktabs}, \\usepackage{graphicx} and \\usepackage[T1]{fontenc}.\n"
    if note is not None:
        head += f"% {' '.join(note.split())}\n"
    return head + "\n".join(_latex(table, f"{name}-{number}") for number, table in enumerate(tables, start=1))


def _latex(table: Table, label: str) -> str:
    align = "".join("r" if right else "l" for right in _right(table))
    rows = [r" & ".join(_cell(cell) for cell in row) + r" \\" for row in _texts(table)]
    lines = [
        r"\begin{table}[t]",
        r"  \centering",
        rf"  \caption{{{latex(table.title)}}}",
        rf"  \label{{tab:{re.sub(r'[^A-Za-z0-9-]+', '-', label)}}}",
        r"  \resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%",
        rf"  \begin{{tabular}}{{{align}}}",
        r"    \toprule",
        "    " + r" & ".join(latex(cell) for cell in _headers(table)) + r" \\",
        r"    \midrule",
        *(f"    {row}" for row in rows),
        r"    \bottomrule",
        r"  \end{tabular}}",
        *(rf"  \par\smallskip\footnotesize {latex(note)}" for note in table.notes),
        r"\end{table}",
    ]
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    """A cell; one that begins with a bracket would be read as an option of the line break before it."""
    escaped = latex(text)
    return f"{{}}{escaped}" if escaped.startswith(("[", "*")) else escaped


def latex(text: str) -> str:
    """Text that LaTeX shows as it is, on one line."""
    plain = " ".join(FORBIDDEN.sub("?", text).split())
    return "".join(LATEX.get(sign, sign) for sign in plain)
