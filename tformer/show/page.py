"""Pages that stand alone: one HTML file, nothing fetched, no script; readable on a phone, light and dark."""

from collections.abc import Sequence
from html import escape

from markdown_it import MarkdownIt

from tformer.errors import harmless

CSS = """
:root { color-scheme: light dark; --ink: #1c2128; --paper: #fdfdfb; --dim: #656d76; --line: #d8dee4;
  --good: #1a7f37; --bad: #c62828; --panel: #f3f4f2; --accent: #2f6fb0; }
@media (prefers-color-scheme: dark) { :root { --ink: #dde3ea; --paper: #14171b; --dim: #929ba5;
  --line: #30363d; --good: #4cc26a; --bad: #ff7b72; --panel: #1d2126; --accent: #79b4f2; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 50rem; padding: 1.2rem 1rem 4rem; color: var(--ink);
  background: var(--paper); font: 16px/1.6 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { line-height: 1.2; } h2 { line-height: 1.25; margin-top: 2.5rem; border-top: 1px solid var(--line);
  padding-top: 1.5rem; } h3 { margin-top: 2rem; }
a { color: var(--accent); } code, pre { font: 0.88em/1.45 ui-monospace, monospace; }
pre { background: var(--panel); padding: 0.8rem; overflow-x: auto; border-radius: 6px;
  white-space: pre-wrap; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; margin: 0.8rem 0; font-size: 0.92em; }
caption { text-align: left; color: var(--dim); padding-bottom: 0.3rem; }
th, td { padding: 0.3rem 0.7rem; border-bottom: 1px solid var(--line); text-align: left; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
figure { margin: 1.2rem 0; }
figure svg { width: 100%; max-width: 42rem; height: auto; max-height: 40rem; font-family: inherit; }
figcaption, .dim { color: var(--dim); font-size: 0.92em; }
.claim { margin: 0.7rem 0; padding: 0.5rem 0.8rem; background: var(--panel); border-radius: 6px;
  border-left: 4px solid var(--good); } .claim.no { border-color: var(--bad); }
.claim b { color: var(--good); } .claim.no b { color: var(--bad); } .claim p { margin: 0.15rem 0; }
nav ol, nav ul { padding-left: 1.4rem; }
"""


def page(title: str, body: str, *, language: str = "en", css: str = "") -> str:
    """A whole HTML document around `body`; `css` follows the rules that all pages share.

    What HTML may not hold, and would do something on a terminal, is U+FFFD.
    """
    return harmless(
        f'<!doctype html>\n<html lang="{language}">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}{css}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def markdown(text: str) -> str:
    """Markdown as HTML; HTML inside it is shown, not obeyed."""
    return str(MarkdownIt("commonmark", {"html": False}).enable("table").render(text))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool]) -> str:
    """Rows under columns, to scroll sideways where the screen is narrow; numbers to the right."""

    def row(tag: str, cells: Sequence[str]) -> str:
        kinds = (' class="number"' if n else "" for n in numeric)
        joined = "".join(f"<{tag}{kind}>{escape(c)}</{tag}>" for c, kind in zip(cells, kinds, strict=True))
        return f"<tr>{joined}</tr>"

    caption = f"<caption>{escape(title)}</caption>" if title else ""
    body = "\n".join(row("td", cells) for cells in rows)
    head = row("th", columns)
    whole = f"<table>{caption}\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody></table>"
    return f'<div class="scroll">{whole}</div>'


def figure(svg: str, caption: str) -> str:
    """An SVG with what it shows."""
    return f"<figure>\n{svg.strip()}\n<figcaption>{escape(caption)}</figcaption>\n</figure>"
