"""A model folder under the names of the live model.

Files do not always call tensors what `named_parameters()` calls them: a checkpoint may lack the
base model's prefix (GPT-2 on the Hub), and transformers 5 fuses experts that files hold one by one
into 3-D parameters. Transformers is imported only where that is so; plain checkpoints are read as
they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wvmonitor.errors import (
    KeyMismatchError,
    MalformedFileError,
    MissingPathError,
    QuantizedWeightsError,
    ShapeMismatchError,
)
from wvmonitor.files.checkpoint_files import CheckpointFiles, open_checkpoint
from wvmonitor.files.documents import read_json
from wvmonitor.files.storage import Location, joined, shown
from wvmonitor.sources import names as names_
from wvmonitor.vectors.coverage import component_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# One file per expert, blocks at the root of the name, or the parts of a multi-modal model: there,
# and only there, live names differ from the files'.
_ONE_EXPERT = re.compile(r"\.experts\.\d+\.")
_BARE_BLOCK = re.compile(r"^(?:layers?|h|blocks?)\.\d+\.")
_QUANTISED = re.compile(
    r"\.(?:absmax|nested_absmax|quant_map|quant_state\.\w+|SCB|qweight|qzeros|weight_packed"
    r"|weight_scale|weight_scale_inv)$|_(?:blocks|scales)$"
)
_LOW_PRECISION = (torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2)
# Constants of the architecture that older versions saved; they are no parameters.
_CONSTANTS = re.compile(
    r"(?:^|\.)(?:rotary_emb\.inv_freq|position_ids|masked_bias|rotary_pos_emb\.inv_freq)$"
)
# Fields by which configurations say how many layers there are, at any depth.
_LAYER_COUNTS = re.compile(
    r"(?:n|num)_(?:hidden_|encoder_|decoder_)?layers?|(?:encoder|decoder)_layers|depth"
)
_MODULES_PER_TENSOR = 10
_FEWEST_MODULES = 1000
_NOT_TOKENS = re.compile(r"pos|type|wpe")
_CAUSAL_MASK = re.compile(r"(?:^|\.)(?:attn|attention)\.bias$")


@dataclass(frozen=True)
class Fused:
    """A live parameter that files hold in parts.

    Attributes:
        converter: the transformers `WeightConverter` that makes it.
        parts: (name in the files, the converter's pattern it matched), in file order.
    """

    converter: Any
    parts: tuple[tuple[str, str], ...]


class ModelFolder:
    """The tensors of a model folder, by live names, each tied weight once.

    Attributes:
        where: how messages name the folder.
        config: its config.json, empty where there is none.
    """

    def __init__(self, path: Location) -> None:
        """Open a folder (or a `.safetensors` file); headers are checked, no tensor is read.

        Raises:
            InputError: as `files.open_checkpoint` and `files.read_json` say.
            QuantizedWeightsError: the weights are quantised.
        """
        self.path = path
        self.files: CheckpointFiles = open_checkpoint(path)
        self.where = self.files.where
        self.config: Mapping[str, Any] = {}
        if not str(path).endswith(".safetensors"):
            try:
                self.config = read_json(joined(path, "config.json"))
            except MissingPathError:
                self.config = {}
        self._refuse_quantised()
        self._sources = self._resolve()

    # What is there

    def names(self) -> list[str]:
        """Live names of the tensors, buffers included, architecture constants left out."""
        return list(self._sources)

    def __contains__(self, name: object) -> bool:
        return name in self._sources

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        source = self._source(name)
        if isinstance(source, Fused):
            return tuple(self.meta_model.get_parameter(name).shape)
        return tuple(self.files.info(source).shape)

    def dtype(self, name: str) -> torch.dtype:
        """Element type of one tensor."""
        source = self._source(name)
        key = source.parts[0][0] if isinstance(source, Fused) else source
        return self.files.info(key).dtype

    def is_conv1d(self, name: str) -> bool:
        """Whether the tensor is a Conv1D's weight, stored (inputs, outputs)."""
        return names_.is_conv1d(name, self.config.get("model_type"))

    def is_transposed(self, name: str) -> bool:
        """Whether the tensor is stored as (inputs, outputs)."""
        return names_.is_transposed(name, self.shape(name), conv1d=self.is_conv1d(name))

    # Reading

    def read(self, name: str) -> Tensor:
        """One whole tensor on the CPU, in its own dtype."""
        source = self._source(name)
        return self._fuse(name, source) if isinstance(source, Fused) else self.files.read(source)

    def row(self, name: str, index: int) -> Tensor:
        """Row `index` of one tensor, of which nothing else is read where it is not fused."""
        source = self._source(name)
        if isinstance(source, Fused):
            return self._fuse(name, source)[index]
        return self.files.read_rows(source, index, index + 1)[0]

    def is_fused(self, name: str) -> bool:
        """Whether the files hold the tensor in parts, so that it can only be read whole."""
        return isinstance(self._source(name), Fused)

    @property
    def needs_its_model(self) -> bool:
        """Whether live names could only be told by building the model, as fused tensors need it."""
        return "meta_model" in self.__dict__

    def stream(self, name: str, elements: int, count: int | None = None) -> Iterator[Tensor]:
        """One tensor's first `count` elements in flat blocks, as `SafetensorsFile.stream`.

        A fused tensor can only be made whole.
        """
        source = self._source(name)
        if isinstance(source, Fused):
            return iter(torch.split(self._fuse(name, source).reshape(-1)[:count], elements))
        return self.files.stream(source, elements, count)

    def tied_to(self, name: str) -> str | None:
        """The tensor that a head absent from the files shares, if the model ties it.

        The same goes for an encoder's or decoder's embeddings that are the model's shared ones.
        """
        component = component_of(name, (1, 1))
        if name in self or component not in ("head", "embeddings") or not self.ties_embeddings:
            return None
        owners = [
            n
            for n in self._sources
            if component_of(n, (1, 1)) == "embeddings" and not _NOT_TOKENS.search(n)
        ]
        if len(owners) != 1 or (component == "embeddings" and owners[0] != "shared.weight"):
            return None
        return owners[0]

    @cached_property
    def ties_embeddings(self) -> bool:
        """Whether the model shares its token embeddings with its head."""
        said = self.config.get("tie_word_embeddings")
        if isinstance(said, bool):
            return said
        if "model_type" not in self.config:
            return False
        # config.json leaves out what equals the class's default, which differs between classes.
        from transformers import AutoConfig

        try:
            config = AutoConfig.for_model(str(self.config["model_type"]))
        except ValueError:
            return False
        return bool(getattr(config, "tie_word_embeddings", False))

    @cached_property
    def meta_model(self) -> PreTrainedModel:
        """The model that transformers would build of this folder, on the meta device."""
        import transformers

        held = len(self.files.names())
        for field, layers in _layer_counts(self.config):
            if layers > held:
                raise MalformedFileError(
                    f"config.json of {self.where} claims {layers} layers ({field}), more than it "
                    "holds tensors: fetch the folder again"
                )
        named = self.config.get("architectures")
        name = str(named[0]) if isinstance(named, list) and named else "none named"
        kind = getattr(transformers, name, None)
        if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
            raise KeyMismatchError(
                f"the tensors of {self.where} are stored in a form that only its model class can "
                f"name, and transformers has no class {shown(name)}: save the model with "
                "save_pretrained of a class transformers knows"
            )
        try:
            # from the JSON that was read here, so that nothing in the folder is executed
            config = transformers.AutoConfig.for_model(**self.config)
            with torch.device("meta"), _at_most(_FEWEST_MODULES + _MODULES_PER_TENSOR * held):
                return kind(config)
        except Exception as error:
            raise MalformedFileError(
                f"transformers cannot build {shown(name)} from config.json of {self.where} "
                f"({shown(error)}): use the version it was saved with"
            ) from error

    # Names

    def _source(self, name: str) -> str | Fused:
        try:
            return self._sources[name]
        except KeyError:
            raise KeyMismatchError(
                f"{self.where} holds no tensor for the parameter {shown(name)}: check that it is "
                "the base that the weights were made from"
            ) from None

    def _resolve(self) -> dict[str, str | Fused]:
        kept = [n for n in self.files.names() if not self._is_constant(n)]
        if self.config and any(_ONE_EXPERT.search(n) or _BARE_BLOCK.match(n) for n in kept):
            return self._converted(kept)
        if "text_config" in self.config or "vision_config" in self.config:
            return self._converted(kept)
        return {n: n for n in kept}

    def _is_constant(self, name: str) -> bool:
        if _CONSTANTS.search(name):
            return True
        return bool(_CAUSAL_MASK.search(name)) and len(self.files.info(name).shape) == 4

    def _converted(self, kept: list[str]) -> dict[str, str | Fused]:
        if find_spec("transformers.conversion_mapping") is None:
            return self._prefixed(kept)
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )

        model = self.meta_model
        live = dict(model.state_dict())
        transforms = get_model_conversion_mapping(model)
        renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
        converters = [t for t in transforms if isinstance(t, WeightConverter)]
        by_pattern = {p: c for c in converters for p in c.source_patterns}
        gathered: dict[str, list[tuple[str, str | None]]] = {}
        for key in sorted(kept, key=dot_natural_key):
            name, pattern = rename_source_key(
                key, renamings, converters, model.base_model_prefix, live
            )
            gathered.setdefault(name, []).append((key, pattern))
        sources: dict[str, str | Fused] = {}
        for name, parts in gathered.items():
            if name not in live:
                raise KeyMismatchError(
                    f"{self.where} holds {shown(parts[0][0])}, which {type(model).__name__} of the "
                    "installed transformers does not have: use the version it was saved with"
                )
            fused = tuple((key, pattern) for key, pattern in parts if pattern is not None)
            if fused:
                sources[name] = Fused(by_pattern[fused[0][1]], fused)
            elif len(parts) == 1:
                sources[name] = parts[0][0]
            else:
                raise KeyMismatchError(
                    f"{self.where} holds {shown(parts[0][0])} and {shown(parts[1][0])}, which are "
                    f"both the parameter {shown(name)}: remove one of the two"
                )
        return sources

    def _prefixed(self, kept: list[str]) -> dict[str, str | Fused]:
        """Names by which transformers 4 loads tensors: the stored ones, but for a bare prefix."""
        model = self.meta_model
        live, prefix = model.state_dict(), f"{model.base_model_prefix}."
        sources: dict[str, str | Fused] = {}
        for key in kept:
            name = next((n for n in (key, prefix + key, key.removeprefix(prefix)) if n in live), "")
            if not name:
                raise KeyMismatchError(
                    f"{self.where} holds {shown(key)}, which {type(model).__name__} of the "
                    "installed transformers does not have: use the version it was saved with"
                )
            sources[name] = key
        return sources

    def _fuse(self, name: str, fused: Fused) -> Tensor:
        converter = fused.converter.copy(
            list(fused.converter._original_source_patterns),
            list(fused.converter._original_target_patterns),
            operations=fused.converter.operations,
        )
        for key, pattern in fused.parts:
            converter.add_tensor(name, key, pattern, self.files.read(key))
        try:
            made = converter.convert(name, model=self.meta_model, config=self.meta_model.config)
        except (RuntimeError, ValueError) as error:
            raise ShapeMismatchError(
                f"the {len(fused.parts)} parts of {shown(name)} in {self.where} do not fit together"
                f" ({shown(error)}): one is missing or of another model; fetch them again"
            ) from error
        if name not in made:
            raise KeyMismatchError(
                f"the parts of {shown(name)} in {self.where} do not make one tensor with the "
                "installed transformers: use the version it was saved with"
            )
        tensor: Tensor = made[name][0] if isinstance(made[name], list) else made[name]
        if tuple(tensor.shape) != self.shape(name):
            raise ShapeMismatchError(
                f"the parts of {shown(name)} in {self.where} make a tensor of shape "
                f"{tuple(tensor.shape)}, its config says {self.shape(name)}: fetch them again"
            )
        return tensor

    def _refuse_quantised(self) -> None:
        reason = ""
        if self.config.get("quantization_config"):
            reason = "config.json has a quantization_config"
        for name in self.files.names():
            info = self.files.info(name)
            if _QUANTISED.search(name):
                reason = f"it holds {shown(name)}"
            elif info.dtype in _LOW_PRECISION and len(info.shape) == 2:
                reason = f"{shown(name)} is {info.dtype}"
            if reason:
                break
        if reason:
            raise QuantizedWeightsError(
                f"{self.where} is quantised ({reason}), and rounding would drown what training "
                "changed: give the unquantised weights it was made from"
            )


def _layer_counts(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Every number of layers that a configuration names, those of its parts included."""
    for field, value in config.items():
        if isinstance(value, Mapping):
            yield from _layer_counts(value)
        elif isinstance(value, int) and _LAYER_COUNTS.fullmatch(field):
            yield field, value


@contextmanager
def _at_most(modules: int) -> Iterator[None]:
    """End the building of a model that would have more modules than its files could fill.

    Which fields of a configuration make modules is each architecture's own affair, so the modules
    are counted.
    """
    made = 0

    def count(*_: object) -> None:
        nonlocal made
        made += 1
        if made > modules:
            raise ValueError(f"it describes more than {modules} modules")

    handle = torch.nn.modules.module.register_module_module_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def opened(path: Location) -> Iterator[ModelFolder]:
    """A `ModelFolder` whose descriptors are closed at the end."""
    folder = ModelFolder(path)
    try:
        yield folder
    finally:
        folder.files.close()
