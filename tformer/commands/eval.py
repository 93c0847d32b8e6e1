"""`tformer eval`: judge a run. A function a task, with its own options: parse, load, measure, keep, show.

`attention` keeps nothing: it shows, and judges nothing.
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tformer.commands.eval_loss import LossOptions, check_step, check_stride, compare_runs, judge_alone
from tformer.commands.evaluation import (
    OneRun,
    Overwrite,
    Precision,
    SeveralRuns,
    check_out,
    check_precision,
    find_runs,
    keep,
    load_one,
    tell,
    write_out,
)
from tformer.commands.options import Device, Json, StepOption, check_range, epilog, text_of
from tformer.commands.tasks import EvalCommand, EvalGroup
from tformer.errors import RequestError

if TYPE_CHECKING:
    from tformer.run.loaded import LoadedRun
    from tformer.text.data import Reversal

MOST_SEQUENCES = 10**6  # of `reversal`, which are held at once
TOKENS_OF_A_MAP = 64  # of a text whose attention is drawn: a picture of more shows nothing

EXAMPLES = (
    "tformer eval",
    "tformer eval loss --run shakespeare --data my.txt",
    "tformer eval loss --run small --run large",
    "tformer eval loss --tokens 300 --out loss.html",
    "tformer eval causality --json",
    'tformer eval attention --prompt "To be, or not to be" --out heads.svg',
    "tformer eval generations --temperature 0.7 --temperature 1",
    "tformer eval lambada --run shakespeare --limit 500",
)

app = typer.Typer(
    cls=EvalGroup,
    rich_markup_mode="rich",
    subcommand_metavar="[TASK]",
    help="Evaluate a run, or a Hugging Face directory of either family (gpt2, nanochat).\n\n"
    "The default task is reversal for reversal runs, otherwise loss. Options below apply to these two; for "
    "the others, see tformer eval TASK --help.\n\nA failed check exits with code 1.",
)


def evaluation(name: str, *examples: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A task of that name."""
    return app.command(name, cls=EvalCommand, epilog=epilog(*examples), rich_help_panel="Tasks")


@evaluation(
    "loss",
    "tformer eval loss --run shakespeare --data my.txt",
    "tformer eval loss --run small --run large",
    "tformer eval loss --tokens 300 --out loss.html",
)
def eval_loss(
    run: SeveralRuns = None,
    step: StepOption = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Score all of this text instead of the run's validation split. If repeated: all "
            "together, and each by itself."
        ),
    ] = None,
    field: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Column or field that holds the text in --data. Default: the run's."
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            help="Show this many tokens from the start, coloured by loss, and the hardest and easiest "
            "tokens of the text."
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            help="Tokens between window starts; fewer give tokens more context. Default: disjoint windows."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write a page (.html) with the loss curve and the coloured text.")
    ] = None,
    overwrite: Overwrite = False,
    precision: Precision = "fp32",
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Cross-entropy, perplexity and bits per byte; compares several runs."""
    check_precision(precision)
    check_out(out, overwrite, "loss", ".html")
    if tokens is not None and len(run or ()) > 1:
        raise RequestError("--tokens is for one run", f"found {len(run or ())}", "leave it out, or name one")
    check_range("--tokens", tokens, 1)
    if field is not None and not data:
        raise RequestError("--field without --data", "expected the table that it is of", "--data FILE")
    from tformer.device import resolve_device
    from tformer.evals.judged import each_text, one_text
    from tformer.show import terminal
    from tformer.show.progress import steps_progress
    from tformer.text.corpus import shadowed

    resolved = resolve_device(device)
    folders = find_runs(run, "text")
    check_step(step, folders)
    check_stride(stride, folders)
    with steps_progress("tokenizing") as tell:
        text = one_text(folders, data or [], field, tell)
    for note in (*shadowed(data or []), *text.notes):
        terminal.say(note)
    for folder in text.seen_by:
        terminal.warn(f"{folder} was trained on this very text: its loss here says little of new text")
    parts = each_text(folders, data or [], field)
    options = LossOptions(step, stride, tokens, out, precision, resolved, json, parts)
    if len(folders) > 1:
        on = text.on if data else "their validation part"
        compare_runs(folders, text, on, options)
    else:
        judge_alone(folders[0], text, options)


@evaluation("reversal", "tformer eval reversal", "tformer eval reversal --run mine -n 10000 --seed 7")
def eval_reversal(
    run: OneRun = None,
    step: StepOption = None,
    n: Annotated[int, typer.Option("-n", help="Number of fresh sequences.")] = 2000,
    seed: Annotated[int, typer.Option(help="Random seed of the sequences.")] = 1,
    precision: Precision = "fp32",
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Accuracy at each position, and a verdict on the mask."""
    check_precision(precision)
    check_range("-n", n, 1, MOST_SEQUENCES)
    check_range("--seed", seed, 0)
    loaded = load_one(run, "reversal", device, "reversal", step)
    from tformer.evals.reversal import reversal
    from tformer.show.reversal import reversal_table

    result = reversal(loaded.model, _reversal_of(loaded), n, precision, index=seed)
    keep(loaded, "reversal", asdict(result), f"{n:,} fresh sequences")
    tell(loaded, asdict(result), json, lambda console: reversal_table(result, console))
    if not result.passed:
        raise typer.Exit(1)


