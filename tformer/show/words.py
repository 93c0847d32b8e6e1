"""Text and numbers as a person reads them, on a terminal and on a page alike. Knows neither of them."""

from tformer.errors import harmless


def printable(text: str, terminal: bool) -> str:
    """Generated text, on a terminal without what could move the cursor."""
    return harmless(text) if terminal else text


def visible(raw: bytes, unicode: bool = True, lines: bool = False) -> str:
    r"""Bytes as text in which nothing is invisible; with `lines`, a line end also ends the line.

    >>> visible(b"a\tb\r\n"), visible(b"\xe2\x80"), visible("\x1b[2J".encode())
    ('a⇥b␍⏎', '\\xe2\\x80', '�[2J')
    """
    end, tab, carriage = ("⏎", "⇥", "␍") if unicode else ("\\n", "\\t", "\\r")
    text = raw.decode("utf-8", errors="backslashreplace").replace("\r", carriage)
    text = "".join(c if c in "\n\t" or c.isprintable() else "\ufffd" for c in text)
    return text.replace("\t", tab).replace("\n", end + "\n" * lines)


def share(probability: float) -> str:
    """A probability in percent: small ones keep two digits."""
    return f"{100 * probability:.1f} %" if probability >= 0.001 else f"{100 * probability:.1e} %"


def percent(fraction: float) -> str:
    """Two decimals: 99.95 % is not 100 %."""
    return f"{100 * fraction:.2f} %"


def duration(seconds: float) -> str:
    """1 h 02 min, 3 min 04 s or 5.6 s."""
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s" if seconds >= 60 else f"{seconds:.1f} s"


def large(number: int) -> str:
    """A count in millions or thousands of millions, where it has as many.

    >>> large(15_680), large(2_900_000), large(1_558_000_000)
    ('15,680', '2.90 M', '1.56 G')
    """
    for size, letter in ((10**9, "G"), (10**6, "M")):
        if number >= size:
            return f"{number / size:.2f} {letter}"
    return f"{number:,}"


def spread(value: float, stderr: float | None, sign: str = "") -> str:
    """A number with its standard error, where there is one; `sign` is + where a plus is written too."""
    return f"{value:{sign}.4f}" if stderr is None else f"{value:{sign}.4f} ± {stderr:.4f}"


def bar(fraction: float, width: int = 20) -> str:
    """A bar of eighth blocks: 0 is empty, 1 is full."""
    eighths = round(max(0.0, min(1.0, fraction)) * width * 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")
