"""Tables as Markdown and LaTeX: whatever a name holds, a table stays a table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ckd.pipelines.reproduce.result import Column, Spread, Table
from ckd.report.build import make_report
from ckd.report.tables import LATEX, latex, markdown, to_html, to_latex, to_markdown

#: A LaTeX command, an escaped sign, mathematics, or a sign that means nothing to LaTeX.
TOKEN = re.compile(r"\\[a-zA-Z]+(?:\{[a-z0-9]*\})?|\\[{}%$#&_|]|\$\\?[a-zA-Z]+\$|\$-\$|\$\\\|\$|[^\\{}%$#&_~^<>|\"]")


def table(*names: str) -> Table:
    columns = (Column("Method"), Column("N@10", "metric"), Column("N@10", "metric", paper=True))
    rows = tuple((name, Spread.of([0.1, 0.2]), None) for name in names)
    return Table("title of _all_", columns, rows, notes=("50% of {these}",))


def cells(line: str) -> list[str]:
    """Cells of a Markdown row, split where a bar is not escaped."""
    return re.split(r"(?<!\\)(?:\\\\)*\|", line.strip())[1:-1]


@given(st.text(max_size=30))
@settings(max_examples=150, deadline=None)
def test_any_text_is_one_cell(text: str) -> None:
    escaped = latex(text)
    assert "".join(TOKEN.findall(escaped)) == escaped
    assert "\n" not in escaped
    assert escaped.count("{") - escaped.count(r"\{") == escaped.count("}") - escaped.count(r"\}")
    shown = markdown(text)
    assert len(cells(f"| {shown} | b |")) == 2
    assert "\n" not in shown
    assert "<" not in shown


def test_text_reads_as_it_was() -> None:
    text = '100% of $5 & #1_a {b} ~c^d \\e <f> | "g" λ ± ²'
    back = latex(text)
    for sign, command in LATEX.items():
        back = back.replace(command, sign) if len(command) > 2 else back
    assert re.sub(r"\\([{}%$#&_])", r"\1", back) == text
    shown = markdown(text)
    assert re.sub(r"\\(.)", r"\1", shown).replace("&lt;", "<").replace("&amp;", "&") == text


def test_latex_is_booktabs() -> None:
    found = to_latex([table("SASRec", "a & b", "[x]", "*")], "table 3")
    assert found.count(r"\begin{table}[t]") == found.count(r"\end{table}") == 1
    order = [found.index(rf"\{rule}") for rule in ("toprule", "midrule", "bottomrule")]
    assert order == sorted(order)
    assert r"\begin{tabular}{lrr}" in found
    assert r"\label{tab:table-3-1}" in found
    rows = [line for line in found.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 5
    assert all(len(re.split(r"(?<!\\)&", row)) == 3 for row in rows)
    assert rows[0].strip() == r"Method & N@10 & N@10 (the paper's) \\"
    assert rows[1].strip() == r"SASRec & 0.1500 $\pm$0.0707 & -- \\"
    # A bracket after a line break would be its option, and a star its variant.
    assert rows[3].strip().startswith("{}[x]")
    assert rows[4].strip().startswith("{}*")
    assert r"50\% of \{these\}" in found


def test_markdown_is_a_table() -> None:
    lines = to_markdown([table("SASRec", "a | b")]).splitlines()
    assert lines[0] == r"**title of \_all\_**"
    assert lines[2:5] == [
        *("| Method | N@10 | N@10 (the paper's) |", "| --- | ---: | ---: |", "| SASRec | 0.1500 ±0.0707 | – |")
    ]
    assert cells(lines[5])[0] == r" a \| b "
    assert lines[-1] == r"50% of \{these\}"


def test_html_marks_the_papers_figures_and_what_is_a_number() -> None:
    columns = (Column("Method"), Column("N@10", "metric", paper=True), Column("Improv."), Column("Note"))
    found = to_html(Table("t", columns, (("a<b", 0.1, "+12.3%*", "none"), ("c", None, "−1%", "see 3"))), ["#a", None])
    assert '<th scope="row"><a href="#a">a&lt;b</a></th>' in found
    assert '<td class="n paper">0.1000</td><td class="n">+12.3%*</td><td>none</td>' in found
    assert "the paper's</span>" in found
    rows = (("SASRec", 0.1, "+1%", "x"), ("  the paper's SASRec", 0.2, "+1%", "x"))
    found = to_html(Table("t", (*columns[:1], Column("R@5", "metric"), *columns[2:]), rows, paper_rows=(1,)))
    assert '<td class="n">0.1000</td>' in found
    assert '<td class="n paper">0.2000</td>' in found
    assert 'tabindex="0"' in found


def test_a_folder_of_tables(finished_report: Any, tmp_path: Path) -> None:
    found = make_report(finished_report.work, tmp_path / "r.html", tmp_path / "tables")
    assert [path.name for path in found.tables] == [
        f"{name}.{ending}"
        for name in ("domains", "runs", "searches", f"table3-{finished_report.domain}")
        for ending in ("md", "tex")
    ]
    for path in found.tables:
        text = path.read_text()
        assert text.endswith("\n")
        if path.suffix == ".tex":
            body = [line for line in text.splitlines() if line.endswith(r"\\")]
            columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)
            assert columns is not None
            assert {len(re.split(r"(?<!\\)&", row)) for row in body} == {len(columns[1])}
    assert "| SASRec | 0.1500 ±0.0707 |" in found.tables[-2].read_text()
