"""`tformer sample`: text from a run, as it is generated."""

import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tformer.commands.evaluation import Precision, check_precision, load_and_say
from tformer.commands.options import (
    Device,
    Json,
    RunOption,
    StepOption,
    check_range,
    print_json,
    say_unasked,
    stdin_is_piped,
    stdin_lines,
    text_of,
)
from tformer.errors import RequestError

if TYPE_CHECKING:
    from tformer.sample import Sample

CHOICE = "Sampling: logits / temperature, then top-k, top-p, min-p"

EXAMPLES = (
    'tformer sample "O God"',
    'tformer sample "ROMEO." --run shakespeare --temperature 0.7 --top-p 0.9 --seed 1',
    "cat prompts.txt | tformer sample - --json | jq -r .text",
)


def command(
    ctx: typer.Context,
    prompt: Annotated[
        str | None,
        typer.Argument(
            help="Text to continue, or - for prompts on stdin, one per line. Default: read piped stdin.",
            show_default=False,
        ),
    ] = None,
    run: RunOption = None,
    step: StepOption = None,
    max_tokens: Annotated[int, typer.Option(help="Maximum number of tokens to generate.")] = 200,
    n: Annotated[int, typer.Option("-n", help="Samples per prompt, generated in one batch.")] = 1,
    temperature: Annotated[
        float,
        typer.Option(
            help="Below 1 is more predictable, above 1 more random; 0 is greedy.", rich_help_panel=CHOICE
        ),
    ] = 0.8,
    top_k: Annotated[
        int, typer.Option(help="Sample only from the k most probable tokens; 0: all.", rich_help_panel=CHOICE)
    ] = 0,
    top_p: Annotated[
        float,
        typer.Option(
            help="Sample only from the most probable tokens that sum to p; 1: all.", rich_help_panel=CHOICE
        ),
    ] = 1.0,
    min_p: Annotated[
        float,
        typer.Option(
            help="Sample only from tokens at least p times as probable as the top one; 0: all.",
            rich_help_panel=CHOICE,
        ),
    ] = 0.0,
    repetition_penalty: Annotated[
        float,
        typer.Option(
            help="Above 1, tokens already in the text become less likely (1.1 is mild).",
            rich_help_panel=CHOICE,
        ),
    ] = 1.0,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Always take the most probable token.", rich_help_panel=CHOICE)
    ] = False,
    stop: Annotated[
        list[str] | None, typer.Option(help=r"Stop before this text; \n is a newline (repeatable).")
    ] = None,
    keep_stop: Annotated[
        bool,
        typer.Option(
            "--keep-stop", help="Include the --stop text in the output, e.g. the full stop of a sentence."
        ),
    ] = False,
    prompt_file: Annotated[
        Path | None, typer.Option(help="Read one prompt, of any number of lines, from a file; - for stdin.")
    ] = None,
    null: Annotated[
        bool, typer.Option("--null", "-0", help="Prompts on stdin end with NUL and may span lines.")
    ] = False,
    seed: Annotated[
        int | None, typer.Option(help="Sample i uses seed SEED + i. Default: random, reported by --json.")
    ] = None,
    interactive: Annotated[
        bool,
        typer.Option(
            "--interactive",
            help="Ask for prompts on the terminal. Ctrl-C ends a continuation, Ctrl-D quits.",
        ),
    ] = False,
    logprobs: Annotated[
        int | None,
        typer.Option(
            help="With --json, report log-probabilities of each token and of the K most probable ones "
            "(before temperature and filters); on a terminal, show them as colours.",
            metavar="K",
        ),
    ] = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    json: Json = False,
) -> None:
    """Continue a prompt, streaming prompt and continuation to stdout.

    The model sees at most n_ctx tokens; when its context is full, the older half is dropped.
    """
    check_precision(precision)
    check_range("--max-tokens", max_tokens, 0)
    check_range("-n", n, 1, 1024)
    check_range("--temperature", temperature, 0)
    check_range("--top-k", top_k, 0)
    check_range("--top-p", top_p, 0, 1)
    check_range("--min-p", min_p, 0, 1)
    check_range("--seed", seed, 0)
    check_range("--logprobs", logprobs, 0)
    if greedy and temperature and _is_given(ctx, "temperature"):
        what = f"--greedy and --temperature {temperature:g} contradict each other"
        raise RequestError(what, "greedy is temperature 0", "leave one out")
    if not 0 < repetition_penalty < float("inf"):
        raise RequestError(f"--repetition-penalty {repetition_penalty:g}", "expected a number above 0")
    if "" in (stop or []):
        raise RequestError("--stop is empty", "expected the text that a sample ends before")
    if keep_stop and not stop:
        raise RequestError("--keep-stop without --stop", "expected the text that is kept", "leave it out")
    if prompt_file is not None and (prompt is not None or null):
        other = "--null" if prompt is None else "PROMPT"
        raise RequestError(f"--prompt-file and {other} both say what is continued", "", "leave one out")
    prompt = None if prompt is None else text_of(prompt, "PROMPT")
    stop = [text_of(text, "--stop") for text in stop or []]
    if interactive:
        others: dict[str, bool] = {
            "PROMPT": prompt is not None,
            "--prompt-file": prompt_file is not None,
            "--null": null,
            "--json": json,
            f"-n {n}": n > 1,
            "--logprobs": logprobs is not None,
        }
        if given := [name for name, is_there in others.items() if is_there]:
            raise RequestError(f"--interactive and {given[0]} contradict each other", "", "leave one out")
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise RequestError("--interactive without a terminal", "", "give - to read prompts from a pipe")
    if logprobs is not None and not (json or sys.stdout.isatty()):
        raise RequestError("--logprobs into a file or pipe", "colours need a terminal", "give --json as well")
    piped = prompt == "-" or (prompt is None and prompt_file is None and stdin_is_piped())
    if null and not piped:
        raise RequestError(
            "--null without standard input", "expected a pipe and -", "give - in place of PROMPT"
        )
    import random

    from tformer.device import resolve_device
    from tformer.fast.bf16 import use_bf16
    from tformer.run.find import find_run, newest_run
    from tformer.sample import Sampling, continue_text
    from tformer.show import terminal
    from tformer.show.words import printable
    from tformer.text.plain import STDIN, whole_text
    from tformer.text.tokenizer import encode_prompt

    resolved = resolve_device(device)
    if run is None:
        try:
            folder = newest_run(lambda record: record.task == "text", "a run on text")
        except RequestError:
            folder = newest_run(lambda record: True, "a trained run")
        terminal.say(f"using {folder}")
    else:
        folder = find_run(run)
    loaded = load_and_say(folder, resolved, step)
    model, tokenizer, start = loaded.model, loaded.tokenizer, loaded.start_id
    if precision == "bf16":
        use_bf16(model)
    sampling = Sampling(0.0 if greedy else temperature, top_k, top_p, min_p, repetition_penalty)
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
    between = "" if loaded.record.reading.documents == "line" else "---\n"  # lines are apart as they are
    stops = [unescaped(text) for text in stop or []]
    if interactive:
        prompts: Iterable[str] = _asked()
        place = "the prompt"
    elif prompt_file is None:
        prompts, place = _prompts(prompt, piped, b"\0" if null else b"\n"), STDIN if piped else "the prompt"
    else:
        path = None if str(prompt_file) == "-" else prompt_file
        prompts, place = [whole_text(path).removesuffix("\n").removesuffix("\r")], str(path or STDIN)
    live = n == 1 and not json and logprobs is None

    def continue_prompt(text: str, line: int) -> None:
        nonlocal first
        ids = encode_prompt(tokenizer, text, place, line) or [start]
        if live:
            write(("" if first or interactive else between) + text)
        samples = continue_text(
            model,
            tokenizer,
            ids,
            n,
            max_tokens,
            sampling,
            seed + line - 1 if interactive else seed,
            stops,
            loaded.end_ids,
            on_text=(lambda _, piece: write(piece)) if live else (lambda _, piece: None),
            logprobs=logprobs,
            keep_stop=keep_stop,
        )
        if live:
            write("\n")
        elif logprobs is not None and not json:
            from tformer.show.logprobs import coloured_sample

            for sample in samples:
                write("" if first else between)
                coloured_sample(text, sample, tokenizer.token_bytes, terminal.out())
                first = False
        else:
            _write_all(text, samples, tokenizer.token_bytes, json, write, "" if first else between, between)
        first = False

    for line, text in enumerate(prompts, 1):
        with _asking_on() if interactive else nullcontext():
            continue_prompt(text, line)
    if logprobs is not None and not json:
        from tformer.show.logprobs import legend_of_samples

        legend_of_samples(terminal.err())


