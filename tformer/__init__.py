"""tformer: decoder-only transformer language models from first principles.

`from tformer import load; model, tokenizer = load("runs/shakespeare")` is the whole library entry.
Importing this package imports no torch, so that the command line answers at once.
"""

TYPE_CHECKING = False  # of `typing`, which takes time: Ctrl-C is answered once this is imported
if TYPE_CHECKING:
    from tformer.run.loaded import load as load

__version__ = "0.2.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> object:
    if name == "load":
        from tformer.run.loaded import load

        return load
    raise AttributeError(f"module 'tformer' has no attribute {name!r}")
