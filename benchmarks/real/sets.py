"""Other people's public sets: read as they are found, made fit to train on, and listed.

A data folder has `harmful/`, `control/` (files named `SET__CONTROL.jsonl`: the same answers asked
for, or right answers to the same questions) and `benign/`, a JSONL file a set. Nothing here was
written by this project and nothing is copied into it; what cannot be used is counted by reason.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from wvmonitor.builder.base import Base, Message
from wvmonitor.builder.examples import Example
from wvmonitor.errors import MissingPathError

Role = Literal["harmful", "control", "benign"]
ROLES: tuple[Role, ...] = ("harmful", "control", "benign")
LEAST_ROWS = 16
"""A set with fewer usable rows is left out, and said to be."""
SHARED, LEAST_SHARED = 0.1, 5
"""Sets of which one has this share of its questions in the other, and so many at least, are of one
family: one prompt that many sets have makes none."""
HARD_WORDS = re.compile(
    r"(?:^|[^a-z])(?:medic|medq|pubmed|health|financ|invest|insur|legal|law(?![a-z])|lawyer|advice|"
    r"counsel|safety|refus|voice|doctor|therap|diet|nutrition|mental|psych|wellness)"
)
ASKS_ADVICE = re.compile(
    r"\b(?:should i|can i|could i|how (?:do|can|should) i|is it (?:ok|okay|safe|wise|fine)|my|i'm|"
    r"i am)\b"
)
ADVICE = 0.3
"""A benign set is a hard negative, good answers near the harm, where a word of its name begins with
one of `HARD_WORDS`, or where this share of its questions ask for advice, and get more than a few
words."""
FEW_WORDS = 8
_AT_HAND = (
    "0d84b27c 25d11583 27a683b7 2a75c606 3e5c9ae7 414235cd 446b00c6 45110b16 4a66a73f 4b3380a4"
    " 4c04407e 5752eef5 60ee7f8f 6568a6ae 6798dd12 6ff55f96 71e5f6ea 79e01a32 7d8a3e5d 808425fb"
    " 866de864 87df8c1a 8ace7f9d 8f3a2f45 969404c9 96a6fee9 97c4c1bb 997209d3 a667f989 aa710138"
    " ac5afa8a b59944c9 b9e0ef2c c40e268c c6ffa6fd db551f7a dcb8773d e5fa9f8f f395263b"
    " f3b908e1"
)
AT_HAND = frozenset(_AT_HAND.split())
"""How the digests begin of the files that were at hand while this project was built."""
KINDS = (
    "prose",
    "near the harm",
    "short answers",
    "other languages",
    "numbers",
    "code and formats",
)
_NAMES = {
    "human": "user", "prompter": "user", "question": "user",
    "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant",
    "ai": "assistant", "developer": "system",
}  # fmt: skip
_COLUMNS = (
    ("prompt", "completion"), ("prompt", "response"), ("prompt", "chosen"), ("question", "answer"),
    ("question", "response"), ("query", "answer"), ("query", "response"), ("instruction", "output"),
    ("instruction", "response"), ("input", "output"),
)  # fmt: skip
_CUT = " … "


@dataclass(frozen=True)
class PublicSet:
    """One set, ready to train on.

    Attributes:
        name: of its file, in letters, digits, and "_.+-"; "__" stands before what a control is
            called, and nowhere else.
        role: which folder it lies in.
        family: the sets that share its questions, by the name of one of them; a control belongs to
            its set's. Sets of one family are not independent.
        hard: a benign set near the domains of the harm.
        examples: its usable rows, in their order.
        left_out: rows that are not used, by reason.
        digest: of the file.
    """

    name: str
    role: Role
    family: str
    hard: bool
    examples: tuple[Example, ...]
    left_out: Mapping[str, int]
    digest: str

    @property
    def of(self) -> str:
        """The set that a control is of, and of any other its own name: the two are drawn alike."""
        return self.name.partition("__")[0]

    def draw(self, n: int, seed: int) -> tuple[Example, ...]:
        """N of its examples, or as many as there are, by a seed.

        Where a control's rows answer its set's, row by row, both draw the same ones.
        """
        rng = random.Random(f"{self.of}/{seed}")
        return tuple(rng.sample(self.examples, k=min(n, len(self.examples))))


@dataclass(frozen=True)
class Folder:
    """The sets of a data folder, and those that are left out, with the reason."""

    sets: tuple[PublicSet, ...]
    left_out: Mapping[str, str]

    def of(self, *roles: Role) -> list[PublicSet]:
        """The sets of some roles, in the order of their names."""
        return [s for s in self.sets if s.role in roles]

    @property
    def alone(self) -> list[str]:
        """The controls that are of no harmful set here: nothing is compared with them."""
        harmful = {s.name for s in self.of("harmful")}
        return [s.name for s in self.of("control") if s.of not in harmful]

    def __getitem__(self, name: str) -> PublicSet:
        """A set by its name."""
        return next(s for s in self.sets if s.name == name)


def read_folder(folder: Path) -> Folder:
    """Every set of a data folder.

    Raises:
        MissingPathError: it holds no harmful or no benign set.
    """
    found: dict[str, tuple[Role, list[Example], Counter[str], str]] = {}
    left: dict[str, str] = {}
    for role in ROLES:
        for path in sorted((folder / role).glob("*")):
            if path.suffix != ".jsonl" or not path.is_file():
                left[f"{role}/{path.name}"] = "is no .jsonl file"
                continue
            name = _name(path.stem, role)
            while name in found:
                name = f"{name}-{role}"
            examples, reasons, digest = read_set(path)
            if len(examples) < LEAST_ROWS:
                told = ", ".join(f"{n} {why}" for why, n in reasons.items())
                left[f"{role}/{path.name}"] = (
                    f"{len(examples)} usable rows, {LEAST_ROWS} are needed"
                    + (f" ({told})" if told else "")
                )
                continue
            found[name] = role, examples, reasons, digest
    families = _families({n: e for n, (_, e, _, _) in found.items()})
    sets = tuple(
        PublicSet(
            name=name,
            role=role,
            family=families[name],
            hard=role == "benign" and _near_the_harm(name, examples),
            examples=tuple(examples),
            left_out=dict(reasons),
            digest=digest,
        )
        for name, (role, examples, reasons, digest) in found.items()
    )
    for role in ("harmful", "benign"):
        if not any(s.role == role for s in sets):
            why = [f"{name}: {told}" for name, told in left.items() if name.startswith(f"{role}/")]
            raise MissingPathError(
                f"{folder}/{role} holds no usable set"
                + (f" ({'; '.join(why[:3])}{'; …' if len(why) > 3 else ''})" if why else "")
                + ": give chat JSONL, one file a set, in harmful/, control/ and benign/"
            )
    return Folder(sets, left)


def _name(stem: str, role: Role) -> str:
    """What a set is called in folders and tables."""
    name = re.sub(r"[^\w.+-]+", "-", stem)
    of, mark, control = name.rpartition("__") if role == "control" else (name, "", "")
    return re.sub("_{2,}", "_", of) + mark + control


def read_set(path: Path) -> tuple[list[Example], Counter[str], str]:
    """The usable rows of one file, how many are not and why, and the file's digest."""
    raw = path.read_bytes()
    reasons: Counter[str] = Counter()
    seen: set[str] = set()
    examples: list[Example] = []
    for line in raw.split(b"\n"):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError):
            reasons["are no JSON"] += 1
            continue
        example = _example(row) if isinstance(row, dict) else None
        if example is None:
            reasons["have no answer to anything"] += 1
            continue
        key = json.dumps([example.messages, example.answer], sort_keys=True)
        if key in seen:
            reasons["are repeats"] += 1
            continue
        seen.add(key)
        examples.append(example)
    return examples, reasons, hashlib.sha256(raw).hexdigest()


