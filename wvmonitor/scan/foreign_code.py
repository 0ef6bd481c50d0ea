"""Code that loading a folder would import or run, beside its weights; nothing of it is imported.

PEFT's `AutoPeftModel` imports whatever module an adapter's `auto_mapping.parent_library` names, and
`megatron_core` likewise; transformers runs files that `auto_map` names where it is told to trust
them, and sentence-transformers imports the classes of `modules.json`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any

from wvmonitor.errors import InputError
from wvmonitor.files.documents import MAX_DOCUMENT_BYTES, decode_json
from wvmonitor.files.storage import Location, joined, open_storage, read_bytes, shown

# Whose modules those programs name by themselves.
_KNOWN = frozenset(
    {"transformers", "peft", "torch", "sentence_transformers", "diffusers", "timm", "trl"}
)
_CONFIGS = (
    *("adapter_config.json", "config.json", "tokenizer_config.json", "processor_config.json"),
    *("preprocessor_config.json", "video_preprocessor_config.json", "modules.json"),
)
_MOST = 5


def foreign_code(folder: Location, entries: Iterable[str]) -> list[str]:
    """What loading a folder would import or run of code that is not its libraries' own.

    Returns:
        Sentences, each naming the file and the field.
    """
    names = set(entries)
    code: list[str] = []
    for name in _CONFIGS:
        if name not in names:
            continue
        try:
            document = _document(joined(folder, name))
        except InputError as error:
            if name in ("adapter_config.json", "config.json"):
                continue  # whoever reads the weights says so
            code.append(f"what {name} makes its library import is not known: {error}")
            continue
        code += [f"{name} {what}" for what in _asked(document)]
    if "custom_generate" in names:
        code.append("custom_generate/ is code that `generate` runs where it is trusted")
    return code


def _document(where: Location) -> Mapping[str, Any]:
    with closing(open_storage(where)) as storage:
        raw = bytes(read_bytes(storage, 0, min(storage.size, MAX_DOCUMENT_BYTES)))
    if raw.lstrip()[:1] == b"[":  # modules.json is a list
        return decode_json(b'{"modules": %s}' % raw, storage.where)
    return decode_json(raw, storage.where)


def _asked(document: Mapping[str, Any]) -> Iterator[str]:
    """What a configuration names to be imported or run."""
    mapping = document.get("auto_mapping")
    library = mapping.get("parent_library") if isinstance(mapping, Mapping) else None
    if library is not None and not _is_known(library):
        yield (
            f"names the module {shown(library, 80)} (auto_mapping.parent_library), which PEFT's "
            "AutoPeftModel imports"
        )
    core = document.get("megatron_core")
    if document.get("megatron_config") and core not in (None, "megatron.core"):
        yield f"names the module {shown(core, 80)} (megatron_core), which PEFT imports"
    custom = document.get("auto_map")
    if custom:
        files = ", ".join(sorted(_strings(custom))[:_MOST])
        yield f"names code of its own ({shown(files)} in auto_map), run where it is trusted"
    modules = document.get("modules")
    types = (
        [m.get("type") for m in modules if isinstance(m, Mapping)]
        if isinstance(modules, list)
        else []
    )
    for kind in types:
        if not _is_known(kind):
            yield f"names the class {shown(kind, 80)}, which sentence-transformers imports"


def _is_known(module: object) -> bool:
    return isinstance(module, str) and module.split(".")[0] in _KNOWN


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
