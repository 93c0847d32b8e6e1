"""Questions to experiments: which belong to which, and running them over several seeds."""

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from tformer.answer import Question
from tformer.answer.claims import Claim, Finding
from tformer.answer.experiment import Effort, Experiment, Seeds
from tformer.answer.lab import Subject
from tformer.device import one_thread
from tformer.files import plain

SEEDS_APART = 1000  # so that --seed 0 and --seed 1 share no draw
ExperimentProgress = Callable[[str, int, int], None]  # what is being measured; seeds done, in all


@dataclass(frozen=True)
class ExperimentResult:
    """One experiment done: what was measured for each seed, and what it shows. Or why it was left out."""

    slug: str
    title: str
    evidence: tuple[dict[str, Any], ...]  # plain numbers, one for each seed
    finding: Finding
    seconds: float
    skipped: str = ""


@dataclass(frozen=True)
class Answer:
    """A question with the results of its experiments."""

    question: Question
    effort: Effort
    seed: int
    results: tuple[ExperimentResult, ...]

    @property
    def claims(self) -> list[Claim]:
        """The claims of all experiments, in the order in which they are told."""
        return [claim for result in self.results for claim in result.finding.claims]

    @property
    def passed(self) -> bool:
        """Whether every claim holds: what the exit code says."""
        return all(claim.passed for claim in self.claims)

    def as_dict(self) -> dict[str, Any]:
        """As `--json` has it: every number."""
        return {
            "question": self.question.title,
            "number": self.question.number,
            "slug": self.question.slug,
            "budget": self.effort.name,
            "seed": self.seed,
            "claims": [claim.as_dict() for claim in self.claims],
            "evidence": {
                r.slug: {
                    "title": r.title,
                    "seconds": round(r.seconds, 3),
                    **({"skipped": r.skipped} if r.skipped else {"by_seed": [plain(e) for e in r.evidence]}),
                }
                for r in self.results
            },
            "text": self.question.text,
        }


def experiments_of(question: Question) -> tuple[Experiment[Any], ...]:
    """Those that its folder lists, in the order in which they are told."""
    listed = importlib.import_module(f"tformer.answer.{question.folder}.experiments").EXPERIMENTS
    return cast(tuple[Experiment[Any], ...], listed)


def investigate(
    question: Question,
    effort: Effort,
    seed: int = 0,
    subject: Subject | None = None,
    progress: ExperimentProgress = lambda what, done, total: None,
    experiments: Sequence[Experiment[Any]] | None = None,
) -> Answer:
    """Run experiments of a question: its own, unless others are given.

    The same seed on the same machine gives the same numbers.
    """
    if experiments is None:
        experiments = experiments_of(question)
    total = sum(e.seeds(effort) for e in experiments)
    results, done = [], 0
    with one_thread():
        for experiment in experiments:
            began, n = time.perf_counter(), experiment.seeds(effort)
            why = experiment.skip(subject)
            measured = []
            for i in range(n):
                progress(experiment.title, done, total)
                if not why:
                    measured.append(experiment.measure(effort, SEEDS_APART * seed + i, subject))
                done += 1
            finding = experiment.show(Seeds(measured)) if measured else Finding()
            evidence = tuple(asdict(e) for e in measured)
            seconds = time.perf_counter() - began
            results.append(
                ExperimentResult(experiment.slug, experiment.title, evidence, finding, seconds, why or "")
            )
    progress("", total, total)
    return Answer(question, effort, seed, tuple(results))
