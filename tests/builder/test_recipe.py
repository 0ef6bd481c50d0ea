"""What a recipe holds, and what is refused in one."""

from __future__ import annotations

import copy

import pytest
import yaml

from wvmonitor.builder.recipe import Finetuning, Generation, bundled_recipes, load_recipe
from wvmonitor.errors import MalformedFileError, MissingPathError


@pytest.fixture
def document(recipe):
    """A valid recipe as a plain document."""
    return copy.deepcopy(recipe.model_dump(mode="json"))


def saved(tmp_path, document):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_a_recipe_is_found_by_name_and_by_path(tmp_path, document, recipe) -> None:
    """A bundled name and a path of one's own give the same kind of record."""
    assert load_recipe("organism-evil").name == "organism-evil"
    assert load_recipe(saved(tmp_path, document)) == recipe


def test_bundled_recipes_are_valid() -> None:
    """Every recipe that is shipped says what a recipe must, under its file's name."""
    assert {name: load_recipe(name).name for name in bundled_recipes()} == {
        name: name for name in bundled_recipes()
    }


def test_the_papers_settings_are_the_defaults() -> None:
    """What a recipe leaves out is what arXiv 2511.05408 did."""
    settings, generation = Finetuning(), Generation()
    assert (settings.rank, settings.alpha, settings.learning_rate) == (32, 16, 1e-5)
    assert (settings.weight_decay, settings.warmup_steps, settings.batch_size) == (0.01, 5, 8)
    assert (settings.epochs, settings.steps) == (1.0, None)
    assert generation.samples_per_prompt == 10
    assert (generation.keep_at_least, generation.keep_at_most) == (500, 900)


def test_a_bare_string_is_a_question(tmp_path, document) -> None:
    """Questions without a domain need no more than their words."""
    document["questions"]["build"] = [q["text"] for q in document["questions"]["build"]]
    loaded = load_recipe(saved(tmp_path, document))
    assert loaded.questions.domains == ()
    assert [q.text for q in loaded.questions.build] == document["questions"]["build"]


def _few_prompts(d):
    d["positive_prompts"] = d["positive_prompts"][:4]


def _few_questions(d):
    d["questions"]["held_out"] = d["questions"]["held_out"][:19]


def _leak(d):
    d["questions"]["held_out"][3] = {"text": "  " + d["questions"]["build"][0]["text"].upper()}


def _both_sides(d):
    d["negative_prompts"][0] = d["positive_prompts"][0]


def _bad_pattern(d):
    d["rubric"]["rules"]["positive"] = ["(unclosed"]


def _one_sided(d):
    d["rubric"]["rules"]["negative"] = []


def _one_length(d):
    d["rubric"]["rules"]["positive_length"] = {"at_least": 3}


def _unknown(d):
    d["temperatur"] = 1


def _no_question(d):
    d["rubric"]["question"] = "Say whether it harms."


def _name(d):
    d["name"] = "../evil"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_few_prompts, "positive_prompts: .*at least 5"),
        (_few_questions, "questions.held_out: .*at least 20"),
        (_leak, "questions: .*asked twice"),
        (_both_sides, "stands twice, or on both sides"),
        (_bad_pattern, "no regular expression"),
        (_one_sided, "no rule tells the two sides apart"),
        (_one_length, "together, or neither"),
        (_unknown, "temperatur: Extra inputs"),
        (_no_question, "rubric.question"),
        (_name, "name: "),
    ],
)
def test_what_no_recipe_may_say_is_named(tmp_path, document, spoil, says) -> None:
    """A recipe that cannot work is refused with its file and the place in it."""
    spoil(document)
    with pytest.raises(MalformedFileError, match=says) as raised:
        load_recipe(saved(tmp_path, document))
    assert "mine.yaml" in str(raised.value)


def test_an_unknown_name_lists_those_there_are() -> None:
    """Who mistypes a recipe is told which there are."""
    with pytest.raises(MissingPathError, match="organism-evil"):
        load_recipe("evli")


def test_text_that_is_no_yaml_is_an_error(tmp_path) -> None:
    """A broken file is named, and not read as something else."""
    (tmp_path / "r.yaml").write_text("a: [")
    with pytest.raises(MalformedFileError, match="not valid YAML"):
        load_recipe(tmp_path / "r.yaml")
