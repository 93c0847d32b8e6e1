"""Answers as one page: prose, tables, figures and verdicts, in HTML or Markdown, nothing left outside."""

import datetime
import platform
from collections.abc import Sequence
from html import escape
from pathlib import Path

import torch

from tformer import __version__
from tformer.answer.investigate import Answer, ExperimentResult
from tformer.figures import Table
from tformer.files import write_file
from tformer.show import page
from tformer.show.svg import figure_svg

TITLE = "A transformer from first principles: six questions, with evidence"


def write_report(path: Path, answers: Sequence[Answer], run: Path | None) -> None:
    """Write the page that the file's name asks for."""
    text = html_report(answers, run) if path.suffix == ".html" else markdown_report(answers, run)
    write_file(path, text.encode(errors="backslashreplace"))


def origin(answers: Sequence[Answer], run: Path | None) -> str:
    """Where the numbers come from."""
    first = answers[0]
    seconds = sum(result.seconds for answer in answers for result in answer.results)
    on = f", on the run {run}" if run else ""
    return (
        f"Every number was measured by tformer {__version__} (budget {first.effort.name}, seed "
        f"{first.seed}{on}) in {seconds:.0f} s on {datetime.date.today().isoformat()}, with Python "
        f"{platform.python_version()} and PyTorch {torch.__version__}, one thread of {platform.machine()}. "
        "± is the 95 % interval of the mean over seeds, by Student's t; of two seeds both values are given. "
        "Shaded: from the lowest seed to the highest. A claim holds if the worst seed keeps to its threshold."
    )


def _cells(table: Table) -> list[list[str]]:
    return [[str(cell) for cell in row] for row in table.rows]


# ---------------------------------------------------------------------------- HTML


def html_report(answers: Sequence[Answer], run: Path | None) -> str:
    """One HTML page."""
    parts = [f"<h1>{escape(TITLE)}</h1>", f'<p class="dim">{escape(origin(answers, run))}</p>']
    if len(answers) > 1:
        parts.append("<nav><ol>")
        for a in answers:
            held = f"{sum(c.passed for c in a.claims)} of {len(a.claims)} claims hold"
            link = f'<a href="#{a.question.slug}">{escape(a.question.title)}</a>'
            parts.append(f'<li value="{a.question.number}">{link} <span class="dim">{held}</span></li>')
        parts.append("</ol></nav>")
    for a in answers:
        parts.append(f'<h2 id="{a.question.slug}">{a.question.number}. {escape(a.question.title)}</h2>')
        parts.append(page.markdown(_lowered(a.question.text)))
        parts.append("<h3>Evidence</h3>")
        parts += [_html_result(result, f"{a.question.slug}-{i}") for i, result in enumerate(a.results)]
    return page.page(TITLE, "\n".join(parts))


def _html_result(result: ExperimentResult, name: str) -> str:
    parts = [f"<h4>{escape(result.title)}</h4>"]
    if result.skipped:
        return "\n".join([*parts, f'<p class="dim">Left out: {escape(result.skipped)}</p>'])
    if result.finding.said:
        parts.append(page.markdown(result.finding.said))
    for table in result.finding.tables:
        parts.append(page.table(table.title, table.columns, _cells(table), table.numeric))
    for i, figure in enumerate(result.finding.figures):
        parts.append(page.figure(figure_svg(figure, f"{name}-{i}"), figure.title))
    for claim in result.finding.claims:
        mark, kind = ("✓", "claim") if claim.passed else ("✗", "claim no")
        parts.append(
            f'<div class="{kind}"><p><b>{mark}</b> {escape(claim.claim)}</p>'
            f'<p class="dim">{escape(claim.verdict)}</p></div>'
        )
    return "\n".join(parts)


# ---------------------------------------------------------------------------- Markdown


def markdown_report(answers: Sequence[Answer], run: Path | None) -> str:
    """The same in Markdown, its figures inline SVG."""
    parts = [f"# {TITLE}", origin(answers, run)]
    for a in answers:
        parts += [f"## {a.question.number}. {a.question.title}", _lowered(a.question.text), "### Evidence"]
        for i, result in enumerate(a.results):
            parts += _markdown_result(result, f"{a.question.slug}-{i}")
    return "\n\n".join(parts) + "\n"


def _markdown_result(result: ExperimentResult, name: str) -> list[str]:
    parts = [f"#### {result.title}"]
    if result.skipped:
        return [*parts, f"Left out: {result.skipped}"]
    if result.finding.said:
        parts.append(result.finding.said)
    for table in result.finding.tables:
        rule = ["---:" if numeric else "---" for numeric in table.numeric]
        lines = [list(table.columns), rule, *_cells(table)]
        body = "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines)
        parts += ([f"*{table.title}*"] if table.title else []) + [body]
    for i, figure in enumerate(result.finding.figures):
        parts.append(page.figure(figure_svg(figure, f"{name}-{i}"), figure.title))
    for claim in result.finding.claims:
        parts.append(f"- **{'✓' if claim.passed else '✗'} {claim.claim}** ({claim.verdict})")
    return parts


def _lowered(text: str) -> str:
    """Headings of the prose two levels down: they stand under the question's own."""
    return "\n".join(f"##{line}" if line.startswith("#") else line for line in text.splitlines())
