"""The colours that terminal and page share: of curves, and of how surprising a token was."""

# Of curves and bars, in their order; each can be read on light and on dark.
PALETTE = (
    "#3b82c4",
    "#d9822b",
    "#2a9d6f",
    "#c4507a",
    "#8b6fd1",
    "#7d8590",
    "#a8982a",
    "#3fa7b8",
    "#b5651d",
)

# Ink and paper of each level of `evals.tokens.level`, on a light page or any terminal, and on a dark page;
# the middle one is as the page is. Blue to red through white: told apart by the colour-blind too.
LIGHT = {
    0: ("#ffffff", "#2b6cb0"),
    1: ("#000000", "#a9cfe8"),
    3: ("#000000", "#fbdc9a"),
    4: ("#000000", "#f4945a"),
    5: ("#ffffff", "#b2182b"),
}
DARK = {
    0: ("#ffffff", "#1f5a97"),
    1: ("#dce9f3", "#27455d"),
    3: ("#fff3d6", "#5c4712"),
    4: ("#ffffff", "#9a4a17"),
    5: ("#ffffff", "#c62839"),
}


def curve_colour(number: int) -> str:
    """Of the curve of that number, from 0."""
    return PALETTE[number % len(PALETTE)]
