"""`tformer eval` as a group: options may stand before the task, and the task may be left out.

Which task takes which option is what the tasks declare; here it is looked up.
"""

from collections.abc import Iterable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from tformer.errors import RequestError

DEFAULTS = ("loss", "reversal")


class EvalGroup(TyperGroup):
    """The group: its first argument is a task, and its own options are those of the tasks in `DEFAULTS`."""

    def options_of(self, tasks: Iterable[str]) -> list[Any]:
        """The options that any of these tasks takes, each once."""
        found: dict[str, Any] = {}
        for task in tasks:
            for option in self.commands[task].params:
                found.setdefault(option.name, option)
        return list(found.values())

    def get_params(self, ctx: Any) -> list[Any]:
        """For the help, what can be given without a task; for the shell, what can follow."""
        tasks = self.commands if ctx.resilient_parsing else DEFAULTS
        return [*self.options_of(tasks), *super().get_params(ctx)]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the task, named or chosen, before its options. RequestError for one that is not there."""
        parser = self.make_parser(ctx)
        for option in self.options_of(self.commands):
            option.add_to_parser(parser, ctx)
        given, rest, _ = parser.parse_args(list(args))
        options = args[: len(args) - len(rest)]
        if rest:
            task, *others = rest
            if task not in self.commands and not ctx.resilient_parsing:
                raise RequestError(f"no evaluation {task!r}", f"expected {', '.join(self.commands)}")
        elif "help" in given or ctx.resilient_parsing:
            return super().parse_args(ctx, ["--help"] if "help" in given else options)
        else:
            task, others = self.suiting(given), []
        return super().parse_args(ctx, [task, *options, *others])

    def suiting(self, given: dict[str, Any]) -> str:
        """The task where none is named: the loss where only that can be meant, else what suits the run.

        Several runs, and an option that `reversal` has not, mean the loss. Raises RequestError where there is
        no such run.
        """
        from tformer.run.find import find_run, newest_run
        from tformer.run.record import read_record

        loss, reversal = ({option.name for option in self.options_of([task])} for task in DEFAULTS)
        runs = given.get("run") or []
        if given.keys() & (loss - reversal) or len(runs) > 1:
            return "loss"
        folder = find_run(runs[0]) if runs else newest_run(lambda record: True, "a run on anything")
        return "reversal" if read_record(folder).task == "reversal" else "loss"


class EvalCommand(TyperCommand):
    """A task: an unknown option is looked up in the other tasks."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As Typer does. Raises RequestError naming the tasks that take an option which this one does not."""
        try:
            return super().parse_args(ctx, args)
        except typer.TyperException as error:
            option = getattr(error, "option_name", None)
            others = {} if ctx.parent is None else ctx.parent.command.commands
            takers = [name for name, task in others.items() if any(option in p.opts for p in task.params)]
            if not takers or self.name in takers:
                raise
            what = f"{option} with eval {self.name}"
            raise RequestError(
                what, f"it is for {', '.join(takers)}", "leave it out, or name one of them"
            ) from None
