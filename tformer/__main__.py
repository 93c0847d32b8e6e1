"""The `tformer` command; `python -m tformer` is the same. Light, for Ctrl-C counts from its first line on."""

from tformer.signals import answered_by, leave_at_once
from tformer.threads import others_run, wait_asleep


def program() -> None:
    """Run the command line. A signal before it is there ends the process, silently."""
    answered_by(leave_at_once)
    is_busy = others_run()
    from tformer.cli import main

    if is_busy and others_run():  # twice, for a moment says little
        wait_asleep()
    main()


if __name__ == "__main__":
    program()
