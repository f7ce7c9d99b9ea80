"""A Gemma in another software's files, opened to be read: its shape, its weights under our names, its tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conf.exits import DataError
from trainer.model.config import GemmaConfig
from trainer.model.gemma import Gemma

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
REMEDY = "export with the configuration the checkpoint was trained with"


@dataclass(frozen=True)
class Portable:
    """What a folder of weights holds.

    config     the model; `vocab_size` is the rows that are stored
    weights    every parameter under our name, in the stored dtype, read when it is asked for
    tokenizer  the SentencePiece .model beside them, where there is one
    """

    config: GemmaConfig
    weights: Mapping[str, Tensor]
    tokenizer: Path | None


class LazyWeights(Mapping[str, Tensor]):
    """Parameters under our names, each made by a function when it is asked for."""

    def __init__(self, readers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._readers = readers

    def __getitem__(self, name: str) -> Tensor:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def shapes(config: GemmaConfig) -> dict[str, torch.Size]:
    """The shape of every parameter, in the model's order; no memory is used."""
    with torch.device("meta"):
        return {name: parameter.shape for name, parameter in Gemma(config).named_parameters()}


def check_names(config: GemmaConfig, weights: Mapping[str, Tensor], remedy: str) -> None:
    """Raises DataError where a parameter of the configured model is missing, or one is there that it has not."""
    names = shapes(config)
    missing = [name for name in names if name not in weights]
    extra = [name for name in weights if name not in names]
    if missing or extra:
        raise DataError(
            f"the weights are not those of the configured Gemma {config.generation} of {config.num_layers} layers: "
            f"{len(missing)} parameters missing {missing[:3]}, {len(extra)} unknown {extra[:3]}: {remedy}"
        )


def check_shape(name: str, tensor: Tensor, shape: torch.Size, remedy: str) -> None:
    """Raises DataError where a parameter has another shape than the configured model's."""
    if tensor.shape != shape:
        raise DataError(
            f"the weight {name} has the shape {tuple(tensor.shape)}, the configuration says {tuple(shape)}: {remedy}"
        )


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """sha256 of names, shapes, dtypes and bits."""
    digest = hashlib.sha256()
    for name, tensor in weights.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_config(note: dict[str, Any]) -> GemmaConfig:
    """The model of a `gemcutter.json`. Raises DataError where it holds none."""
    try:
        shape = note["model"]
        return GemmaConfig(**{**shape, "pattern": tuple(shape["pattern"])})
    except (KeyError, TypeError) as error:
        raise DataError(f"gemcutter.json does not hold a model ({error}): restore the folder from a copy") from error
