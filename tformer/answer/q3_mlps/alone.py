"""Question 3, alone: an MLP acts on each position by itself, attention does not."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tformer.answer.claims import Finding, at_least, at_most
from tformer.answer.experiment import Effort, Seeds
from tformer.answer.lab import Subject, fresh_tensors
from tformer.answer.q3_mlps.facts import reversing
from tformer.figures import Lines
from tformer.model import Transformer
from tformer.watch import blocks_of, module_calls

SEQUENCES = 16  # of which a position is replaced


@dataclass(frozen=True)
class AloneEvidence:
    """How far outputs move when one position's input is replaced, in units of its own output's movement.

    A mean over sequences, the largest of all blocks at each position; `at` is the one that was replaced.
    """

    at: int
    mlp: list[float]
    attention: list[float]


def measure_alone(effort: Effort, seed: int, subject: Subject | None) -> AloneEvidence:
    """Replace the state of one position, before the MLP and before attention of every block."""
    if subject:
        model, ids = subject.model, subject.ids(SEQUENCES, effort.pick(quick=16, full=64), seed)
    else:
        model, task = reversing(effort, seed)
        ids, _ = fresh_tensors(task, SEQUENCES, 1)
    at = ids.shape[1] // 2
    torch.manual_seed(seed)
    blocks = blocks_of(model)
    return AloneEvidence(
        at,
        movement([block.mlp for block in blocks], model, ids, at),
        movement([block.attn for block in blocks], model, ids, at),
    )


@torch.inference_mode()
def movement(parts: Sequence[nn.Module], model: Transformer, ids: Tensor, at: int) -> list[float]:
    """How far the outputs move when position `at` gets random inputs, the largest of all parts."""
    with module_calls(parts) as calls:
        model.eval()(ids)
    moved = []
    for call in calls:
        x, *rest = call.args
        other = x.clone()
        other[:, at] = torch.randn_like(x[:, at]) * x.std()
        distance = (call.module(other, *rest) - call.module(x, *rest)).norm(dim=-1).mean(0)
        moved.append(distance / distance.max().clamp(min=1e-30))
    return torch.stack(moved).amax(0).tolist()


def show_alone(seeds: Seeds[AloneEvidence]) -> Finding:
    """The MLP's output moves at that position alone, attention's at later ones too."""
    positions = range(1, len(seeds.first.mlp) + 1)
    return Finding.of(
        "The state of one position was replaced in front of the MLP, and in front of attention, of every "
        "block. Movements, means over sequences, are relative to the largest; the figure has the largest of "
        "all blocks.",
        Lines(
            f"Position {seeds.first.at + 1} gets another input: which outputs move",
            "position",
            "movement (largest at any position: 1)",
            (
                seeds.curve("MLP", positions, lambda e: e.mlp),
                seeds.curve("attention", positions, lambda e: e.attention),
            ),
        ),
        at_most(
            "The MLP's output at other positions does not move",
            seeds.of(lambda e: max(e.mlp[: e.at] + e.mlp[e.at + 1 :]), ".1e"),
            1e-5,
            "It should be 0; rounding of float32 is about 1e-7.",
        ),
        at_least(
            "Attention carries the change to later positions",
            seeds.of(lambda e: max(e.attention[e.at + 1 :]), ".2g"),
            1e-3,
            "A hundred times what the MLP is allowed.",
        ),
    )
