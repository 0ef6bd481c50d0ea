"""The gate inside vLLM, against a stand-in with vLLM's own interface (vllm/lora/resolver.py)."""
# ruff: noqa: F401, F811  fixtures of the scan's tests

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import sys
import threading
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.scan.conftest import bad_adapter, evil, good_adapter, innocent, save_adapter
from wvmonitor.errors import BaseMismatchError, MissingPathError, SettingsError
from wvmonitor.integrations import vllm as plugin
from wvmonitor.integrations.vllm import ADAPTERS, Gate, register
from wvmonitor.references import ReferenceBank
from wvmonitor.testing import planted_bank
from wvmonitor.testing import tiny_base as make_base


class LoRAResolver(ABC):
    """vLLM's base class of resolvers."""

    @abstractmethod
    async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:
        """A request for an adapter, or None."""


@dataclass
class LoRARequest:
    """vLLM's record of an adapter to load, with its checks."""

    lora_name: str
    lora_int_id: int
    lora_path: str = ""

    def __post_init__(self) -> None:
        if self.lora_int_id < 1:
            raise ValueError(f"id must be > 0, got {self.lora_int_id}")
        assert self.lora_path, "lora_path cannot be empty"


@dataclass
class Registry:
    """vLLM's registry."""

    resolvers: dict[str, LoRAResolver] = field(default_factory=dict)

    def get_supported_resolvers(self) -> Any:
        """The names."""
        return self.resolvers.keys()

    def register_resolver(self, resolver_name: str, resolver: LoRAResolver) -> None:
        """Keep one."""
        self.resolvers[resolver_name] = resolver

    def get_resolver(self, resolver_name: str) -> LoRAResolver:
        """One of them."""
        return self.resolvers[resolver_name]


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Stands in for vLLM's modules."""
    registry = Registry()
    resolver, request = ModuleType("vllm.lora.resolver"), ModuleType("vllm.lora.request")
    resolver.LoRAResolver, resolver.LoRAResolverRegistry = LoRAResolver, registry  # type: ignore[attr-defined]
    request.LoRARequest = LoRARequest  # type: ignore[attr-defined]
    for module in (ModuleType("vllm"), ModuleType("vllm.lora"), resolver, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return registry


@pytest.fixture
def adapters(good_adapter: Path, bad_adapter: Path, tmp_path: Path) -> Path:
    """A folder of a good adapter and a bad one."""
    shutil.copytree(good_adapter, tmp_path / "adapters" / "good")
    shutil.copytree(bad_adapter, tmp_path / "adapters" / "bad")
    return tmp_path / "adapters"


@pytest.fixture
def served(
    vllm: Registry,
    adapters: Path,
    tiny_base: Path,
    tiny_bank_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str], Any]:
    """Asks the registered resolver for an adapter, as vLLM's server does."""
    monkeypatch.setenv(ADAPTERS, str(adapters))
    monkeypatch.setenv("WVMONITOR_REFERENCES", str(tiny_bank_folder))
    monkeypatch.setenv("WVMONITOR_BASE", str(tiny_base))
    register()
    made = vllm.get_resolver("wvmonitor")
    assert isinstance(made, LoRAResolver)
    return lambda name: asyncio.run(made.resolve_lora("served-model", name))


