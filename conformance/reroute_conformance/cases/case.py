"""Cases: small, plain, reproducible descriptions of what a target is given. A case is data; tensors come from seeds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from typing import Any, ClassVar, Self

import torch
from reroute_reference import CanonicalDecoder
from reroute_spec import DecoderShape, Schedule
from reroute_spec.canonical import CanonicalConfig
from torch import Tensor, nn

from ..protocol import Model
from ..tiny.llava import PATCHES_PER_IMAGE, picture_inputs, tiny_processor
from ..tiny.zoo import judge_model, target_model

_NUM_SEEDED_ROWS = 128
_PER_ROW = ("input_ids", "attention_mask", "mm_token_type_ids")  # of what a processor returns; padded with 0


@dataclass(frozen=True)
class Row:
    """One request of a batch: ``layout`` is a string of ``t`` (text) and ``v`` (visual) rows, or of ``t`` and letters of
    whole images for a model with an image processor (``I``; of the Qwen families also those of ``GRIDS``).
    """

    layout: str
    seed: int = 0
    pad_left: int = 0
    pad_right: int = 0


@dataclass(frozen=True)
class Case:
    """What every kind of case can do."""

    kind: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain data that :func:`load_case` reads back."""
        return {"kind": self.kind, **asdict(self)}

    def digest(self) -> str:
        """A short name of the content."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Reads what ``to_dict`` wrote."""
        return cls(**{f.name: data[f.name] for f in fields(cls)})


@dataclass(frozen=True)
class SelectCase(Case):
    """Scores given as float32 bit patterns, so that signed zeros, subnormals and NaN survive JSON."""

    kind: ClassVar[str] = "select"
    bits: list[int] = field(default_factory=list)
    k: int = 0

    def scores(self) -> Tensor:
        """The scores, [n] float32."""
        return torch.tensor(self.bits, dtype=torch.int32).view(torch.float32)


@dataclass(frozen=True)
class ConfigCase(Case):
    """A schedule as data, right or wrong, and the layout of a request: ``t`` and ``v`` rows."""

    kind: ClassVar[str] = "config"
    schedule: dict[str, Any] = field(default_factory=dict)
    num_layers: int = 1
    layout: str = "t"
    images: list[int] = field(default_factory=list)

    def visual(self) -> list[bool]:
        """A flag per row."""
        return [letter == "v" for letter in self.layout]


