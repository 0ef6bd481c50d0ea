"""Where settings come from, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from wvmonitor.errors import SettingsError
from wvmonitor.live.settings import MonitorSettings
from wvmonitor.outputs.exporter_options import PrometheusSettings
from wvmonitor.outputs.notifier_options import AlertmanagerSettings, WebhookSettings
from wvmonitor.outputs.prometheus import PrometheusExporter


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("WVMONITOR_"):
            monkeypatch.delenv(name)


def refused(match: str, **values: Any) -> str:
    """The one line with which settings are refused."""
    with pytest.raises(SettingsError, match=match) as caught:
        MonitorSettings(**values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_watch_and_change_nothing() -> None:
    """Without any setting the monitor only looks: every ten steps, cheaply, with no server."""
    settings = MonitorSettings()
    assert (settings.action, settings.every_n_steps, settings.max_overhead) == ("log", 10, 0.005)
    assert (settings.prometheus.enabled, settings.prometheus.host) == (False, "127.0.0.1")
    assert not settings.allow_uncalibrated_stop
    assert settings.notifiers == ()
    assert settings.components == ("blocks",)


def test_the_more_direct_source_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments win over the environment, that over YAML, that over defaults, key by key."""
    path = tmp_path / "wv.yaml"
    path.write_text(
        "every_n_steps: 20\nmax_overhead: 0.02\ndisable_after: 7\n"
        "prometheus: {enabled: true, port: 9200}\nexpected: [roleplay]\n"
    )
    monkeypatch.setenv("WVMONITOR_EVERY_N_STEPS", "30")
    monkeypatch.setenv("WVMONITOR_MAX_OVERHEAD", "0.03")
    monkeypatch.setenv("WVMONITOR_PROMETHEUS__PORT", "9300")
    settings = MonitorSettings.from_yaml(path, every_n_steps=40)
    assert (settings.every_n_steps, settings.max_overhead, settings.disable_after) == (40, 0.03, 7)
    assert (settings.prometheus.enabled, settings.prometheus.port) == (True, 9300)
    assert settings.expected == ("roleplay",)
    assert settings.window == 10
    assert MonitorSettings().disable_after == 3


