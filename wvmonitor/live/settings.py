"""The settings of a monitor: one model, from arguments, the environment, a YAML file, or defaults.

What is given more directly wins: explicit arguments, then `WVMONITOR_*` environment variables
(`WVMONITOR_EVERY_N_STEPS=20`, `WVMONITOR_PROMETHEUS__PORT=9200`), then the YAML file, then the
defaults. A key that is not known is an error naming the nearest one that is. Secrets are given as
`env:NAME` or `file:PATH` rather than written down, and no dump, log or error shows them.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import SettingsError as SourceError

from wvmonitor.errors import SettingsError
from wvmonitor.journal.alerts import AlertPolicy, Whereabouts
from wvmonitor.live.run import run_id
from wvmonitor.outputs.exporter import Exporter
from wvmonitor.outputs.exporter_options import PrometheusSettings, PushgatewaySettings, UserPath
from wvmonitor.outputs.notifier import Notifier
from wvmonitor.outputs.notifier_options import NOTIFIER_SETTINGS, NotifierSettings
from wvmonitor.outputs.run_state import this_host, this_job
from wvmonitor.reading import Component
from wvmonitor.references.bundled import model_folder

PREFIX = "WVMONITOR_"

LAYERS_SHOWN = 16
"""With `per_layer`, Prometheus gets series for so many layers of each behaviour."""

_yaml_values: ContextVar[Mapping[str, Any] | None] = ContextVar("wvmonitor_yaml", default=None)


def _split(value: object) -> object:
    """A list as an environment variable writes it: `a,b`, or JSON."""
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            return json.loads(value)
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _doses(value: object) -> object:
    """How much of each reference: `evil=1,sycophancy`, a list of such, a mapping, or JSON."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        return json.loads(value)
    if not isinstance(value, (str, list, tuple)):
        return value
    parts = [str(part).partition("=") for part in cast("Iterable[object]", _split(value))]
    return {name.strip(): k.strip() if equals else None for name, equals, k in parts}


def _listed(value: object) -> object:
    """Notifiers by name, or a single one, as the list that they are."""
    if isinstance(value, Mapping):
        if "kind" in value:
            return (value,)
        wrong = [name for name, each in value.items() if not isinstance(each, Mapping)]
        if wrong:
            raise ValueError(f"each must say its kind: [{{'kind': {wrong[0]!r}, 'url': …}}]")
        return tuple({"kind": name, **each} for name, each in value.items())
    return value


def _named_model(value: object) -> object:
    """A model's folder by the name that people call the model."""
    return model_folder(str(value)) if isinstance(value, str | Path) and str(value) else value


def _link(value: str) -> str:
    if not value.startswith(("https://", "http://")) or not value.isprintable() or " " in value:
        raise ValueError("must look like https://host/path")
    return value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Doses = Annotated[
    dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)] | None],
    NoDecode,
    BeforeValidator(_doses),
]
Components = Annotated[
    tuple[Component, ...], NoDecode, BeforeValidator(_split), Field(min_length=1)
]


