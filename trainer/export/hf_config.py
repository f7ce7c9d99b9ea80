"""A `GemmaConfig` as the `config.json` of Hugging Face's Gemma, Gemma 2 and Gemma 3 (text), and back."""

from __future__ import annotations

from typing import Any

from conf.exits import ConfigError
from data_pipeline.tokenizer import BOS, EOS, PAD
from trainer.model.config import GemmaConfig, Kind

SPECIAL_IDS = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
_ARCHITECTURES = {
    1: ("GemmaForCausalLM", "gemma"),
    2: ("Gemma2ForCausalLM", "gemma2"),
    3: ("Gemma3ForCausalLM", "gemma3_text"),
}
_GENERATIONS = {model_type: generation for generation, (_, model_type) in _ARCHITECTURES.items()}
_MULTIMODAL = "gemma3"  # Gemma 3 with images, whose `text_config` is a gemma3_text
_KINDS: dict[Kind, str] = {"local": "sliding_attention", "global": "full_attention"}
_PATTERNS: dict[int, tuple[Kind, ...]] = {1: ("global",), 2: ("local", "global"), 3: ("local",) * 5 + ("global",)}
_TANH = "gelu_pytorch_tanh"

# What transformers (5.23) takes where a file says nothing. The files of Gemma 3 4B, 12B and 27B leave much unsaid.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma": {"max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0},
    "gemma2": {
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "query_pre_attn_scalar": 256,
        "sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    },
    "gemma3_text": {
        "max_position_embeddings": 131_072, "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0,
        "query_pre_attn_scalar": 256, "sliding_window": 4096, "attn_logit_softcapping": None,
        "final_logit_softcapping": None, "vocab_size": 262_208, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 256,
    },
}  # fmt: skip


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
        "hidden_activation": _TANH,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "use_cache": True,
        **SPECIAL_IDS,
    }
    if config.generation == 1:
        rope = {"rope_type": "default", "rope_theta": config.rope_base_global}
        return content | {"hidden_act": _TANH, "rope_parameters": rope}
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


def gemma_config(content: dict[str, Any]) -> GemmaConfig:
    """The model that a `config.json` describes, of transformers 4 or 5; `vocab_size` is what the file says.

    Raises ConfigError where it is no Gemma 1, 2 or 3, lacks a number, or asks for what this model does not compute.
    """
    if content.get("model_type") == _MULTIMODAL:
        content = {"model_type": "gemma3_text", **content.get("text_config", {})}
    model_type = content.get("model_type")
    if model_type not in _GENERATIONS:
        raise ConfigError(
            f"its config.json says model_type={model_type}, not one of {', '.join([*_GENERATIONS, _MULTIMODAL])}: "
            "name a folder of Gemma 1, 2 or 3"
        )
    generation = _GENERATIONS[model_type]
    values = {**_DEFAULTS[model_type], **content}
    _refuse_other_models(values)
    try:
        local, full, scale = _rope(values, generation)
        num_layers = values["num_hidden_layers"]
        config = GemmaConfig(
            generation=generation,  # type: ignore[arg-type]  # a key of _ARCHITECTURES
            vocab_size=values["vocab_size"],
            num_layers=num_layers,
            d_model=values["hidden_size"],
            d_ff=values["intermediate_size"],
            num_heads=values["num_attention_heads"],
            num_kv_heads=values["num_key_value_heads"],
            head_dim=values["head_dim"],
            pattern=_pattern(values, generation, num_layers),
            window=None if generation == 1 else values["sliding_window"],
            query_pre_attention=values["head_dim"] if generation == 1 else values["query_pre_attn_scalar"],
            max_positions=values["max_position_embeddings"],
            attention_soft_cap=None if generation == 1 else values["attn_logit_softcapping"],
            final_soft_cap=None if generation == 1 else values["final_logit_softcapping"],
            qk_norm=generation == 3,
            post_norms=generation > 1,
            rope_base_local=local,
            rope_base_global=full,
            rope_scale_global=scale,
            norm_eps=values["rms_norm_eps"],
        )
    except KeyError as error:
        raise ConfigError(f"its config.json lacks {error}: restore the file from where the folder came from") from error
    except (TypeError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"its config.json has a value of the wrong kind ({error}): restore the file from where the folder came from"
        ) from error
    for name in ("vocab_size", "num_layers", "d_model", "d_ff", "num_heads", "num_kv_heads", "head_dim"):
        if type(count := getattr(config, name)) is not int or count < 1:
            raise ConfigError(
                f"its config.json says {count!r} for what is {name} here, which must be a whole number from 1 on: "
                "restore the file from where the folder came from"
            )
    return config


def _refuse_other_models(values: dict[str, Any]) -> None:
    """Raises ConfigError for what a Gemma of this name may have in transformers, and not here."""
    expected = {
        "attention_bias": (False, None),
        "attention_dropout": (0, None),
        "tie_word_embeddings": (True, None),
        "use_bidirectional_attention": (False, None),
        # The first files of Gemma 1 say gelu and mean its tanh form.
        "hidden_act": (_TANH, "gelu", None),
        "hidden_activation": (_TANH, "gelu", None) if values["model_type"] == "gemma" else (_TANH, None),
    }
    wrong = [f"{name}={values[name]}" for name, good in expected.items() if values.get(name) not in good]
    if wrong:
        raise ConfigError(
            f"its config.json says {', '.join(wrong)}, which no released Gemma 1, 2 or 3 does and this model does not "
            "compute: name another folder"
        )


def _pattern(values: dict[str, Any], generation: int, num_layers: int) -> tuple[Kind, ...]:
    """The generation's own pattern where it gives the stated kinds of layers, else the stated kinds."""
    usual = _PATTERNS[generation]
    names = values.get("layer_types")
    if names is None:  # transformers 4
        every = values.get("sliding_window_pattern") or len(usual)
        local, last = usual[0], usual[-1]
        return usual if every == len(usual) else (local,) * (every - 1) + (last,)
    kinds: dict[str, Kind] = {name: kind for kind, name in _KINDS.items()}
    if len(names) != num_layers or not set(names) <= kinds.keys():
        raise ConfigError(
            f"its config.json says layer_types={names} for num_hidden_layers={num_layers}: they must be as many, and "
            f"each one of {', '.join(kinds)}"
        )
    stated = tuple(kinds[name] for name in names)
    return usual if stated == tuple(usual[i % len(usual)] for i in range(num_layers)) else stated


def _rope(values: dict[str, Any], generation: int) -> tuple[float, float, float]:
    """Base on local layers, base on global layers, and what positions on global layers are divided by."""
    rope = values.get("rope_parameters")
    if rope is None:  # transformers 4
        full = {"rope_theta": values["rope_theta"], **(values.get("rope_scaling") or {})}
        sliding = {"rope_theta": values.get("rope_local_base_freq", 10_000.0)} if generation == 3 else full
    else:
        full, sliding = rope.get("full_attention", rope), rope.get("sliding_attention", rope)
    kinds = [entry.get("rope_type", entry.get("type", "default")) for entry in (full, sliding)]  # `type`: older files
    if kinds[1] != "default" or kinds[0] not in ("default", "linear") or (generation < 3 and kinds[0] != "default"):
        raise ConfigError(
            f"its config.json says rope_type={kinds[0]} on global and {kinds[1]} on local layers: this model divides "
            "positions on the global layers of Gemma 3 (linear), and knows no other scaling"
        )
    local_base = sliding.get("rope_theta", 10_000.0)
    scale = float(full["factor"]) if kinds[0] == "linear" else 1.0
    return float(local_base), float(full.get("rope_theta", values["rope_theta"])), scale
