"""Singular values and stable ranks, against a dense SVD in float64."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from wvmonitor.cli.app import app
from wvmonitor.errors import NonFiniteError
from wvmonitor.files.safetensors import SafetensorsFile
from wvmonitor.scan.screen import by_layer, screen, spectrum
from wvmonitor.vectors.task_vector import TaskVector
from wvmonitor.vectors.update import DenseUpdate, LowRankUpdate, Update

UP = "model.layers.0.mlp.up_proj.weight"


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "update",
    [
        LowRankUpdate(random(9, 3), random(3, 7, seed=1)),
        LowRankUpdate(random(4, 6), random(6, 5, seed=1)),
        DenseUpdate(random(9, 7)),
    ],
    ids=["low rank", "rank above the sides", "dense"],
)
def test_spectra_are_those_of_the_full_matrix(update: Update) -> None:
    """Singular values and directions are the dense SVD's, though factors are not multiplied out."""
    if isinstance(update, LowRankUpdate):
        whole = (update.left.double() @ update.right.double()).numpy()
    else:
        whole = update.delta.double().numpy()
    left, values, right = spectrum(update, 3)
    np.testing.assert_allclose(values, np.linalg.svd(whole)[1][:3], rtol=1e-6)
    # Signs of singular vectors are free: what they rebuild is not.
    u, s, vh = np.linalg.svd(whole, full_matrices=False)
    best = (u[:, :3] * s[:3]) @ vh[:3]
    np.testing.assert_allclose((left * values) @ right, best, atol=1e-6)


def test_large_dense_matrices_are_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Subspace iteration finds the top of a decaying spectrum to 1 %, the same each time."""
    monkeypatch.setattr("wvmonitor.scan.screen._EXACT", 8)
    decaying = random(60, 40) @ torch.diag(0.8 ** torch.arange(40.0)) @ random(40, 50, seed=1)
    _, values, _ = spectrum(DenseUpdate(decaying), 4)
    np.testing.assert_allclose(values, np.linalg.svd(decaying.double())[1][:4], rtol=0.01)
    assert torch.equal(values, spectrum(DenseUpdate(decaying), 4)[1])


def test_stable_rank_and_shares() -> None:
    """A one-direction change has stable rank 1, an even one of n directions n."""
    one = DenseUpdate(torch.outer(random(5), random(4, seed=1)))
    (found,) = screen(TaskVector.of({UP: one}))
    assert found.stable_rank == pytest.approx(1.0, rel=1e-5)
    assert found.top_share == pytest.approx(1.0, rel=1e-5)
    assert found.layer == 0
    (found,) = screen(TaskVector.of({UP: DenseUpdate(torch.eye(6))}))
    assert found.stable_rank == pytest.approx(6.0, rel=1e-5)
    (found,) = screen(TaskVector.of({UP: DenseUpdate(torch.zeros(6, 6))}))
    assert found.stable_rank is None


def test_layers_and_components_sum_to_the_whole() -> None:
    """Shares by layer sum to 1; vectors are left out, and each fused expert is seen by itself."""
    vector = TaskVector.of(
        {
            UP: DenseUpdate(random(5, 4)),
            "model.layers.10.mlp.experts.up_proj": DenseUpdate(random(3, 5, 4)),
            "model.layers.2.mlp.experts.up_proj": LowRankUpdate(random(2, 5, 1), random(2, 1, 4)),
            "model.embed_tokens.weight": DenseUpdate(random(7, 4), transposed=True),
            "model.norm.weight": DenseUpdate(random(4)),
        }
    )
    spectra = list(screen(vector))
    assert len(spectra) == 1 + 3 + 2 + 1
    assert spectra[1].parameter == "model.layers.10.mlp.experts.up_proj[0]"
    layers = by_layer(spectra)
    assert [item.layer for item in layers] == [0, 2, 10, None]
    assert sum(item.share for item in layers) == pytest.approx(1.0)


def test_non_finite_updates_are_refused() -> None:
    """A NaN in an update is an error that names it."""
    broken = TaskVector.of({UP: DenseUpdate(torch.full((2, 2), torch.nan))})
    with pytest.raises(NonFiniteError, match="up_proj"):
        list(screen(broken))


def test_the_command(bad_adapter: Path, good_adapter: Path, tmp_path: Path) -> None:
    """`wvmonitor screen` needs no references, and saves directions on request."""
    command = ["screen", str(bad_adapter), str(good_adapter)]
    table = CliRunner().invoke(app, command)
    assert table.exit_code == 0
    assert "layer 1" in table.stdout
    path = tmp_path / "directions.safetensors"
    made = CliRunner().invoke(app, [*command, "--format", "json", "--directions", str(path)])
    document = json.loads(made.stdout)
    assert [c["path"] for c in document["checkpoints"]] == command[1:]
    assert document["checkpoints"][0]["matrices"][0]["stable_rank"] >= 1
    name = document["checkpoints"][1]["matrices"][0]["parameter"]
    with SafetensorsFile(path) as file:
        assert file.metadata["1"] == str(good_adapter)
        left = file.read(f"1.{name}.left")
    assert left.norm(dim=0) == pytest.approx(torch.ones(left.shape[1]), rel=1e-4)
    listed = CliRunner().invoke(app, [*command, "--format", "csv"])
    rows = list(csv.DictReader(io.StringIO(listed.stdout)))
    assert len(rows) == 28
    missing = CliRunner().invoke(app, [*command, str(tmp_path / "missing"), "--format", "json"])
    assert missing.exit_code == 2
    assert json.loads(missing.stdout)["checkpoints"][2]["error"]["type"] == "MissingPathError"
    assert CliRunner().invoke(app, [*command, "--top", "0"]).exit_code == 4
