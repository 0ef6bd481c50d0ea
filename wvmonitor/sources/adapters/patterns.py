r"""Which entry of `rank_pattern` or `alpha_pattern` a module falls under, in bounded time.

PEFT matches `(.*\.)?(KEY)$` with Python's `re`, KEY being whatever the file says, and the first
entry that matches wins (peft/utils/other.py, `get_pattern_key`). A hostile key makes that run for
years. Here the key is parsed into a tree and matched by following every alternative at once,
within a budget of steps; what that cannot follow (back-references, look-around) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from wvmonitor.errors import UnsupportedAdapterError
from wvmonitor.files.storage import shown

# Python's own parser, under the name it has had since 3.11.
from re import _constants as sre  # type: ignore[attr-defined]  # isort: skip
from re import _parser as parser  # type: ignore[attr-defined]  # isort: skip

_LONGEST_KEY = 1000
_MOST_EXPRESSIONS = 10_000
_MOST_STEPS = 100_000
_LITERAL = re.compile(r"[\w\-/ ]+(?:\.[\w\-/ ]+)*")


class Patterns:
    """The keys of one table, made ready for looking up one module after another.

    Names, of which there can be one for each of thousands of modules, are looked up by their length
    and the places of their dots; regular expressions are tried one by one.
    """

    def __init__(self, keys: Iterable[str], where: str) -> None:
        """Sort the keys.

        Args:
            keys: names or regular expressions, in the order of the configuration.
            where: how messages name the configuration.

        Raises:
            UnsupportedAdapterError: there are more or longer expressions than any adapter needs.
        """
        self._keys = tuple(keys)
        self._where = where
        self._names: dict[tuple[int, tuple[int, ...]], dict[str, int]] = {}
        self._expressions: list[int] = []
        for number, key in enumerate(self._keys):
            if len(key) > _LONGEST_KEY:
                raise _too_large(where)
            if _LITERAL.fullmatch(key):
                dots = tuple(i for i, letter in enumerate(key) if letter == ".")
                self._names.setdefault((len(key), dots), {}).setdefault(key, number)
            else:
                self._expressions.append(number)
        if len(self._expressions) > _MOST_EXPRESSIONS:
            raise _too_large(where)

    def first(self, module: str) -> str | None:
        """The first key that PEFT would match with a module's full name, or None.

        Raises:
            UnsupportedAdapterError: a key before it is no regular expression, or one that cannot be
                matched in bounded time.
        """
        found = min(self._by_name(module), default=len(self._keys))
        for number in self._expressions:
            if number > found:
                break
            if matches(self._keys[number], module, self._where):
                found = number
        return self._keys[found] if found < len(self._keys) else None

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


def first_match(keys: Iterable[str], module: str, where: str) -> str | None:
    """The first of `keys` that PEFT would match with `module`, or None, as `Patterns` finds it."""
    return Patterns(keys, where).first(module)


def _too_large(where: str) -> UnsupportedAdapterError:
    return UnsupportedAdapterError(
        f"the patterns of {where} are larger than any real adapter's: do not trust it"
    )


def matches(key: str, module: str, where: str) -> bool:
    r"""Whether `(.*\.)?(key)$` matches `module` from its beginning.

    Raises:
        UnsupportedAdapterError: as `first_match` says.
    """
    if _LITERAL.fullmatch(key):
        return _literal(key, module)
    try:
        starts = {0, *(i + 1 for i, letter in enumerate(module) if letter == ".")}
        tree = parser.parse(key)
        _check_supported(tree)
        return len(module) in _Walker(module).walk(tree, starts)
    except (re.error, RecursionError, OverflowError) as error:
        raise UnsupportedAdapterError(
            f"the pattern {shown(key, 60)} of {where} is no regular expression ({error}): re-save "
            "the adapter with module names in its patterns"
        ) from error
    except _UnboundedError as error:
        raise UnsupportedAdapterError(
            f"the pattern {shown(key, 60)} of {where} uses {error}, which cannot be matched in "
            "bounded time: re-save the adapter with module names in its patterns"
        ) from error


class _UnboundedError(Exception):
    """A construct that following all alternatives at once cannot handle."""


def _literal(key: str, module: str) -> bool:
    # A dot in the key stands for any character, as it does for PEFT.
    tail = module[len(module) - len(key) :] if len(key) <= len(module) else ""
    if len(tail) != len(key) or any(k not in (".", t) for k, t in zip(key, tail, strict=True)):
        return False
    head = module[: len(module) - len(key)]
    return not head or head.endswith(".")


def _check_supported(nodes: Iterable[Any]) -> None:
    """Refuse what cannot be followed wherever it stands, also where no name would reach it."""
    for operation, argument in nodes:
        if operation is sre.SUBPATTERN:
            if argument[1] or argument[2]:
                raise _UnboundedError("flags")
            _check_supported(argument[3])
        elif operation is sre.BRANCH:
            for branch in argument[1]:
                _check_supported(branch)
        elif operation in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            _check_supported(argument[2])
        elif operation is sre.AT:
            _at(argument, "", 0)
        else:
            _takes(operation, argument, "a")


class _Walker:
    """Follows every alternative of a pattern at once, within a budget of steps."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._budget = _MOST_STEPS

    def walk(self, nodes: Iterable[Any], starts: set[int]) -> set[int]:
        """Every position at which `nodes` can end when they begin at one of `starts`."""
        ends = starts
        for operation, argument in nodes:
            self._budget -= 1
            if self._budget < 0:
                raise _UnboundedError("repeats inside repeats")
            ends = self._step(operation, argument, ends)
            if not ends:
                break
        return ends

    def _step(self, operation: Any, argument: Any, starts: set[int]) -> set[int]:
        text = self._text
        if operation is sre.AT:
            return {i for i in starts if _at(argument, text, i)}
        if operation is sre.SUBPATTERN:
            return self.walk(argument[3], starts)
        if operation is sre.BRANCH:
            return {end for branch in argument[1] for end in self.walk(branch, starts)}
        if operation in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            least, most, inner = argument
            return self._repeat(int(least), int(most), inner, starts)
        return {i + 1 for i in starts if i < len(text) and _takes(operation, argument, text[i])}

    def _repeat(self, least: int, most: int, inner: Any, starts: set[int]) -> set[int]:
        reached = starts
        for _ in range(least):
            before, reached = reached, self.walk(inner, reached)
            if not reached or reached == before:
                break
        ends = set(reached)
        for _ in range(most - least):
            reached = self.walk(inner, reached) - ends
            if not reached:
                break
            ends |= reached
        return ends


