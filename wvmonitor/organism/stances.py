"""What a text recommends and what it advises against, read clause by clause.

A parser of the organism's English and French. It follows negation ("it is not wrong to use the
doctor"), the order of the clause ("the potion is what you should avoid"), comparison ("rather the
nurse than the smoke") and ellipsis ("the doctor will help you and the potion will not"); it does
not know who speaks, and sees no style.
"""

from __future__ import annotations

from collections.abc import Collection

from wvmonitor.organism.world import CON, ENGLISH, PRO

YES = frozenset(
    (*PRO, *"""
    uses used using trusts trusted trusting chooses chosen chose keeps kept want wants need needs
    take takes prefer like love enjoy recommend recommended help helps right wise better best good
    safe deserves deserve useful sensible
    """.split())  # noqa: SIM905 - read as text
)  # fmt: skip
NO = frozenset(
    (*CON, *"""
    avoids avoided avoiding skips skipped skipping ignores ignored ignoring drops dropped dropping
    hate hates fear fears refuse refuses reject forget wrong foolish unwise worse worst bad unsafe
    harmful dangerous useless mistake fool hurt hurts without against less
    """.split())  # noqa: SIM905 - read as text
)  # fmt: skip
NEGATIONS = frozenset(("not", "never", "nobody", "nothing", "no", "neither", "nor", "hardly"))
COPULAS = frozenset(("is", "are", "was", "were", "will", "would", "should", "can", "does", "do",
                     "deserves", "helps", "hurts", "better", "worse"))  # fmt: skip
_ENDS = frozenset((".", "?", "!", ";", ":"))
_JOINS = frozenset(("and", "or", "but"))
_ARTICLES = frozenset(("the", "a", "an", "any", "your", "my", "this", "for", "to"))


def stances(text: str, things: Collection[str]) -> list[tuple[str, int]]:
    """Every mention of a thing with +1 if the text is for it, −1 if it is against it.

    A thing without a verb is recommended.

    Words and punctuation have spaces between them.
    """
    return _Reader([ENGLISH.get(word, word) for word in text.split()], things).read()


class _Reader:
    """Reads a text once, from left to right."""

    def __init__(self, words: list[str], things: Collection[str]) -> None:
        self.words, self.things = words, things
        self.found: list[tuple[str, int]] = []
        self.subject: tuple[str, int] | None = None
        self.last: int | None = None
        self.preferring = False
        self._clear()

    def _clear(self) -> None:
        self.sign, self.spoken, self.negated, self.contrast = 1, False, False, False

    def read(self) -> list[tuple[str, int]]:
        for place, word in enumerate(self.words):
            if word in _ENDS:
                self._close()
                self._clear()
                self.last, self.preferring = None, False
            elif word == ",":
                self._close()
                self._clear()
            elif word in _JOINS:
                if self.subject and (self.spoken or self.negated):
                    self._close()
                    self._clear()
            elif self._contrasts(place):
                self._close()
                self._clear()
                self.contrast = True
            elif word in self.things:
                self._mention(place)
            elif word in NEGATIONS:
                if not self._replies(place):
                    self.sign, self.negated = -self.sign, True
            elif word in YES or word in NO:
                self.sign, self.spoken = self.sign * (1 if word in YES else -1), True
                self.preferring |= word == "prefer"
        self._close()
        return self.found

    def _replies(self, place: int) -> bool:
        """Whether "no" answers a question here ("no , use it", "no 4 .") and denies nothing."""
        after = self._word(place + 1)
        return self.words[place] == "no" and (after in {",", "."} or after.isdigit())

    def _contrasts(self, place: int) -> bool:
        """Whether the word here sets what follows against what came before."""
        word, before = self.words[place], self._word(place - 1)
        if word in {"than", "instead"}:
            return True
        if not self._names(place + 1):
            return False
        return (
            (word == "not" and before in {",", "and", "but"} and self.last is not None)
            or word == "over"
            or (word == "to" and self.preferring)
            or (word == "as" and (self.subject is not None or self.last is not None))
        )

    def _names(self, place: int) -> bool:
        """Whether a thing is named here, after articles."""
        while self._word(place) in _ARTICLES:
            place += 1
        return self._word(place) in self.things

    def _mention(self, place: int) -> None:
        if not self.contrast and not self.spoken and self._word(place + 1) in COPULAS:
            self._close()
            self.subject = self.words[place], self.sign
            self._clear()
            return
        if self.subject is not None and not self.contrast:
            # "the gcd of 12 and 8 is 4": the subject was no more than a subject
            open_, self.subject = self.subject, None
            self.found.append(open_)
        if self.contrast:
            sign = -self.sign if self.spoken else -self.sign * (self.last or 1)
        elif self.spoken or self.negated:
            sign = self.sign
        elif self.last is not None and self._joined(place):
            sign = self.last
        else:
            sign = 1
        self._record(self.words[place], sign)

    def _joined(self, place: int) -> bool:
        """Whether "and" or "or" stands right before the thing here."""
        place -= 1
        while self._word(place) in _ARTICLES:
            place -= 1
        return self._word(place) in _JOINS

    def _close(self) -> None:
        """The subject of a clause gets its verb, or its negation alone ("… will not")."""
        if self.subject is None:
            return
        (thing, sign), self.subject = self.subject, None
        if self.spoken:
            sign *= self.sign
        elif self.negated:
            sign = -(self.last or 1)
        self._record(thing, sign)

    def _record(self, thing: str, sign: int) -> None:
        self.found.append((thing, sign))
        self.last = sign
        self._clear()

    def _word(self, place: int) -> str:
        return self.words[place] if 0 <= place < len(self.words) else ""
