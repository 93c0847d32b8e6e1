"""`tformer sample`: text from a run, as it is generated."""

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from tformer.commands.options import (
    Device,
    Json,
    RunOption,
    check_range,
    print_json,
    stdin_is_piped,
    stdin_lines,
)
from tformer.errors import RequestError

if TYPE_CHECKING:
    from tformer.sample import Sample

CHOICE = "How a token is chosen: logits / temperature, then top-k, top-p, min-p"

EXAMPLES = (
    'tformer sample "O God"',
    'tformer sample "ROMEO." --run shakespeare --temperature 0.7 --top-p 0.9 --seed 1',
    "cat prompts.txt | tformer sample - --json | jq -r .text",
)


def command(
    prompt: Annotated[
        str | None,
        typer.Argument(
            help="Text to continue, or - for prompts, one a line, from stdin; left out, a pipe is read.",
            show_default=False,
        ),
    ] = None,
    run: RunOption = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 200,
    n: Annotated[int, typer.Option("-n", help="Samples of each prompt, in one batch.")] = 1,
    temperature: Annotated[
        float, typer.Option(help="Below 1 is safer, above 1 wilder; 0 is greedy.", rich_help_panel=CHOICE)
    ] = 0.8,
    top_k: Annotated[
        int, typer.Option(help="Only the k most probable tokens; 0: all.", rich_help_panel=CHOICE)
    ] = 0,
    top_p: Annotated[
        float,
        typer.Option(help="Only the most probable tokens that sum to p; 1: all.", rich_help_panel=CHOICE),
    ] = 1.0,
    min_p: Annotated[
        float,
        typer.Option(
            help="Only tokens with p times the top one's probability; 0: all.", rich_help_panel=CHOICE
        ),
    ] = 0.0,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Always the most probable token.", rich_help_panel=CHOICE)
    ] = False,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text comes (repeatable).")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Sample i has seed SEED + i. Random, and told by --json, if left out.")
    ] = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Continue a prompt. Prompt and continuation stream to stdout as they are generated.

    The model sees its last n_ctx tokens; past that it forgets half a context at a time.
    """
    check_range("--max-tokens", max_tokens, 0)
    check_range("-n", n, 1, 1024)
    check_range("--temperature", temperature, 0)
    check_range("--top-k", top_k, 0)
    check_range("--top-p", top_p, 0, 1)
    check_range("--min-p", min_p, 0, 1)
    check_range("--seed", seed, 0)
    if prompt and not prompt.isascii() and any("\ud800" <= c <= "\udfff" for c in prompt):
        raise RequestError("PROMPT is not UTF-8", "expected text")
    piped = prompt == "-" or (prompt is None and stdin_is_piped())
    import random

    from tformer.device import resolve_device
    from tformer.run.find import find_run, newest_run
    from tformer.run.loaded import load_run
    from tformer.sample import Sampling, continue_text
    from tformer.show import terminal
    from tformer.show.words import printable
    from tformer.text.tokenizer import UnknownCharacterError

    resolved = resolve_device(device)
    if run is None:
        try:
            folder = newest_run(lambda record: record.task == "text", "a run on text")
        except RequestError:
            folder = newest_run(lambda record: True, "a trained run")
        terminal.say(f"using {folder}")
    else:
        folder = find_run(run)
    loaded = load_run(folder, resolved)
    model, tokenizer, start = loaded.model, loaded.tokenizer, loaded.start_id
    sampling = Sampling(0.0 if greedy else temperature, top_k, top_p, min_p)
    seed = random.SystemRandom().randrange(2**31) if seed is None else seed
    on_terminal = sys.stdout.isatty()

    held = ""  # a carriage return, until it is known whether it ends a line

    def write(text: str) -> None:
        nonlocal held
        text = held + text
        held = "\r" if on_terminal and text.endswith("\r") else ""
        sys.stdout.write(printable(text.removesuffix(held), on_terminal))
        sys.stdout.flush()

    first = True
    for line, text in enumerate(_prompts(prompt, piped), 1):
        try:
            ids = tokenizer.encode(text) or [start]
        except UnknownCharacterError as error:
            where = f"line {line}, column {error.position + 1} of standard input" if piped else ""
            raise error.at(where) from None
        live = n == 1 and not json
        if live:
            write(("" if first else "---\n") + text)
        samples = continue_text(
            model,
            tokenizer,
            ids,
            n,
            max_tokens,
            sampling,
            seed,
            stop or [],
            on_text=(lambda _, piece: write(piece)) if live else (lambda _, piece: None),
        )
        if live:
            write("\n")
        else:
            _write_all(text, samples, json, write, first)
        first = False


def _prompts(prompt: str | None, piped: bool) -> Iterable[str]:
    if not piped:
        return [prompt or ""]
    if prompt is None:
        print("reading prompts, one a line, from standard input", file=sys.stderr)
    lines = stdin_lines()
    if prompt == "-":
        return lines
    return _or_empty(lines)


def _or_empty(lines: Iterable[str]) -> Iterable[str]:
    """The lines; one empty prompt if standard input holds nothing, as under cron or CI."""
    found = False
    for line in lines:
        found = True
        yield line
    if not found:
        yield ""


def _write_all(
    prompt: str, samples: "list[Sample]", json: bool, write: Callable[[str], None], first: bool
) -> None:
    for sample in samples:
        if json:
            print_json(
                {
                    "prompt": prompt,
                    "text": sample.text,
                    "ids": sample.ids,
                    "seed": sample.seed,
                    "finish_reason": sample.finish_reason,
                }
            )
        else:
            write(("" if first else "---\n") + prompt + sample.text + "\n")
            first = False
