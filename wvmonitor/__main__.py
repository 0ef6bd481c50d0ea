"""`python -m wvmonitor` is the `wvmonitor` script."""

import gc
import sys

_OF_A_START = 400_000
"""Objects that are made until a command has imported torch and read a bank; nearly all stay."""


def main() -> None:
    """Run the command line; Ctrl-C is no traceback, also while it is still being imported."""
    _collect_after_the_start()
    try:
        from wvmonitor.cli.app import main as run
    except KeyboardInterrupt:
        sys.stderr.write("wvmonitor: interrupted\n")
        sys.exit(130)
    run()


def _collect_after_the_start() -> None:
    """Look for garbage once a start's objects are there, then as often as ever.

    Looking for it four hundred times while they come takes an eighth of a scan and finds none.
    """
    usual = gc.get_threshold()

    def restore(*_: object) -> None:
        gc.callbacks.remove(restore)
        gc.set_threshold(*usual)

    gc.set_threshold(_OF_A_START)
    gc.callbacks.append(restore)


if __name__ == "__main__":
    main()
