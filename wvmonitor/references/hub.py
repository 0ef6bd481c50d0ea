"""Banks to and from the Hugging Face Hub: pinned, checked, and private unless told otherwise.

Of a repository, only the files that a bank is made of are ever downloaded.
"""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from wvmonitor.errors import BankError, HubError, MissingPathError
from wvmonitor.files.documents import write_json
from wvmonitor.files.storage import open_storage, shown
from wvmonitor.references.bank import ReferenceBank
from wvmonitor.references.inventory import (
    PROVENANCE_FILE,
    HubId,
    Provenance,
    cache_folder,
    is_private,
    provenance_of,
    summarise,
)
from wvmonitor.references.reference import CARD_FILE, FILES
from wvmonitor.references.signing import verify_signature
from wvmonitor.references.store import (
    BESIDE,
    GRAM_FILE,
    MANIFEST_FILE,
    PROBE_FILE,
    SIGNATURE_FILE,
    read_manifest,
)

_AT_THE_TOP = (MANIFEST_FILE, GRAM_FILE, PROBE_FILE, *BESIDE, SIGNATURE_FILE)
_BANK_FILE = re.compile(
    "|".join(re.escape(name) for name in _AT_THE_TOP)
    + rf"|[A-Za-z0-9][A-Za-z0-9._-]{{0,99}}/({'|'.join(re.escape(name) for name in FILES)})"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Pulled:
    """A bank that was pulled, or lay there already.

    Attributes:
        folder: where it is now.
        revision: the commit; the bank pinned is `repo@revision`.
        downloaded: False if this revision lay there already.
    """

    folder: Path
    repo: str
    revision: str
    fingerprint: str
    downloaded: bool


@dataclass(frozen=True)
class Pushed:
    """A bank that was pushed; pinned, it is `repo@revision`."""

    repo: str
    revision: str
    fingerprint: str
    public: bool


def pull(
    bank: str | HubId,
    out: str | Path | None = None,
    *,
    base_digest: str | None = None,
    public_key: str | Path | None = None,
) -> Pulled:
    """Fetch a bank; it takes its place only when all of it has been checked.

    A branch or tag is resolved to its commit first, which is then recorded. The cards come first,
    so that a bank for another base is refused before its weights are fetched. Files from a private
    repository get mode 0600.

    Args:
        bank: `ORG/NAME`, or `ORG/NAME@REVISION` with a commit, branch or tag.
        out: the folder to make; one for this commit in the cache if not given.
        base_digest: of the base model that the bank must be for, or a relative of it.
        public_key: a PEM file; then the bank must bear a signature made with its other half.

    Raises:
        HubError: the Hub cannot be reached, or holds no such bank.
        BaseMismatchError: the bank was made for another base.
        AlteredBankError: a file is not the one that the manifest lists.
        SignatureError: the signature is missing or does not hold.
        BankError: `out` holds something else.
    """
    where = HubId.parse(bank) if isinstance(bank, str) else bank
    if out is None and where.revision and _COMMIT.fullmatch(where.revision):
        folder = _in_cache(where.repo, where.revision)
        if folder.is_dir():  # a commit does not change: the Hub has nothing to add
            return _kept(folder, where.repo, where.revision, base_digest, public_key)
    commit, names, private = _contents(where)
    target = _in_cache(where.repo, commit) if out is None else Path(out)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        return _kept(target, where.repo, commit, base_digest, public_key)
    with _staging(target, private=private) as staging:
        documents = [n for n in names if n == MANIFEST_FILE or n.endswith(f"/{CARD_FILE}")]
        _download(where.repo, commit, documents, staging)
        _refuse_other_base(staging, base_digest)
        _download(where.repo, commit, [n for n in names if n not in documents], staging)
        shutil.rmtree(staging / ".cache", ignore_errors=True)  # huggingface_hub's own notes
        fingerprint = _checked(staging, base_digest, public_key)
        record = Provenance(repo=where.repo, revision=commit, fingerprint=fingerprint)
        write_json(staging / PROVENANCE_FILE, record.model_dump())
        for path in staging.rglob("*"):
            if path.is_file():
                path.chmod(0o600 if private else 0o644)
    return Pulled(target, where.repo, commit, fingerprint, downloaded=True)


def push(
    folder: str | Path,
    repo: str,
    *,
    public: bool = False,
    allow_harmful: bool = False,
    allow_private: bool = False,
) -> Pushed:
    """Upload a bank in one commit, after checking it whole.

    Files of a bank that an earlier commit held and this one does not are removed there; other files
    of the repository, its front page for instance, stay.

    Args:
        folder: of the bank.
        repo: `ORG/NAME`; made if it is not there, private unless `public`.
        public: the repository is (to be) public. One of the other visibility is refused.
        allow_harmful: publish references that make a model worse when they are added.
        allow_private: upload a bank whose files are for their owner alone.

    Raises:
        BankError: private, or harmful and to be public, without the word that allows it.
        HubError: the Hub cannot be reached, refuses, or has the repository under the other
            visibility.
    """
    from huggingface_hub import HfApi

    where = HubId.parse(repo)
    if where.revision is not None:
        raise HubError(f"{where}: a push makes a new revision, leave @{where.revision} out")
    source = Path(folder)
    bank = ReferenceBank.load(source)
    if is_private(source) and not allow_private:
        raise BankError(
            f"{source} is private (mode 0600), and whoever gets it can train around it: say "
            "--even-private if it is to be uploaded all the same"
        )
    harmful = [r.name for r in bank if r.card.harmful]
    if public and harmful and not allow_harmful:
        raise BankError(
            f"{', '.join(harmful)} make a model worse when they are added, and everybody could add "
            "them: push to a private repository, or say --i-understand"
        )
    beside = [n for n in (*BESIDE, SIGNATURE_FILE) if (source / n).exists()]
    for name in beside:  # the manifest does not list them: a link must not lead elsewhere
        open_storage(source / name, source).close()
    api = HfApi()
    with asking(where.repo):
        api.create_repo(where.repo, private=not public, exist_ok=True)
        # An organisation's rules, or someone before us, may have decided otherwise.
        found_public = not api.model_info(where.repo).private
        if found_public != public:
            raise HubError(
                f"{where.repo} is {'public' if found_public else 'private'} on the Hub and was to "
                f"be {'public' if public else 'private'}: nothing was uploaded; change it there, "
                f"or {'leave out' if public else 'say'} --public"
            )
        done = api.upload_folder(
            repo_id=where.repo,
            folder_path=source,
            allow_patterns=[MANIFEST_FILE, *read_manifest(source), *beside],
            delete_patterns=[*_AT_THE_TOP, *(f"*/{name}" for name in FILES)],
            commit_message=f"wvmonitor bank {bank.fingerprint[:12]}",
        )
    return Pushed(where.repo, done.oid, bank.fingerprint, public)


def _contents(where: HubId) -> tuple[str, list[str], bool]:
    """The commit that a revision stands for, the bank's files in it, and whether it is private."""
    from huggingface_hub import HfApi

    with asking(str(where)):
        info = HfApi().model_info(where.repo, revision=where.revision)
    names = [s.rfilename for s in info.siblings or [] if _BANK_FILE.fullmatch(s.rfilename)]
    if not _COMMIT.fullmatch(info.sha or ""):
        raise HubError(f"{where}: the Hub names no commit, but {shown(info.sha)}: try again")
    if MANIFEST_FILE not in names:
        raise HubError(
            f"{where} holds no bank of references ({MANIFEST_FILE} is missing): check the name"
        )
    return str(info.sha), names, info.private is not False


def _download(repo: str, commit: str, names: Iterable[str], folder: Path) -> None:
    # One by one, and not as a snapshot: that would make do with what lies there if the Hub fails.
    from huggingface_hub import hf_hub_download

    for name in names:
        with asking(f"{repo}@{commit[:12]}"):
            hf_hub_download(repo, name, revision=commit, local_dir=folder)


def _refuse_other_base(folder: Path, digest: str | None) -> None:
    for card in summarise(folder).cards:
        card.base.relation_to(digest)


def _checked(folder: Path, base_digest: str | None, public_key: str | Path | None) -> str:
    """Check everything there is to check of a bank's folder; gives its fingerprint."""
    if public_key is not None:
        verify_signature(folder, public_key)
    bank = ReferenceBank.load(folder)
    bank.relation_to(base_digest)
    return bank.fingerprint


def _kept(
    folder: Path, repo: str, commit: str, base_digest: str | None, public_key: str | Path | None
) -> Pulled:
    record = provenance_of(folder)
    if record is None or (record.repo, record.revision) != (repo, commit):
        raise BankError(
            f"{folder} is there, and is not {repo}@{commit[:12]}: name another folder with --out"
        )
    fingerprint = _checked(folder, base_digest, public_key)
    return Pulled(folder, repo, commit, fingerprint, downloaded=False)


def _in_cache(repo: str, commit: str) -> Path:
    return cache_folder() / repo / commit


@contextmanager
def _staging(target: Path, *, private: bool) -> Iterator[Path]:
    """A hidden folder beside `target`, which becomes it when the block ends well."""
    if not target.parent.is_dir():
        target.parent.mkdir(parents=True)
    staging = target.parent / f".{target.name}-{secrets.token_hex(8)}.tmp"
    staging.mkdir(mode=0o700)
    try:
        yield staging
        if not private:
            staging.chmod(0o755)
        staging.rename(target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


@contextmanager
def asking(what: str) -> Iterator[None]:
    """What can go wrong between here and the Hub, in words for people.

    Raises:
        HubError: the Hub cannot be reached, refuses, or has not what was asked for.
        MissingPathError: it is no name for a repository.
    """
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # The root of whichever HTTP library this huggingface_hub uses.
    transport_error: type[Exception] = HfHubHTTPError.__mro__[1]
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise HubError(
            f"{what} is on the Hub, and HF_HUB_OFFLINE is set: unset it for this command"
        ) from error
    except RevisionNotFoundError as error:
        raise HubError(f"{what}: the Hub has no such revision") from error
    except RepositoryNotFoundError as error:
        raise HubError(
            f"{what} is not on the Hub, or not for you to see: check the name, ask for access "
            "there, or log in with `hf auth login`"
        ) from error
    except HFValidationError as error:
        raise MissingPathError(f"{shown(what)} is no name for a repository: {error}") from error
    except (OSError, transport_error) as error:
        raise HubError(
            f"{what}: the exchange with the Hub failed ({shown(error)}): nothing was changed here; "
            "try again"
        ) from error
