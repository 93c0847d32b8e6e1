"""What a run will cost, as tables."""

from rich.console import Console

from tformer.counted import counted
from tformer.show import terminal
from tformer.show.words import duration
from tformer.training.estimate import Estimate

OF_A_MACHINE = 8  # GPUs that a machine has at most


def estimate_table(found: Estimate, console: Console) -> None:
    """Everything by name, and a row for each way to run it."""
    memory, disk, here = found.memory, found.disk, found.here
    parts = ", ".join(f"{name} {n:,}" for name, n in found.parameters.items())
    ratio = found.tokens / found.optimal_tokens
    facts = {
        "parameters": f"{found.n_parameters:,}: {parts}",
        "FLOPs": f"{found.flops_per_token:.4g} a token, {found.flops_per_step:.4g} a step, "
        f"{found.flops_per_step * found.steps:.4g} in all",
        "tokens": f"{found.tokens:,} in {counted(found.steps, 'step')}, {ratio:.2g} times the "
        f"compute-optimal {found.optimal_tokens:,}",
        "memory": f"{bytes_of(memory.total)}: weights {bytes_of(memory.weights)}, "
        f"gradients {bytes_of(memory.gradients)}, optimizer {bytes_of(memory.optimizer)}, activations up to "
        f"{bytes_of(memory.activations)} ({counted(found.windows_at_once, 'window')} at a time)",
        "disk": f"{bytes_of(disk.total)}: weights {bytes_of(disk.weights)}, "
        f"{counted(disk.checkpoints, 'checkpoint')} of {bytes_of(disk.checkpoint)}"
        + f", ids of the text {bytes_of(disk.ids)}"
        * bool(disk.ids),
    }
    if here and here.process:
        facts["process"] = f"{bytes_of(here.process)} at most, with Python, PyTorch, the text and its ids"
    if here:
        facts[here.device] = (
            f"{duration(here.seconds)}: {1000 * here.seconds_per_step:,.0f} ms a step, measured; "
            f"{here.tokens_per_second:,.0f} tokens/s, {here.flops_per_second / 1e9:,.0f} GFLOP/s"
        )
    terminal.fact_table(console, facts)
    console.print()
    numbers = ("GPUs", "windows at a time", "memory", "computing and sending", "sent a step", "time")
    grid = terminal.table(
        console,
        "accelerator",
        *numbers,
        title=f"At {found.utilisation:.0%} of the peak",
        right=numbers,
    )
    for there in found.accelerators:
        name = there.name + (", sharded" if there.sharded else "")
        grid.add_row(
            name,
            str(there.gpus),
            str(there.windows_at_once) if there.has_room else "no room",
            bytes_of(there.memory),
            f"{1000 * there.computing_per_step:,.1f} and {1000 * there.communication_per_step:,.1f} ms",
            bytes_of(there.sent),
            duration(there.seconds) if there.has_room else "-",
        )
    console.print(grid)
    if any(there.gpus > OF_A_MACHINE for there in found.accelerators):
        console.print("sent as between the GPUs of one machine: between machines it takes longer")


def bytes_of(n: float) -> str:
    """Bytes as a person reads them."""
    for unit, letter in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n >= unit:
            return f"{n / unit:,.1f} {letter}"
    return f"{n:,.0f} B"
