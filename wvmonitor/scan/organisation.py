"""Every adapter of an organisation on the Hub, as paths to scan."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from wvmonitor.errors import MissingPathError
from wvmonitor.files.storage import shown
from wvmonitor.files.weight_names import holds_weights, neighbours

_ORGANISATION = re.compile(r"hf://([A-Za-z0-9][\w.-]*)/?")
_NOT_ORGANISATIONS = frozenset({"datasets", "spaces", "buckets", "models"})


@dataclass(frozen=True)
class Repositories:
    """What an organisation has.

    Attributes:
        adapters: URLs of the repositories that hold adapters, each at its present commit, sorted.
        others: names of those that hold weights, but no adapter.
    """

    adapters: tuple[str, ...]
    others: tuple[str, ...]


def organisation_of(path: str) -> str | None:
    """The organisation (or user) that `hf://ORG` names; None for any other path."""
    match = _ORGANISATION.fullmatch(path)
    return None if match is None or match[1] in _NOT_ORGANISATIONS else match[1]


def repositories_of(organisation: str) -> Repositories:
    """The repositories of an organisation, by what their lists of files say.

    The commit in each URL makes the scan one of definite weights, which a cache knows again.

    Raises:
        HubError: the Hub cannot be reached, or refuses.
        MissingPathError: no repository holds an adapter.
    """
    from huggingface_hub import HfApi

    from wvmonitor.references.hub import asking

    with asking(f"hf://{organisation}"):
        models = list(HfApi().list_models(author=organisation, expand=["siblings", "sha"]))
    adapters, others = [], []
    for model in models:
        names = [s.rfilename.rsplit("/", 1)[-1] for s in model.siblings or ()]
        if "adapter_config.json" in names:
            at = f"@{model.sha}" if model.sha else ""
            adapters.append(f"hf://{model.id}{at}")
        elif model.siblings is None or holds_weights(names) or neighbours(names, "model"):
            others.append(str(model.id))
    if not adapters:
        raise MissingPathError(
            f"none of the {len(models)} repositories of {shown(organisation)} that can be seen "
            "holds an adapter (adapter_config.json): check the name, log in with `hf auth login`, "
            "or give a repository as hf://ORG/REPO"
        )
    return Repositories(tuple(sorted(adapters)), tuple(sorted(others)))


def others_note(organisation: str, others: Iterable[str]) -> str:
    """What to say of the repositories that were not looked at."""
    names = list(others)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (
        f"{len(names)} repositories of {organisation} may hold weights but no adapter, and were "
        f"not judged ({shown(', '.join(names[:5]))}{more}): give them as hf://ORG/REPO"
    )
