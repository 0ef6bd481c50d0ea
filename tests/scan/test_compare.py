"""Cosines between any task vectors, against dense float64 formulas."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from wvmonitor.cli.app import app
from wvmonitor.errors import BaseMismatchError, NonFiniteError, ShapeMismatchError
from wvmonitor.references import ReferenceBank
from wvmonitor.scan.compare import compare, gram_of
from wvmonitor.scan.matrix import MATRIX_WRITERS
from wvmonitor.testing import planted_vector, tiny_base
from wvmonitor.vectors.task_vector import Origin, TaskVector
from wvmonitor.vectors.update import DenseUpdate, LowRankUpdate, Update, on, to_dense


def random_update(kind: str, shape: tuple[int, ...], seed: int) -> Update:
    """A low-rank or dense update with a seed of its own."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "dense":
        return DenseUpdate(torch.randn(shape, generator=generator))
    left = torch.randn(*shape[:-1], seed + 1, generator=generator)
    return LowRankUpdate(left, torch.randn(*shape[:-2], seed + 1, shape[-1], generator=generator))


def dense_gram(updates: dict[int, Update], count: int) -> np.ndarray:
    """The Gram matrix by definition, in float64."""
    rows = np.zeros((count, math.prod(next(iter(updates.values())).shape)))
    for index, update in updates.items():
        if isinstance(update, LowRankUpdate):
            whole = update.left.double() @ update.right.double()
        else:
            whole = update.delta.double()
        rows[index] = whole.reshape(-1).numpy()
    return rows @ rows.T


@pytest.mark.parametrize("shape", [(6, 5), (3, 6, 5)], ids=["matrix", "experts"])
@pytest.mark.parametrize("kinds", ["low low low", "dense dense", "low dense low dense", "dense"])
def test_gram_is_the_dense_one(
    kinds: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inner products of any mixture of low-rank and dense updates are those of full matrices."""
    updates = {2 * i: random_update(k, shape, i) for i, k in enumerate(kinds.split())}
    count = 2 * len(updates)
    expected = dense_gram(updates, count)
    np.testing.assert_allclose(gram_of(updates, count), expected, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr("wvmonitor.scan.compare._RANKS", 2)
    monkeypatch.setattr("wvmonitor.scan.compare._ELEMENTS", 7)
    np.testing.assert_allclose(gram_of(updates, count), expected, rtol=1e-5, atol=1e-5)


def test_response_gram_is_of_what_the_updates_do() -> None:
    """With a probe the products are those of the updates' outputs on it."""
    updates = {i: random_update(k, (6, 5), i) for i, k in enumerate(["low", "dense", "low"])}
    probe = torch.randn(4, 5, generator=torch.Generator().manual_seed(9))
    answers: dict[int, Update] = {
        i: DenseUpdate(to_dense(on(u, probe))) for i, u in updates.items()
    }
    expected = dense_gram(answers, 3)
    np.testing.assert_allclose(gram_of(updates, 3, probe), expected, rtol=1e-5, atol=1e-5)


def test_cosines_agree_with_task_vectors_own(tiny_base: Path, tiny_bank_folder: Path) -> None:
    """The matrix holds what `TaskVector.cosine` gives for every pair."""
    bank = ReferenceBank.load(tiny_bank_folder)
    vectors = {r.name: r.vector for r in bank}
    vectors["mixed"] = bank["evil"].vector + 0.5 * bank["language"].vector
    found = compare(vectors)
    for i, a in enumerate(vectors.values()):
        for j, b in enumerate(vectors.values()):
            assert found.cosines[i, j] == pytest.approx(a.cosine(b), rel=1e-4, abs=1e-6)
    assert found.labels == ("evil", "sycophancy", "language", "mixed")
    assert found.norms[0] == pytest.approx(bank["evil"].vector.norm(), rel=1e-5)


def test_each_update_is_read_once() -> None:
    """N vectors cost n reads of each parameter, not n²."""
    reads: Counter[str] = Counter()

    def counted(seed: int) -> TaskVector:
        def produce(name: str) -> Update:
            reads[f"{seed}.{name}"] += 1
            return random_update("dense", (4, 3), seed)

        names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(3)]
        return TaskVector(dict.fromkeys(names, (4, 3)), produce)

    compare({str(seed): counted(seed) for seed in range(5)})
    assert len(reads) == 15
    assert set(reads.values()) == {1}


