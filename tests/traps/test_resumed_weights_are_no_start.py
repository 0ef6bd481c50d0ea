"""On resume the weights at hand are those of the resumed step, not θ_0."""

from pathlib import Path

from tests.sources import zoo
from wvmonitor.sources import LiveModel


def test_a_resumed_run_measures_from_the_base(tmp_path: Path) -> None:
    """A monitor that first sees the model in mid-training still measures from θ_0."""
    model = zoo.build("llama")
    model.save_pretrained(tmp_path)
    before = zoo.weights_of(model)
    recorded = LiveModel(model).initial_state()
    zoo.shake(model, size=1e-3)
    oracle = zoo.change(zoo.weights_of(model), before)
    zoo.assert_equal_change(LiveModel(model, tmp_path).task_vector(), oracle)
    zoo.assert_equal_change(LiveModel(model, initial=recorded).task_vector(), oracle)
