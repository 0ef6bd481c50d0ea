"""WVMonitorPlugin: the monitor in an Axolotl run, configured in Axolotl's own YAML.

```yaml
plugins:
  - wvmonitor.integrations.axolotl.WVMonitorPlugin
wvmonitor:
  references: path/to/bank
  every_n_steps: 10
```
"""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel, Field, field_validator

from wvmonitor.integrations.transformers import WVMonitorCallback
from wvmonitor.live.settings import MonitorSettings


class WVMonitorArgs(BaseModel):
    """The plugin's block in Axolotl's configuration."""

    wvmonitor: dict[str, Any] = Field(
        default_factory=dict, description="Settings of the monitor, as in MonitorSettings."
    )

    @field_validator("wvmonitor")
    @classmethod
    def _settings_are_settings(cls, block: dict[str, Any]) -> dict[str, Any]:
        MonitorSettings(**block)  # a misspelt one is an error before anything is loaded
        return block


class WVMonitorPlugin(BasePlugin):  # type: ignore[misc]  # axolotl is not installed beside us
    """Attaches a `WVMonitorCallback` to the trainer that Axolotl builds."""

    def get_input_args(self) -> str:
        """Where Axolotl finds the model of our configuration block."""
        return f"{WVMonitorArgs.__module__}.{WVMonitorArgs.__name__}"

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Any]:
        """Attach before the trackers' callbacks; Axolotl has none to append itself."""
        WVMonitorCallback.attach(trainer, settings=MonitorSettings(**dict(cfg.wvmonitor or {})))
        return []
