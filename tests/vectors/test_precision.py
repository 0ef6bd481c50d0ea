"""Products keep float32's digits whatever the trainer has set up, and leave that as it was."""

import pytest
import torch

from wvmonitor.vectors import functional

MATMULS = {"cuda": "cuda", "cpu": "mkldnn"}


@pytest.fixture
def settings():
    """The settings of float32 products, put back at the end."""
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("torch before 2.9 has one setting for all")
    found = {kind: getattr(torch.backends, name).matmul for kind, name in MATMULS.items()}
    yield found
    torch.set_float32_matmul_precision("highest")
    torch.backends.fp32_precision = "none"
    for setting in found.values():
        setting.fp32_precision = "none"


def state():
    """Everything a trainer can set."""
    return (
        torch.backends.fp32_precision,
        *(getattr(torch.backends, n).matmul.fp32_precision for n in MATMULS.values()),
    )


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
@pytest.mark.parametrize("level", ["highest", "high", "medium"])
def test_the_level_of_matrix_products_is_lifted_and_put_back(settings, kind, level):
    """`set_float32_matmul_precision` does not reach our products, and still holds afterwards."""
    torch.set_float32_matmul_precision(level)
    before = state()
    with functional.full_precision(kind):
        assert settings[kind].fp32_precision in ("ieee", "none")
    assert state() == before
    assert torch.get_float32_matmul_precision() == level
    with pytest.raises(ZeroDivisionError), functional.full_precision(kind):
        _ = 1 / 0
    assert state() == before


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_a_setting_for_everything_stays_one(settings, kind):
    """What came from `torch.backends.fp32_precision` goes on following it."""
    torch.backends.fp32_precision = "tf32"
    with functional.full_precision(kind):
        assert settings[kind].fp32_precision == "ieee"
    assert settings[kind].fp32_precision == "tf32"
    torch.backends.fp32_precision = "ieee"
    assert settings[kind].fp32_precision in ("ieee", "none")


def test_the_old_switch_is_put_back(settings):
    """`allow_tf32` is off inside and on again outside."""
    torch.backends.cuda.matmul.allow_tf32 = True
    with functional.full_precision("cuda"):
        assert settings["cuda"].fp32_precision == "ieee"
    assert torch.backends.cuda.matmul.allow_tf32


def test_before_torch_2_9_the_one_level_is_lifted(monkeypatch, settings):
    """Where torch has no setting for each backend, the level for all is lifted and put back."""
    monkeypatch.setattr(functional, "_settings", lambda kind: None)
    torch.set_float32_matmul_precision("medium")
    with functional.full_precision("cuda"):
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_product_is_the_same_at_every_level(settings, device):
    """A float32 product is bit for bit the one at full precision, inside autocast too."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    a, b = (torch.randn(256, 256, device=device) for _ in range(2))
    expected = functional.matmul(a, b)
    torch.set_float32_matmul_precision("medium")
    assert torch.equal(functional.matmul(a, b), expected)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert torch.equal(functional.matmul(a, b), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_changed_elements_are_counted_exactly(dtype):
    """The count of moved elements is exact over many chunks, and counts NaN as moved."""
    values = torch.zeros(3, 100_000, dtype=dtype)
    values[:, ::3] = 1e-30
    values[0, 1] = torch.nan
    assert int(functional.count_changed(values)) == int(torch.count_nonzero(values))
    assert int(functional.count_changed(values[:, ::2])) == int(torch.count_nonzero(values[:, ::2]))
    assert int(functional.count_changed(values[:, :0])) == 0


def test_several_products_in_one_pass_are_the_single_ones():
    """`dense_inners` gives each product to float64 accuracy of float32 terms."""
    rng = torch.Generator().manual_seed(0)
    mine, *others = (torch.randn(200_001, generator=rng) for _ in range(4))
    found = functional.dense_inners(mine, others)
    expected = torch.stack([(mine.double() * o.double()).sum() for o in others])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)
    assert functional.dense_inners(mine, []).shape == (0,)
    assert functional.dense_inners(mine[:0], [o[:0] for o in others]).tolist() == [0.0] * 3
