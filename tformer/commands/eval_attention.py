"""`tformer eval attention`: where each head of a run looks."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tformer.commands.evaluation import FRESH, Outcome, Request
from tformer.errors import RequestError

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from tformer.evals.attention import Mirror
    from tformer.text.data import Reversal
    from tformer.text.tokenizer import Tokenizer

MOST_TOKENS = 64  # of a text: a picture of more shows nothing


def attention(request: Request, task: "Reversal | None") -> Outcome:
    """Draw the weights on one sequence; on a reversal run, say which heads carry the reversal."""
    import torch

    from tformer.evals.attention import attention_weights, mirror
    from tformer.files import write_file
    from tformer.show import terminal
    from tformer.show.svg import attention_picture

    folder, model, out = request.run.folder, request.run.model, request.out
    tokenizer = request.run.tokenizer
    ids = _ids(request, tokenizer, task)
    device = next(model.parameters()).device
    weights = attention_weights(model, torch.tensor([ids], device=device))[:, 0].float().cpu().numpy()
    found = mirror(model, task, request.n or FRESH, index=request.seed) if task else None
    tokens = [tokenizer.text_of(i) for i in ids]
    if out is not None:
        picture = attention_picture(weights, tokens, folder.name, out.suffix.removeprefix("."))
        write_file(out, picture)
        terminal.say(f"wrote {out}")
    result = {
        "tokens": tokens,
        "ids": ids,
        "weights": weights.astype(float).round(6).tolist(),
        "mirror": asdict(found) | {"carriers": [[h.layer, h.head] for h in found.carriers]}
        if found
        else None,
    }

    def show(console: "Console") -> None:
        facts = {"run": str(folder), "text": terminal.printable("".join(tokens), terminal=True)}
        terminal.fact_table(console, facts)
        terminal.attention_maps(_maps(weights, found), console)
        if found:
            terminal.mirror_verdict(found, console)

    return Outcome(result, show, kept=False)


def _maps(weights: "np.ndarray", found: "Mirror | None") -> "list[tuple[str, np.ndarray]]":
    """A caption and the weights of each head: the best first where there is a best."""
    if found:
        return [
            (f"{h.layer}.{h.head} {100 * h.share:.0f} %", weights[h.layer - 1, h.head - 1])
            for h in found.heads
        ]
    return [
        (f"{layer + 1}.{head + 1}", weights[layer, head])
        for layer in range(weights.shape[0])
        for head in range(weights.shape[1])
    ]


def _ids(request: Request, tokenizer: "Tokenizer", task: "Reversal | None") -> list[int]:
    from tformer.show import terminal
    from tformer.text.corpus import load_corpus

    prompts, data = request.prompts, request.data
    if len(prompts) > 1:
        raise RequestError(f"{len(prompts)} times --prompt", "attention is shown on one text", "give one")
    prompt = prompts[0] if prompts else None
    if prompt is not None and data:
        raise RequestError("--prompt and --data are both a text", "", "leave one out")
    if prompt is None and not data:
        if task is None:
            raise RequestError(
                f"no text to show the attention of {request.run.folder} on",
                "",
                "give --prompt TEXT or --data FILE",
            )
        return [int(i) for i in task.fresh(1, index=request.seed)[0][0]]
    most = min(request.run.model.config.n_ctx, MOST_TOKENS)
    text = prompt if prompt is not None else load_corpus(data).text[: 64 * most]
    ids: Any = tokenizer.encode(text)
    if not ids:
        raise RequestError("the text is empty", "expected at least one token")
    if len(ids) > most or data:
        terminal.say(f"the first {min(len(ids), most)} tokens of the text")
    return ids[:most]
