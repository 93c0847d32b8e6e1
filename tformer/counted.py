"""A count and its noun, as every message has them."""


def counted(n: float, one: str, many: str = "", spec: str = ",") -> str:
    """A number with the noun for so many; the number as `spec` formats it.

    >>> counted(1, "file"), counted(2_000, "file"), counted(0, "process", "processes")
    ('1 file', '2,000 files', '0 processes')
    """
    number = format(n, spec)
    return f"{number} {one if number == '1' else many or one + 's'}"
