"""From a behaviour's name to a reference anyone can trust: the bundled builder."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