def _reversal_of(run: "LoadedRun") -> "Reversal":
    if run.reversal is None:
        what = f"{run.folder} is not a run on reversal"
        raise RequestError(what, "", "train one with: tformer train reversal")
    return run.reversal


@evaluation(
    "lambada",
    "tformer eval lambada --run shakespeare --limit 500",
    "tformer eval lambada --data passages.jsonl --json",
)
def eval_lambada(
    run: OneRun = None,
    step: StepOption = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help='Passages, one {"text": …} per line, instead of the test set (downloaded once).'),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Stop after this many passages.")] = None,
    precision: Precision = "fp32",
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Accuracy and perplexity on the last word of each passage."""
    check_precision(precision)
    check_range("--limit", limit, 1)
    loaded = load_one(run, "lambada", device, "text", step)
    from tformer.evals.lambada import encode_passages, lambada, read_passages
    from tformer.show import terminal
    from tformer.show.lambada import lambada_table, passages_of
    from tformer.show.progress import download_progress, steps_progress
    from tformer.text.corpus import LAMBADA, download

    sources = data or []
    if not sources:
        with download_progress("downloading LAMBADA") as shown:
            sources = [str(download(LAMBADA, shown))]
    texts = [text for source in sources for text in read_passages(source)][:limit]
    passages = encode_passages(texts, loaded.tokenizer, loaded.model.config.n_ctx)
    for why, count in passages.skipped.items():
        terminal.warn(f"passed over {count:,} of {len(texts):,} passages: {why}")
    with steps_progress("predicting last words") as progress:
        result = lambada(loaded.model, passages, precision, progress)
    name = " ".join(data or ()) or "the LAMBADA test set"
    keep(loaded, "lambada", asdict(result), passages_of(result, name))
    tell(loaded, asdict(result), json, lambda console: lambada_table(loaded.shown, result, name, console))


@evaluation("causality", "tformer eval causality --json", "tformer eval causality --run gpt2 --positions 8")
def eval_causality(
    run: OneRun = None,
    step: StepOption = None,
    positions: Annotated[int, typer.Option(help="Number of positions to change, evenly spaced.")] = 64,
    seed: Annotated[int, typer.Option(help="Random seed of the new tokens.")] = 1,
    precision: Precision = "fp32",
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Check that no logit depends on a later token."""
    check_precision(precision)
    check_range("--positions", positions, 1)
    check_range("--seed", seed, 0)
    loaded = load_one(run, "causality", device, step=step)
    from tformer.evals.causality import causality
    from tformer.show.causality import causality_picture
    from tformer.show.progress import steps_progress

    with steps_progress("changing tokens") as progress:
        result = causality(loaded.model, positions, precision, seed, progress)
    keep(loaded, "causality", asdict(result))
    tell(loaded, asdict(result), json, lambda console: causality_picture(result, console))
    if not result.passed:
        raise typer.Exit(1)


