"""Scores against dense float64 vectors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wvmonitor.detection import formulas
from wvmonitor.detection.scores import choose_ridge, score
from wvmonitor.errors import SettingsError, UnknownReferenceError
from wvmonitor.reading import GEOMETRIES, Products

SCOPES = [("blocks",), ("blocks", "embeddings", "norms")]


def cos(a, b):
    """The plain cosine of two vectors."""
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def dense_residual(tau, w, controls, ridge):
    """The design's formula, term by term."""
    c = [x / np.linalg.norm(x) for x in controls]
    inverse = np.linalg.inv(np.array([[a @ b for b in c] for a in c]) + ridge * np.eye(len(c)))
    k_tau, k_w = np.array([x @ tau for x in c]), np.array([x @ w for x in c])
    perpendicular = np.sqrt(w @ w - k_w @ inverse @ k_w)
    return (tau @ w - k_tau @ inverse @ k_w) / (np.linalg.norm(tau) * perpendicular)


@pytest.mark.parametrize("components", SCOPES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_cosine_is_that_of_the_concatenated_vectors(world, geometry, components):
    """The cosine is the plain one of the whole vectors, whatever either side leaves untouched."""
    found = score(world.reading(), world.gram(), components=components)
    tau = world.vector(world.run, geometry, components)
    for name, weights in world.references.items():
        expected = cos(tau, world.vector(weights, geometry, components))
        got = found.references[name].values[geometry]["cosine"]
        assert got == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("components", SCOPES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_residual_is_the_documented_formula(world, geometry, components, ridge):
    """The residual is the documented formula; a control is held against the other controls only."""
    found = score(world.reading(), world.gram(), components=components, ridge=ridge)
    vectors = {n: world.vector(w, geometry, components) for n, w in world.references.items()}
    tau = world.vector(world.run, geometry, components)
    for name in vectors:
        others = [v for n, v in vectors.items() if world.kinds[n] == "control" and n != name]
        expected = dense_residual(tau, vectors[name], others, ridge)
        got = found.references[name].values[geometry]["residual"]
        assert got == pytest.approx(expected, rel=1e-10)
    assert found.ridge[geometry] == ridge


def test_residual_without_ridge_is_an_orthogonal_projection(world):
    """As λ goes to 0 the residual measures τ along the part of w outside the controls' span."""
    found = score(world.reading(), world.gram(), ridge=1e-12)
    tau, w = (world.vector(x, "frobenius") for x in (world.run, world.references["evil"]))
    span = np.stack(
        [world.vector(world.references[n], "frobenius") for n in ("french", "terse")], axis=1
    )
    outside = w - span @ np.linalg.lstsq(span, w, rcond=None)[0]
    expected = tau @ outside / (np.linalg.norm(tau) * np.linalg.norm(outside))
    got = found.references["evil"].values["frobenius"]["residual"]
    assert got == pytest.approx(expected, rel=1e-9)


def test_a_pure_control_run_has_almost_no_residual(make_world):
    """A run that only learned a control scores near 0, though its cosine is high."""
    world = make_world(3)
    world.run = {n: 2 * v for n, v in world.references["french"].items()}
    values = score(world.reading(), world.gram(), ridge=0.001).references["evil"].values
    assert values["frobenius"]["cosine"] > 0.1
    assert abs(values["frobenius"]["residual"]) < 0.005


def test_a_reference_inside_the_controls_span_has_no_residual(make_world):
    """Where a reference is a mixture of controls nothing is left to score, and nothing is."""
    world = make_world(4)
    names = world.references["french"]
    mixed = {n: names[n] + 2 * world.references["terse"][n] for n in names}
    world.references["evil"] = mixed
    values = score(world.reading(), world.gram(), ridge=1e-13).references["evil"].values
    assert "residual" not in values["frobenius"]
    assert "cosine" in values["frobenius"]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_module_cosine_is_the_mean_over_the_weights_that_moved(world, geometry):
    """Every weight matrix has one vote, however large it is; those that did not move have none."""
    found = score(world.reading(), world.gram()).references["evil"]
    each = []
    for name in world.run:
        alone = {n: v if n == name else np.zeros_like(v) for n, v in world.run.items()}
        w = {n: v if n == name else np.zeros_like(v) for n, v in world.references["evil"].items()}
        tau, reference = world.vector(alone, geometry), world.vector(w, geometry)
        if np.any(tau) and np.any(reference):
            each.append(cos(tau, reference))
    assert len(each) > 1
    got = found.values[geometry]["module_cosine"]
    assert got == pytest.approx(np.mean(each), rel=1e-10)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_margin_is_the_lead_over_the_best_control(world, geometry):
    """The margin is the cosine minus the best control's; a control competes with the others."""
    found = score(world.reading(), world.gram()).references
    tau = world.vector(world.run, geometry)
    cosines = {n: cos(tau, world.vector(w, geometry)) for n, w in world.references.items()}
    best = max(cosines["french"], cosines["terse"])
    for name in ("evil", "flattery"):
        got = found[name].values[geometry]["margin"]
        assert got == pytest.approx(cosines[name] - best, abs=1e-12)
    expected = cosines["french"] - cosines["terse"]
    assert found["french"].values[geometry]["margin"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("components", SCOPES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_window_is_the_cosine_of_the_recent_change(world, geometry, components):
    """The window score is the cosine of τ_t − τ_{t−h} with the reference."""
    found = score(world.reading(), world.gram(), earlier=world.before(), components=components)
    delta = world.vector(world.run, geometry, components) - world.vector(
        world.earlier, geometry, components
    )
    for name, weights in world.references.items():
        expected = cos(delta, world.vector(weights, geometry, components))
        got = found.references[name].values[geometry]["window"]
        assert got == pytest.approx(expected, rel=1e-10)


def test_window_needs_the_right_snapshot(world):
    """Without the very snapshot it refers to there is no window score, and a warning says why."""
    reading, gram = world.reading(), world.gram()
    values = score(reading, gram).references["evil"].values["frobenius"]
    assert "window" not in values
    for wrong, words in [
        (replace(world.before(), step=11), "step 10"),
        (replace(world.before(), bank="other"), "another bank"),
    ]:
        found = score(reading, gram, earlier=wrong)
        assert "window" not in found.references["evil"].values["frobenius"]
        assert any(words in w for w in found.warnings)


def test_a_change_lost_in_rounding_has_no_window(make_world):
    """A step too small for float32 products to see has no direction to report."""
    world = make_world()
    world.earlier = {n: v * (1 - 1e-4) for n, v in world.run.items()}
    found = score(world.reading(), world.gram(), earlier=world.before())
    assert "window" not in found.references["evil"].values["frobenius"]


def test_order_and_extent_of_parameters_do_not_matter(world):
    """Reading and bank are matched by name: any order gives the same scores."""
    gram = world.gram()
    forward, backward = (score(world.reading(reverse=r), gram) for r in (False, True))
    for name, reference in forward.references.items():
        for geometry, values in reference.values.items():
            assert backward.references[name].values[geometry] == pytest.approx(values, rel=1e-12)
    order = [3, 1, 0, 2]
    shuffled = replace(
        world.reading(),
        references=tuple(np.array(gram.references)[order].tolist()),
        geometries={
            g: replace(p, products=p.products[:, order])
            for g, p in world.reading().geometries.items()
        },
    )
    assert score(shuffled, gram).references["evil"].values["response"] == pytest.approx(
        forward.references["evil"].values["response"], rel=1e-12
    )


def test_joint_dose_is_the_noise_corrected_regression(world):
    """Doses solve the joint regression with the shared part of each ‖w‖² on the diagonal."""
    gram = world.gram()
    for geometry in GEOMETRIES:
        total = gram.total(geometry)
        shared = np.diagonal(total) * np.array([0.8, np.nan, 0.9, 0.7])
        found = score(world.reading(), world.gram({geometry: shared})).references
        vectors = [world.vector(w, geometry) for w in world.references.values()]
        corrected = np.array([[a @ b for b in vectors] for a in vectors])
        for i, value in enumerate(shared):
            corrected[i, i] = corrected[i, i] if np.isnan(value) else value
        tau = world.vector(world.run, geometry)
        expected = np.linalg.inv(corrected) @ np.array([v @ tau for v in vectors])
        for i, name in enumerate(("evil", "flattery", "french", "terse")):
            if name == "flattery":
                assert found[name].dose is None
            else:
                assert found[name].dose == pytest.approx(expected[i], rel=1e-9)


def test_dose_recovers_what_was_planted_in_spite_of_noisy_references(make_world):
    """Half of a reference being noise does not halve the dose: 0.5 planted reads as 0.5."""
    rng = np.random.default_rng(5)
    size, seeds = 20_000, 3
    signals = rng.normal(size=(3, size))
    signals[1] += 0.4 * signals[0]
    repeats = signals[:, None] + 1.2 * rng.normal(size=(3, seeds, size))
    means = repeats.mean(axis=1)
    tau = 0.5 * signals[0] + 0.3 * signals[2] + rng.normal(size=size)
    shared = [
        np.mean([a @ b for i, a in enumerate(r) for j, b in enumerate(r) if i != j])
        for r in repeats
    ]
    template = make_world(kinds={"evil": "behaviour", "flattery": "behaviour", "french": "control"})
    products = Products((means @ tau)[None], np.array([tau @ tau]), np.array([True]))
    reading = replace(
        template.reading(),
        parameters=("model.layers.0.w",),
        components=("blocks",),
        geometries={"frobenius": products},
    )
    gram = replace(
        template.gram(),
        parameters=("model.layers.0.w",),
        components=("blocks",),
        products={"frobenius": (means @ means.T)[None]},
        shared={"frobenius": np.array(shared)},
    )
    found = score(reading, gram).references
    assert found["evil"].dose == pytest.approx(0.5, abs=0.03)
    assert found["flattery"].dose == pytest.approx(0.0, abs=0.03)
    assert found["french"].dose == pytest.approx(0.3, abs=0.03)
    raw = (means @ tau)[0] / (means @ means.T)[0, 0]
    assert raw < 0.4


def test_references_too_alike_get_doses_of_their_own(world):
    """Where references are too alike to tell apart each dose stands alone, with a warning."""
    gram = world.gram()
    shared = np.diagonal(gram.total("frobenius")) * 0.05
    found = score(world.reading(), world.gram({"frobenius": shared}))
    tau = world.vector(world.run, "frobenius")
    expected = tau @ world.vector(world.references["evil"], "frobenius") / shared[0]
    assert found.references["evil"].dose == pytest.approx(expected, rel=1e-10)
    assert any("too alike" in w for w in found.warnings)


def test_doses_speak_of_the_blocks_whatever_the_scope(world):
    """What repeats share is known for the blocks only, so a wider scope does not change a dose."""
    gram = world.gram({"frobenius": 0.9 * np.diagonal(world.gram().total("frobenius"))})
    narrow, wide = (score(world.reading(), gram, components=c).references for c in SCOPES)
    assert wide["evil"].dose == pytest.approx(narrow["evil"].dose, rel=1e-12)


def test_repeats_that_share_nothing_give_no_dose(world):
    """A reference whose repeats do not agree has no dose, instead of a negative or infinite one."""
    shared = np.array([-1.0, np.nan, 0.0, 5.0])
    found = score(world.reading(), world.gram({"frobenius": shared})).references
    assert [found[n].dose is None for n in world.references] == [True, True, True, False]


def test_response_dose_comes_first_and_both_are_kept(world):
    """`dose` is the response geometry's where known; `doses` holds each geometry's."""
    shared = {g: 0.9 * np.diagonal(world.gram().total(g)) for g in GEOMETRIES}
    found = score(world.reading(), world.gram(shared)).references["evil"]
    assert set(found.doses) == {"frobenius", "response"}
    assert found.dose == found.doses["response"]


def test_an_unmoved_run_has_no_direction_and_dose_zero(make_world):
    """At τ = 0 there are no cosines to misread, every dose is 0 and coverage is 1."""
    world = make_world()
    world.run = {n: np.zeros_like(v) for n, v in world.run.items()}
    shared = {"frobenius": 0.9 * np.diagonal(world.gram().total("frobenius"))}
    found = score(world.reading(), world.gram(shared), earlier=None)
    assert all(r.values == {} for r in found.references.values())
    assert found.references["evil"].dose == 0
    assert found.norm == 0
    assert found.coverage["frobenius"] == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.filterwarnings("error")
def test_broken_weights_come_out_as_not_finite(make_world, bad):
    """One NaN or infinite weight makes every score of both geometries not finite."""
    world = make_world()
    world.run["model.layers.0.attn.q_proj.weight"][0, 0] = bad
    with np.errstate(invalid="ignore"):
        reading = world.reading()
    found = score(reading, world.gram(), ridge=0.1)
    assert not np.isfinite(found.norm)
    for geometry in GEOMETRIES:
        for value in found.references["evil"].values[geometry].values():
            assert not np.isfinite(value)


def test_reading_and_bank_must_hold_the_same_references(make_world):
    """A reading of another bank is refused by the name of what differs."""
    world = make_world()
    gram = world.gram()
    del world.references["terse"]
    with pytest.raises(UnknownReferenceError, match="terse"):
        score(world.reading(), gram)


@pytest.mark.parametrize("ridge", [0.0, -1.0, float("nan")])
def test_ridge_must_be_positive(world, ridge):
    """A ridge that is not a positive number is refused."""
    with pytest.raises(SettingsError, match="positive"):
        score(world.reading(), world.gram(), ridge=ridge)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("seed", range(4))
def test_chosen_ridge_explains_left_out_controls_best(make_world, geometry, seed):
    """λ is the one whose worst residual of a left-out control is smallest."""
    kinds = {"evil": "behaviour", "flattery": "behaviour"}
    kinds |= {f"control-{i}": "control" for i in range(4)}
    world = make_world(seed, kinds)
    vectors = {n: world.vector(w, geometry) for n, w in world.references.items()}
    controls = [v for n, v in vectors.items() if kinds[n] == "control"]
    worst = []
    for ridge in formulas.RIDGES:
        left_out = [
            abs(dense_residual(run, vectors[b], [c for c in controls if c is not run], ridge))
            for run in controls
            for b in ("evil", "flattery")
        ]
        worst.append(max(left_out))
    assert choose_ridge(world.gram(), geometry) == formulas.RIDGES[int(np.argmin(worst))]


def test_of_equally_good_ridges_the_largest_is_taken(make_world):
    """Where every λ is as good (nothing overlaps) the most cautious one is chosen."""
    gram = make_world().gram()
    diagonal = {g: p * np.eye(4) for g, p in gram.products.items()}
    assert choose_ridge(replace(gram, products=diagonal), "frobenius") == max(formulas.RIDGES)


def test_ridge_without_controls_to_leave_out_is_the_default(make_world):
    """With fewer than two controls λ is the documented default, and without any no residual."""
    one = make_world(0, {"evil": "behaviour", "french": "control"})
    assert choose_ridge(one.gram(), "frobenius") == formulas.DEFAULT_RIDGE
    values = score(one.reading(), one.gram()).references
    assert "residual" in values["evil"].values["frobenius"]
    assert set(values["french"].values["frobenius"]) == {"cosine", "module_cosine"}
    none = make_world(0, {"evil": "behaviour"})
    values = score(none.reading(), none.gram()).references
    assert set(values["evil"].values["frobenius"]) == {"cosine", "module_cosine"}


def test_scores_say_what_they_were_computed_from(world):
    """Norm, coverage, step, progress, scope, λ and bank travel with the scores."""
    reading = world.reading()
    found = score(reading, world.gram())
    everything = np.concatenate([v.ravel() for v in world.run.values()])
    assert found.norm == pytest.approx(np.linalg.norm(everything), rel=1e-12)
    seen = [n for n in world.run if n in world.probes and n != "model.layers.0.mlp.up_proj.weight"]
    expected = sum(np.sum(world.run[n] ** 2) for n in seen) / np.sum(everything**2)
    assert found.coverage["response"] == pytest.approx(expected, rel=1e-12)
    assert (found.step, found.progress, found.bank) == (20, 0.5, "bank")
    assert found.components == ("blocks",)
    assert found.ridge["frobenius"] == choose_ridge(world.gram(), "frobenius")


def test_a_geometry_that_the_reading_lacks_is_left_out(world):
    """A bank without a probe still gives every Frobenius score."""
    reading = world.reading()
    bare = replace(reading, geometries={"frobenius": reading.geometries["frobenius"]})
    assert set(score(bare, world.gram()).references["evil"].values) == {"frobenius"}


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    scale=st.floats(1e-6, 1e6),
    ridge=st.sampled_from(formulas.RIDGES),
)
def test_scores_do_not_depend_on_lengths_and_stay_in_bounds(make_world, seed, scale, ridge):
    """Scores lie in [−1, 1]; scaling a run changes no score; doses scale with the run."""
    world = make_world(seed)
    shared = {"frobenius": 0.9 * np.diagonal(world.gram().total("frobenius"))}
    gram = world.gram(shared)
    plain = score(world.reading(), gram, earlier=world.before(), ridge=ridge)
    world.run = {n: scale * v for n, v in world.run.items()}
    world.earlier = {n: scale * v for n, v in world.earlier.items()}
    scaled = score(world.reading(), gram, earlier=world.before(), ridge=ridge)
    for name, reference in plain.references.items():
        for geometry, values in reference.values.items():
            assert abs(values["cosine"]) <= 1 + 1e-12
            assert abs(values["window"]) <= 1 + 1e-12
            assert abs(values["residual"]) <= 1 + 1e-12
            again = scaled.references[name].values[geometry]
            assert again == pytest.approx(values, rel=1e-7, abs=1e-9)
        assert scaled.references[name].dose == pytest.approx(
            scale * reference.dose, rel=1e-7, abs=1e-9 * scale
        )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-3, 1e3))
def test_a_longer_control_changes_nothing(make_world, seed, scale):
    """Controls count by direction: scaling one changes no cosine, residual or margin."""
    world = make_world(seed)
    plain = score(world.reading(), world.gram(), ridge=0.1).references["evil"].values
    french = world.references["french"]
    world.references["french"] = {n: scale * v for n, v in french.items()}
    scaled = score(world.reading(), world.gram(), ridge=0.1).references["evil"].values
    for geometry in GEOMETRIES:
        assert scaled[geometry] == pytest.approx(plain[geometry], rel=1e-8, abs=1e-10)
