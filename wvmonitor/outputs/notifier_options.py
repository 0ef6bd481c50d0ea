"""What can be set about notifiers."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, Field

from wvmonitor.outputs.alertmanager import AlertmanagerNotifier
from wvmonitor.outputs.chat import ChatNotifier
from wvmonitor.outputs.exporter_options import Part, Secret
from wvmonitor.outputs.http import SendPolicy
from wvmonitor.outputs.notifier import Notifier
from wvmonitor.outputs.trackio import TrackioNotifier
from wvmonitor.outputs.wandb import WandbNotifier
from wvmonitor.outputs.webhook import WebhookNotifier


class _NotifierSettings(Part):
    url: Secret = Field(description="Where alerts go (https); may be env:NAME or file:PATH.")
    allow_http: bool = Field(default=False, description="Allow plain http to another machine.")
    allow_private: tuple[str, ...] = Field(
        (), description="Host names, addresses or networks that may be private, e.g. 10.0.0.0/8."
    )

    def policy(self) -> SendPolicy:
        """Where requests may go."""
        return SendPolicy(self.allow_http, self.allow_private)


class AlertmanagerSettings(_NotifierSettings):
    """Alerts to a Prometheus Alertmanager (API v2)."""

    kind: Literal["alertmanager"] = "alertmanager"
    token: Secret | None = Field(None, description="Bearer token, if it asks for one.")
    labels: dict[str, str] = Field({}, description="More labels for every alert, for routing.")

    def build(self) -> Notifier:
        """The notifier these settings describe."""
        token = self.token.get_secret_value() if self.token else None
        return AlertmanagerNotifier(
            self.url.get_secret_value(), token, dict(self.labels), self.policy()
        )


class WebhookSettings(_NotifierSettings):
    """Alerts as signed JSON to any receiver."""

    kind: Literal["webhook"] = "webhook"
    secret: Secret = Field(description="The key that signs each message.")

    def build(self) -> Notifier:
        """The notifier these settings describe."""
        return WebhookNotifier(
            self.url.get_secret_value(), self.secret.get_secret_value(), self.policy()
        )


class ChatSettings(Part):
    """Alerts to Slack, mail and other services, through apprise."""

    kind: Literal["chat"] = "chat"
    url: Secret = Field(description="apprise's URL of the service; may be env:NAME or file:PATH.")

    def build(self) -> Notifier:
        """The notifier these settings describe."""
        return ChatNotifier(self.url.get_secret_value())


class WandbSettings(Part):
    """Alerts through the W&B run that is being logged to."""

    kind: Literal["wandb"] = "wandb"

    def build(self) -> Notifier:
        """The notifier these settings describe."""
        return WandbNotifier()


class TrackioSettings(Part):
    """Alerts on the Trackio run that is logged to."""

    kind: Literal["trackio"] = "trackio"

    def build(self) -> Notifier:
        """The notifier these settings describe."""
        return TrackioNotifier()


_AnyNotifier = (
    AlertmanagerSettings | WebhookSettings | ChatSettings | WandbSettings | TrackioSettings
)
NotifierSettings = Annotated[_AnyNotifier, Field(discriminator="kind")]
NOTIFIER_SETTINGS: tuple[type[BaseModel], ...] = get_args(_AnyNotifier)
