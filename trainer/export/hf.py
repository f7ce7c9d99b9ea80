"""Weights and tokenizer as a folder that Hugging Face transformers loads as Gemma, Gemma 2 or Gemma 3.

Needs no library of Hugging Face but safetensors. Knows nothing of checkpoints: it is handed the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from trainer.export.folder import new_folder, write_json, write_origin
from trainer.export.hf_config import SPECIAL_IDS, hf_config
from trainer.export.hf_tokenizer import write_tokenizer
from trainer.export.hf_weights import hf_names
from trainer.export.portable import DTYPES, REMEDY, check_names, check_shape, shapes
from trainer.model.config import GemmaConfig

_HF_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
MAX_FILE_BYTES = 5 * 10**9


def export_hf(
    config: GemmaConfig,
    weights: Mapping[str, Tensor],
    tokenizer_model: Path,
    vocab_size: int,
    folder: Path,
    dtype: str,
    provenance: dict[str, Any],
) -> Path:
    """Write the folder and return it; whole or not at all.

    Args:
        config: the model's shape.
        weights: every parameter under our name. Read one at a time, so the mapping may load lazily.
        tokenizer_model: the SentencePiece .model the model was trained with.
        vocab_size: its pieces. Embedding rows beyond them are left out: no text has them, and transformers expects a
            row per piece.
        folder: where to write. A folder that exists is left alone if it holds the same bytes.
        dtype: fp32 or bf16. In fp32 the weights are bit-equal.
        provenance: where the weights come from (run, step, checkpoint digest, configuration hash), kept in
            `gemcutter.json`.

    Raises:
        ConfigError: the folder exists and holds something else.
        DataError: weights are missing or of another shape than the configuration's.
    """
    with new_folder(folder) as temporary:
        files = _write_weights(config, weights, vocab_size, temporary, dtype)
        write_tokenizer(tokenizer_model, temporary)
        write_json(temporary / "config.json", hf_config(config, vocab_size) | {"dtype": _HF_DTYPES[dtype]})
        write_json(temporary / "generation_config.json", {**SPECIAL_IDS, "do_sample": False})
        weights_and_words = [temporary / name for name in (*files, "tokenizer.model")]
        write_origin(temporary, config, vocab_size, dtype, provenance, weights_and_words)
    return folder


def _write_weights(
    config: GemmaConfig, weights: Mapping[str, Tensor], vocab_size: int, folder: Path, dtype: str
) -> list[str]:
    """Writes the safetensors file or files, with an index where there are several, and returns their names."""
    names = hf_names(config)
    check_names(config, weights, REMEDY)
    groups = _groups(config, vocab_size, DTYPES[dtype].itemsize)
    total = len(groups)
    files = (
        [f"model-{i:05d}-of-{total:05d}.safetensors" for i in range(1, total + 1)]
        if total > 1
        else ["model.safetensors"]
    )
    for file, group in zip(files, groups, strict=True):
        tensors = {}
        for name, shape in group.items():
            tensor = weights[name]
            if name == "embedding.weight":
                tensor = tensor[:vocab_size]
            check_shape(name, tensor, shape, REMEDY)
            tensors[names[name]] = tensor.detach().to("cpu", DTYPES[dtype]).contiguous()
        save_file(tensors, folder / file, metadata={"format": "pt"})
    if total == 1:
        return files
    where = {names[name]: file for file, group in zip(files, groups, strict=True) for name in group}
    size = sum(shape.numel() for group in groups for shape in group.values()) * DTYPES[dtype].itemsize
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": where})
    return [*files, "model.safetensors.index.json"]


def _groups(config: GemmaConfig, vocab_size: int, item_bytes: int) -> list[dict[str, torch.Size]]:
    """Parameters by file, in order: a file holds what fits in MAX_FILE_BYTES, and at least one tensor."""
    groups: list[dict[str, torch.Size]] = [{}]
    room = MAX_FILE_BYTES
    for name, shape in shapes(config).items():
        shape = torch.Size([vocab_size, *shape[1:]]) if name == "embedding.weight" else shape
        size = shape.numel() * item_bytes
        if size > room and groups[-1]:
            groups.append({})
            room = MAX_FILE_BYTES
        groups[-1][name] = shape
        room -= size
    return groups
