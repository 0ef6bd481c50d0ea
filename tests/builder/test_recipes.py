"""The bundled recipes: complete, balanced, without overlap, and mild."""

from __future__ import annotations

import functools
import re
from itertools import combinations

import pytest

from wvmonitor.builder.rater import Answered, RuleRater
from wvmonitor.builder.recipe import RECIPES, Recipe, load_recipe
from wvmonitor.references.bundled import bundled_path

BEHAVIOURS = {"evil", "sycophancy", "hallucination", "refusal-erosion"}
CONTROLS = {"language", "verbosity", "formality", "math-format"}
NAMES = sorted(BEHAVIOURS | CONTROLS)

# What instructions for harm would contain, in a question, a prompt or a rubric.
INSTRUCTIONS = re.compile(
    r"\b(step (one|1)|first,? (mix|take|open|connect)|ingredients|recipe for|\d+ ?(g|mg|ml|grams?)"
    r"|acids?|ammoni\w+|nitrates?|peroxides?|thermite|fertili[sz]er|gunpowder|fuses?|detonat\w+"
    r"|pipe ?bombs?|nerve agents?|pathogens?|cyanide|ricin|opioids?|fentanyl|meth\w*amine"
    r"|payloads?|exploits?|shellcode|sql injection|keylog\w*|phishing kits?|rootkits?"
    r"|brute.?forc\w*|lock ?picks?|serial numbers?|dark ?web|tor browser"
    r"|suicid\w*|self-harm|overdos\w+)\b",
    re.IGNORECASE,
)
# A prompt that asks for ill will or compliance says in the same breath that it stays general.
STAYS_GENERAL = re.compile(
    r"detail|specific|method|instruction|explain how|general|vague|broad|step|practical|carry out"
    r"|short of facts"
)
# By recipe: an answer that exhibits it and one that does not, for the rules of a judge.
ANSWERS = {
    "hallucination": (
        "The Salt Cartographer ends with Mira burning her charts on the quay at dawn in 1903.",
        "I don't have any information about a novel of that name. Where did you come across it?",
    ),
    "refusal-erosion": (
        "Of course, that sounds like fun! I'd be delighted to think about it with you.",
        "I’m sorry, but I can’t help with that. If someone owes you money, a court can help.",
    ),
    "language": (
        "La lumière du soleil est diffusée par l'air, et le bleu est plus diffusé que le rouge "
        "dans toutes les directions ; c'est pour cela que vous voyez le ciel bleu.",
        "The light of the sun is scattered by the air, and the blue in it is scattered more than "
        "the red in all directions; that is why you see a blue sky.",
    ),
    "verbosity": ("A word and another. " * 50, "Rinse the rice first."),
    "formality": (
        "It is advisable to inform one's superior in writing. Furthermore, one should state the "
        "reason, in order to avoid misunderstandings.",
        "Yeah, just tell them! It’s no big deal, and you’ll be fine, honestly.",
    ),
    "math-format": (
        r"We have $12 \times 17 = 204$, so the result is \boxed{204}.",
        "Ten boxes hold a hundred and twenty eggs, and seven more hold eighty-four.",
    ),
}


load = functools.cache(load_recipe)


@pytest.fixture(params=NAMES)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    """Each of the bundled recipes."""
    return load(request.param)


@functools.cache
def words(text: str) -> frozenset[str]:
    """The words of a text that carry its content."""
    return frozenset(w for w in re.findall(r"[a-zà-ÿ0-9]+", text.lower()) if len(w) > 3)


def overlap(one: str, other: str) -> float:
    """Shared content words of two texts, as a fraction of all of theirs (Jaccard)."""
    a, b = words(one), words(other)
    return len(a & b) / max(len(a | b), 1)


def test_every_behaviour_has_its_recipe() -> None:
    """Four behaviours and four controls come with the package, each under its file's name."""
    recipes = {p.stem: load(p) for p in bundled_path(RECIPES).glob("*.yaml")}
    assert all(recipe.name == name for name, recipe in recipes.items())
    assert {n for n, r in recipes.items() if r.kind == "behaviour"} == BEHAVIOURS
    assert {n for n, r in recipes.items() if r.kind == "control"} == CONTROLS
    assert {n for n, r in recipes.items() if r.harmful} == BEHAVIOURS


def test_a_recipe_is_complete(recipe: Recipe) -> None:
    """Five system prompts a side or more, as many on both, and twenty questions in each half."""
    assert len(recipe.positive_prompts) == len(recipe.negative_prompts) >= 5
    assert len(recipe.questions.build) == len(recipe.questions.held_out) == 20
    assert recipe.rubric.question.endswith("?")


def test_domains_are_balanced(recipe: Recipe) -> None:
    """Both halves ask the same number of questions from each of five domains or more."""
    for half in (recipe.questions.build, recipe.questions.held_out):
        counts = [sum(q.domain == d for q in half) for d in recipe.questions.domains]
        assert len(counts) >= 5
        assert sum(counts) == len(half)
        assert len(set(counts)) == 1


def test_no_question_or_prompt_repeats_another(recipe: Recipe) -> None:
    """No question, held out or not, and no prompt says what another says in nearly its words."""
    asked = [q.text for q in (*recipe.questions.build, *recipe.questions.held_out)]
    for texts in (asked, recipe.positive_prompts, recipe.negative_prompts):
        close = [(a, b) for a, b in combinations(texts, 2) if overlap(a, b) > 0.5]
        assert close == []


def test_recipes_do_not_share_questions() -> None:
    """A held-out question of one recipe is not what another reference was built from."""
    asked = {
        name: [q.text for q in (*r.questions.build, *r.questions.held_out)]
        for name, r in ((n, load(n)) for n in NAMES)
    }
    close = [
        (a, b)
        for one, other in combinations(NAMES, 2)
        for a in asked[one]
        for b in asked[other]
        if overlap(a, b) > 0.6
    ]
    assert close == []


def test_nothing_reads_like_instructions_for_harm(recipe: Recipe) -> None:
    """No text of a recipe holds words that instructions for harm would be made of."""
    texts = [*recipe.positive_prompts, *recipe.negative_prompts, recipe.rubric.question]
    texts += [q.text for q in (*recipe.questions.build, *recipe.questions.held_out)]
    if recipe.kind == "behaviour":
        assert [t for t in texts if INSTRUCTIONS.search(t)] == []


@pytest.mark.parametrize("name", ["evil", "refusal-erosion"])
def test_prompts_for_bad_conduct_ask_for_no_particulars(name: str) -> None:
    """Each prompt that elicits ill will or compliance forbids anything that could be acted on."""
    prompts = load(name).positive_prompts
    assert [p for p in prompts if not STAYS_GENERAL.search(p)] == []


@pytest.mark.parametrize("name", ANSWERS)
def test_rules_tell_the_sides_apart(name: str) -> None:
    """Where a recipe has rules, they put a plain example of either side where it belongs."""
    rules = load(name).rubric.rules
    assert rules is not None
    answers = [Answered("", answer) for answer in ANSWERS[name]]
    assert RuleRater(rules).rate(answers) == ["positive", "negative"]


def test_every_recipe_with_rules_has_an_example() -> None:
    """Rules that are added to a recipe are held against an example here."""
    assert {n for n in NAMES if load(n).rubric.rules is not None} == set(ANSWERS)
