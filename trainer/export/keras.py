"""Weights and tokenizer as a preset of KerasHub, which Keras 3 loads under JAX, TensorFlow and PyTorch; and back.

The only importer of keras, and it imports it when it is called. Weights are HDF5: data, no code. Nothing that a preset
says is deserialized as an object: its numbers are read, and the backbone is built from them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from conf.exits import ConfigError, DataError
from trainer.export.einsum import by_head, from_heads, out_by_head, out_from_heads
from trainer.export.folder import new_folder, read_json, write_json, write_origin
from trainer.export.portable import DTYPES, REMEDY, LazyWeights, Portable, check_names, check_shape, shapes
from trainer.model.config import GemmaConfig
from trainer.model.sizes import SIZES

_POLICIES = {"fp32": "float32", "bf16": "bfloat16"}
_BACKBONES = {1: "GemmaBackbone", 2: "GemmaBackbone", 3: "Gemma3Backbone"}
_USUAL = {1: SIZES["gemma_2b"], 2: SIZES["gemma2_2b"], 3: SIZES["gemma3_4b"]}
_WEIGHTS = ("model.weights.h5", "model.weights.json")  # the latter lists several files of a large model
_VOCABULARY = Path("assets/tokenizer/vocabulary.spm")


def export_keras(
    config: GemmaConfig,
    weights: Mapping[str, Tensor],
    tokenizer_model: Path,
    vocab_size: int,
    folder: Path,
    dtype: str,
    provenance: dict[str, Any],
) -> Path:
    """Write the preset and return its folder; arguments, rows and errors as of `export_hf`.

    The whole model is held in memory. Raises ConfigError also where KerasHub would compute another model.
    """
    _refuse_other_models(config)
    check_names(config, weights, REMEDY)
    keras, hub = _libraries("export")
    generation = "3" if config.generation == 3 else ""
    keras.backend.clear_session()  # names count up within a process, and are part of the files
    backbone = _backbone(hub, config, vocab_size, _POLICIES[dtype])
    variables = _variables(backbone, config)
    for name, shape in shapes(config).items():
        tensor = weights[name]
        check_shape(name, tensor, shape, REMEDY)
        if name == "embedding.weight":
            tensor = tensor[:vocab_size]
        variable, there, _ = variables[name]
        variable.assign(there(tensor.detach().to("cpu", DTYPES[dtype]).float()).contiguous().numpy())
    with new_folder(folder) as temporary:
        proto = tokenizer_model.read_bytes()
        text_only = {"has_vision_tokens": False} if generation else {}
        tokenizer = getattr(hub.models, f"Gemma{generation}Tokenizer")(proto=proto, **text_only)
        preprocessor = getattr(hub.models, f"Gemma{generation}CausalLMPreprocessor")(tokenizer=tokenizer)
        model = getattr(hub.models, f"Gemma{generation}CausalLM")(backbone=backbone, preprocessor=preprocessor)
        model.save_to_preset(str(temporary))
        metadata = read_json(temporary / "metadata.json")
        del metadata["date_saved"]  # equal inputs give equal bytes
        write_json(temporary / "metadata.json", metadata)
        files = [*sorted(temporary.glob("model*")), temporary / _VOCABULARY]
        write_origin(temporary, config, vocab_size, dtype, provenance, files)
    return folder


def open_keras(folder: Path) -> Portable:
    """What a preset of KerasHub's GemmaBackbone or Gemma3Backbone (text only) holds; all of it is read at once.

    Raises:
        ConfigError: it is another model, or one that KerasHub computes otherwise than this model.
        DataError: a file is missing or broken.
    """
    content = read_json(folder / "config.json")
    config = _gemma_config(content)
    _refuse_other_models(config)
    found = [folder / name for name in _WEIGHTS if (folder / name).is_file()]
    if not found:
        raise DataError(f"{folder} has no {' and no '.join(_WEIGHTS)}: restore the preset from where it came from")
    policy = _policy(content["config"])
    _, hub = _libraries("import")
    backbone = _backbone(hub, config, config.vocab_size, policy)
    try:
        backbone.load_weights(str(found[0]))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{found[0]} does not hold the weights of its config.json ({error}): restore it") from error
    readers = {
        name: partial(_read, variable, back, policy)
        for name, (variable, _, back) in _variables(backbone, config).items()
    }
    vocabulary = folder / _VOCABULARY
    return Portable(config, LazyWeights(readers), vocabulary if vocabulary.is_file() else None)


def _libraries(job: str) -> tuple[ModuleType, ModuleType]:
    """keras and keras_hub. Raises ConfigError where they are not installed."""
    os.environ.setdefault("KERAS_BACKEND", "torch")  # which is here anyway; the files are the same under each
    try:
        import keras
        import keras_hub
    except ImportError as error:
        raise ConfigError(
            f"to {job} weights of Keras takes keras-hub, which is not here ({error}): install gemcutter[keras]"
        ) from error
    return keras, keras_hub


def _refuse_other_models(config: GemmaConfig) -> None:
    """Raises ConfigError where KerasHub 0.32 has a constant that the model has otherwise."""
    usual = _USUAL[config.generation]
    wrong = []
    if config.query_pre_attention != config.head_dim:  # its blocks set query_head_dim_normalize=True, whatever is asked
        wrong.append(f"scores divided by the root of {config.query_pre_attention}, not of head_dim={config.head_dim}")
    for name in ("rope_base_local", "rope_base_global", "norm_eps"):
        if getattr(config, name) != getattr(usual, name):
            wrong.append(f"{name}={getattr(config, name)}, not {getattr(usual, name)}")
    pattern = tuple(usual.pattern[i % len(usual.pattern)] for i in range(config.num_layers))
    if config.layer_kinds != pattern:
        wrong.append(f"kinds of layers other than {'/'.join(usual.pattern)} in turn")
    if wrong:
        raise ConfigError(
            f"KerasHub has no Gemma {config.generation} with {'; '.join(wrong)}, and would silently compute another "
            "model: use the format hf or jax"
        )


def _backbone(hub: ModuleType, config: GemmaConfig, vocab_size: int, policy: str) -> Any:
    """A backbone of this shape, its weights random."""
    options: dict[str, Any] = {
        "vocabulary_size": vocab_size,
        "num_layers": config.num_layers,
        "num_query_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "hidden_dim": config.d_model,
        "intermediate_dim": config.d_ff if config.generation == 3 else 2 * config.d_ff,
        "head_dim": config.head_dim,
        "attention_logit_soft_cap": config.attention_soft_cap,
        "final_logit_soft_cap": config.final_soft_cap,
        "use_post_ffw_norm": config.post_norms,
        "use_post_attention_norm": config.post_norms,
        "layer_norm_epsilon": config.norm_eps,
        "dtype": policy,
    }
    if config.window is not None:
        options |= {"use_sliding_window_attention": True, "sliding_window_size": config.window}
    if config.generation == 3:
        options |= {
            "image_size": None, "use_query_key_norm": True, "global_rope_scaling_factor": config.rope_scale_global,
        }  # fmt: skip
    return getattr(hub.models, _BACKBONES[config.generation])(**options)


def _gemma_config(content: dict[str, Any]) -> GemmaConfig:
    """The model that a preset's config.json describes. Raises ConfigError where it is none of ours."""
    values = content.get("config", {})
    name = str(content.get("registered_name", content.get("class_name"))).rsplit(">", 1)[-1]
    if name not in _BACKBONES.values():
        raise ConfigError(
            f"its config.json is of {name}, not one of {', '.join(dict.fromkeys(_BACKBONES.values()))}: name a preset "
            "of Gemma 1, 2 or 3"
        )
    generation = 3 if name == _BACKBONES[3] else 2 if values.get("use_post_attention_norm") else 1
    extra = [
        key
        for key in ("vision_encoder", "dropout", "use_bidirectional_attention", "is_embedding_model")
        if values.get(key)
    ]
    if values.get("local_rope_scaling_factor", 1.0) != 1.0:
        extra.append("local_rope_scaling_factor")
    if values.get("query_head_dim_normalize") is False:
        extra.append("query_head_dim_normalize=False, which KerasHub ignores")
    for key, wanted in {
        "use_post_attention_norm": generation > 1, "use_post_ffw_norm": generation > 1,
        "use_query_key_norm": generation == 3, "use_sliding_window_attention": generation > 1,
    }.items():  # fmt: skip
        if bool(values.get(key)) != wanted:
            extra.append(f"{key}={values.get(key)}")
    _policy(values)
    if extra:
        raise ConfigError(
            f"its config.json has {', '.join(extra)}, which this model does not compute: name a text model"
        )
    try:
        return GemmaConfig(
            generation=generation,  # type: ignore[arg-type]  # 1, 2 or 3
            vocab_size=values["vocabulary_size"],
            num_layers=values["num_layers"],
            d_model=values["hidden_dim"],
            d_ff=values["intermediate_dim"] // (1 if generation == 3 else 2),
            num_heads=values["num_query_heads"],
            num_kv_heads=values["num_key_value_heads"],
            head_dim=values["head_dim"],
            pattern=_USUAL[generation].pattern,
            window=values["sliding_window_size"] if generation > 1 else None,
            query_pre_attention=values["head_dim"],
            max_positions=_max_positions(values),
            attention_soft_cap=values.get("attention_logit_soft_cap"),  # presets of Gemma 1 may not have it
            final_soft_cap=values.get("final_logit_soft_cap"),
            qk_norm=generation == 3,
            post_norms=generation > 1,
            rope_base_local=_USUAL[generation].rope_base_local,
            rope_base_global=_USUAL[generation].rope_base_global,
            rope_scale_global=values.get("global_rope_scaling_factor", 1.0),
            norm_eps=values["layer_norm_epsilon"],
        )
    except KeyError as error:
        raise ConfigError(f"its config.json lacks {error}: restore the preset from where it came from") from error


