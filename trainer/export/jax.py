"""Weights as the Orbax checkpoint that `gm.ckpts.load_params` of the JAX package `gemma` takes, and back.

The only file of this room that imports jax and orbax, and it imports them when it is called. Orbax keeps arrays and
JSON: no code is read.

    params/            the checkpoint: the tree of `model.init(...)["params"]`
    tokenizer.model
    gemcutter.json     the model, where its weights come from, and their digest; the checkpoint does not say them
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conf import schema
from conf.exits import ConfigError, DataError
from trainer.export.einsum import by_head, from_heads, out_by_head, out_from_heads
from trainer.export.folder import new_folder, read_json, write_origin
from trainer.export.portable import (
    DTYPES,
    REMEDY,
    LazyWeights,
    Portable,
    check_names,
    check_shape,
    digest_of,
    read_config,
    shapes,
)
from trainer.model.config import GemmaConfig
from trainer.model.sizes import SIZES, build_config

_EPS = 1e-6  # the package's RMSNorm knows no other
_IMAGES = ("SigLiPFromPatches_0/", "vision_encoder/", "embedder/mm_")


def export_jax(
    config: GemmaConfig,
    weights: Mapping[str, Tensor],
    tokenizer_model: Path,
    vocab_size: int,
    folder: Path,
    dtype: str,
    provenance: dict[str, Any],
) -> Path:
    """Write the folder and return it; arguments and errors as of `export_hf`.

    Embedding rows stay as many as the model has: the package's own sizes are padded as ours are. The whole model is
    held in memory.
    """
    if config.norm_eps != _EPS:
        raise ConfigError(f"the package gemma knows no norm_eps={config.norm_eps}, only {_EPS}: use the format hf")
    check_names(config, weights, REMEDY)
    jax, ocp = _libraries("export")
    ours = {}
    for name, shape in shapes(config).items():
        check_shape(name, weights[name], shape, REMEDY)
        ours[name] = weights[name].detach().to("cpu", DTYPES[dtype])
    tree: dict[str, Any] = {}
    for path, leaf in _leaves(config, transposed(config)).items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        values = leaf.there([ours[name] for name in leaf.names]).contiguous().float().numpy()
        node[last] = jax.numpy.asarray(values, dtype=str(DTYPES[dtype]).removeprefix("torch."))
    with new_folder(folder, besides="params") as temporary, ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((temporary / "params").absolute(), tree)
        checkpointer.wait_until_finished()
        shutil.copyfile(tokenizer_model, temporary / "tokenizer.model")
        write_origin(temporary, config, vocab_size, dtype, provenance | {"weights_sha256": digest_of(ours)}, [])
    open_jax(folder, schema.Model())  # Orbax's bytes differ from save to save, so what lies there is held to the digest
    return folder


def open_jax(folder: Path, model: schema.Model) -> Portable:
    """What an Orbax checkpoint of a Gemma 1, 2 or 3 holds, in the layout of `model.init` or of the released files.

    The checkpoint says shapes only. What else the model is, `gemcutter.json` says where an export left it, else the
    keys `model.*`. All of it is read at once; weights of images are left out.

    Raises:
        ConfigError: the shapes are not those of the model.
        DataError: a file is missing or broken.
    """
    where = folder / "params" if (folder / "params").is_dir() else folder
    stored = _restore(where)
    if "embedder/input_embedding" not in stored:
        raise DataError(
            f"{where} has no embedder/input_embedding, but {sorted(stored)[:3]}: name a checkpoint of Gemma"
        )
    rows = stored["embedder/input_embedding"].shape[0]
    note = folder / "gemcutter.json"
    said, origin = (
        (read_config(read_json(note)), str(note)) if note.is_file() else (_named(model, rows), f"model={model.size}")
    )
    config = _fitting(said, origin, stored, rows)
    readers: dict[str, Callable[[], Tensor]] = {}
    for path, leaf in _leaves(config, _is_transposed(config, stored)).items():
        for place, name in enumerate(leaf.names):
            readers[name] = partial(_part, stored[path], leaf, place)
    weights = LazyWeights(readers)
    wanted = read_json(note).get("provenance", {}).get("weights_sha256") if note.is_file() else None
    if wanted and (found := digest_of({name: weights[name] for name in shapes(config)})) != wanted:
        raise DataError(
            f"the weights in {where} have the digest {found[:12]}, and {note} says {wanted[:12]}: export to a new "
            "folder, or restore this one"
        )
    tokenizer = folder / "tokenizer.model"
    return Portable(config, weights, tokenizer if tokenizer.is_file() else None)


def transposed(config: GemmaConfig) -> bool:
    """Whether the package stores gate and up as (2, F, D): so do Gemma 2 9B and 27B and all of Gemma 3."""
    return config.generation == 3 or config.d_model in (SIZES["gemma2_9b"].d_model, SIZES["gemma2_27b"].d_model)


def _libraries(job: str) -> tuple[ModuleType, ModuleType]:
    """jax and orbax.checkpoint. Raises ConfigError where they are not installed."""
    try:
        import jax
        import orbax.checkpoint
    except ImportError as error:
        raise ConfigError(
            f"to {job} weights of JAX takes jax and orbax-checkpoint, which are not here ({error}): install "
            "gemcutter[jax]"
        ) from error
    return jax, orbax.checkpoint


def _restore(where: Path) -> dict[str, Tensor]:
    """Every array of a checkpoint by its path, on the host. Raises DataError where there is none."""
    jax, ocp = _libraries("import")
    where = where.absolute()
    sharding = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            metadata = checkpointer.metadata(where).item_metadata
            if metadata is None:
                raise DataError(f"{where} is no Orbax checkpoint: name the folder that holds one, or its parent")
            target = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), metadata.tree
            )
            tree = checkpointer.restore(where, target)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{where} cannot be read as an Orbax checkpoint ({error}): restore it") from error
    stored = {}
    for keys, array in jax.tree_util.tree_flatten_with_path(tree)[0]:
        path = "/".join(str(key.key) for key in keys).removeprefix("transformer/")
        if "/mlp/" in path:  # the released files have one level more there
            path = path.removesuffix("/w")
        if not path.startswith(_IMAGES):
            stored[path] = _tensor(np.asarray(array))
    return stored


def _tensor(array: np.ndarray) -> Tensor:
    """The same bits; numpy's bfloat16 is an extension that torch does not know."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def _named(model: schema.Model, rows: int) -> GemmaConfig:
    """The model of the job's keys, with the stored rows."""
    return build_config(schema.Model(**{**vars(model), "vocab_size": rows}), vocab_size=rows)


