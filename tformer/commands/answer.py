"""`tformer answer`: the first-principles questions, in words and with evidence."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tformer.commands.options import (
    Json,
    check_overwrite,
    check_range,
    complete_run,
    print_json,
    refuse_existing,
)
from tformer.errors import RequestError

if TYPE_CHECKING:
    from tformer.answer import Question
    from tformer.answer.lab import Subject

MOST_SEED = 10**15  # a thousand times as much is the seed of a draw
REPORTS = (".html", ".md")


def complete_question(incomplete: str) -> list[str]:
    """For the shell: the slugs."""
    from tformer.answer import questions

    return [slug for slug in (*(q.slug for q in questions()), "all") if slug.startswith(incomplete)]


EXAMPLES = (
    "tformer answer",
    "tformer answer 2",
    "tformer answer why so many skip connections",
    "tformer answer heads --run reversal",
    "tformer answer all --report answers.html",
)


def command(
    question: Annotated[
        list[str] | None,
        typer.Argument(
            help="Number, slug, words of a question, or all. Default: list the questions.",
            show_default=False,
            autocompletion=complete_question,
        ),
    ] = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full/--quick",
            help="Full: deeper models and more seeds, in minutes. Quick: at most 30 seconds per question.",
        ),
    ] = False,
    prose: Annotated[
        bool, typer.Option("--prose", help="Print the whole written answer; run no experiments.")
    ] = False,
    run: Annotated[
        str | None,
        typer.Option(
            help="Examine this run or Hugging Face directory where an experiment can; the others train small "
            "models of their own.",
            autocompletion=complete_run,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Random seed of weights and data; the claims are the same for all.")
    ] = 0,
    report: Annotated[
        Path | None,
        typer.Option(help="Write prose, tables and figures to one page (.html or .md).", show_default=False),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing --report file.")
    ] = False,
    json: Json = False,
) -> None:
    """Answer first-principles questions in prose and with experiments run on your machine.

    The experiments use the same modules as train. Each claim has a threshold, with the reason
    for it; if a claim fails, the exit code is 1.
    """
    from tformer import answer
    from tformer.show import terminal

    check_range("--seed", seed, 0, MOST_SEED)
    check_overwrite(overwrite, "--report", report)
    if report is not None:
        if report.suffix not in REPORTS:
            raise RequestError(f"--report {report}", f"expected a name ending in {' or '.join(REPORTS)}")
        if prose:
            raise RequestError("--report with --prose", "a report shows the experiments", "leave one out")
        refuse_existing(report, overwrite)
    console = terminal.out()
    if not question:
        if full or prose or report or run:
            raise RequestError("no question is named", "expected 1 to 6, a slug, words of one, or all")
        if json:
            for q in answer.questions():
                print_json({"number": q.number, "slug": q.slug, "question": q.title})
            return
        rows = [(q.number, q.slug, q.title) for q in answer.questions()]
        terminal.list_table("Questions", ("", "slug", "question"), rows, console)
        return
    matched = answer.find(" ".join(question))
    if matched.guessed:
        first = matched.questions[0]
        terminal.say(f"taken as question {first.number}: {first.title}")
    if prose:
        for q in matched.questions:
            if json:
                print_json({"question": q.title, "claims": [], "evidence": {}, "text": q.text})
            else:
                terminal.markdown(f"# {q.number}. {q.title}\n\n{q.text}\n", console)
        return
    if not _with_evidence(matched.questions, full, _subject(run), seed, report, json):
        raise typer.Exit(1)


def _subject(run: str | None) -> "Subject | None":
    if run is None:
        return None
    from tformer.answer.lab import load_subject
    from tformer.run.find import find_run
    from tformer.show import terminal

    subject = load_subject(find_run(run))
    for note in subject.notes:
        terminal.say(note)
    return subject


def _with_evidence(
    asked: "list[Question]", full: bool, subject: "Subject | None", seed: int, report: Path | None, json: bool
) -> bool:
    """Run, show and write; whether every claim held."""
    from tformer.answer.experiment import FULL, QUICK
    from tformer.answer.investigate import investigate
    from tformer.show import terminal
    from tformer.show.answer import show_evidence, show_question, show_summary
    from tformer.show.answer_page import write_report
    from tformer.show.progress import experiments_progress

    console = terminal.out()
    answers = []
    unheard: list[BrokenPipeError] = []

    def show(what: Callable[[], object]) -> None:  # a page is worth finishing when nobody reads the rest
        try:
            if not unheard:
                what()
        except BrokenPipeError as error:
            if report is None:
                raise
            unheard.append(error)

    for q in asked:
        if not json:
            show(partial(show_question, q, console))
        with experiments_progress() as shown:
            answers.append(investigate(q, FULL if full else QUICK, seed, subject, shown))
        if json:
            show(partial(print_json, answers[-1].as_dict()))
        else:
            show(partial(show_evidence, answers[-1], console))
    if len(asked) > 1 and not json:
        show(partial(show_summary, answers, console))
    if report is not None:
        write_report(report, answers, subject.folder if subject else None)
        terminal.say(f"wrote {report}")
    if unheard:
        raise unheard[0]
    return all(a.passed for a in answers)
