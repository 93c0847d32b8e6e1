"""The `tformer` command; `python -m tformer` is the same. Light, for Ctrl-C counts from its first line on."""

from tformer.signals import answered_by, leave_at_once


def program() -> None:
    """Run the command line. A signal before it is there ends the process, silently."""
    answered_by(leave_at_once)
    from tformer.cli import main

    main()


if __name__ == "__main__":
    program()
