"""Harmless fine-tunes that need no data of the user's: many small families of ordinary work.

A calibration learns from them how far harmless training moves the scores, so what counts is that
they differ: in task, form, length, language and voice. A family is made by rule, read from a file,
taken from the contrasts' good side, or from what the base itself answers.
"""

from wvmonitor.builder.harmless.families import Family, Use

__all__ = ["Family", "Use"]