def _asked() -> Iterator[str]:
    """What a person enters, a line at a time, until Ctrl-D; Ctrl-C begins the line again."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with suppress(ImportError):  # Windows has none
        import readline  # noqa: F401 (gives `input` a history, and keys to edit with)
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()


@contextmanager
def _asking_on() -> Iterator[None]:
    """Ctrl-C ends a continuation, not the session; nor does a prompt that cannot be continued."""
    from tformer.show import terminal

    try:
        yield
    except KeyboardInterrupt:
        print()
    except (RequestError, UnicodeError) as error:
        terminal.say(str(error))


def _is_given(ctx: typer.Context, name: str) -> bool:
    """Whether an option is not left at its default."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def unescaped(text: str) -> str:
    r"""A text of the command line with \n, \r, \t and \\ as what they stand for.

    >>> unescaped(r"ROMEO:\n")
    'ROMEO:\n'
    """
    known = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}
    return re.sub(r"\\([nrt\\])", lambda found: known[found[1]], text)


def _prompts(prompt: str | None, piped: bool, end: bytes) -> Iterable[str]:
    if not piped:
        return [prompt or ""]
    if prompt is None:
        apart = "one a line" if end == b"\n" else "each ended by NUL"
        say_unasked(f"prompts, {apart},")
    lines = stdin_lines(end)
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
    prompt: str,
    samples: "list[Sample]",
    token_bytes: list[bytes],
    json: bool,
    write: Callable[[str], None],
    before: str,
    between: str,
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
                | _logprobs_json(sample, token_bytes)
            )
        else:
            write(before + prompt + sample.text + "\n")
            before = between


def _logprobs_json(sample: "Sample", token_bytes: list[bytes]) -> dict[str, Any]:
    """What `--logprobs` adds to a sample's object; nothing where it is left out."""
    if sample.logprobs is None:
        return {}

    def entry(i: int, logprob: float) -> dict[str, Any]:
        return {"id": i, "text": token_bytes[i].decode(errors="replace"), "logprob": logprob}

    return {
        "logprobs": [
            entry(token.id, token.logprob) | {"top": [entry(*one) for one in token.top]}
            for token in sample.logprobs
        ]
    }
