"""Shapes are checked at run time in every module that annotates them, whatever test imports it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from itertools import count
from pathlib import Path
from typing import Any

import jaxtyping

PACKAGE = Path(__file__).parents[1] / "tformer"
CHECKED_STEPS = 3  # of a training


def annotated_modules() -> list[str]:
    """The modules of the package that annotate shapes, by what they import."""
    return sorted(
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for path in PACKAGE.rglob("*.py")
        if "from jaxtyping import" in path.read_text(encoding="utf-8")
    )


@contextmanager
def shapes_unchecked(unchecked: bool) -> Iterator[None]:
    """For so long."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", unchecked)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def checked_at_first(fit: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """`fit`, unchecked once its steps have shown their shapes, which those that follow have as well.

    What is done between steps and in evaluations is checked as ever.
    """

    @wraps(fit)
    def checked(learner: Any, batches: Any, train: Any, state: Any, validate: Any = None) -> Iterator[Any]:
        off = jaxtyping.config.jaxtyping_disable

        def evaluated() -> Any:
            with shapes_unchecked(off):
                return validate()

        steps = fit(learner, batches, train, state, validate and evaluated)
        for number in count():
            repeats = number >= CHECKED_STEPS and learner.forward is None  # a compiler would compile again
            with shapes_unchecked(off or repeats):
                done = next(steps, None)
            if done is None:
                return
            yield done

    return checked


jaxtyping.install_import_hook(annotated_modules(), "beartype.beartype")

from tformer.training import fit as training  # noqa: E402

training.fit = checked_at_first(training.fit)