class MonitorSettings(BaseSettings):
    """Everything that can be set about a monitor.

    Raises:
        SettingsError: a value that cannot be, a key that is not known, or a notifier that must not
            be sent to; one line, before training starts.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        validate_default=False,
    )

    references: UserPath | None = Field(
        None, description="Folder of the bank of references to measure against."
    )
    base: Annotated[UserPath | None, BeforeValidator(_named_model)] = Field(
        None,
        description="Folder of the base model, or its Hub id where this machine's cache holds it, "
        "where θ_0 cannot be taken from the run itself.",
    )
    banks: UserPath | None = Field(
        None,
        description="Folder of banks, or a registry (a JSON file that names a bank for each base): "
        "without references, the one made for the run's base is taken from here, or from those "
        "that were pulled.",
    )
    calibration: UserPath | None = Field(
        None, description="Calibration file; without one, the bank's own, or none (uncalibrated)."
    )
    run: Annotated[str, AfterValidator(run_id)] | None = Field(
        None, min_length=1, description="The run's id; by default one is made up."
    )
    journal_dir: UserPath | None = Field(
        None, description="Folder of wvmonitor.db; by default the trainer's output folder."
    )
    every_n_steps: int = Field(10, ge=1, description="Optimiser steps between two readings.")
    max_overhead: float = Field(
        0.005,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="Most that measuring may cost, as a share of training time; readings become "
        "rarer to keep to it.",
    )
    window: int = Field(
        10, ge=1, description="How many readings back the `window` score looks (h)."
    )
    components: Components = Field(
        ("blocks",), description="Parts of the model that scores look at."
    )
    strict_coverage: bool = Field(
        default=False,
        description="Whether a verdict must speak of the whole change: `unknown` where most of it "
        "lies in parts that no score looks at (added tokens, a resized head).",
    )
    all_scores: bool = Field(
        default=False,
        description="Log every score of every reference, norms and shares to the trainer's log, "
        "beside what decides.",
    )
    per_layer: bool = Field(
        default=False,
        description="Also log how far the run went along each behaviour in each layer.",
    )
    record: bool = Field(
        default=False,
        description="Keep each reading's task vector beside the journal, for `wvmonitor rescore`.",
    )
    record_rank: int = Field(
        16, ge=1, description="Rank of what `record` keeps of a fully trained matrix."
    )
    record_limit_gb: float = Field(
        4.0,
        gt=0,
        allow_inf_nan=False,
        description="Most that a run's recorded task vectors may take on disk, in 10⁹ bytes.",
    )
    action: Literal["log", "save", "stop"] = Field(
        "log", description="What to do at a verdict of action_level: note it, save, or stop."
    )
    inoculate: Doses = Field(
        {},
        description="References that ride along in memory while training, so that it need not "
        "learn them, and how much of each (k); without a number, the smallest measured dose at "
        "which the base shows the behaviour in 80 %, or else the one at which it does most. They "
        "are in no checkpoint.",
    )
    on_alarm: Literal["nothing", "probe", "inoculate", "rollback"] = Field(
        "nothing",
        description="At a behaviour's first alarm: ask the live model about it; inoculate from "
        "then on, the dose so far taken out; or go back to the last checkpoint that was ok.",
    )
    after_rollback: Literal["inoculate", "stop"] = Field(
        "inoculate", description="Once gone back: go on with inoculation, or stop there."
    )
    probe_questions: UserPath | None = Field(
        None, description="File of held-out questions for the probe, where none is handed in."
    )
    probe_seconds: float = Field(
        120.0, gt=0, allow_inf_nan=False, description="Most seconds that a probe may take."
    )
    action_level: Literal["warn", "alarm"] = Field(
        "alarm", description="The mildest verdict at which `action` is taken."
    )
    allow_uncalibrated_stop: bool = Field(
        default=False, description="Let action=stop rest on verdicts without a calibration."
    )
    on_monitor_failure: Literal["continue", "stop"] = Field(
        "continue", description="Whether training goes on when the monitor itself fails."
    )
    disable_after: int = Field(
        3, ge=1, description="Readings that fail in a row after which the monitor gives up."
    )
    expected: Names = Field(
        (), description="References whose drift is wanted in this run: no alerts, no action."
    )
    alert_level: Literal["warn", "alarm"] = Field(
        "warn", description="The mildest verdict that notifiers are told of."
    )
    resolve_after: int = Field(
        3, ge=1, description="Readings in a row that must be ok before an alert is over."
    )
    runbook_url: Annotated[str, AfterValidator(_link)] | None = Field(
        None, description="Where the pages on each alert are; alerts link to BASE/ALERT/."
    )
    dashboard_url: Annotated[str, AfterValidator(_link)] | None = Field(
        None, description="A dashboard that alerts link to; var-run and var-reference are added."
    )
    prometheus: PrometheusSettings = Field(
        PrometheusSettings(), description="Metrics for Prometheus."
    )
    notifiers: Annotated[tuple[NotifierSettings, ...], BeforeValidator(_listed)] = Field(
        (), description="Who is told of verdicts."
    )

    def __init__(self, **values: Any) -> None:
        _check_environment()
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError(_one_line(error)) from None
        except SourceError as error:
            raise SettingsError(f"an environment variable cannot be read: {error}") from None
        self.build_notifiers()

    @classmethod
    def given(cls, path: Path | None, **values: Any) -> MonitorSettings:
        """Settings from `values`, the environment and, where one is named, a YAML file."""
        return cls(**values) if path is None else cls.from_yaml(path, **values)

    @classmethod
    def from_yaml(cls, path: str | Path, **values: Any) -> MonitorSettings:
        """Settings from a YAML file; `values` and the environment win over it.

        Raises:
            SettingsError: the file is missing, not YAML, or holds what cannot be.
        """
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingsError(f"settings '{path}' cannot be read: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            mark = getattr(error, "problem_mark", None)
            where = f" (line {mark.line + 1})" if mark else ""
            raise SettingsError(f"settings '{path}' are not YAML{where}") from None
        if content is None:
            content = {}
        if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
            raise SettingsError(f"settings '{path}' must be a mapping of names to values")
        token = _yaml_values.set(content)
        try:
            return cls(**values)
        except SettingsError as error:
            raise SettingsError(f"{error} (settings '{path}')") from None
        finally:
            _yaml_values.reset(token)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # pydantic's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The order in which sources win."""
        content = InitSettingsSource(settings_cls, dict(_yaml_values.get() or {}))
        return init_settings, env_settings, content

    def redacted_json(self) -> str:
        """The settings as JSON without secrets, for journals and reports."""
        return self.model_dump_json()

    def build_exporters(self) -> list[Exporter]:
        """The exporters these settings ask for, already at work; close each when the run ends."""
        layers = LAYERS_SHOWN if self.per_layer else 0
        return [self.prometheus.build(layers, self.expected)] if self.prometheus.wanted else []

    def build_notifiers(self) -> dict[str, Notifier]:
        """The notifiers by name: their kind, numbered where there are several of one."""
        built: dict[str, Notifier] = {}
        for settings in self.notifiers:
            count = sum(name.split("-")[0] == settings.kind for name in built)
            built[f"{settings.kind}-{count + 1}" if count else settings.kind] = settings.build()
        return built

    def alert_policy(self, checkpoints: Callable[[str], Sequence[int]]) -> AlertPolicy:
        """Who is told what, for `Journal.open`; `checkpoints` gives those of a run on disk."""
        notifiers = self.build_notifiers()
        return AlertPolicy(
            targets=tuple(notifiers),
            level=self.alert_level,
            resolve_after=self.resolve_after,
            expected=self.expected,
            refreshed=tuple(name for name, notifier in notifiers.items() if notifier.forgetful),
            where=Whereabouts(
                host=this_host(),
                job=this_job(),
                runbooks=self.runbook_url,
                dashboard=self.dashboard_url,
                checkpoints=checkpoints,
            ),
        )


