"""What `tformer train` chooses for a person who has not: the preset, and the steps of a time budget."""

from typing import TYPE_CHECKING, Any

from tformer.errors import RequestError

if TYPE_CHECKING:
    from tformer.config import Layer
    from tformer.training.session import Session


def check_minutes(minutes: float | None, command_line: "Layer") -> None:
    """--minutes is a time, and the only thing that says how many steps."""
    if minutes is None:
        return
    if not 0 < minutes < float("inf"):
        raise RequestError(f"--minutes {minutes:g}", "expected a number above 0")
    if "steps" in command_line.values.get("train", {}):
        raise RequestError("--minutes and train.steps both fix the steps", "", "leave one out")


def default_preset(sources: list[str], device: Any, on_gpu: bool) -> str:
    """The preset of DATA; on a GPU the larger one, where there is one and nothing else is asked for."""
    from tformer.config import CORPORA_PRESETS, GPU_PRESETS
    from tformer.show import terminal

    name = CORPORA_PRESETS.get(sources[0] if len(sources) == 1 else "", "text")
    if on_gpu and device.type == "cuda" and name in GPU_PRESETS:
        terminal.say(f"a GPU: preset {GPU_PRESETS[name]}, the larger one (the other: --preset {name})")
        return GPU_PRESETS[name]
    return name


def settle_steps(session: "Session", budget: tuple[float, float] | None, resumed: bool) -> None:
    """Turn --minutes into steps, or hold a run that is resumed to those that it has."""
    from tformer.show import terminal
    from tformer.training.budget import settle

    if budget is None:
        return
    minutes, began = budget
    if resumed:
        known = session.record.budget.minutes if session.record.budget else None
        if known != minutes:
            found = f"{known:g} minutes" if known else "steps"
            raise RequestError(
                f"--minutes {minutes:g} with --resume",
                f"this run was given {found}, and has {session.config.train.steps:,} steps",
                "leave it out to continue; --steps N gives it more",
            )
        return
    settle(session, minutes, began)
    made = session.record.budget
    assert made is not None
    terminal.say(
        f"{minutes:g} minutes: {made.steps:,} steps of {1000 * made.seconds_per_step:.0f} ms, and "
        f"{made.seconds_per_evaluation:.1f} s for each evaluation"
    )