def test_only_an_adapter_that_is_ok_is_served(
    served: Callable[[str], Any], adapters: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The good one is, as a copy of its two files; the bad one is not, and the log says why."""
    (adapters / "good" / "new_embeddings.safetensors").write_bytes(b"not judged, and not served")
    request = served("good")
    assert request.lora_name == "good"
    assert request.lora_int_id >= 1
    copy = Path(request.lora_path)
    assert sorted(p.name for p in copy.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    for file in copy.iterdir():
        assert file.read_bytes() == (adapters / "good" / file.name).read_bytes()
    assert copy.parent.stat().st_mode & 0o777 == 0o700
    with caplog.at_level(logging.ERROR):
        assert served("bad") is None
    assert "the adapter 'bad' is not loaded: " in caplog.text
    assert "evil warn" in caplog.text


def test_what_is_loaded_is_what_was_judged(
    served: Callable[[str], Any], adapters: Path, bad_adapter: Path
) -> None:
    """What is swapped after its verdict is judged again, and the copy stays as it was."""
    before = served("good")
    weights = Path(before.lora_path) / "adapter_model.safetensors"
    held = weights.read_bytes()
    shutil.copy(bad_adapter / "adapter_model.safetensors", adapters / "good")
    assert served("good") is None
    assert weights.read_bytes() == held


def _a_pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def _truncated(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])


def _configured(folder: Path, **said: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | said))


def _foreign_code(folder: Path) -> None:
    mapping = {"base_model_class": "M", "parent_library": "evil_module"}
    _configured(folder, auto_mapping=mapping)


def _scaled_apart(folder: Path) -> None:
    # vLLM's PEFTHelper may serve these modules at the full scale
    _configured(folder, alpha_pattern={"down_proj": 0.01})


def _started_apart(folder: Path) -> None:
    # vLLM adds B·A, which holds W's largest directions, to the untouched base
    _configured(folder, init_lora_weights="pissa")


def _no_config(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


@pytest.mark.parametrize(
    "spoil", [_a_pickle, _truncated, _foreign_code, _no_config, _scaled_apart, _started_apart]
)
def test_whatever_cannot_be_judged_is_not_served(
    spoil: Callable[[Path], None],
    served: Callable[[str], Any],
    adapters: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Pickles, damaged or missing files, code to import: no adapter, and a reason in the log."""
    spoil(adapters / "good")
    with caplog.at_level(logging.ERROR):
        assert served("good") is None
    assert "'good' is not loaded" in caplog.text


@pytest.mark.parametrize("name", ["../bad", "a/b", ".", "..", "", "good\n", "x" * 300, "\0"])
def test_names_from_requests_lead_nowhere_else(name: str, served: Callable[[str], Any]) -> None:
    """A request names an adapter of the folder, and nothing outside it."""
    assert served(name) is None


def test_a_link_out_of_the_folder_is_not_followed(
    served: Callable[[str], Any], adapters: Path, good_adapter: Path
) -> None:
    """An adapter that lies elsewhere is not in the folder of adapters."""
    (adapters / "linked").symlink_to(good_adapter)
    assert served("linked") is None
    assert served("unknown") is None


def test_a_failure_of_the_gate_itself_is_no_ok(
    served: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever breaks while judging, nothing is loaded."""

    def broken(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(plugin.Gate, "_objection", broken)
    assert served("good") is None


def test_an_adapter_is_judged_once_for_each_content(
    served: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second request for the same bytes costs no scan, and several at once cost one."""
    asked: list[Path] = []
    judged = plugin.Gate._objection

    def counted(self: Gate, folder: Path) -> str | None:
        asked.append(folder)
        return judged(self, folder)

    monkeypatch.setattr(plugin.Gate, "_objection", counted)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(served("good"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 1
    assert len({request.lora_path for request in found}) == 1


def test_without_a_folder_the_plugin_does_nothing(vllm: Registry) -> None:
    """Wherever wvmonitor is installed beside vLLM, nothing changes until it is asked for."""
    register()
    assert vllm.resolvers == {}


def test_a_gate_that_cannot_judge_does_not_start(
    vllm: Registry, adapters: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No bank, no base, another base, no folder: an error before anything is served."""
    monkeypatch.setenv(ADAPTERS, str(adapters))
    with pytest.raises(SettingsError, match="WVMONITOR_REFERENCES"):
        register()
    other = planted_bank(make_base(tmp_path / "other", seed=5))
    with pytest.raises(BaseMismatchError):
        Gate(adapters, other, tiny_base)
    with pytest.raises(MissingPathError, match="adapters"):
        Gate(tmp_path / "nowhere", planted_bank(tiny_base), tiny_base)
    assert vllm.resolvers == {}


def test_other_resolvers_are_said(
    vllm: Registry, served: Callable[[str], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Each resolver is asked in turn: one that judges nothing beside this one is warned of."""
    vllm.resolvers["Filesystem Resolver"] = vllm.get_resolver("wvmonitor")
    with caplog.at_level(logging.WARNING):
        register()
    assert "Filesystem Resolver" in caplog.text
    assert "VLLM_PLUGINS" in caplog.text


def test_vllm_finds_the_plugin() -> None:
    """The package declares the entry point that vLLM looks for, and it is this function."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    declared = project["project"]["entry-points"]["vllm.general_plugins"]
    assert declared == {"wvmonitor": "wvmonitor.integrations.vllm:register"}
    assert plugin.register is register
    assert ReferenceBank is plugin.ReferenceBank
