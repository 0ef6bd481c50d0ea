"""Behavioural evaluations, as tasks for Inspect: does moving along a reference move behaviour?

One row of data is one independent trial, which a task asks in one or several *forms*. A scorer
counts what the answers did; a measure is a ratio of two such counts over the rows, with its
interval. So a number means the same under `inspect eval wvmonitor/…` and under `wvmonitor eval`.

Needs the extra `evals` (inspect_ai); nothing else of wvmonitor imports it.
"""

from wvmonitor.errors import SettingsError

__all__ = ["require_inspect"]


def require_inspect() -> None:
    """Say how to install what is missing.

    Raises:
        SettingsError: inspect_ai is not installed.
    """
    try:
        import inspect_ai  # noqa: F401
    except ImportError as error:
        raise SettingsError(
            "evaluations need inspect_ai: pip install 'wvmonitor[evals]'"
        ) from error
