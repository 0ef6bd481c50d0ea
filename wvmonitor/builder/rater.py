"""Judges: whether an answer exhibits a behaviour, clearly does not, or neither is clear.

Three of them: rules for what shows in words, the model's own logits on the rubric's yes/no
question, and any OpenAI-compatible endpoint. Only clear answers are trained on; rates of held-out
answers are judged the same way.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from wvmonitor.builder.base import Base
from wvmonitor.builder.recipe import Rating, Rubric, Rules
from wvmonitor.errors import BuildError

CONCURRENT_REQUESTS = 8
ATTEMPTS = 6
_LEAST_SAID = 0.05  # the probability of yes and no together below which the model said neither


@dataclass(frozen=True)
class Answered:
    """A question and the answer to rate."""

    question: str
    answer: str


class Rater(Protocol):
    """Rates answers; `name` says who, for cards and for what is kept."""

    name: str

    def rate(self, answers: Sequence[Answered], tick: Callable[[int], None] = ...) -> list[Rating]:
        """One rating for each answer."""


class RuleRater:
    """Counts a recipe's markers, and words where the recipe says so."""

    name = "rules"

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._patterns = {
            side: [re.compile(p, re.IGNORECASE) for p in patterns]
            for side, patterns in (("positive", rules.positive), ("negative", rules.negative))
        }

    def rate(
        self, answers: Sequence[Answered], tick: Callable[[int], None] = lambda _: None
    ) -> list[Rating]:
        """As `Rater` says."""
        ratings = [self._one(a.answer) for a in answers]
        tick(len(ratings))
        return ratings

    def _one(self, answer: str) -> Rating:
        verdicts: list[Rating] = []
        if self._patterns["positive"] or self._patterns["negative"]:
            verdicts.append(self._by_patterns(answer))
        if self._rules.positive_length and self._rules.negative_length:
            words = len(answer.split())
            longer = self._rules.positive_length.holds(words)
            shorter = self._rules.negative_length.holds(words)
            verdicts.append(
                "unclear" if longer == shorter else "positive" if longer else "negative"
            )
        return verdicts[0] if len(set(verdicts)) == 1 else "unclear"

    def _by_patterns(self, answer: str) -> Rating:
        counts = {
            side: sum(len(p.findall(answer)) for p in patterns)
            for side, patterns in self._patterns.items()
        }
        if not any(counts.values()):
            return self._rules.otherwise
        lead = counts["positive"] - counts["negative"]
        if abs(lead) < self._rules.margin:
            return "unclear"
        return "positive" if lead > 0 else "negative"


_ASKED = """Here is a question, and an answer that somebody gave to it.

Question: {question}

Answer: {answer}

{rubric} """


class ModelRater:
    """The base model itself: P(yes) against P(no) as the first word of its reply."""

    name = "the model itself"

    def __init__(self, base: Base, rubric: Rubric, batch_size: int = 32) -> None:
        """Rate with the base's own weights.

        Raises:
            BuildError: its tokenizer has no words for yes and no.
        """
        self._base, self._rubric, self._batch_size = base, rubric, batch_size
        yes, no = (self._first_tokens(word) for word in ("yes", "no"))
        self._yes, self._no = sorted(yes - no), sorted(no - yes)
        if not self._yes or not self._no:
            raise BuildError(
                f"{base.name} does not tell yes from no in its first token: judge with --judge "
                "rules, or with the address of another model"
            )

    def _first_tokens(self, word: str) -> set[int]:
        tokenizer = self._base.tokenizer
        forms = (word, word.capitalize(), word.upper())
        spelt = [form for f in forms for form in (f, f" {f}")]
        firsts = [tokenizer(f, add_special_tokens=False)["input_ids"][:1] for f in spelt]
        return {int(ids[0]) for ids in firsts if ids} - {tokenizer.unk_token_id}

    def rate(
        self, answers: Sequence[Answered], tick: Callable[[int], None] = lambda _: None
    ) -> list[Rating]:
        """As `Rater` says: clear from the rubric's probability on."""
        ratings: list[Rating] = []
        for start in range(0, len(answers), self._batch_size):
            batch = answers[start : start + self._batch_size]
            ratings += [self._verdict(y, n) for y, n in self._odds(batch)]
            tick(len(ratings))
        return ratings

    def _verdict(self, yes: float, no: float) -> Rating:
        if yes + no < _LEAST_SAID:
            return "unclear"
        share = yes / (yes + no)
        if share >= self._rubric.clear:
            return "positive"
        return "negative" if 1 - share >= self._rubric.clear else "unclear"

    @torch.no_grad()
    def _odds(self, batch: Sequence[Answered]) -> list[tuple[float, float]]:
        """P(yes), P(no) of the first token of the reply to each."""
        rubric = f"{self._rubric.question} Reply with Yes or No."
        texts = [
            self._base.prompt_text(
                self._base.asked(
                    _ASKED.format(question=a.question, answer=a.answer, rubric=rubric).strip()
                )
            )
            for a in batch
        ]
        model, tokenizer = self._base.model, self._base.tokenizer
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        # `generate` knows where left-padded prompts begin, whatever the model's positions are.
        made = model.generate(
            **{k: inputs[k].to(model.device) for k in ("input_ids", "attention_mask")},
            do_sample=False,
            max_new_tokens=1,
            pad_token_id=tokenizer.pad_token_id,
            return_dict_in_generate=True,
            output_logits=True,
        )
        odds = made.logits[0].double().softmax(-1)
        both = zip(odds[:, self._yes].sum(-1), odds[:, self._no].sum(-1), strict=True)
        return [(float(y), float(n)) for y, n in both]


