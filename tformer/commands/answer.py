"""`tformer answer`: the first-principles questions."""

from typing import Annotated

import typer

from tformer.commands.options import Json, print_json


def command(
    question: Annotated[
        list[str] | None,
        typer.Argument(
            help="A number, a slug, words of one, or all. Lists them if left out.", show_default=False
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Answer the questions that every course on transformers begins with.

    Examples: tformer answer; tformer answer 2; tformer answer why so many skip connections.
    """
    from tformer import answer, render

    console = render.out()
    if not question:
        if json:
            for q in answer.questions():
                print_json({"number": q.number, "slug": q.slug, "question": q.title})
            return
        rows = [(q.number, q.slug, q.title) for q in answer.questions()]
        render.list_table("Questions", ("", "slug", "question"), rows, console)
        return
    found, guessed = answer.find(" ".join(question))
    if guessed:
        render.say(f"taken as question {found[0].number}: {found[0].title}")
    for q in found:
        if json:
            print_json({"question": q.title, "claims": [], "evidence": {}, "text": q.text})
        else:
            render.markdown(f"# {q.number}. {q.title}\n\n{q.text}\n", console)
