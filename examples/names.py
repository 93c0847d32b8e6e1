"""Made-up names, a line each, to try a model on that writes names: python examples/names.py > names.txt

Syllables of a beginning, a vowel and an end, drawn with fixed shares: about as regular as names are, and
nobody's. The list is sorted, as such lists are.
"""

import random
import sys

BEGINNINGS = [
    "b",
    "br",
    "c",
    "ch",
    "d",
    "f",
    "g",
    "h",
    "j",
    "k",
    "l",
    "m",
    "n",
    "p",
    "r",
    "s",
    "sh",
    "t",
    "th",
    "v",
    "w",
]
VOWELS = ["a", "e", "i", "o", "u", "ai", "ea", "ie", "ia"]
ENDS = ["", "", "", *["n", "r", "l", "s", "th", "m", "nn", "ck", "x"]]


def names(n: int, seed: int = 1) -> list[str]:
    """So many different names of 3 to 12 letters, sorted."""
    draw = random.Random(seed)
    found: set[str] = set()
    while len(found) < n:
        size = draw.choices([1, 2, 3], [1, 5, 4])[0]
        syllables = []
        for i in range(size):
            beginning = draw.choice([*BEGINNINGS, "", ""])
            has_end = i == size - 1 or draw.random() < 0.25
            syllables.append(beginning + draw.choice(VOWELS) + (draw.choice(ENDS) if has_end else ""))
        name = "".join(syllables)
        if 3 <= len(name) <= 12:
            found.add(name)
    return sorted(found)


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 30_000
    print("\n".join(names(count)))
