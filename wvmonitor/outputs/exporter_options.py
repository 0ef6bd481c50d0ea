"""What can be set about metrics: the parts of `MonitorSettings` that belong to this room."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)

from wvmonitor.outputs.exporter import Exporter
from wvmonitor.outputs.http import is_loopback
from wvmonitor.outputs.pushgateway import PushTarget
from wvmonitor.outputs.server import Access

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:/")


def _expanded(path: Path) -> Path:
    """The path with `~` and `~user` as a shell reads them, which Python and YAML do not.

    It is the same wherever the process goes to: a script, or Hydra, may change its folder before a
    reading is taken. What begins with a scheme (hf://ORG/NAME) is no path of this machine.
    """
    if _SCHEME.match(str(path)):
        return path
    try:
        return path.expanduser().absolute()
    except RuntimeError:  # there is no such user: whoever opens it says what is not there
        return path


UserPath = Annotated[Path, AfterValidator(_expanded)]
"""A path as people write it."""


def _resolve_secret(value: object) -> object:
    """`env:NAME` and `file:PATH` as what they stand for; anything else as it is."""
    if not isinstance(value, str):
        return value
    if value.startswith("env:"):
        name = value.removeprefix("env:")
        secret = os.environ.get(name, "").strip()
        if not secret:
            raise ValueError(f"names the environment variable {name}, which is not set")
        return _on_one_line(secret)
    if value.startswith("file:"):
        path = _expanded(Path(value.removeprefix("file:")))
        try:
            text = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise ValueError(f"names the file '{path}', which cannot be read") from None
        if not text:
            raise ValueError(f"names the file '{path}', which is empty")
        return _on_one_line(text)
    return _on_one_line(value.strip())


def _on_one_line(secret: str) -> str:
    """The secret, if it can stand in a header."""
    if not secret.isprintable():
        raise ValueError("is a secret with line breaks or control characters in it")
    return secret


Secret = Annotated[SecretStr, BeforeValidator(_resolve_secret)]


class Part(BaseModel):
    """A group of settings: unknown keys are errors, and no error shows what was given."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class PushgatewaySettings(Part):
    """Where metrics are pushed by jobs that cannot be scraped."""

    url: str = Field(description="Where the Pushgateway is, for instance http://pushgateway:9091.")
    job: str = Field("wvmonitor", min_length=1, description="The grouping key's job.")
    token: Secret | None = Field(None, description="Bearer token, if it asks for one (https).")
    interval: float = Field(5.0, gt=0, description="Least seconds between two pushes.")
    delete_after: float | None = Field(
        20.0,
        ge=0,
        description="Seconds after the run's end at which its metrics are deleted: longer than "
        "Prometheus's scrape interval, or the last reading is never seen. The process's end waits "
        "for it. Empty: never.",
    )

    @model_validator(mode="after")
    def _can_be_pushed_to(self) -> Self:
        try:
            parts = urlsplit(self.url)
            _ = parts.port
        except ValueError:
            parts = urlsplit("")
        clean = self.url.isprintable() and " " not in self.url
        if parts.scheme not in ("http", "https") or not parts.hostname or not clean:
            raise ValueError("the url must look like http://host:9091")
        if parts.username is not None or parts.password is not None:
            raise ValueError("the url holds a user name or password: give a token instead")
        if self.token is not None and parts.scheme == "http" and not is_loopback(parts.hostname):
            raise ValueError("a token would be sent unencrypted: use https")
        return self

    def target(self) -> PushTarget:
        """Where to push, for the exporter."""
        token = self.token.get_secret_value() if self.token else None
        return PushTarget(self.url, self.job, token, self.interval, self.delete_after)


class PrometheusSettings(Part):
    """Where metrics are served for Prometheus to scrape."""

    enabled: bool = Field(default=False, description="Serve metrics over HTTP.")
    host: str = Field(
        "127.0.0.1", description="Address to listen on; this machine only by default."
    )
    port: int = Field(
        9108, ge=0, le=65535, description="TCP port; if it is taken, the next free one. 0: any."
    )
    public: bool = Field(
        default=False,
        description="Let whoever reaches `host` read the metrics, with neither token nor TLS.",
    )
    discovery: UserPath | None = Field(
        None,
        description="Folder for a file by which Prometheus (`file_sd_configs`) finds this monitor, "
        "whatever its port is.",
    )
    token: Secret | None = Field(
        None, description="Bearer token that scrapers must give; may be env:NAME or file:PATH."
    )
    tls_cert: UserPath | None = Field(
        None, description="Certificate (chain) in PEM, to serve over https."
    )
    tls_key: UserPath | None = Field(None, description="Its private key, if not in the same file.")
    client_ca: UserPath | None = Field(
        None, description="CA in PEM whose certificates scrapers must show (mutual TLS)."
    )
    textfile: UserPath | None = Field(
        None,
        description="Also write the metrics to this file at every reading, for node_exporter's "
        "textfile collector (the name must end in .prom).",
    )
    linger: float = Field(
        20.0,
        ge=0,
        description="Most seconds that the last values stay after the run's end for one more "
        "scrape, where somebody scrapes; the process's end waits for it.",
    )
    pushgateway: PushgatewaySettings | None = Field(
        None, description="Also push the metrics, where nothing can scrape them."
    )

    @field_validator("textfile")
    @classmethod
    def _is_collected(cls, value: Path | None) -> Path | None:
        if value is not None and value.suffix != ".prom":
            raise ValueError("must end in .prom, or node_exporter passes it over")
        return value

    @model_validator(mode="after")
    def _can_be_served(self) -> Self:
        if self.tls_cert is None and (self.tls_key or self.client_ca):
            raise ValueError("tls_key and client_ca need a tls_cert")
        if self.token is not None and self.tls_cert is None and not is_loopback(self.host):
            raise ValueError(
                "a token on an address that others reach needs https: set tls_cert (and tls_key)"
            )
        open_to_all = self.token is None and self.tls_cert is None and not self.public
        if self.enabled and open_to_all and not is_loopback(self.host):
            raise ValueError(
                f"others reach {self.host}, and there is neither a token nor TLS: set tls_cert and "
                "token, or public=true if whoever is there may read the metrics"
            )
        self.access().context()
        return self

    @property
    def wanted(self) -> bool:
        """Whether metrics are to go anywhere."""
        return self.enabled or self.textfile is not None or self.pushgateway is not None

    def build(self, layers: int, expected: Collection[str]) -> Exporter:
        """The exporter these settings describe, already at work."""
        from wvmonitor.outputs.prometheus import PrometheusExporter  # only where it is used

        return PrometheusExporter(
            host=self.host,
            port=self.port if self.enabled else None,
            textfile=self.textfile,
            layers=layers,
            access=self.access(),
            push=self.pushgateway.target() if self.pushgateway else None,
            expected=expected,
            linger=self.linger,
            discovery=self.discovery,
        )

    def access(self) -> Access:
        """Who may scrape, and how."""
        files = (self.tls_cert, self.tls_key, self.client_ca)
        certificate, key, client_ca = (None if f is None else str(f.absolute()) for f in files)
        token = self.token.get_secret_value() if self.token else None
        return Access(token, certificate, key, client_ca)