@pytest.mark.parametrize(
    "text", ["blocks,embeddings", '["blocks", "embeddings"]', "blocks , embeddings"]
)
def test_lists_are_easy_to_write_in_the_environment(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list in an environment variable is names with commas, or JSON."""
    monkeypatch.setenv("WVMONITOR_COMPONENTS", text)
    assert MonitorSettings().components == ("blocks", "embeddings")


def test_misspelt_arguments_name_the_nearest_setting() -> None:
    """A misspelt setting is an error that names the right one, at any depth."""
    refused("evry_n_steps is not a setting: did you mean 'every_n_steps'", evry_n_steps=3)
    refused("prometheus.prt is not a setting: did you mean 'port'", prometheus={"prt": 1})
    refused(
        r"notifiers.0.secrt is not a setting: did you mean 'secret'",
        notifiers=[{"kind": "webhook", "url": "https://h.example", "secret": "x", "secrt": "y"}],
    )
    refused("zzz is not a setting: there are references, base, banks, ", zzz=3)


def test_misspelt_variables_and_files_are_told_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A misspelling in the environment or in YAML is named like one in an argument."""
    path = tmp_path / "wv.yaml"
    path.write_text("actoin: stop\n")
    with pytest.raises(SettingsError, match=r"'action'.*wv\.yaml"):
        MonitorSettings.from_yaml(path)
    monkeypatch.setenv("WVMONITOR_EVERY_N_STEP", "3")
    refused(r"WVMONITOR_EVERY_N_STEP is not a setting: did you mean WVMONITOR_EVERY_N_STEPS\?")


def test_other_programs_variables_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that merely share the prefix, as Kubernetes sets them, stop nothing."""
    monkeypatch.setenv("WVMONITOR_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("WVMONITOR_PORT_9108_TCP", "tcp://10.0.0.1:9108")
    MonitorSettings()


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"every_n_steps": 0}, "every_n_steps: input should be greater than or equal to 1, got 0"),
        ({"max_overhead": float("nan")}, "max_overhead"),
        ({"action": "halt"}, "action: input should be 'log', 'save' or 'stop', got 'halt'"),
        ({"components": []}, "components"),
        ({"components": ["block"]}, "components.0: .*got 'block'"),
        ({"run": "a\nb"}, "run: must be printable"),
        ({"prometheus": {"port": 70000}}, "prometheus.port: .*got 70000"),
        ({"prometheus": {"textfile": "a.txt"}}, "prometheus.textfile: must end in .prom"),
        ({"notifiers": [{"kind": "pigeon"}]}, "notifiers.0: .*pigeon"),
        ({"every_n_steps": 0, "window": 0}, "every_n_steps: .*; window: "),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(values: dict[str, Any], match: str) -> None:
    """A value that cannot be is named with what was expected and what came."""
    refused(match, **values)


def test_a_bad_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in an environment variable says which variable it was."""
    monkeypatch.setenv("WVMONITOR_EVERY_N_STEPS", "ten")
    refused("every_n_steps: .*got 'ten' .from WVMONITOR_EVERY_N_STEPS")
    monkeypatch.setenv("WVMONITOR_EVERY_N_STEPS", "10")
    monkeypatch.setenv("WVMONITOR_NOTIFIERS", "{not json")
    refused("environment variable cannot be read: .*notifiers")


@pytest.mark.parametrize(
    ("content", "match"),
    [("a: [1", r"not YAML \(line"), ("- 1\n", "must be a mapping"), (None, "cannot be read")],
)
def test_bad_files_are_named(tmp_path: Path, content: str | None, match: str) -> None:
    """A settings file that is missing or malformed is an error naming it."""
    path = tmp_path / "wv.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingsError, match=rf"wv\.yaml.*{match}"):
        MonitorSettings.from_yaml(path)


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    """An empty settings file changes nothing."""
    path = tmp_path / "wv.yaml"
    path.write_text("# nothing yet\n")
    assert MonitorSettings.from_yaml(path) == MonitorSettings()


NOTIFIERS = [
    {"kind": "webhook", "url": "https://h.example/T0KEN/x", "secret": "hunter22"},
    {"kind": "alertmanager", "url": "https://am.example", "token": "t0psecret"},
    {"kind": "webhook", "url": "env:HOOK_URL", "secret": "file:SECRET"},
]


def test_secrets_come_from_elsewhere_and_go_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Secrets are read from variables and files, and no dump, repr or log of settings holds one."""
    monkeypatch.setenv("HOOK_URL", "https://other.example/s3cret-path")
    (tmp_path / "key").write_text("filed-secret\n")
    listed = [dict(n) for n in NOTIFIERS]
    listed[2]["secret"] = f"file:{tmp_path / 'key'}"
    settings = MonitorSettings(notifiers=listed)
    webhook = settings.notifiers[2]
    assert isinstance(webhook, WebhookSettings)
    assert webhook.secret.get_secret_value() == "filed-secret"
    assert webhook.url.get_secret_value() == "https://other.example/s3cret-path"
    shown = "".join((
        settings.redacted_json(), repr(settings), str(settings), repr(settings.model_dump()),
        repr(settings.build_notifiers()),
    ))  # fmt: skip
    for secret in ("T0KEN", "hunter22", "t0psecret", "s3cret-path", "filed-secret"):
        assert secret not in shown
    assert json.loads(settings.redacted_json())["notifiers"][1]["kind"] == "alertmanager"


def test_errors_do_not_show_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error about a notifier shows neither its secret nor the path of its URL."""
    for notifier in (
        {"kind": "webhook", "url": "http://h.example/T0KEN", "secret": "hunter22"},
        {"kind": "webhook", "url": "https://u:hunter22@h.example/T0KEN", "secret": "x"},
        {"kind": "webhook", "url": "https://h.example/T0KEN", "secret": ["hunter22"]},
        {"kind": "webhook", "url": 5, "secret": "hunter22", "typo": "hunter22"},
    ):
        message = refused(".", notifiers=[notifier])
        assert "T0KEN" not in message
        assert "hunter22" not in message
    monkeypatch.setenv("WVMONITOR_NOTIFIERS", '[{"kind": "webhook", "secret": "hunter22"')
    assert "hunter22" not in refused("notifiers")


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("not a url", "must look like https"),
        ("ftp://h.example", "must look like https"),
        ("https://", "must look like https"),
        ("https://h.example:port/", "must look like https"),
        ("http://h.example/x", "unencrypted"),
        ("https://10.1.2.3/x", "private address 10.1.2.3"),
        ("https://[::ffff:10.0.0.1]/", "private address 10.0.0.1"),
        ("https://169.254.169.254/latest", "private address"),
        ("env:UNSET_VARIABLE", "UNSET_VARIABLE, which is not set"),
        ("file:/no/such/file", "which cannot be read"),
    ],
)
def test_notifiers_that_cannot_be_sent_to_are_refused_at_once(url: str, match: str) -> None:
    """A notifier's URL that is malformed or unsafe stops the start, not the first alert."""
    refused(match, notifiers=[{"kind": "webhook", "url": url, "secret": "x"}])