def _check_environment() -> None:
    """Refuse misspelt `WVMONITOR_*` variables; ones that resemble no setting are someone else's.

    (Kubernetes, for one, sets WVMONITOR_SERVICE_HOST in every pod beside a service of that name.)
    """
    known = list(MonitorSettings.model_fields)
    for variable in os.environ:
        if variable.upper().startswith(PREFIX):
            key = variable[len(PREFIX) :].lower().split("__")[0]
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
            if key not in known and near:
                raise SettingsError(
                    f"the environment variable {variable} is not a setting: did you mean "
                    f"{PREFIX}{near[0].upper()}?"
                )


def _one_line(error: ValidationError) -> str:
    """Every complaint of pydantic in one sentence, without the values of secrets."""
    return "; ".join(_complaint(details) for details in error.errors(include_url=False))


def _complaint(details: Any) -> str:
    location = [part for part in details["loc"] if part not in _KINDS]
    name = ".".join(str(part) for part in location)
    if details["type"] == "extra_forbidden":
        known = _fields_at(details["loc"][:-1])
        near = difflib.get_close_matches(str(details["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        return f"{name} is not a setting: {hint}"
    message = details["msg"].removeprefix("Value error, ")
    text = f"{name}: {message[:1].lower()}{message[1:]}"
    value = details["input"]
    if isinstance(value, (str, int, float)) and not _SENSITIVE.intersection(location):
        text += f", got {value!r}"
    variable = PREFIX + "__".join(str(part) for part in location).upper()
    return f"{text} (from {variable})" if variable in os.environ else text


_KINDS: dict[object, type[BaseModel]] = {
    model.model_fields["kind"].default: model for model in NOTIFIER_SETTINGS
}
_SENSITIVE = frozenset({"url", "token", "secret"})


def _fields_at(location: tuple[Any, ...]) -> list[str]:
    """The names that are settings at a place in the model."""
    model: type[BaseModel] = MonitorSettings
    if location and location[0] == "prometheus":
        model = PushgatewaySettings if "pushgateway" in location else PrometheusSettings
    for part in location:
        model = _KINDS.get(part, model)
    return list(model.model_fields)
