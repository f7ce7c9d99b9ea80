"""Weights and tokenizer as a folder that Hugging Face transformers loads as Gemma, Gemma 2 or Gemma 3.

Needs no library of Hugging Face but safetensors. Knows nothing of checkpoints: it is handed the weights.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from conf.exits import ConfigError, DataError
from data_pipeline.tokenizer import BOS, EOS, PAD
from trainer.export.hf_tokenizer import write_tokenizer
from trainer.export.hf_weights import hf_names
from trainer.model.config import GemmaConfig
from trainer.model.gemma import Gemma

FORMAT = 1
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_HF_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
_ARCHITECTURES = {
    1: ("GemmaForCausalLM", "gemma"),
    2: ("Gemma2ForCausalLM", "gemma2"),
    3: ("Gemma3ForCausalLM", "gemma3_text"),
}
_KINDS = {"local": "sliding_attention", "global": "full_attention"}
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
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        temporary.chmod(0o755)  # mkdtemp makes private folders; an export is to be shared
        files = _write_weights(config, weights, vocab_size, temporary, dtype)
        write_tokenizer(tokenizer_model, temporary)
        _write_json(temporary / "config.json", hf_config(config, vocab_size) | {"dtype": _HF_DTYPES[dtype]})
        _write_json(temporary / "generation_config.json", {**_SPECIAL_IDS, "do_sample": False})
        _write_json(
            temporary / "gemcutter.json",
            {
                "format": FORMAT,
                "provenance": provenance,
                "model": dataclasses.asdict(config),
                "vocab_size": vocab_size,
                "dtype": dtype,
                "sha256": {name: _sha256(temporary / name) for name in (*files, "tokenizer.model")},
            },
        )
        if folder.exists():
            _check_equal(folder, temporary)
        else:
            os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


_SPECIAL_IDS = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}


def hf_config(config: GemmaConfig, vocab_size: int) -> dict[str, Any]:
    """The content of `config.json` (transformers 5), without the dtype."""
    architecture, model_type = _ARCHITECTURES[config.generation]
    content: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "use_cache": True,
        **_SPECIAL_IDS,
    }
    if config.generation == 1:
        rope = {"rope_type": "default", "rope_theta": config.rope_base_global}
        return content | {"hidden_act": "gelu_pytorch_tanh", "rope_parameters": rope}
    content |= {
        "query_pre_attn_scalar": config.query_pre_attention,
        "sliding_window": config.window,
        "layer_types": [_KINDS[kind] for kind in config.layer_kinds],
        "attn_logit_softcapping": config.attention_soft_cap,
        "final_logit_softcapping": config.final_soft_cap,
    }
    if config.generation == 2:
        return content | {"rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base_global}}
    scaled = {"rope_type": "linear", "factor": config.rope_scale_global}
    full = scaled if config.rope_scale_global != 1.0 else {"rope_type": "default"}
    return content | {
        "use_bidirectional_attention": False,
        "rope_parameters": {
            "full_attention": full | {"rope_theta": config.rope_base_global},
            "sliding_attention": {"rope_type": "default", "rope_theta": config.rope_base_local},
        },
    }


def _write_weights(
    config: GemmaConfig, weights: Mapping[str, Tensor], vocab_size: int, folder: Path, dtype: str
) -> list[str]:
    """Writes the safetensors file or files, with an index where there are several, and returns their names."""
    names = hf_names(config)
    missing = [name for name in names if name not in weights]
    extra = [name for name in weights if name not in names]
    if missing or extra:
        raise DataError(
            f"the weights are not those of the configured Gemma {config.generation} of {config.num_layers} layers: "
            f"{len(missing)} parameters missing {missing[:3]}, {len(extra)} unknown {extra[:3]}: "
            "export with the configuration the checkpoint was trained with"
        )
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
            if tensor.shape != shape:
                raise DataError(
                    f"the weight {name} has the shape {tuple(tensor.shape)}, the configuration says {tuple(shape)}: "
                    "export with the configuration the checkpoint was trained with"
                )
            tensors[names[name]] = tensor.detach().to("cpu", DTYPES[dtype]).contiguous()
        save_file(tensors, folder / file, metadata={"format": "pt"})
    if total == 1:
        return files
    where = {names[name]: file for file, group in zip(files, groups, strict=True) for name in group}
    size = sum(shape.numel() for group in groups for shape in group.values()) * DTYPES[dtype].itemsize
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": where})
    return [*files, "model.safetensors.index.json"]


def _groups(config: GemmaConfig, vocab_size: int, item_bytes: int) -> list[dict[str, torch.Size]]:
    """Parameters by file, in order: a file holds what fits in MAX_FILE_BYTES, and at least one tensor."""
    groups: list[dict[str, torch.Size]] = [{}]
    room = MAX_FILE_BYTES
    for name, shape in _shapes(config).items():
        shape = torch.Size([vocab_size, *shape[1:]]) if name == "embedding.weight" else shape
        size = shape.numel() * item_bytes
        if size > room and groups[-1]:
            groups.append({})
            room = MAX_FILE_BYTES
        groups[-1][name] = shape
        room -= size
    return groups


def _shapes(config: GemmaConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: parameter.shape for name, parameter in Gemma(config).named_parameters()}


def _check_equal(existing: Path, fresh: Path) -> None:
    if not existing.is_dir() or _digests(existing) != _digests(fresh):
        raise ConfigError(
            f"{existing} exists and holds something else than this export: "
            "set export.output to a new folder, or remove that one"
        )


def _digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): _sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