def _fitting(config: GemmaConfig, origin: str, stored: Mapping[str, Tensor], rows: int) -> GemmaConfig:
    """The configuration with the stored rows. Raises ConfigError where the stored shapes are not its own."""
    config = GemmaConfig(**{**vars(config), "vocab_size": rows})
    turned = _is_transposed(config, stored)
    leaves = _leaves(config, turned)
    sizes = shapes(config)
    wrong = [f"{path} is missing" for path in leaves if path not in stored]
    wrong += [f"{path} is unknown" for path in stored if path not in leaves]
    for path, leaf in leaves.items():
        if path in stored:
            expected = leaf.there([torch.empty(sizes[name], device="meta") for name in leaf.names]).shape
            if stored[path].shape != expected:
                wrong.append(f"{path} is {tuple(stored[path].shape)}, not {tuple(expected)}")
    if wrong:
        raise ConfigError(
            f"the checkpoint is not the model that {origin} says: {'; '.join(wrong[:4])}"
            + (f"; and {len(wrong) - 4} more" if len(wrong) > 4 else "")
            + ". Choose its size with model=<size>, and set what it has otherwise with model.<key>"
        )
    return config


def _is_transposed(config: GemmaConfig, stored: Mapping[str, Tensor]) -> bool:
    gating = stored.get("layer_0/mlp/gating_einsum")
    if gating is None or gating.ndim != 3 or config.d_model == config.d_ff:
        return transposed(config)
    return gating.shape[1] == config.d_ff


@dataclass(frozen=True)
class _Leaf:
    """An array of the tree: the parameters of ours it is made of, and the way there and back."""

    names: tuple[str, ...]
    there: Callable[[list[Tensor]], Tensor]
    back: Callable[[Tensor], list[Tensor]]


def _part(array: Tensor, leaf: _Leaf, place: int) -> Tensor:
    return leaf.back(array)[place].contiguous()


def _leaves(config: GemmaConfig, turned: bool) -> dict[str, _Leaf]:
    """The arrays of the tree by their path. Queries, keys and values are one array where heads are as many of each."""
    table = {"embedder/input_embedding": _one("embedding.weight")}
    for i in range(config.num_layers):
        block, layer = f"blocks.{i}.", f"layer_{i}/"
        q, k, v = (f"{block}attention.{name}.weight" for name in "qkv")
        heads = partial(by_head, head_dim=config.head_dim)
        if config.num_heads == config.num_kv_heads:
            table[layer + "attn/qkv_einsum/w"] = _stacked((q, k, v), heads, from_heads)
        else:
            table[layer + "attn/q_einsum/w"] = _one(q, heads, from_heads)
            table[layer + "attn/kv_einsum/w"] = _stacked((k, v), heads, from_heads)
        table[layer + "attn/attn_vec_einsum/w"] = _one(
            block + "attention.o.weight", partial(out_by_head, head_dim=config.head_dim), out_from_heads
        )
        if config.qk_norm:
            table[layer + "attn/_query_norm/scale"] = _one(block + "attention.q_norm.weight")
            table[layer + "attn/_key_norm/scale"] = _one(block + "attention.k_norm.weight")
        gate_and_up = (block + "feed_forward.gate.weight", block + "feed_forward.up.weight")
        table[layer + "mlp/gating_einsum"] = _stacked(gate_and_up, *((_same, _same) if turned else (_turned, _turned)))
        table[layer + "mlp/linear"] = _one(block + "feed_forward.down.weight", _turned, _turned)
        norms = {"pre_attention_norm": "attention_norm", "pre_ffw_norm": "feed_forward_norm"}
        if config.post_norms:
            norms |= {"post_attention_norm": "attention_post_norm", "post_ffw_norm": "feed_forward_post_norm"}
        table |= {f"{layer}{theirs}/scale": _one(f"{block}{ours}.weight") for theirs, ours in norms.items()}
    return table | {"final_norm/scale": _one("final_norm.weight")}


def _same(weight: Tensor) -> Tensor:
    return weight


def _turned(weight: Tensor) -> Tensor:
    return weight.T


def _one(name: str, there: Callable[[Tensor], Tensor] = _same, back: Callable[[Tensor], Tensor] = _same) -> _Leaf:
    return _Leaf((name,), lambda parts: there(parts[0]), lambda array: [back(array)])


def _stacked(names: tuple[str, ...], there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> _Leaf:
    return _Leaf(
        names,
        lambda parts: torch.stack([there(part) for part in parts]),
        lambda array: [back(part) for part in array],
    )
