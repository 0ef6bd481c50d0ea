"""Moved to `wvmonitor.live.settings`; its public names are in `wvmonitor` itself."""

import warnings

from wvmonitor.live.settings import *  # noqa: F403

warnings.warn(
    "wvmonitor.settings has moved: write `from wvmonitor import MonitorSettings`",
    FutureWarning,
    stacklevel=2,
)