@dataclass(frozen=True)
class RoutedCase(Case):
    """A batch through a decoder; ``decisions`` are replayed where given, ``new_tokens`` are fed after the prefill."""

    network_rules: ClassVar[tuple[str, ...]] = ()
    rotary_rule: ClassVar[str] = "RR-BLOCK-002"
    schedule: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    new_tokens: int = 0
    decisions: list[list[list[int]]] | None = None
    poison: list[int] | None = None  # (request, real row) whose embedding is NaN

    @property
    def precision(self) -> torch.dtype:
        """What it is computed in."""
        return torch.float32

    def routing(self) -> Schedule:
        """The schedule."""
        return Schedule.from_dict(self.schedule)

    def model(self) -> Model:
        """What the target is given."""
        raise TypeError(f"{type(self).__name__} describes no model")

    def reference_model(self, dtype: torch.dtype) -> nn.Module | CanonicalDecoder:
        """The same model for the reference, in ``dtype``."""
        raise TypeError(f"{type(self).__name__} describes no model")

    def inputs(self) -> dict[str, Any]:
        """The batch."""
        raise TypeError(f"{type(self).__name__} describes no inputs")

    def continuation(self) -> Tensor | None:
        """Tokens to feed after the prefill, [B, T]."""
        if not self.new_tokens:
            return None
        return torch.stack([_tokens(row.seed, self.vocabulary())[: self.new_tokens] for row in self.rows])

    def vocabulary(self) -> int:
        """Tokens below this may be fed."""
        raise TypeError(f"{type(self).__name__} describes no vocabulary")

    def size(self, row: Row) -> int:
        """Real rows of a request."""
        return len(row.layout)

    def alone(self, request: int) -> Row:
        """A request with all the padding that it has in its batch."""
        row = self.rows[request]
        length = max(other.pad_left + self.size(other) + other.pad_right for other in self.rows)
        place = _place(row, length, self.size(row))
        return Row(row.layout, row.seed, place.start, length - place.stop)

    def only(self, request: int, *, padded: bool) -> Self:
        """The case of one request alone, with or without its padding."""
        row = self.alone(request)
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["rows"] = [row if padded else Row(row.layout, row.seed)]
        values["decisions"] = None if self.decisions is None else [self.decisions[request]]
        return type(self)(**values)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Reads what ``to_dict`` wrote."""
        return super().from_dict({**data, "rows": [Row(**row) for row in data["rows"]]})


@dataclass(frozen=True)
class DecoderCase(RoutedCase):
    """A batch of embeddings through a canonical decoder with seeded weights."""

    kind: ClassVar[str] = "decoder"
    network_rules: ClassVar[tuple[str, ...]] = ("RR-BLOCK-004", "RR-BLOCK-005", "RR-BLOCK-006")
    rotary_rule: ClassVar[str] = "RR-BLOCK-005"  # what the keys of the first block tell
    config: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    gain: float = 1.0  # of all queries: 0 scores all rows alike, much makes attention peaked

    def canonical(self) -> CanonicalConfig:
        """The decoder's configuration."""
        return CanonicalConfig.from_dict(self.config)

    def vocabulary(self) -> int:
        """All tokens."""
        return self.canonical().vocab_size

    def model(self) -> Model:
        """Configuration and weights, fresh tensors every time."""
        return self.canonical(), {name: weight.clone() for name, weight in self._weights().items()}

    def reference_model(self, dtype: torch.dtype) -> CanonicalDecoder:
        """The canonical decoder in ``dtype``."""
        return CanonicalDecoder(self.canonical(), self._weights(), dtype)

    def inputs(self) -> dict[str, Any]:
        """Embeddings, padded; padding holds large values, so that whoever reads it is found out."""
        length = max(row.pad_left + len(row.layout) + row.pad_right for row in self.rows)
        size = self.canonical().shape.hidden_size
        embeds = torch.full((len(self.rows), length, size), 50.0)
        visual, real = (torch.zeros(len(self.rows), length, dtype=torch.bool) for _ in range(2))
        for index, row in enumerate(self.rows):
            place = _place(row, length)
            drawn = max(_NUM_SEEDED_ROWS, len(row.layout))
            noise = torch.randn(drawn, size, generator=_generator(row.seed))
            embeds[index, place] = noise[: len(row.layout)]
            visual[index, place] = torch.tensor([letter == "v" for letter in row.layout])
            real[index, place] = True
            if self.poison is not None and self.poison[0] == index:
                embeds[index, place.start + self.poison[1]] = torch.nan
        return {"inputs_embeds": embeds, "visual_mask": visual, "attention_mask": real.long()}

    def _weights(self) -> dict[str, Tensor]:
        weights = _canonical_weights(json.dumps(self.config, sort_keys=True), self.seed)
        return {name: x * self.gain if ".q_proj." in name else x for name, x in weights.items()}


@dataclass(frozen=True)
class GivenCase(DecoderCase):
    """One request through a canonical decoder whose numbers are all given, for cases that were worked out by hand."""

    kind: ClassVar[str] = "given"
    embeddings: list[list[float]] = field(default_factory=list)
    weights: dict[str, Any] = field(default_factory=dict)  # nested lists by name

    def inputs(self) -> dict[str, Any]:
        """The embeddings, of which ``rows`` says which are visual."""
        visual = torch.tensor([[letter == "v" for letter in self.rows[0].layout]])
        embeds = torch.tensor([self.embeddings], dtype=torch.float32)
        return {"inputs_embeds": embeds, "visual_mask": visual, "attention_mask": visual.long() * 0 + 1}

    def _weights(self) -> dict[str, Tensor]:
        return {name: torch.tensor(values, dtype=torch.float32) for name, values in self.weights.items()}


