"""A calibration for tests: a flat band, as if from forty benign runs."""

from __future__ import annotations

from wvmonitor.detection.calibration import Band, Calibration, Support
from wvmonitor.references import ReferenceBank


def calibration_for(bank: ReferenceBank, *, threshold: float = 0.3) -> Calibration:
    """A band whose alarm threshold is `threshold` for every behaviour at all times."""
    grid = (0.0, 0.5, 1.0)
    flat = Band(mu=(0.0, 0.0, 0.0), sigma=(0.1, 0.1, 0.1))
    names = tuple(f"dataset-{i}" for i in range(40))
    return Calibration(
        bank=bank.fingerprint,
        geometry="frobenius",
        score="cosine",
        components=("blocks",),
        ridge=None,
        alpha=0.05,
        grid=grid,
        bands=dict.fromkeys(bank.behaviours, flat),
        sigma_min=0.01,
        multiplier=threshold / 0.1,
        warn_alpha=0.1,
        warn_multiplier=0.8 * threshold / 0.1,
        maxima=tuple(float(i) / 10 for i in range(20)),
        rate_bound=0.14,
        fit_datasets=names[:20],
        band_datasets=names[20:],
        support=Support(
            methods={"lora": (1, 8), "full": None},
            optimizers=("adamw",),
            learning_rates=(1e-5, 1e-3),
            planned_steps=(10, 100),
            readings=(5, 50),
            horizon=1.0,
            smallest_norm=(0.0, 0.01, 0.01),
            largest_norm=(1.0, 1.0, 1.0),
        ),
    )
