"""From a behaviour's name to a reference anyone can trust: the bundled builder."""

from typing import TYPE_CHECKING

from wvmonitor import lazily

if TYPE_CHECKING:
    from wvmonitor.builder.plan import Budget, Plan
    from wvmonitor.builder.recipe import Recipe, bundled_recipes, load_recipe

_HOMES = {
    "Budget": "plan",
    "Plan": "plan",
    "Recipe": "recipe",
    "bundled_recipes": "recipe",
    "load_recipe": "recipe",
}

__all__ = [
    "Budget",
    "Plan",
    "Recipe",
    "bundled_recipes",
    "load_recipe",
]

__getattr__ = lazily(__name__, _HOMES)
