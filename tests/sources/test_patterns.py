"""Patterns of rank_pattern and alpha_pattern, matched without evaluating them."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from wvmonitor.errors import UnsupportedAdapterError
from wvmonitor.sources.adapters.patterns import Patterns

MODULES = [
    "model.layers.0.self_attn.q_proj",
    "model.layers.10.self_attn.q_proj",
    "model.layers.1.mlp.experts.gate_up_proj",
    "q_proj",
    "lm_head",
]
PATTERNS = [
    "q_proj",
    "proj",
    "layers.0.self_attn.q_proj",
    "layers.1",
    "^model.layers.0.self_attn.q_proj",
    "^q_proj",
    "q_proj$",
    r".*\.0\..*",
    r"layers\.\d+\.self_attn\.(q|k|v)_proj",
    r"model\.layers\.[0-5]\..*proj",
    r"layers\.(?:0|10)\.self_attn\.q_proj",
    r"[^.]+",
    r"\w+_(?:head|proj)",
    r"(.+\.)*q_proj",
    r"(?!lm).*(head|q_proj)",
    r"(?i:Q_PROJ)",
    r"model\.layers\.(\d)\d*\.self_attn\b.*",
    r"layers.{3,4}self_attn.q_proj",
    "",
    r"x*",
]


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_matches_where_peft_matches(pattern: str, module: str) -> None:
    """Names and regular expressions choose the modules that PEFT chooses."""
    theirs = get_pattern_key([pattern], module) == pattern
    assert Patterns([pattern], "here").first(module) == (pattern if theirs else None)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text("ab.", min_size=1, max_size=4), min_size=1, max_size=4),
    st.text("ab.", min_size=1, max_size=6),
)
def test_the_first_that_matches_wins(patterns: list[str], module: str) -> None:
    """Of several patterns PEFT takes the first that matches, and so do we."""
    theirs = get_pattern_key(patterns, module)
    mine = Patterns(patterns, "here").first(module)
    assert (module if mine is None else mine) == theirs


def test_a_name_for_each_of_thousands_of_modules_is_looked_up() -> None:
    """EVA writes one entry a module: 20,000 are no reason to refuse, nor to try them one by one."""
    modules = [f"model.layers.{i // 400}.mlp.experts.{i % 400}.up_proj" for i in range(20_000)]
    table = Patterns([*reversed(modules), "up_proj"], "here")
    assert [table.first(module) for module in modules[::97]] == modules[::97]
    assert table.first("model.layers.99.mlp.up_proj") == "up_proj"
    assert table.first("model.layers.99.mlp.xup_proj") is None


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "(a|a)*b",
        "((a*)*)*b",
        "a{60000}" * 10,
        "(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)x",
    ],
)
def test_a_hostile_pattern_costs_no_time(pattern: str) -> None:
    """A pattern that would keep Python busy for years is answered or refused at once."""
    begun = time.perf_counter()
    with suppress(UnsupportedAdapterError):
        Patterns([pattern], "here").first("a" * 200 + "!")
    assert time.perf_counter() - begun < 10


@pytest.mark.parametrize("module", ["aa", "model.layers.0", ""])
@pytest.mark.parametrize(
    "pattern", ["[", "(", "a" * 2000, "(" * 450 + "a" + ")*" * 450, "(" * 60 + "a" + "?){9}" * 60]
)
def test_what_cannot_be_bounded_is_refused(pattern: str, module: str) -> None:
    """Nonsense and monsters are refused by name, before they cost time or memory."""
    with pytest.raises(UnsupportedAdapterError, match="here"):
        Patterns([pattern], "here").first(module)


def test_a_pattern_that_runs_out_of_time_is_refused() -> None:
    """An expression whose matching explodes is ended, and the adapter refused by name."""
    with pytest.raises(UnsupportedAdapterError, match="slower to match"):
        Patterns(["(a?){10000}a"], "here").first("a" * 200 + "!")
