"""`python -m cfgdistill`."""

import signal
import sys

from cfgdistill.cli import main


def run() -> int:
    """The exit code; SIGTERM and SIGHUP are Ctrl-C, and a second Ctrl-C is no traceback."""
    try:
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, signal.default_int_handler)
        return main()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("Stopped. The same command again uses what is saved.", file=sys.stderr)
        return 130


sys.exit(run())
