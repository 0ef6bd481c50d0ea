"""`python -m wvmonitor` is the `wvmonitor` script."""

from wvmonitor.cli.app import main

if __name__ == "__main__":
    main()
