"""Steering: weights moved along a reference, in memory or on disk."""

from wvmonitor.steering.adapter import as_adapter
from wvmonitor.steering.checkpoints import steer_checkpoint
from wvmonitor.steering.folders import SteeredFolder
from wvmonitor.steering.inoculation import Inoculation, inoculated
from wvmonitor.steering.weights import Steering, steered

__all__ = [
    "Inoculation",
    "SteeredFolder",
    "Steering",
    "as_adapter",
    "inoculated",
    "steer_checkpoint",
    "steered",
]
