"""A model folder under the names of the live model.

Files do not always call tensors what `named_parameters()` calls them: a checkpoint may lack the
base model's prefix (GPT-2 on the Hub), and transformers 5 fuses experts that files hold one by one
into 3-D parameters. Transformers is imported only where that is so; plain checkpoints are read as
they are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wvmonitor.errors import (
    KeyMismatchError,
    MalformedFileError,
    MissingPathError,
    NonFiniteError,
    QuantizedWeightsError,
    ShapeMismatchError,
)
from wvmonitor.files.checkpoint_files import CheckpointFiles, open_checkpoint
from wvmonitor.files.documents import read_json
from wvmonitor.files.storage import Location, joined, shown
from wvmonitor.reading import component_of
from wvmonitor.sources import names as names_
from wvmonitor.sources.conversion import Fused, build_meta_model, converted, fuse

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
# More of what quantised formats store beside or in place of weights; which it is, the tensors of a
# folder that was only *configured* as quantised tell: it holds none of them.
_PACKED = re.compile(
    r"(?:qdata|_data|_scale|scales?|codes|codebooks|W_q|meta|zero_point|g_idx|packed\w*)$"
)
_LOW_PRECISION = (torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2)
# Constants of the architecture that older versions saved; they are no parameters.
_CONSTANTS = re.compile(
    r"(?:^|\.)(?:rotary_emb\.inv_freq|position_ids|masked_bias|rotary_pos_emb\.inv_freq)$"
)
_COMPARED_ELEMENTS = 1 << 20
# What gives a token's logits, which may be its embedding; a classifier's or reward's head is not.
_LM_HEAD = re.compile(
    r"(?:^|\.)(?:lm_head|embed_out|output_projection|predictions\.decoder)\.weight$"
)
_TOKEN_EMBEDDING = re.compile(
    r"(?:^|\.)(?:embed_tokens|wte|tokens_embed|word_embeddings|embed_in|shared|tok_embeddings)\.weight$"
)
_PART_EMBEDDING = re.compile(r"(^|\.)(?:encoder|decoder)\.embed_tokens\.weight$")
_CAUSAL_MASK = re.compile(r"(?:^|\.)(?:attn|attention)\.bias$")


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
            MalformedFileError: its configuration names other weights than those that are read.
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
        self._refuse_other_weights()
        self._refuse_quantised()
        self._sources = self._named(self._resolve())
        self._shared: dict[str, str | None] = {}

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
            return tuple(self.meta_model.get_parameter(source.name).shape)
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
        return self._fuse(source) if isinstance(source, Fused) else self.files.read(source)

    def row(self, name: str, index: int) -> Tensor:
        """Row `index` of one tensor, of which nothing else is read where it is not fused."""
        source = self._source(name)
        if isinstance(source, Fused):
            return self._fuse(source)[index]
        return self.files.read_rows(source, index, index + 1)[0]

    def key(self, name: str) -> str | None:
        """What the files call a tensor; None where they hold it in parts."""
        source = self._source(name)
        return None if isinstance(source, Fused) else source

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
            return iter(torch.split(self._fuse(source).reshape(-1)[:count], elements))
        return self.files.stream(source, elements, count)

    def stored(self, name: str) -> str | None:
        """The tensor that holds a parameter: the one it shares, its own, or None."""
        return self.shared_with(name) or (name if name in self else None)

    def shared_with(self, name: str) -> str | None:
        """The tensor that a head or an embedding shares; None where it has one of its own.

        Shared is what is stored once, and what is stored twice with equal values. A head that the
        configuration ties but whose stored values differ is the model's own, as transformers 5
        loads it.
        """
        if name not in self._shared:
            owner = self._partner(name)
            if owner is not None and name in self and not self._equal(name, owner):
                owner = None
            self._shared[name] = owner
        return self._shared[name]

    def own_despite_tying(self, name: str) -> bool:
        """Whether a stored head or embedding differs from the tensor that it should share."""
        return name in self and bool(self._partner(name)) and self.shared_with(name) is None

    def _partner(self, name: str) -> str | None:
        """The stored tensor that architecture and configuration let a parameter share."""
        part = _PART_EMBEDDING.search(name)
        if part:  # of an encoder-decoder, whatever its configuration ties
            shared = f"{name[: part.start()]}{part[1]}shared.weight"
            return shared if shared in self else None
        is_head = bool(_LM_HEAD.search(name))
        if not (is_head or _is_token_embedding(name)) or not self.ties_embeddings:
            return None
        embeddings = [n for n in self._sources if _is_token_embedding(n)]
        if is_head:
            return embeddings[0] if len(embeddings) == 1 else None
        heads = [n for n in self._sources if _LM_HEAD.search(n)]
        return heads[0] if name not in self and len(heads) == 1 and not embeddings else None

    def _equal(self, name: str, other: str) -> bool:
        if self.shape(name) != self.shape(other):
            return False
        both = (self.stream(n, _COMPARED_ELEMENTS) for n in (name, other))
        return all(a.double().equal(b.double()) for a, b in zip(*both, strict=True))

    @cached_property
    def ties_embeddings(self) -> bool:
        """Whether the model shares its token embeddings with its head."""
        declared = self.config.get("tie_word_embeddings")
        if isinstance(declared, bool):
            return declared
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
        return build_meta_model(self.config, len(self.files.names()), self.where)

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
        names = [n for n in self.files.names() if not self._is_constant(n)]
        if self.config and any(_ONE_EXPERT.search(n) or _BARE_BLOCK.match(n) for n in names):
            return converted(names, self.meta_model, self.where)
        if "text_config" in self.config or "vision_config" in self.config:
            return converted(names, self.meta_model, self.where)
        return {n: n for n in names}

    def _named(self, sources: Mapping[str, str | Fused]) -> dict[str, str | Fused]:
        """The sources by the names that all readers share."""
        named: dict[str, str | Fused] = {}
        for own, source in sources.items():
            name = names_.parameter_name(own)
            if name in named:
                raise KeyMismatchError(
                    f"{self.where} holds {shown(own)} beside another tensor that is {shown(name)} "
                    "too: remove one of the two"
                )
            named[name] = source
        return named

    def _is_constant(self, name: str) -> bool:
        if _CONSTANTS.search(name):
            return True
        return bool(_CAUSAL_MASK.search(name)) and len(self.files.info(name).shape) == 4

    def _fuse(self, fused: Fused) -> Tensor:
        return fuse(fused, self.files.read, self.meta_model, self.where)

    def _refuse_other_weights(self) -> None:
        """Refuse a folder whose configuration has transformers load another file of it.

        Raises:
            MalformedFileError: naming both.
        """
        named = self.config.get("transformers_weights")
        if named is not None and named not in self.files.files:
            raise MalformedFileError(
                f"config.json of {shown(self.path)} names {shown(named, 80)} as its weights "
                f"(transformers_weights), and not {shown(self.files.files[0])}, which would be "
                "read here: give the path of the file to judge, or take the field away"
            )

    def _refuse_quantised(self) -> None:
        reason = ""
        if self.config.get("quantization_config") and not self._holds_plain_weights():
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

    def _holds_plain_weights(self) -> bool:
        """Whether all tensors are what they are without quantisation, whatever is configured.

        So it is after merging a LoRA into the dequantised base, whose configuration often stays.
        """
        infos = ((name, self.files.info(name)) for name in self.files.names())
        return all(
            info.dtype.is_floating_point
            and info.dtype not in _LOW_PRECISION
            and not _PACKED.search(name)
            for name, info in infos
            if len(info.shape) > 0
        )


def _is_token_embedding(name: str) -> bool:
    return bool(_TOKEN_EMBEDDING.search(name)) and not _PART_EMBEDDING.search(name)


@contextmanager
def opened(path: Location) -> Iterator[ModelFolder]:
    """A `ModelFolder` whose descriptors are closed at the end."""
    folder = ModelFolder(path)
    with closing(folder.files):
        yield folder


def check_finite(tensor: Tensor, name: str, where: str) -> Tensor:
    """The tensor itself.

    Raises:
        NonFiniteError: it holds NaN or infinity.
    """
    if not is_finite(tensor):
        raise NonFiniteError(
            f"{shown(name)} of {where} holds NaN or infinity: the run diverged or the file is "
            "damaged; take an earlier checkpoint"
        )
    return tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity."""
    # torch sums no 8 bits
    values = tensor.to(torch.float32) if tensor.dtype.itemsize == 1 else tensor
    # the sum finds a NaN or infinity in one pass, and may only have overflowed
    return math.isfinite(values.sum()) or bool(torch.isfinite(values).all())


def compare_shapes(name: str, start: Sequence[int], now: Sequence[int], where: str) -> list[str]:
    """What to say of a parameter's two shapes: nothing, or that its vocabulary was resized.

    Raises:
        ShapeMismatchError: the shapes differ, and not in a vocabulary's rows only.
    """
    if tuple(start) == tuple(now):
        return []
    vocabulary = component_of(name, start) in ("embeddings", "head")
    if vocabulary and len(start) == len(now) > 0 and tuple(start[1:]) == tuple(now[1:]):
        return [
            f"{name} has {now[0]} rows where the base has {start[0]}: compared on the "
            f"{min(now[0], start[0])} they share"
        ]
    raise ShapeMismatchError(
        f"{shown(name)} has shape {tuple(now)} in {where} and {tuple(start)} in the base: check "
        "that this is the model that training started from"
    )