def test_components_are_chosen() -> None:
    """By default only the blocks' linear weights are compared; all parameters on request."""
    inside, outside = "model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight"
    a = TaskVector.of({inside: DenseUpdate(torch.eye(2)), outside: DenseUpdate(torch.eye(2))})
    b = TaskVector.of({inside: DenseUpdate(torch.eye(2)), outside: DenseUpdate(-torch.eye(2))})
    assert compare({"a": a, "b": b}).cosines[0, 1] == pytest.approx(1.0)
    everything = compare({"a": a, "b": b}, components=())
    assert everything.cosines[0, 1] == pytest.approx(0.0)
    assert (everything.parameters, everything.components) == (2, ())


def test_what_cannot_be_compared_is_refused(tiny_base: Path) -> None:
    """Vectors of different bases or shapes, and ones that are not finite, give no cosine."""
    name = "model.layers.0.mlp.up_proj.weight"

    def vector(tensor: torch.Tensor, base: str | None = None) -> TaskVector:
        return TaskVector.of({name: DenseUpdate(tensor)}, Origin(base_digest=base))

    eye = torch.eye(2)
    with pytest.raises(BaseMismatchError, match="'a' and 'b'"):
        compare({"a": vector(eye, "1"), "b": vector(eye, "2")})
    with pytest.raises(ShapeMismatchError, match=r"\(2, 2\) in 'a' but \(3, 3\) in 'b'"):
        compare({"a": vector(eye), "b": vector(torch.eye(3))})
    with pytest.raises(NonFiniteError, match="'b'"):
        compare({"a": vector(eye), "b": vector(eye * math.nan)})


def test_a_vector_that_did_not_move_has_no_cosine() -> None:
    """Beside a zero vector the matrix says nothing, in every format."""
    name = "model.layers.0.mlp.up_proj.weight"
    a = TaskVector.of({name: DenseUpdate(torch.eye(2))})
    found = compare({"a": a, "z<\x1b>ero": a * 0.0})
    assert np.isnan(found.cosines[0, 1])
    for form, writer in MATRIX_WRITERS.items():
        out = io.StringIO()
        writer(found, {}, out)
        assert "nan" not in out.getvalue().lower()
        assert "\x1b" not in out.getvalue()
        if form == "svg":
            ElementTree.fromstring(out.getvalue())  # noqa: S314  our own


def test_the_command(
    drifting_run: Path, bad_adapter: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """`wvmonitor compare` shows adapters, a run's checkpoints and references in one matrix."""
    command = ["compare", str(bad_adapter), str(drifting_run), "--references"]
    command.append(str(tiny_bank_folder))
    for form in ("table", "csv", "json", "svg"):
        result = CliRunner().invoke(app, [*command, "--format", form])
        assert result.exit_code == 0, result.stderr
        if form == "csv":
            rows = list(csv.reader(io.StringIO(result.stdout)))
            assert [len(row) for row in rows] == [10] * 10
            assert float(rows[1][rows[0].index("behaviour:evil")]) == pytest.approx(1, abs=1e-5)
        if form == "json":
            document = json.loads(result.stdout)
            assert document["labels"][-3:] == [
                "behaviour:evil",
                "behaviour:sycophancy",
                "control:language",
            ]
        if form == "svg":
            ElementTree.fromstring(result.stdout)  # noqa: S314  our own
    response = CliRunner().invoke(app, [*command, "--geometry", "response", "--format", "json"])
    assert json.loads(response.stdout)["geometry"] == "response"
    assert CliRunner().invoke(app, [*command, str(tmp_path / "missing")]).exit_code == 2
    assert CliRunner().invoke(app, ["compare", str(tmp_path / "missing")]).exit_code == 2
    no_bank = ["compare", str(bad_adapter), "--geometry", "response"]
    assert CliRunner().invoke(app, no_bank).exit_code == 4


def test_other_bases_are_refused_at_the_command_line(
    save_checkpoint, bad_adapter: Path, evil: TaskVector, tmp_path: Path
) -> None:
    """Comparing fine-tunes of two bases is an error in one line."""
    other = tiny_base(tmp_path / "other", seed=3)
    checkpoint = save_checkpoint(tmp_path / "checkpoint", evil)
    config = checkpoint / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_name_or_path": str(other)}))
    result = CliRunner().invoke(app, ["compare", str(bad_adapter), str(checkpoint)])
    assert result.exit_code == 2
    assert "BaseMismatchError" in result.stderr
    assert planted_vector(other, seed=1).origin.base_digest != evil.origin.base_digest
