"""`python -m wvmonitor` is the `wvmonitor` script."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C is no traceback, also while it is still being imported."""
    try:
        from wvmonitor.cli.app import main as run
    except KeyboardInterrupt:
        sys.stderr.write("wvmonitor: interrupted\n")
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
