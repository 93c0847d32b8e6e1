"""The `tformer` command; `python -m tformer` is the same."""

import signal
from typing import NoReturn


def program() -> NoReturn:
    """Run the command line. Ctrl-C before it is there ends the process as the shell expects, and silently."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from tformer.cli import main

    main()


if __name__ == "__main__":
    program()
