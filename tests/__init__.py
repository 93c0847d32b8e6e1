"""Shapes are checked at run time in every module that annotates them, whatever test imports it."""

from pathlib import Path

from jaxtyping import install_import_hook

PACKAGE = Path(__file__).parents[1] / "tformer"


def annotated_modules() -> list[str]:
    """The modules of the package that annotate shapes, by what they import."""
    return sorted(
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for path in PACKAGE.rglob("*.py")
        if "from jaxtyping import" in path.read_text(encoding="utf-8")
    )


install_import_hook(annotated_modules(), "beartype.beartype")