def _max_positions(values: dict[str, Any]) -> int:
    """A preset does not say; of Gemma 3 the sizes whose positions are not scaled have the short context."""
    if "global_rope_scaling_factor" not in values:
        return 8192
    return 32_768 if values["global_rope_scaling_factor"] == 1.0 else 131_072


def _policy(values: dict[str, Any]) -> str:
    """The dtype of a preset's weights. Raises ConfigError where they are quantized."""
    stated = values.get("dtype") or "float32"
    policy = stated if isinstance(stated, str) else stated.get("config", {}).get("name", "float32")
    if policy not in ("float32", "bfloat16", "float16"):
        raise ConfigError(
            f"its config.json says dtype={policy}, of which no training can begin: name an unquantized one"
        )
    return str(policy)


_Layout = Callable[[Tensor], Tensor]


def _variables(backbone: Any, config: GemmaConfig) -> dict[str, tuple[Any, _Layout, _Layout]]:
    """Of each parameter of ours, Keras's variable, and the way there and back between the layouts."""
    head_dim = config.head_dim
    into: tuple[_Layout, _Layout] = (partial(by_head, head_dim=head_dim), from_heads)
    out_of: tuple[_Layout, _Layout] = (partial(out_by_head, head_dim=head_dim), out_from_heads)
    same, turned = (_same, _same), (_turned, _turned)
    table: dict[str, tuple[Any, _Layout, _Layout]] = {
        "embedding.weight": (backbone.token_embedding.embeddings, *same),
    }
    for i, block in enumerate(backbone.transformer_layers):
        attention = block.attention
        layer: dict[str, tuple[Any, _Layout, _Layout]] = {
            "attention_norm.weight": (block.pre_attention_norm.scale, *same),
            "attention.q.weight": (attention.query_dense.kernel, *into),
            "attention.k.weight": (attention.key_dense.kernel, *into),
            "attention.v.weight": (attention.value_dense.kernel, *into),
            "attention.o.weight": (attention.output_dense.kernel, *out_of),
            "feed_forward_norm.weight": (block.pre_ffw_norm.scale, *same),
            "feed_forward.gate.weight": (block.gating_ffw.kernel, *turned),
            "feed_forward.up.weight": (block.gating_ffw_2.kernel, *turned),
            "feed_forward.down.weight": (block.ffw_linear.kernel, *turned),
        }
        if config.qk_norm:
            layer["attention.q_norm.weight"] = (attention.query_norm.scale, *same)
            layer["attention.k_norm.weight"] = (attention.key_norm.scale, *same)
        if config.post_norms:
            layer["attention_post_norm.weight"] = (block.post_attention_norm.scale, *same)
            layer["feed_forward_post_norm.weight"] = (block.post_ffw_norm.scale, *same)
        table |= {f"blocks.{i}.{name}": entry for name, entry in layer.items()}
    return table | {"final_norm.weight": (backbone.layer_norm.scale, *same)}


def _same(weight: Tensor) -> Tensor:
    return weight


def _turned(weight: Tensor) -> Tensor:
    return weight.T


def _read(variable: Any, back: _Layout, policy: str) -> Tensor:
    """A parameter of ours from Keras's variable, in the stored dtype."""
    import keras

    values = torch.tensor(keras.ops.convert_to_numpy(keras.ops.cast(variable, "float32")))
    return back(values).contiguous().to(getattr(torch, policy))