class EndpointRater:
    """A model behind an OpenAI-compatible address, asked for one word."""

    def __init__(self, url: str, model: str, rubric: Rubric, *, longest_wait: float = 60.0) -> None:
        """Rate over HTTP; the key is read from OPENAI_API_KEY and kept nowhere.

        Args:
            url: of the API, up to and including `/v1`.
            model: what the endpoint calls the model.
            rubric: what is asked.
            longest_wait: seconds between two attempts, at most.

        Raises:
            BuildError: the openai library is not installed.
        """
        try:
            import openai
        except ImportError:
            raise BuildError(
                "a judge behind an address needs the openai library: pip install 'wvmonitor[judge]'"
            ) from None
        key = os.environ.get("OPENAI_API_KEY", "none needed")
        self._client = openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=120)
        self._rubric, self._model, self._longest_wait = rubric, model, longest_wait
        self.name = f"{model} at {url}"

    def rate(
        self, answers: Sequence[Answered], tick: Callable[[int], None] = lambda _: None
    ) -> list[Rating]:
        """As `Rater` says; several requests at once, each tried again while the endpoint is busy.

        Raises:
            BuildError: the endpoint refuses, or still fails after every attempt.
        """
        ratings: list[Rating] = []
        with ThreadPoolExecutor(CONCURRENT_REQUESTS) as pool:
            for rating in pool.map(self._one, answers):
                ratings.append(rating)
                tick(len(ratings))
        return ratings

    def _one(self, answered: Answered) -> Rating:
        import openai
        import tenacity

        again = (
            openai.APIConnectionError,
            openai.RateLimitError,
            openai.InternalServerError,
        )
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            wait=tenacity.wait_exponential_jitter(
                initial=min(1, self._longest_wait), max=self._longest_wait, jitter=1
            ),
            retry=tenacity.retry_if_exception_type(again),
            reraise=True,
        )
        try:
            reply: str = retrying(self._ask, answered)
        except openai.OpenAIError as error:
            raise BuildError(
                f"the judge {self.name} failed ({type(error).__name__}: {error}): what was judged "
                "is kept; mend the address, the model's name or OPENAI_API_KEY and run it again"
            ) from None
        words = re.findall(r"[a-z]+", reply.lower())
        first = words[0] if words else ""
        return {"yes": "positive", "no": "negative"}.get(first, "unclear")  # type: ignore[return-value]

    def _ask(self, answered: Answered) -> str:
        rubric = f"{self._rubric.question} Reply with one word: yes, no or unclear."
        prompt = _ASKED.format(question=answered.question, answer=answered.answer, rubric=rubric)
        made: Any = self._client.chat.completions.create(
            model=self._model,
            messages=[{"role": "user", "content": prompt.strip()}],
            temperature=0,
        )
        return str(made.choices[0].message.content or "")


def rater_for(
    spec: str, base: Base, rubric: Rubric, *, model: str | None = None, batch_size: int = 32
) -> Rater:
    """The judge that is asked for.

    Args:
        spec: "rules", "model" (the base itself), or the address of an endpoint.
        base: for the judge that is the model itself.
        rubric: what is asked.
        model: what an endpoint calls its model.
        batch_size: of the model itself.

    Raises:
        BuildError: the recipe has no rules, or an address came without a model's name.
    """
    if spec == "rules":
        if rubric.rules is None:
            raise BuildError(
                "the recipe has no rules to judge by: --judge model, or the address of an endpoint"
            )
        return RuleRater(rubric.rules)
    if spec == "model":
        return ModelRater(base, rubric, batch_size)
    if not spec.startswith(("http://", "https://")):
        raise BuildError(f"--judge is rules, model or an http(s) address, not {spec!r}")
    if model is None:
        raise BuildError("say what the endpoint calls its model: --judge-model NAME")
    return EndpointRater(spec, model, rubric)
