"""A Hugging Face folder of Gemma 1, 2 or 3, opened to be read: `config.json`, safetensors, tokenizer.

Only safetensors are read, never pickle. Of a Gemma 3 with images the text part is taken.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from conf.exits import ConfigError, DataError
from trainer.export.folder import read_json
from trainer.export.hf_config import gemma_config
from trainer.export.hf_weights import hf_names
from trainer.export.portable import LazyWeights, Portable

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_EMBEDDING, _OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
# Where the text model of Gemma3ForConditionalGeneration lies: written by transformers 4, by 5, and a text model's own.
_HEADS = ("language_model.model.", "model.language_model.", "model.")
_IMAGES = (
    "vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.",
)  # fmt: skip


def open_hf(folder: Path) -> Portable:
    """What the folder holds; weights are read when they are asked for.

    Raises:
        ConfigError: it is no Gemma that this model computes.
        DataError: a file is missing or broken, or the weights are not what config.json says.
    """
    config = gemma_config(read_json(folder / "config.json"))
    files = _files(folder)
    present = {name: file for file in files for name in _names(file)}
    names = _their_names(folder, set(hf_names(config).values()), set(present))
    _check_tied(folder, names, present)
    rows = _slice_shape(present[names[_EMBEDDING]], names[_EMBEDDING])[0]
    if rows != config.vocab_size:
        raise DataError(
            f"{folder} has {rows} embedding rows, and its config.json says vocab_size={config.vocab_size}: restore "
            "both from where the folder came from"
        )
    readers = {ours: partial(_read, present[names[theirs]], names[theirs]) for ours, theirs in hf_names(config).items()}
    tokenizer = folder / "tokenizer.model"
    return Portable(
        dataclasses.replace(config, vocab_size=rows), LazyWeights(readers), tokenizer if tokenizer.is_file() else None
    )


def _files(folder: Path) -> list[Path]:
    """The safetensors files of a folder."""
    if (folder / _INDEX).is_file():
        where = read_json(folder / _INDEX).get("weight_map", {})
        names = sorted(set(where.values()))
        outside = [name for name in names if Path(name).name != name]
        if outside or not names:
            raise DataError(f"{folder / _INDEX} names no files of its own folder: {outside[:3]}: restore it")
        return [folder / name for name in names]
    if not (folder / _SINGLE).is_file():
        pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
        raise DataError(
            f"{folder} has no {_SINGLE} and no {_INDEX}"
            + (f"; {pickles[0]} may run code when it is read, and is not: save it again as safetensors" * bool(pickles))
            + ("" if pickles else ": name a folder of safetensors weights")
        )
    return [folder / _SINGLE]


def _names(file: Path) -> list[str]:
    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file} is missing or no safetensors file ({error}): restore it") from error


def _their_names(folder: Path, wanted: set[str], present: set[str]) -> dict[str, str]:
    """The stored name of each parameter of the text model, by the name it has in a model of text alone."""
    for head in _HEADS:
        names = {name: head + name.removeprefix("model.") for name in wanted}
        if names[_EMBEDDING] in present:
            break
    missing = sorted(set(names.values()) - present)
    outputs = sorted(name for name in present if name.endswith(_OUTPUT))
    extra = sorted(name for name in present - set(names.values()) - set(outputs) if not name.startswith(_IMAGES))
    if missing or extra:
        raise DataError(
            f"the weights in {folder} are not those of its config.json: {len(missing)} missing {missing[:3]}, "
            f"{len(extra)} unknown {extra[:3]}: restore both from where the folder came from"
        )
    if outputs:
        names[_OUTPUT] = outputs[0]
    return names


def _check_tied(folder: Path, names: dict[str, str], present: dict[str, Path]) -> None:
    """An output matrix that is stored must be the embedding: this model has one for both."""
    if (output := names.get(_OUTPUT)) is None:
        return
    embedding = names[_EMBEDDING]
    if not torch.equal(_read(present[output], output), _read(present[embedding], embedding)):
        raise ConfigError(
            f"{folder} has an output matrix ({output}) that is not its embedding: in Gemma 1, 2 and 3 they are one"
        )


def _slice_shape(file: Path, name: str) -> list[int]:
    with safe_open(file, framework="pt") as opened:
        return list(opened.get_slice(name).get_shape())


def _read(file: Path, name: str) -> Tensor:
    try:
        with safe_open(file, framework="pt") as opened:
            return opened.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file} cannot be read ({error}): restore it from where the folder came from") from error
