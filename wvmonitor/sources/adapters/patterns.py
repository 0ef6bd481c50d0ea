r"""What the expressions of an adapter's configuration say of a module, in bounded time.

For `rank_pattern` and `alpha_pattern` PEFT matches `(.*\.)?(KEY)$` with Python's `re`, KEY being
whatever the file says, and the first entry that matches wins (peft/utils/other.py,
`get_pattern_key`); a `target_modules` that is a text must match the whole name. A hostile
expression makes that run for years, so the same is matched by the `regex` package within a limit of
processor time.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Iterator
from typing import Any

from wvmonitor.errors import UnsupportedAdapterError
from wvmonitor.files.storage import shown

_LONGEST_KEY = 1000
_LONGEST_EXPRESSION = 10_000  # Unsloth's says which layers, which blocks and which of their parts
_MOST_EXPRESSIONS = 10_000
_MOST_REPEATS = 100_000  # counted repeats are unrolled when they are compiled, nested ones too
_SECONDS = 0.5  # of processor time for one table; a real one takes milliseconds
_LITERAL = re.compile(r"[\w\-/ ]+(?:\.[\w\-/ ]+)*")
_COUNTED = re.compile(r"\{(\d*)(?:,(\d*))?\}")


class _Matching:
    """Compiles and matches the expressions of one field, within one limit of processor time."""

    def __init__(self, where: str, longest: int = _LONGEST_KEY) -> None:
        self._where = where
        self._longest = longest
        self._seconds = _SECONDS

    def compiled(self, key: str, form: str) -> Any:
        """The expression, put into a form.

        Raises:
            UnsupportedAdapterError: it is none, or larger than any adapter needs.
        """
        import regex  # slow to import, and most adapters have no patterns

        repeats = (max(int(n or 1) for n in counts) for counts in _COUNTED.findall(key))
        if len(key) > self._longest or math.prod(max(n, 1) for n in repeats) > _MOST_REPEATS:
            raise self.too_large()
        try:
            return regex.compile(form.format(key), cache_pattern=False)
        except (regex.error, RecursionError, OverflowError) as error:
            raise UnsupportedAdapterError(
                f"the pattern {shown(key, 60)} of {self._where} is no regular expression "
                f"({error}): re-save the adapter with module names in its patterns"
            ) from error

    def matches(self, expression: Any, name: str) -> bool:
        """Whether it matches a module's name.

        Raises:
            UnsupportedAdapterError: all in all it took longer than a real table's does.
        """
        begun = time.thread_time()
        try:
            matched = expression.match(name, timeout=max(self._seconds, 1e-3))
        except TimeoutError:
            raise self.too_large() from None
        self._seconds -= time.thread_time() - begun
        return matched is not None

    def too_large(self) -> UnsupportedAdapterError:
        """What to raise at expressions beyond a real adapter's."""
        return UnsupportedAdapterError(
            f"the patterns of {self._where} are larger or slower to match than any real adapter's: "
            "do not trust it"
        )


class WholeName:
    """An expression that must match the whole of a module's name."""

    def __init__(self, expression: str, where: str) -> None:
        """Compile it.

        Raises:
            UnsupportedAdapterError: it is none, or larger than any adapter needs.
        """
        self._matching = _Matching(where, _LONGEST_EXPRESSION)
        self._expression = self._matching.compiled(expression, r"(?:{})\Z")

    def matches(self, name: str) -> bool:
        """Whether it matches a module's full name.

        Raises:
            UnsupportedAdapterError: matching takes longer than a real expression does.
        """
        return self._matching.matches(self._expression, name)


class Patterns:
    """The keys of one table, made ready for looking up one module after another.

    Names, of which there can be one for each of thousands of modules, are looked up by their length
    and the places of their dots; regular expressions are tried one by one.
    """

    def __init__(self, keys: Iterable[str], where: str) -> None:
        """Sort the keys.

        Raises:
            UnsupportedAdapterError: an expression is none, or there are more or longer expressions
                than any adapter needs.
        """
        self._keys = tuple(keys)
        self._matching = _Matching(where)
        self._names: dict[tuple[int, tuple[int, ...]], dict[str, int]] = {}
        self._expressions: list[tuple[int, Any]] = []
        for number, key in enumerate(self._keys):
            if len(key) > _LONGEST_KEY or len(self._expressions) > _MOST_EXPRESSIONS:
                raise self._matching.too_large()
            if _LITERAL.fullmatch(key):
                dots = tuple(i for i, letter in enumerate(key) if letter == ".")
                self._names.setdefault((len(key), dots), {}).setdefault(key, number)
            else:
                expression = self._matching.compiled(key, r"(.*\.)?({})$")
                self._expressions.append((number, expression))

    def first(self, module: str) -> str | None:
        """The first key that PEFT would match with a module's full name, or None.

        Raises:
            UnsupportedAdapterError: matching took longer than a real table's does.
        """
        if not self._keys:
            return None
        place = min(self._by_name(module), default=len(self._keys))
        for number, expression in self._expressions:
            if number > place:
                break
            if self._matching.matches(expression, module):
                place = number
        return self._keys[place] if place < len(self._keys) else None

    def _by_name(self, module: str) -> Iterator[int]:
        for (length, dots), numbers in self._names.items():
            start = len(module) - length
            if start < 0 or (start and module[start - 1] != "."):
                continue
            tail = list(module[start:])
            for place in dots:
                tail[place] = "."  # a dot in the key stands for any character, as it does for PEFT
            number = numbers.get("".join(tail))
            if number is not None:
                yield number
