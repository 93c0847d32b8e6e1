"""What `tformer eval loss --out FILE.html` writes: figures, and a text in the colours of its surprise."""

from html import escape

from tformer.evals.tokens import LEVELS, Surprise, Token, level
from tformer.figures import Lines
from tformer.show import page
from tformer.show.colours import DARK, LIGHT
from tformer.show.loss_words import EXTREMES, RUN_COLUMNS, Comparison, cells_of, guess_of
from tformer.show.svg import figure_svg
from tformer.show.words import share, visible
from tformer.text.tokenizer import quoted


def _levels(colours: dict[int, tuple[str, str]]) -> str:
    return " ".join(f".l{i} {{ color: {ink}; background: {paper}; }}" for i, (ink, paper) in colours.items())


CSS = f"""
body {{ max-width: 66rem; }}
@media (max-width: 40rem) {{
  td:nth-child(2):not(:last-child) {{ white-space: normal !important; max-width: 9rem; }} }}
.tokens {{ line-height: 1.75; overflow-wrap: anywhere; }} .tokens span {{ border-radius: 2px; }}
.legend span {{ display: inline-block; padding: 0 0.45rem; margin: 0.1rem 0.2rem 0.1rem 0;
  border-radius: 4px; border: 1px solid var(--line); font-size: 0.85em; }}
{_levels(LIGHT)}
@media (prefers-color-scheme: dark) {{ {_levels(DARK)} }}
"""


def loss_page(title: str, facts: dict[str, str], figure: Lines, surprise: Surprise | None) -> str:
    """The page of one model on a text."""
    rows = [[name, value] for name, value in facts.items()]
    parts = [f"<h1>{escape(title)}</h1>", page.table("", ("", ""), rows, (False, False)), *_curve(figure)]
    if surprise is not None:
        parts += _surprise(surprise)
    return page.page(title, "\n".join(parts), css=CSS)


def comparison_page(title: str, compared: Comparison) -> str:
    """The page of several models on one text."""
    of_text = [[name, value] for name, value in compared.facts.items()]
    parts = [
        f"<h1>{escape(title)}</h1>",
        page.table("", ("", ""), of_text, (False, False)),
        page.table("", RUN_COLUMNS, compared.rows, [False] + [True] * (len(RUN_COLUMNS) - 1)),
        *(f'<p class="dim">{escape(note)}</p>' for note in compared.notes),
        *_curve(compared.figure),
    ]
    return page.page(title, "\n".join(parts), css=CSS)


def _curve(figure: Lines) -> list[str]:
    if max(len(s.x) for s in figure.series) < 2:
        return []
    return ["<h2>Along the window</h2>", page.figure(figure_svg(figure, "curve"), figure.title)]


def _surprise(surprise: Surprise) -> list[str]:
    text = "".join(
        [f'<span class="dim" title="the first token: nothing predicts it">{_shown(surprise.first)}</span>']
        + [_span(token, surprise.of) for token in surprise.stretch]
    )
    legend = "".join(
        f'<span class="l{i}">{escape(name)} · {span} nats</span>' for i, (name, span) in enumerate(LEVELS)
    )
    return [
        "<h2>Token by token</h2>",
        f"<p>{surprise.summary}. The colour is the probability that the model gave each token; point at one "
        "for its numbers.</p>",
        f'<p class="legend">{legend}</p>',
        f'<pre class="tokens">{text}</pre>',
        *(
            part
            for word, tokens in (("hardest", surprise.hardest), ("easiest", surprise.easiest))
            for part in (
                f"<h2>The {word} of all {surprise.of:,} tokens, each once</h2>",
                page.table("", [*EXTREMES], [cells_of(token) for token in tokens], [*EXTREMES.values()]),
            )
        ),
    ]


def _shown(raw: bytes) -> str:
    return escape(visible(raw, lines=True))


def _span(token: Token, of: int) -> str:
    numbers = (
        f"{quoted(token.raw)}: {token.loss:.4f} nats ({share(token.probability)}), "
        f"rank {token.rank:,} of {of:,}, after {token.context:,} tokens; "
        f"expected {guess_of(token)} ({share(token.expected_probability)})"
    )
    return f'<span class="l{level(token.loss)}" title="{escape(numbers)}">{_shown(token.raw)}</span>'