def test_unsafe_targets_can_be_allowed() -> None:
    """Plain http and private networks can be allowed, each by its own setting."""
    MonitorSettings(
        notifiers=[
            {"kind": "alertmanager", "url": "http://127.0.0.1:9093"},
            {"kind": "alertmanager", "url": "http://h.example", "allow_http": True},
            {"kind": "alertmanager", "url": "https://10.1.2.3", "allow_private": ["10.0.0.0/8"]},
        ]
    )


def test_alert_policy_follows_the_settings() -> None:
    """Notifiers get names by kind, and only the forgetful ones have open alerts repeated."""
    listed = [NOTIFIERS[0], NOTIFIERS[1], NOTIFIERS[0]]
    policy = MonitorSettings(
        notifiers=listed, alert_level="alarm", expected=["roleplay"], resolve_after=5
    ).alert_policy(lambda _: ())
    assert policy.targets == ("webhook", "alertmanager", "webhook-2")
    assert policy.refreshed == ("alertmanager",)
    assert (policy.level, policy.expected, policy.resolve_after) == ("alarm", ("roleplay",), 5)


@pytest.mark.parametrize(
    "model", [MonitorSettings, PrometheusSettings, AlertmanagerSettings, WebhookSettings]
)
def test_every_setting_is_described(model: type[BaseModel]) -> None:
    """Each setting says in words what it is."""
    for name, field in model.model_fields.items():
        assert field.description or name == "kind", name


def test_settings_can_be_copied_field_by_field() -> None:
    """Single settings can be replaced in a copy, notifiers and their secrets included."""
    first = MonitorSettings(notifiers=NOTIFIERS[:2], prometheus={"port": 9200}, action="save")
    values = {name: getattr(first, name) for name in first.model_fields_set}
    second = MonitorSettings(**{**values, "action": "log"})
    assert (second.notifiers, second.prometheus.port) == (first.notifiers, 9200)


def test_exporters_follow_the_settings(tmp_path: Path) -> None:
    """Metrics are served, or written to a file, only where that is asked for."""
    assert MonitorSettings().build_exporters() == []
    (served,) = MonitorSettings(prometheus={"enabled": True, "port": 0}).build_exporters()
    assert isinstance(served, PrometheusExporter)
    assert served.port is not None
    served.close()
    textfile = tmp_path / "wv.prom"
    (written,) = MonitorSettings(prometheus={"textfile": textfile}).build_exporters()
    assert isinstance(written, PrometheusExporter)
    assert written.port is None
    written.close()


def test_notifiers_may_be_named_by_their_kind(tmp_path: Path) -> None:
    """A mapping of kinds, or one notifier alone, is the list that it means; else it is said how."""
    there = {"url": "https://hooks.example.com/x", "secret": "s" * 32}
    asked = MonitorSettings(notifiers=[{"kind": "webhook", **there}])
    assert MonitorSettings(notifiers={"webhook": there}) == asked
    assert MonitorSettings(notifiers={"kind": "webhook", **there}) == asked
    with pytest.raises(SettingsError, match=r"\[\{'kind': 'webhook', 'url': …\}\]"):
        MonitorSettings(notifiers={"webhook": "https://hooks.example.com/x"})


def test_a_home_folder_is_found_by_its_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`~` in Python, YAML or the environment is what it is to a shell; no folder `~` is made."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "token").write_text("secret")
    file = tmp_path / "settings.yaml"
    file.write_text("journal_dir: ~/journals\nprometheus: {textfile: ~/wv.prom, discovery: ~/sd}\n")
    monkeypatch.setenv("WVMONITOR_BASE", "~/base")
    found = MonitorSettings.from_yaml(
        file, references="~/bank", prometheus={"token": "file:~/token", "textfile": "~/wv.prom"}
    )
    assert found.references == tmp_path / "bank"
    assert found.journal_dir == tmp_path / "journals"
    assert found.base == tmp_path / "base"
    assert found.prometheus.textfile == tmp_path / "wv.prom"
    assert found.prometheus.token is not None
    assert found.prometheus.token.get_secret_value() == "secret"
    assert MonitorSettings(references="~no-such-user/bank").references == Path("~no-such-user/bank")