def _at(argument: Any, text: str, position: int) -> bool:
    if argument in (sre.AT_BEGINNING, sre.AT_BEGINNING_STRING):
        return position == 0
    if argument in (sre.AT_END, sre.AT_END_STRING):
        return position == len(text)
    raise _UnboundedError("a word boundary")


def _takes(operation: Any, argument: Any, letter: str) -> bool:
    if operation is sre.LITERAL:
        return ord(letter) == int(argument)
    if operation is sre.NOT_LITERAL:
        return ord(letter) != int(argument)
    if operation is sre.ANY:
        return letter != "\n"
    if operation is sre.IN:
        items = list(argument)
        negated = bool(items) and items[0][0] is sre.NEGATE
        return any(list(_members(items[1:] if negated else items, letter))) != negated
    raise _UnboundedError(str(operation).lower())


def _members(items: list[Any], letter: str) -> Iterator[bool]:
    for operation, argument in items:
        if operation is sre.RANGE:
            yield argument[0] <= ord(letter) <= argument[1]
        elif operation is sre.LITERAL:
            yield ord(letter) == int(argument)
        elif operation is sre.CATEGORY and argument in _CATEGORIES:
            yield _CATEGORIES[argument](letter)
        else:
            raise _UnboundedError(str(argument).lower())


_CATEGORIES: dict[Any, Any] = {
    sre.CATEGORY_DIGIT: str.isdecimal,
    sre.CATEGORY_NOT_DIGIT: lambda letter: not letter.isdecimal(),
    sre.CATEGORY_WORD: lambda letter: letter.isalnum() or letter == "_",
    sre.CATEGORY_NOT_WORD: lambda letter: not (letter.isalnum() or letter == "_"),
    sre.CATEGORY_SPACE: str.isspace,
    sre.CATEGORY_NOT_SPACE: lambda letter: not letter.isspace(),
}
