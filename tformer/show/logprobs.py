"""A sample on a terminal, each of its tokens in the colour of the probability that the model gave it."""

from rich.console import Console
from rich.text import Text

from tformer.sample import Sample
from tformer.show.loss import append_token, legend
from tformer.show.terminal import has_colours, has_unicode
from tformer.show.words import visible


def coloured_sample(prompt: str, sample: Sample, token_bytes: list[bytes], console: Console) -> None:
    """The prompt, dim, and the tokens after it, those of a stop string or the end of a text as well."""
    unicode = has_unicode(console)
    shown = Text(overflow="fold")
    shown.append(visible(prompt.encode(errors="replace"), unicode, lines=True), style="dim")
    for token in sample.logprobs or []:
        text = visible(token_bytes[token.id], unicode, lines=True)
        append_token(shown, text, -token.logprob, has_colours(console))
    console.print(shown)


def legend_of_samples(console: Console) -> None:
    """What the colours mean."""
    console.print(legend(has_colours(console)))