@dataclass(frozen=True)
class ModelCase(RoutedCase):
    """A batch through a tiny transformers model, its images noise."""

    seed: int = 0
    attention: str = "sdpa"

    def model_family(self) -> str:
        """One of :data:`~reroute_conformance.protocol.FAMILIES`."""
        raise TypeError(f"{type(self).__name__} describes no family")

    def request(self, row: Row) -> dict[str, Tensor]:
        """What a processor returns for one request alone, without padding."""
        raise TypeError(f"{type(self).__name__} describes no requests")

    def model(self) -> nn.Module:
        """A transformers model; the target's own, the same for every case of one seed, as a server would keep it."""
        return target_model(self.model_family(), self.seed, self.attention)

    def reference_model(self, dtype: torch.dtype) -> nn.Module:
        """The model in ``dtype``, of objects that no target ever holds."""
        return judge_model(self.model_family(), self.seed, self.attention, dtype)

    def inputs(self) -> dict[str, Any]:
        """What a processor returns for the batch."""
        requests = [self.request(row) for row in self.rows]
        sizes = [request["input_ids"].shape[1] for request in requests]
        length = max(row.pad_left + size + row.pad_right for row, size in zip(self.rows, sizes, strict=True))
        batch: dict[str, Any] = {}
        for name in dict.fromkeys(name for request in requests for name in request):
            if name not in _PER_ROW:
                batch[name] = torch.cat([request[name] for request in requests if name in request])
                continue
            batch[name] = torch.zeros(len(requests), length, dtype=torch.long)
            for b, (row, request) in enumerate(zip(self.rows, requests, strict=True)):
                batch[name][b, _place(row, length, sizes[b])] = request[name][0]
        return batch


@dataclass(frozen=True)
class LlavaCase(ModelCase):
    """A batch through the tiny LLaVA, its images noise, or through its real processor with the drawn picture."""

    kind: ClassVar[str] = "llava"
    text: str = ""  # of the picture's question; rows are then what the processor makes of it

    def model_family(self) -> str:
        """LLaVA."""
        return "llava"

    def size(self, row: Row) -> int:
        """Real rows of a request: an image is many."""
        return len(row.layout) + row.layout.count("I") * (PATCHES_PER_IMAGE - 1)

    def vocabulary(self) -> int:
        """Words only, no special tokens."""
        return len(tiny_processor().tokenizer)

    def inputs(self) -> dict[str, Any]:
        """What a processor returns."""
        if self.text:
            return picture_inputs(self.text, images=self.text.count("<image>"))
        return super().inputs()

    def request(self, row: Row) -> dict[str, Tensor]:
        """Seeded words and images of noise."""
        words = iter(_tokens(row.seed, self.vocabulary()).tolist())
        image = [tiny_processor().image_token_id] * PATCHES_PER_IMAGE
        ids = torch.tensor(
            [[token for letter in row.layout for token in (image if letter == "I" else [next(words)])]]
        )
        request = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        noise = torch.randn(4, 3, 84, 84, generator=_generator(row.seed))
        images = {"pixel_values": noise[: row.layout.count("I")]} if "I" in row.layout else {}
        return {**request, **images}


KINDS: dict[str, type[Case]] = {
    case.kind: case for case in (SelectCase, ConfigCase, DecoderCase, GivenCase, LlavaCase)
}


def load_case(data: Mapping[str, Any]) -> Case:
    """The case that ``to_dict`` wrote."""
    return KINDS[data["kind"]].from_dict(data)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _tokens(seed: int, vocabulary: int) -> Tensor:
    lowest = min(3, vocabulary - 1)  # past the special tokens
    return torch.randint(lowest, vocabulary, (_NUM_SEEDED_ROWS,), generator=_generator(seed + 1))


def _place(row: Row, length: int, size: int | None = None) -> slice:
    """Where a request stands in its padded batch row; what its own padding leaves open is padded on its side."""
    size = len(row.layout) if size is None else size
    start = row.pad_left if row.pad_right else length - size
    return slice(start, start + size)


@lru_cache(maxsize=64)
def _canonical_weights(config: str, seed: int) -> dict[str, Tensor]:
    canonical, generator = CanonicalConfig.from_dict(json.loads(config)), _generator(seed)
    weights = {}
    for name, shape in canonical.weight_shapes().items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("norm.weight"):
            weights[name] = 1 + 0.2 * noise
        elif name.endswith("bias"):
            weights[name] = 0.5 * noise
        else:  # wide queries and keys: attention far from uniform, so that selections have margins
            gain = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
            weights[name] = noise * gain / shape[-1] ** 0.5
    return weights


def decoder_config(
    layers: int,
    heads: int,
    kv_heads: int,
    head_dim: int = 8,
    **rest: Any,
) -> dict[str, Any]:
    """Data of a small canonical decoder; ``rest`` as for :class:`~reroute_spec.canonical.CanonicalConfig`."""
    shape = DecoderShape(layers, 16, 24, heads, kv_heads, head_dim)
    return CanonicalConfig(shape, vocab_size=23, **rest).to_dict()
