"""`python -m wvmonitor` is the `wvmonitor` script."""

import atexit
import gc
import sys

_OF_A_START = 400_000
"""Objects that are made until a command has imported torch and read a bank; nearly all stay."""


def main() -> None:
    """Run the command line; Ctrl-C is no traceback, also while it is still being imported."""
    _collect_after_the_start()
    if sys.argv[1:2] != ["trl"]:  # where others' code runs, its objects end as it expects
        _end_at_once()
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


def _end_at_once() -> None:
    """Leave what there is at exit to the system.

    Python would look through all of torch's objects for garbage, which takes a fifth of the time
    that importing them does.
    """
    atexit.register(gc.freeze)


if __name__ == "__main__":
    main()
