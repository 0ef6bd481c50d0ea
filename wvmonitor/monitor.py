"""Moved to `wvmonitor.live.monitor`; its public names are in `wvmonitor` itself."""

import warnings

from wvmonitor.live.monitor import *  # noqa: F403

warnings.warn(
    "wvmonitor.monitor has moved: write `from wvmonitor import Monitor, Run`",
    FutureWarning,
    stacklevel=2,
)