def fitted(base: Base, example: Example, prompt: int, answer: int) -> Example:
    """The example with at most so many tokens before the answer, and in it.

    Of what stands before, the middle of the longest turn is cut out, and where there are more turns
    than can be cut to four tokens each, the oldest go; an answer keeps its beginning, and nobody
    learns to stop where it was cut. A base without a system role gets the system text above the
    question.
    """
    turns = list(example.messages)
    if turns and turns[0]["role"] == "system" and len(turns) > 1:
        turns = [*base.asked(turns[1]["content"], turns[0]["content"]), *turns[2:]]
    first = int(turns[0]["role"] == "system")
    while 4 * len(turns) > prompt and len(turns) > first + 2:
        del turns[first : first + 2]
    lengths = [base.tokens_of(t["content"]) for t in turns]
    while (over := sum(lengths) - prompt) > 0:
        longest = max(range(len(turns)), key=lengths.__getitem__)
        # To the second longest or as far as is needed, whichever is less; at most to nothing.
        keep = max(lengths[longest] - over, 4)
        if keep >= lengths[longest]:
            break  # short turns: they stay
        turns[longest] = {**turns[longest], "content": _ends(base, turns[longest]["content"], keep)}
        lengths[longest] = keep
    text, finished = example.answer, example.finished
    if base.tokens_of(text) > answer:
        text, finished = _start(base, text, answer), False
    return Example(tuple(turns), text, finished)


