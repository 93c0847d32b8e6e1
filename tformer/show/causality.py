"""What `tformer eval causality` shows: who changes whom, the other measurements, the verdict."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from tformer.show import terminal
from tformer.show.words import percent

if TYPE_CHECKING:  # they import torch
    from tformer.evals.causality import CausalityResult
    from tformer.evals.masks import MaskResult

CELLS = {  # their character, their colour, what they mean
    "allowed": ("+", "blue", "allowed to change"),
    "unchanged": (".", "green", "the same to the bit"),
    "leak": ("X", "bold red", "leak"),
}
PICTURE = 32  # rows and columns at most
ROUNDING = {"fp32": 1e-2, "bf16": 0.2}  # of the largest logit: more is something else


def causality_picture(result: "CausalityResult", console: Console) -> None:
    """Who changes whom, as coloured blocks or as characters; the other measurements; the verdict."""
    blocks = console.is_terminal and console.color_system is not None and not console.no_color
    cells = result.cells(min(PICTURE, max(8, (console.width - 8) // 2)))
    console.print(Text("Row: the first token that changes. Column: where logits are compared."))
    margin = len(str(result.n_ctx)) + 2
    for label, row in cells:
        line = Text().append(f"{label:>{margin - 1}}" + " " * blocks, style="dim")
        for kind in row:
            mark, style, _ = CELLS[kind]
            line.append("██" if blocks else f" {mark}", style=style)
        console.print(line)
    legend = Text(" " * margin)
    for mark, style, meaning in CELLS.values():
        legend.append("██" if blocks else mark, style=style)
        legend.append(f" {meaning}   ")
    console.print(legend)
    of = result.n_ctx - 1
    n = len(result.positions)
    facts = {
        "positions": f"all {n} that have any before them" if n == of else f"{n} of {of}, evenly spread",
        "full forward": _leaked(result.full_leak),
        "KV cache": f"{_leaked(result.cached.max_leak)} ({len(result.cached.pieces)} ways to cut it, "
        "and padded)",
        "rounding": f"cached and full logits agree to {result.cached.difference:.1g} of the largest "
        f"({result.precision})",
        "gradients": "from earlier logits to later embeddings exactly 0"
        if result.max_gradient == 0
        else f"up to {result.max_gradient:.3g} from earlier logits to later embeddings",
        "mask": _mask_finding(result.mask),
    }
    terminal.fact_table(console, facts)
    if result.passed and not _is_safe(result.mask):
        console.print(
            Text("scores are beyond what the mask is safe for: other tokens may leak", style="yellow")
        )
    if result.cached.difference > ROUNDING[result.precision]:
        console.print(
            Text(
                "more than rounding: the cache is wrong, or logits depend on how many tokens follow",
                style="yellow",
            )
        )
    if result.reached < 1:
        console.print(
            Text(
                f"at {percent(1 - result.reached)} of the positions a changed token does not even change its "
                "own logits, so this says little",
                style="yellow",
            )
        )
    verdict = "passed: no logit depends on a later token" if result.passed else "FAILED: the future leaks"
    console.print(Text(verdict, style="bold green" if result.passed else "bold red"))


def _leaked(leak: float) -> str:
    return f"earlier logits change by up to {leak:.3g}" if leak else "no bit of an earlier logit changes"


def _mask_finding(mask: "MaskResult") -> str:
    where = f"in block{'s' * (len(mask.blocks) > 1)} {', '.join(map(str, mask.blocks))}"
    if mask.kind == "unseen":
        return "not measured: the model does not use tformer.model.attention"
    if mask.kind == "exact":
        return "exact: a later key has weight 0, whatever it scores"
    if mask.kind == "open":
        return f"open: some later keys are not hidden {where}"
    safe = f"safe for scores up to {mask.safe_score:,.5g}" if mask.safe_score else "safe at no score"
    here = f"here they reach {mask.largest_score:,.3g}" + ", beyond it" * (not _is_safe(mask))
    return f"finite: {mask.value:,.5g} {where}, {safe}; {here}"


def _is_safe(mask: "MaskResult") -> bool:
    return mask.safe_score is None or mask.largest_score <= mask.safe_score
