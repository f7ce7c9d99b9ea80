"""Run by .venv-formats: what the JAX package gemma computes from exported checkpoints.

usage: python jax_logits.py <folder>

For each folder in it, which has an `export` and `tokens.npy` [B, S], writes `logits.npy`. What the package is told of
the model it is told here, by its own names, and not by our configuration.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from gemma import gm

config = gm.nn.config
LOCAL, GLOBAL = config.AttentionType.LOCAL_SLIDING, config.AttentionType.GLOBAL
BY_WIDTH = config.QueryPreAttentionNormalisation.BY_ONE_OVER_SQRT_EMBED_DIM_DIV_NUM_HEADS
PATTERNS = {"1": (GLOBAL,), "2": (LOCAL, GLOBAL), "3": config.GEMMA3_ATTENTION_PATTERN}
OF_GENERATION = {
    "1": {"final_logit_softcap": None, "use_post_attn_norm": False, "use_post_ffw_norm": False},
    "2": {
        "final_logit_softcap": 30.0, "attn_logits_soft_cap": 50.0, "sliding_window_size": 10,
        "use_post_attn_norm": True, "use_post_ffw_norm": True,
    },
    "3": {
        "final_logit_softcap": None, "sliding_window_size": 10, "use_post_attn_norm": True, "use_post_ffw_norm": True,
        "use_qk_norm": True, "transpose_gating_einsum": True, "global_base_frequency": 1_000_000,
        "global_scale_factor": 8.0,
    },
}  # fmt: skip

for case in sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_dir()):
    generation, layers, kv_heads, by_width = case.name.split("-")  # as in 2-5-4-1
    model = gm.nn.Transformer(
        config=config.TransformerConfig(
            num_embed=640,
            embed_dim=48,
            hidden_dim=80,
            num_heads=4,
            head_dim=16,
            num_kv_heads=int(kv_heads),
            attention_types=config.make_attention_layers_types(PATTERNS[generation], num_layers=int(layers)),
            **OF_GENERATION[generation],
            **({"query_pre_attn_norm": BY_WIDTH} if by_width == "1" else {}),
        ),
        dtype=jnp.float32,
    )
    params = gm.ckpts.load_params((case / "export/params").absolute())
    logits_BSV = model.apply({"params": params}, tokens=np.load(case / "tokens.npy")).logits
    np.save(case / "logits.npy", np.asarray(logits_BSV))