@evaluation(
    "attention",
    "tformer eval attention --run reversal",
    'tformer eval attention --prompt "To be, or not to be" --out heads.svg',
)
def eval_attention(
    run: OneRun = None,
    step: StepOption = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Text to show attention on.")] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Show attention on the beginning of this text.")
    ] = None,
    n: Annotated[
        int,
        typer.Option("-n", help="On a reversal run: number of fresh sequences to score heads on."),
    ] = 2000,
    seed: Annotated[int, typer.Option(help="On a reversal run: random seed of the sequences.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Write a picture of every head (.svg or .png).")] = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Where each head attends, and which heads carry the reversal."""
    check_out(out, overwrite, "attention", ".svg", ".png")
    check_range("-n", n, 1, MOST_SEQUENCES)
    check_range("--seed", seed, 0)
    loaded = load_one(run, "attention", device, step=step)
    from tformer.evals.attention import head_maps, mirror
    from tformer.show.attention import attention_view
    from tformer.show.svg import attention_picture

    ids = _ids_to_show(loaded, [text_of(text, "--prompt") for text in prompt or []], data or [], seed)
    maps = head_maps(loaded.model, ids)
    heads = mirror(loaded.model, loaded.reversal, n, index=seed) if loaded.reversal else None
    tokens = [loaded.tokenizer.text_of(i) for i in ids]
    if out is not None:
        kind = out.suffix.removeprefix(".")
        write_out(out, attention_picture(maps, tokens, loaded.name, kind))
    carriers = [[head.layer, head.head] for head in heads.carriers] if heads else []
    result = {
        "tokens": tokens,
        "ids": ids,
        "weights": maps.astype(float).round(6).tolist(),
        "mirror": asdict(heads) | {"carriers": carriers} if heads else None,
    }
    tell(loaded, result, json, lambda console: attention_view(loaded.shown, tokens, maps, heads, console))


def _ids_to_show(run: "LoadedRun", prompts: list[str], data: list[str], seed: int) -> list[int]:
    """The text of --prompt, the beginning of --data, or a sequence of the reversal task."""
    if len(prompts) > 1:
        raise RequestError(f"{len(prompts)} times --prompt", "attention is shown on one text", "give one")
    if prompts and data:
        raise RequestError("--prompt and --data are both a text", "", "leave one out")
    if not prompts and not data:
        if run.reversal is None:
            what = f"no text to show the attention of {run.folder} on"
            raise RequestError(what, "", "give --prompt TEXT or --data FILE")
        return [int(i) for i in run.reversal.fresh(1, index=seed)[0][0]]
    from tformer.run.kept_ids import text_ids
    from tformer.show import terminal
    from tformer.text.corpus import load_corpus, shadowed
    from tformer.text.tokenizer import encode_prompt

    most = min(run.model.config.n_ctx, TOKENS_OF_A_MAP)
    if prompts:
        ids = encode_prompt(run.tokenizer, prompts[0])
    else:
        corpus = load_corpus(data, reading=run.record.reading)
        for note in (*shadowed(data), *corpus.notes):
            terminal.say(note)
        has_ends = run.is_of_documents and corpus.n_documents > 1
        stop = min(64 * most, len(corpus.text))
        ids = text_ids(run.tokenizer, corpus, 0, stop, has_ends).tolist()
    if not ids:
        raise RequestError("the text is empty", "expected at least one token")
    if len(ids) > most or data:
        terminal.say(f"the first {min(len(ids), most)} tokens of the text")
    return ids[:most]


@evaluation(
    "generations",
    "tformer eval generations --temperature 0.7 --temperature 1",
    'tformer eval generations --prompt "O God" -n 8 --max-tokens 100',
)
def eval_generations(
    run: OneRun = None,
    step: StepOption = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="Prompt to continue (repeatable). Default: beginnings of lines of the validation split; for "
            "documents, none."
        ),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option("-n", help="Samples per prompt. Default: 4, or 100 for documents.", show_default=False),
    ] = None,
    temperature: Annotated[
        list[float] | None,
        typer.Option(help="Sampling temperature (repeatable). Default: 0.5, 0.8 and 1.", show_default=False),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Maximum number of tokens per sample.")] = 200,
    data: Annotated[
        list[str] | None, typer.Option(help="Compare with this text instead of the run's own.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the prompts and the first sample.")] = 1,
    precision: Precision = "fp32",
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Samples from the model, measured against real text."""
    check_precision(precision)
    check_range("--seed", seed, 0)
    check_range("-n", n, 1, 1024)
    check_range("--max-tokens", max_tokens, 1)
    for one in temperature or []:
        check_range("--temperature", one, 0)
    loaded = load_one(run, "generations", device, "text", step)
    from tformer.evals.generations import Draws, generations, text_to_compare
    from tformer.show import terminal
    from tformer.show.generations import generations_view
    from tformer.show.progress import steps_progress
    from tformer.text.corpus import shadowed

    for note in shadowed(data or []):
        terminal.say(note)
    text = text_to_compare(loaded, data or [])
    prompts = [text_of(text, "--prompt") for text in prompt or []]
    draws = Draws(temperature or (), prompts, n, max_tokens, seed)
    result = generations(loaded, text, draws, precision, steps_progress)
    values = result.as_dict()
    keep(loaded, "generations", values, text.source)
    tell(loaded, values, json, lambda console: generations_view(loaded.shown, result, console))
