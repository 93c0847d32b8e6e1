"""`python -m tformer` is the `tformer` command."""

from tformer.cli import main

if __name__ == "__main__":
    main()