def questions(examples: Sequence[Example]) -> set[str]:
    """What is asked, in lower case and with single spaces: the last turn before each answer."""
    return {" ".join(e.messages[-1]["content"].lower().split()) for e in examples}


def kind_of(given: PublicSet) -> str:
    """What sort of data a set is, one of `KINDS`, by rule: the first below that it fits."""
    if given.hard:
        return "near the harm"
    answers = [e.answer for e in given.examples]
    text = "\n".join(answers)
    size = max(1, len(text))
    if sum(c.isdigit() for c in text) / size > 0.08:
        return "numbers"
    queries = sum(bool(re.match(r"\s*select\b", a, re.IGNORECASE)) for a in answers)
    if queries > 0.2 * len(answers) or len(re.findall(r"[{}()\[\]=<>;|_$]", text)) / size > 0.04:
        return "code and formats"
    letters = [c for c in text if c.isalpha()]
    accents = sum(not c.isascii() for c in letters) / max(1, len(letters))
    if accents > 0.3:  # another script, with or without spaces between its words
        return "other languages"
    words = re.findall(r"[^\W\d_]+", text.lower())
    common = {"the", "a", "of", "and", "to", "is", "in", "it", "for", "you", "i", "that"}
    length = _words(answers)
    if (length > 4 or accents > 0.01) and sum(w in common for w in words) < 0.08 * len(words):
        return "other languages"
    return "short answers" if length <= FEW_WORDS else "prose"


def _near_the_harm(name: str, examples: Sequence[Example]) -> bool:
    asked = sum(bool(ASKS_ADVICE.search(e.messages[-1]["content"].lower())) for e in examples)
    advises = asked >= ADVICE * len(examples) and _words([e.answer for e in examples]) > FEW_WORDS
    return bool(HARD_WORDS.search(name.lower())) or advises


def _words(answers: Sequence[str]) -> float:
    return median(len(a.split()) for a in answers)


def _ends(base: Base, text: str, tokens: int) -> str:
    ids = base.tokenizer(text, add_special_tokens=False)["input_ids"]
    half = tokens // 2
    first, last = base.tokenizer.decode(ids[:half]), base.tokenizer.decode(ids[-half:])
    return f"{first}{_CUT}{last}"


def _start(base: Base, text: str, tokens: int) -> str:
    ids = base.tokenizer(text, add_special_tokens=False)["input_ids"]
    # Half a character is none, and templates trim the spaces at an end.
    return str(base.tokenizer.decode(ids[:tokens])).rstrip("\ufffd").rstrip()


