"""`python -m cfgdistill`."""

import os
import signal
import sys


def _stop(number, frame):
    signal.signal(number, signal.SIG_IGN)  # a second one finds the first at work
    raise KeyboardInterrupt


def run() -> int:
    """The exit code of the command line, whatever the moment at which it is stopped."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)
    try:
        from cfgdistill.cli import main

        try:
            code = main()
        except SystemExit as stop:  # of argparse
            code = stop.code
        sys.stdout.flush()
    except KeyboardInterrupt:  # before there was anything to save
        print("Stopped. The same command again uses what is saved.", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # whoever read has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    return code


if __name__ == "__main__":
    sys.exit(run())
