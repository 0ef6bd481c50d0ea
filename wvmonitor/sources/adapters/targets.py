"""Which modules an adapter's configuration chooses: PEFT loads the factors of no others.

What a file holds beside them is left out by PEFT without a word (`check_target_module_exists` in
peft/tuners/tuners_utils.py), and taken by programs that go by the file's keys alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from wvmonitor.errors import AdapterError
from wvmonitor.files.storage import shown
from wvmonitor.sources.adapters.patterns import WholeName
from wvmonitor.sources.names import parameter_name, unwrapped

_ALL_LINEAR = "all-linear"
_LAYER = re.compile(r".*?\.[^.]*\.(\d+)\.")  # of the block, where an expert has a number too
_PLAIN = re.compile(r"\w+")


def check_chosen(config: Mapping[str, Any], paths: Iterable[str], holder: str, where: str) -> None:
    """See that the configuration chooses every module that the file has factors of.

    Modules are given by their keys without PEFT's prefix; `holder` and `where` are how messages
    name the file and the configuration.

    Raises:
        AdapterError: naming one that it does not choose.
        UnsupportedAdapterError: it chooses by an expression that cannot be matched.
    """
    said = config.get("target_modules") or []
    if isinstance(said, str) and said.lower() == _ALL_LINEAR:
        return
    if not said and not config.get("target_parameters"):
        return  # what PEFT takes by itself for the architecture
    chosen, excluded = _choice(said, where), _choice(config.get("exclude_modules"), where)
    layers = _layers(config) if isinstance(said, list) else None

    def adapted(name: str) -> bool:
        if not chosen(name) or excluded(name):
            return False
        return layers is None or name in said or layers(name)

    # as saved, and as it may have been called under wrappers when it was chosen
    left_out = [
        path
        for path in paths
        if not (adapted(path) or adapted(unwrapped(path)) or adapted(_module_name(path)))
    ]
    if left_out:
        raise AdapterError(
            f"{holder} holds factors of {shown(left_out[0])} ({len(left_out)} such), which "
            f"{where} does not choose (target_modules): PEFT leaves them out when it loads the "
            "adapter and other programs may not, so that what it changes cannot be told: re-save "
            "it with PEFT"
        )


def _module_name(path: str) -> str:
    return parameter_name(f"{path}.weight").removesuffix(".weight")


def _choice(said: Any, where: str) -> Callable[[str], bool]:
    if isinstance(said, str):
        return WholeName(said, where).matches
    names = frozenset(said or ())

    def named(name: str) -> bool:
        dot = len(name)
        while dot >= 0:  # most names are of one part, the last
            dot = name.rfind(".", 0, dot)
            if name[dot + 1 :] in names:
                return True
        return False

    return named


def _layers(config: Mapping[str, Any]) -> Callable[[str], bool] | None:
    """Whether a module is in a chosen layer; None where all are, or an expression says which."""
    said = config.get("layers_to_transform")
    numbers = frozenset(said) if isinstance(said, list) else frozenset({said} - {None})
    given = config.get("layers_pattern") or ()
    names = [given] if isinstance(given, str) else list(given)
    if not numbers or not all(isinstance(n, str) and _PLAIN.fullmatch(n) for n in names):
        return None
    forms = [re.compile(rf"(?:^|.*?\.){name}\.(\d+)\.") for name in names] or [_LAYER]

    def inside(name: str) -> bool:
        found = next((m for form in forms if (m := form.match(name))), None)
        return found is not None and int(found[1]) in numbers

    return inside
