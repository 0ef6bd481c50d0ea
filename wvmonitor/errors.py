"""Every error a user can meet.

Each names what was wrong, in which file or key, and what to do next, in one sentence.

```
WVMonitorError
├── InputError                     something handed in cannot be used
│   ├── MissingPathError           a path that does not exist, or holds nothing readable
│   ├── UnsafeFileError            a file refused before it is opened (pickle, FIFO, stray link)
│   ├── MalformedFileError         a file that breaks its own format (header, index, JSON)
│   ├── AdapterError               an adapter whose configuration or tensors contradict each other
│   │   └── UnsupportedAdapterError  a kind of adapter that has no task vector, or that is not known
│   ├── KeyMismatchError           tensors on one side only
│   ├── ShapeMismatchError         the same name, another shape
│   ├── NonFiniteError             NaN or infinity in weights
│   ├── QuantizedWeightsError      quantised weights without the base they stand for
│   ├── LossyEditError             an edit that the dtype of the weights cannot hold
│   ├── BaseMismatchError          made from another base model
│   ├── UnjudgedPartError          weights or code beside what was judged, where none may be
│   └── UnmeasurableModelError     a live model in a state that cannot be read exactly
├── BankError                      a reference or bank of references
│   ├── UnknownReferenceError      a name the bank does not hold
│   ├── AlteredBankError           a file whose digest is not the manifest's
│   ├── SignatureError             a signature that is missing or does not hold
│   ├── HubError                   the Hub cannot be reached, or refuses
│   └── FormatVersionError         written by a newer version
├── BuildError                     a reference that cannot be built from what there is
├── CalibrationError               a calibration that does not fit, or too few runs to make one
├── SettingsError                  settings of a monitor that contradict each other or are malformed
├── JournalError                   the durable record of a run
└── MonitorFailedError             the monitor failed and `on_monitor_failure="stop"` was asked for
```
"""

from __future__ import annotations


class WVMonitorError(Exception):
    """The root: catch this to catch everything wvmonitor raises on purpose."""


class InputError(WVMonitorError):
    """Something handed in cannot be used."""


class MissingPathError(InputError):
    """A path does not exist, or holds nothing that can be read as weights."""


class UnsafeFileError(InputError):
    """A file is refused before it is opened: pickle, FIFO, device, or a link out of its root."""


class MalformedFileError(InputError):
    """A file breaks its own format: a safetensors header, an index, a JSON document."""


class AdapterError(InputError):
    """An adapter's configuration and tensors contradict each other."""


class UnsupportedAdapterError(AdapterError):
    """This kind of adapter has no task vector, or is not known to this version."""


class KeyMismatchError(InputError):
    """Tensors are present on one side of a difference only."""


class ShapeMismatchError(InputError):
    """One name stands for tensors of two shapes."""


class NonFiniteError(InputError):
    """Weights hold NaN or infinity."""


class QuantizedWeightsError(InputError):
    """Quantised weights were given without the unquantised base they stand for."""


class LossyEditError(InputError):
    """The weights' dtype is too coarse to hold an edit: too much of it would be rounded away."""


class BaseMismatchError(InputError):
    """The weights and the references were made from different base models."""


class UnjudgedPartError(InputError):
    """Weights or code lie beside what was judged, where nothing may be left unjudged (--strict)."""


class UnmeasurableModelError(InputError):
    """A live model is in a state whose task vector cannot be read exactly."""


class BankError(WVMonitorError):
    """A reference, or a bank of references, cannot be used."""


class UnknownReferenceError(BankError):
    """The bank holds no reference of that name."""


class AlteredBankError(BankError):
    """A file of a bank is not the one its manifest describes."""


class SignatureError(BankError):
    """A bank's signature is missing, or was not made over these files with this key."""


class HubError(BankError):
    """The Hugging Face Hub cannot be reached, refuses, or holds something else than asked for."""


class FormatVersionError(BankError):
    """A file was written by a newer version of wvmonitor."""


class BuildError(WVMonitorError):
    """A reference cannot be built from this model, recipe or data."""


class CalibrationError(WVMonitorError):
    """A calibration does not belong to this bank, or cannot be made from these runs."""


class SettingsError(WVMonitorError):
    """The settings of a monitor are malformed or contradict each other."""


class JournalError(WVMonitorError):
    """The durable record of a run cannot be opened, read or written."""


class MonitorFailedError(WVMonitorError):
    """The monitor failed, and the run was told to stop when it does."""
