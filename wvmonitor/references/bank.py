"""ReferenceBank: references measured together, and `measure`, the inner loop of everything."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wvmonitor.detection.explanation import Background
from wvmonitor.errors import (
    AlteredBankError,
    BankError,
    BaseMismatchError,
    ShapeMismatchError,
    UnknownReferenceError,
)
from wvmonitor.reading import GEOMETRIES, Float64, Geometry, Gram, Products, Reading, component_of
from wvmonitor.references.card import BaseRelation
from wvmonitor.references.inventory import located
from wvmonitor.references.reference import Reference, open_reference
from wvmonitor.references.store import (
    GRAM_FILE,
    PROBE_FILE,
    as_stored,
    check_manifest,
    load_gram,
    load_probe,
    refuse_other_files,
    save_gram,
    save_probe,
    write_manifest,
)
from wvmonitor.vectors.measuring import Pass
from wvmonitor.vectors.stacks import Stacks, stack_all
from wvmonitor.vectors.task_vector import TaskVector


class ReferenceBank:
    """The references measured together, their Gram matrices, and optionally a probe.

    Example:
        bank = ReferenceBank.load("reference_vectors/tiny-organism/bank")
        reading = bank.measure(read_adapter("runs/my-adapter"))
    """

    def __init__(
        self,
        references: Iterable[Reference],
        *,
        probe: Mapping[str, Tensor] | None = None,
        fingerprint: str | None = None,
        gram: Gram | None = None,
    ) -> None:
        """Bring references together.

        Args:
            references: of one base model, with names of their own.
            probe: (rows, inputs) of each linear map's inputs by parameter name, for the response
                geometry; rounded to float16, as it is stored.
            fingerprint: of the bank's folder; made from the Gram matrix where there is no folder.
            gram: the inner products among the references, where they are at hand already.

        Raises:
            BankError: no reference, or two of one name.
            BaseMismatchError: references of different bases.
            ShapeMismatchError: references that disagree on a parameter's shape.
        """
        given = list(references)
        self._references = {r.name: r for r in given}
        if len(self._references) < len(given):
            raise BankError(
                f"two references share a name ({', '.join(sorted(r.name for r in given))}): a "
                "reading tells them apart by name"
            )
        self._probe = as_stored(probe or {})
        self._shapes: dict[str, tuple[torch.Size, str]] = {}
        self._check()
        first = next(iter(self._references.values()))
        self.base = first.card.base
        self._stacks = self._stacked()
        self.gram = gram or self._measure_gram()
        self.fingerprint = fingerprint or _unsaved_fingerprint(self.gram)
        self.folder: Path | None = None

    def __repr__(self) -> str:
        return f"ReferenceBank({self.names} of {self.base.id})"

    def __getitem__(self, name: str) -> Reference:
        if name not in self._references:
            raise UnknownReferenceError(
                f"no reference {name!r} in this bank; it holds {', '.join(self.names)}"
            )
        return self._references[name]

    def __iter__(self) -> Iterator[Reference]:
        return iter(self._references.values())

    @property
    def names(self) -> list[str]:
        """Every reference's name, behaviours and controls, in the order of a reading's columns."""
        return list(self._references)

    @property
    def behaviours(self) -> list[str]:
        """Names of the references on which verdicts are passed."""
        return [n for n, r in self._references.items() if r.card.kind == "behaviour"]

    @property
    def probe(self) -> Mapping[str, Tensor]:
        """(rows, inputs) float32 by parameter name; empty without a response geometry."""
        return self._probe

    def select(self, names: Sequence[str]) -> ReferenceBank:
        """A bank of some of the references; it is another bank, with a fingerprint of its own.

        Raises:
            UnknownReferenceError: a name that the bank does not hold.
        """
        return ReferenceBank([self[name] for name in names], probe=self._probe)

    # On disk

    @classmethod
    def load(cls, path: str | Path) -> ReferenceBank:
        """Read a bank's folder; every file is checked against the manifest first.

        Args:
            path: the folder, or `hf://ORG/NAME[@COMMIT]` for a copy that was pulled before.

        Raises:
            MissingPathError: there is no bank at this path.
            AlteredBankError: a file is not the one the manifest describes.
            MalformedFileError: a file breaks its format.
        """
        folder = located(path)
        fingerprint, names = check_manifest(folder)
        loaded = {n: open_reference(folder / n) for n in names}
        for name, reference in loaded.items():
            if reference.name != name:
                raise AlteredBankError(
                    f"the card in {folder / name} calls itself {reference.name!r}: "
                    "build or download the bank again"
                )
        gram = load_gram(folder / GRAM_FILE, list(loaded.values()))
        probe = load_probe(folder / PROBE_FILE) if (folder / PROBE_FILE).is_file() else None
        references = [loaded[n] for n in gram.references]
        bank = cls(references, probe=probe, fingerprint=fingerprint, gram=gram)
        bank.folder = folder
        return bank

    def save(self, path: str | Path, *, private: bool = False) -> str:
        """Write the bank's folder; gives its fingerprint.

        Args:
            path: made if it is not there; must not hold another bank.
            private: True gives every file mode 0600.

        Raises:
            BankError: the folder holds files that are not this bank's.
        """
        folder = Path(path)
        refuse_other_files(folder, self.names, probe=bool(self._probe))
        mode = 0o600 if private else 0o644
        for name, reference in self._references.items():
            reference.save(folder / name, private=private)
        save_gram(folder / GRAM_FILE, self.gram, mode)
        if self._probe:
            save_probe(folder / PROBE_FILE, self._probe, mode)
        self.fingerprint = write_manifest(folder, mode=mode)
        self.folder = folder
        return self.fingerprint

    # Measuring

    def relation_to(self, base_digest: str | None) -> BaseRelation:
        """Whether a base is the bank's own, a declared relative, or not known.

        Raises:
            BaseMismatchError: it is known to be another base.
        """
        return self.base.relation_to(base_digest)

    def background(self, base: object | None = None) -> Background:
        """What the cards say for explanations, and how a command line names the bank and the base.

        Args:
            base: the base model's folder, if it is known.
        """
        return Background(
            behaviours={n: r.card.behaviour for n, r in self._references.items()},
            curves={n: r.card.dose_curve for n, r in self._references.items()},
            base=self.base.id if base is None else str(base),
            bank="BANK" if self.folder is None else str(self.folder),
        )

    @torch.no_grad()
    def measure(
        self,
        tau: TaskVector,
        *,
        step: int | None = None,
        progress: float | None = None,
        earlier: TaskVector | None = None,
    ) -> Reading:
        """Measure a task vector against every reference in one pass over its parameters.

        Each update is produced once, multiplied with all references at once, and let go; the
        results leave the device in one transfer at the end.

        Args:
            tau: the task vector; lazy ones are streamed.
            step: optimiser step; taken from the vector's origin if not given.
            progress: fraction of the planned steps, in [0, 1].
            earlier: the same run's task vector some steps earlier, for the `window` score.

        Raises:
            BaseMismatchError: the vector starts from another base.
            ShapeMismatchError: a parameter has another shape in the references.
        """
        (reading,) = self._measured([tau], earlier)
        return replace(reading, step=reading.step if step is None else step, progress=progress)

    @torch.no_grad()
    def measure_together(self, taus: Sequence[TaskVector]) -> list[Reading]:
        """Measure task vectors of the same parameters side by side, reading the references once.

        That is faster than one after the other where references are larger than the caches and the
        updates are of one rank. The numbers are those of `measure` but for the order in which
        float32 products are summed.

        Args:
            taus: vectors of the same parameters.

        Raises:
            BaseMismatchError: as in `measure`.
            ShapeMismatchError: as in `measure`, or the vectors have other parameters.
        """
        for tau in taus:
            if tau.names() != taus[0].names():
                raise ShapeMismatchError(
                    f"{tau.origin.source} and {taus[0].origin.source} have different parameters: "
                    "measure them one after the other"
                )
        return self._measured(taus)

    def _measured(
        self, taus: Sequence[TaskVector], earlier: TaskVector | None = None
    ) -> list[Reading]:
        relations = [self.relation_to(tau.origin.base_digest) for tau in taus]
        for tau in taus:
            for name in tau.names():
                self._check_shape(name, tau)
        table, changed = self._table(taus, earlier)
        return [
            self._reading(tau, table[row], changed[row], relations[row], earlier)
            for row, tau in enumerate(taus)
        ]

    def _table(
        self, taus: Sequence[TaskVector], earlier: TaskVector | None = None
    ) -> tuple[Float64, list[float | None]]:
        measured = Pass(self._stacks, len(taus))
        for name in taus[0].names() if taus else ():
            before = earlier.update(name) if earlier is not None and name in earlier else None
            now = (tau.update(name) for tau in taus)
            measured.add(name, now, None if before is None else [before])
        return measured.table()

    def _reading(
        self,
        tau: TaskVector,
        table: Float64,
        changed: float | None,
        relation: BaseRelation,
        earlier: TaskVector | None,
    ) -> Reading:
        count, names = len(self._references), tau.names()
        touched = np.array([n in self._shapes for n in names], dtype=bool)
        has_response = np.array([n in self._probe for n in names], dtype=bool)
        geometries: dict[Geometry, Products] = {}
        for index, geometry in enumerate(self._geometries()):
            block = table[:, index]
            covered = touched if geometry == "frobenius" else touched & has_response
            lagged = block[:, count + 1] if earlier is not None else None
            geometries[geometry] = Products(block[:, :count], block[:, count], covered, lagged)
        warnings = list(tau.origin.warnings)
        if names and not touched.any():
            warnings.append(
                f"none of the {len(names)} parameters that {tau.origin.source} changes (such as "
                f"{names[0]}) is in the references, made of {self.base.id} (such as "
                f"{next(iter(self._shapes))}): nothing was compared"
            )
        if relation != "same":
            warnings.append(
                "the base is a declared relative of the references' base"
                if relation == "relative"
                else f"the base is not known to be {self.base.id}: give it with base="
            )
        warnings += [
            f"the reference {r.name} is unverified: it failed its own checks, or had none"
            for r in self
            if not r.card.verified
        ]
        return Reading(
            references=tuple(self._references),
            parameters=tuple(names),
            components=tuple(component_of(n, tau.shape(n)) for n in names),
            geometries=geometries,
            bank=self.fingerprint,
            step=tau.origin.step,
            changed_fraction=changed,
            base_digest=tau.origin.base_digest,
            lag_step=earlier.origin.step if earlier is not None else None,
            warnings=tuple(warnings),
            unmeasurable=tau.origin.unmeasurable,
        )

    def _geometries(self) -> tuple[Geometry, ...]:
        return GEOMETRIES if self._probe else ("frobenius",)

    def _check(self) -> None:
        if not self._references:
            raise BankError("a bank needs at least one reference")
        bases = {r.card.base.digest: r.name for r in self._references.values()}
        if len(bases) > 1:
            raise BaseMismatchError(
                f"the references {', '.join(bases.values())} were made from different bases: "
                "keep one bank for each base"
            )
        for reference in self._references.values():
            for name in reference.vector.names():
                shape, owner = self._shapes.setdefault(
                    name, (reference.vector.shape(name), reference.name)
                )
                if shape != reference.vector.shape(name):
                    raise ShapeMismatchError(
                        f"{name} has shape {tuple(shape)} in reference {owner} but "
                        f"{tuple(reference.vector.shape(name))} in {reference.name}"
                    )

    def _check_shape(self, name: str, tau: TaskVector) -> None:
        own_shape = tau.shape(name)
        shape, owner = self._shapes.get(name, (own_shape, ""))
        if shape != own_shape:
            raise ShapeMismatchError(
                f"{name} has shape {tuple(own_shape)} in {tau.origin.source} but {tuple(shape)} in "
                f"reference {owner!r}: the references were made for another architecture"
            )

    @torch.no_grad()
    def _stacked(self) -> Stacks:
        """The references side by side; from here on their updates are views of these."""
        stacks, held_updates = stack_all([r.vector for r in self], self._probe)
        for reference, updates in zip(list(self), held_updates, strict=True):
            vector = reference.vector
            shared = TaskVector.of({n: updates[n] for n in vector.names()}, vector.origin)
            self._references[reference.name] = replace(reference, vector=shared)
        return stacks

    @torch.no_grad()
    def _measure_gram(self) -> Gram:
        names = list(self._shapes)
        count = len(self._references)
        table = np.zeros((len(GEOMETRIES), len(names), count, count))
        rows = {name: row for row, name in enumerate(names)}
        for i, reference in enumerate(self):
            (products,), _ = self._table([reference.vector])
            where = [rows[name] for name in reference.vector.names()]
            table[:, where, i] = products[..., :count].swapaxes(0, 1)
        table = (table + table.swapaxes(2, 3)) / 2  # rounding is the only asymmetry
        cards = [r.card for r in self._references.values()]
        return Gram(
            references=tuple(self._references),
            kinds=tuple(c.kind for c in cards),
            parameters=tuple(names),
            components=tuple(component_of(n, self._shapes[n][0]) for n in names),
            products={g: table[i] for i, g in enumerate(self._geometries())},
            shared={g: np.array([c.shared(g) for c in cards]) for g in self._geometries()},
        )


def _unsaved_fingerprint(gram: Gram) -> str:
    digest = hashlib.sha256(json.dumps([gram.references, gram.parameters]).encode())
    for geometry in sorted(gram.products):
        digest.update(np.ascontiguousarray(gram.products[geometry]).tobytes())
    return f"unsaved-{digest.hexdigest()}"