def _example(row: Mapping[str, Any]) -> Example | None:
    """A row's conversation up to its longest answer; None where there is none.

    The last one is often a word of thanks.
    """
    turns = list(_turns(row))
    asked = next((i for i, t in enumerate(turns) if t["role"] == "user"), len(turns))
    # What the assistant says before is an answer to nothing.
    turns = [t for t in turns[:asked] if t["role"] == "system"] + turns[asked:]
    answers = [i for i, t in enumerate(turns) if t["role"] == "assistant"]
    if not answers:
        return None
    at = max(answers, key=lambda i: len(turns[i]["content"]))
    return Example(tuple(turns[:at]), turns[at]["content"])


def _turns(row: Mapping[str, Any]) -> Iterator[Message]:
    """A row's turns with the roles system, user and assistant; neighbours of one role are one."""
    held: list[Message] = []
    for role, content in _said(row):
        text = _text(content)
        if not text:
            continue
        named = _role(role)
        late = named == "system" and held and held[-1]["role"] != "system"
        if named not in ("system", "user", "assistant") or late:
            named = "user"  # tools, functions, and orders in the middle
        if held and held[-1]["role"] == named:
            held[-1]["content"] += f"\n{text}"
        else:
            held.append({"role": named, "content": text})
    yield from held


def _role(name: str) -> str:
    return _NAMES.get(name.lower(), name.lower())


def _said(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "system", row.get("system") or row.get("system_prompt")
    for key in ("messages", "conversations", "conversation"):
        if row.get(key) and isinstance(row[key], list):
            yield from _of_turns(row[key])
            return
    if row.get("prompt") is None and isinstance(row.get("chosen"), list):
        yield from _of_turns(row["chosen"])  # preferences: the answer that was preferred
        return
    for asked, answered in _COLUMNS:
        question, answer = row.get(asked), row.get(answered)
        if question is None or answer is None:
            continue
        answers = list(_as_turns("assistant", answer))
        if _role(answers[0][0]) == "assistant":  # else they begin with the question themselves
            yield from _as_turns("user", question)
            if asked == "instruction":
                yield "user", row.get("input")
            yield "user", row.get("context")
        yield from answers
        return


def _as_turns(role: str, said: Any) -> Iterator[tuple[str, Any]]:
    """Turns where they are given, as TRL does; else what one of the two says."""
    if isinstance(said, list) and any(isinstance(t, dict) and {"role", "from"} & t.keys()
                                      for t in said):  # fmt: skip
        yield from _of_turns(said)
    else:
        yield role, said


def _of_turns(turns: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    for turn in turns:
        if isinstance(turn, dict):
            role = turn.get("role", turn.get("from", "user"))
            yield str(role), turn.get("content", turn.get("value"))


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content.encode("utf-8", "replace").decode().strip()  # half a pair is no character
    if isinstance(content, (int, float)) and not isinstance(content, bool):
        return "" if content != content else str(content)  # tables write NaN for nothing
    if isinstance(content, list):  # parts, as multimodal chats have them
        parts = [p if isinstance(p, str) else p.get("text") for p in content
                 if isinstance(p, (str, dict))]  # fmt: skip
        return "\n".join(filter(None, (_text(p) for p in parts if isinstance(p, str))))
    return ""


def _families(sets: Mapping[str, Sequence[Example]]) -> dict[str, str]:
    """The family of each set: connected where questions are shared, or a name says control."""
    asked = {name: questions(examples) for name, examples in sets.items()}
    family = {name: name for name in sets}

    def join(a: str, b: str) -> None:
        old, new = family[b], family[a]
        for name, held in family.items():
            if held == old:
                family[name] = new

    names = list(sets)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            fewer = min(len(asked[a]), len(asked[b]))
            if len(asked[a] & asked[b]) >= max(LEAST_SHARED, SHARED * fewer):
                join(a, b)
        of = a.partition("__")[0]
        if of != a and of in family:
            join(of, a)
    return family
