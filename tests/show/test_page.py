"""Pages stand alone, obey no text that they show, and their figures fit into them."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from tformer.figures import Bars, Heat, Lines, Numbers, Series
from tformer.show import page
from tformer.show.svg import figure_svg, loss_svg

CURVE = Lines("Falling", "x $a$", "y", (Series("one", (1, 2, 4), (1.0, 0.1, 0.01)),), log_x=True, log_y=True)
BAND = Lines(
    "Band", "x", "y", (Series("a", (1, 2), (1.0, 2.0), (0.5, 1.5), (1.5, 2.5)), Series("b", (1, 2), (1, 1)))
)
BARS = Bars("High", "accuracy", (("<one>", Numbers((0.5, 0.7))), ("two", Numbers((0.9,)))), ("chance", 0.1))
HEAT = Heat("Maps", "query", "key", tuple((f"1.{i}", ((1.0, 0.0), (0.5, 0.5))) for i in range(5)))
FIGURES = (CURVE, BAND, BARS, HEAT)


class Checker(HTMLParser):
    """Every tag that is opened is closed; nothing is fetched."""

    VOID = ("meta", "br", "hr", "img", "link", "input")

    def __init__(self):
        super().__init__()
        self.open, self.fetched = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href") and not value.startswith(("#", "data:")):
                self.fetched.append(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check(text):
    checker = Checker()
    checker.feed(text)
    assert not checker.open
    assert not checker.fetched
    assert "<script" not in text and "@import" not in text
    assert not re.search(r"url\((?!#)", text)


@pytest.mark.parametrize("figure", FIGURES, ids=["log", "band", "bars", "heat"])
def test_a_figure_is_an_svg_in_the_colours_of_its_page(figure):
    svg = figure_svg(figure, "name")
    ElementTree.fromstring(svg)
    assert svg.startswith("<svg") and "currentColor" in svg and "#010203" not in svg
    assert "\n\n" not in svg, "a blank line ends an HTML block in Markdown"
    assert "mathdefault" not in svg, "numbers, not TeX"
    assert svg == figure_svg(figure, "name"), "the same figure gives the same bytes"


def test_several_figures_stand_in_one_page():
    svgs = [figure_svg(figure, f"f{i}") for i, figure in enumerate((*FIGURES, *FIGURES))]
    check(page.page("All <of> them", "\n".join(page.figure(svg, "x & y") for svg in svgs)))
    ids = [set(re.findall(r'\bid="([^"]*)"', svg)) for svg in svgs]
    assert sum(map(len, ids)) == len(set.union(*ids)), "no figure refers to another's parts"
    for svg in svgs:
        for used in re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', svg):
            assert f'id="{used[0] or used[1]}"' in svg


def test_text_is_shown_and_not_obeyed():
    hostile = "<img src=x onerror=alert(1)> & <b>bold</b>"
    parts = (
        page.page(hostile, ""),
        page.markdown(hostile),
        page.table(hostile, (hostile,), ((hostile,),), (False,)),
        page.figure("<svg></svg>", hostile),
    )
    for text in parts:
        assert "<img" not in text and "<b>" not in text
        assert "&lt;b&gt;" in text


def test_no_page_holds_what_html_may_not_or_a_terminal_obeys():
    raw = "".join(map(chr, (*range(9), *range(11, 32), *range(127, 160), 0x202E)))
    text = page.page(raw, f"<p>{raw}é\u00a0\u200d\t\n</p>")
    assert not set(raw) & set(text) and "é\u00a0\u200d\t\n" in text
    assert text.count("\ufffd") == 2 * len(raw)


@pytest.mark.parametrize("name", ["a\x1b[2J", "a\0", "\x9b\u202e", "你\x07"])
def test_no_picture_holds_what_xml_may_not_or_warns_of_its_font(name):
    svg = loss_svg([{"step": 1, "loss": 1.0, "lr": 1.0}], name)
    assert "\ufffd" in svg and not set("\0\7\x1b\x9b\u202e") & set(svg)
    ElementTree.fromstring(svg)


def test_markdown_becomes_html():
    html = page.markdown("a *b*\n\n- c\n\n| x | y |\n|---|---|\n| 1 | 2 |")
    assert "<em>b</em>" in html and "<li>c</li>" in html and "<td>1</td>" in html
