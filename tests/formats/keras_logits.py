"""Run by .venv-formats: what KerasHub computes from presets under the backend of KERAS_BACKEND.

usage: KERAS_BACKEND=<backend> python keras_logits.py <folder>

For each folder in it, which has a `preset` and `tokens.npy` [B, S], writes `<backend>.npy`, the logits, and
`<backend>.json`, what KerasHub's tokenizer makes of `text.txt` and what it says of itself.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import keras
import keras_hub
import numpy as np

for case in sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_dir()):
    keras.config.set_dtype_policy("float32")
    model = keras_hub.models.CausalLM.from_preset(str(case / "preset"))
    tokens_BS = np.load(case / "tokens.npy")
    inputs = {"token_ids": tokens_BS, "padding_mask": np.ones_like(tokens_BS)}
    logits_BSV = keras.ops.convert_to_numpy(model(inputs))
    np.save(case / f"{keras.config.backend()}.npy", logits_BSV)
    text = (case / "text.txt").read_text()
    ids = [int(i) for i in keras.ops.convert_to_numpy(model.preprocessor.tokenizer(text))]
    blocks = {"GemmaCausalLM": keras_hub.models.GemmaBackbone, "Gemma3CausalLM": keras_hub.models.Gemma3Backbone}
    shape = model.backbone.get_config() | {"query_head_dim_normalize": False}
    block = blocks[type(model).__name__](**shape).transformer_layers[0]
    said = {
        "class": type(model).__name__,
        "backend": keras.config.backend(),
        "keras_hub": keras_hub.__version__,
        "rows": model.backbone.vocabulary_size,
        "ids": ids,
        "query scale": block.attention.query_head_dim_normalize,  # True: by head_dim, though asked for otherwise
    }
    (case / f"{keras.config.backend()}.json").write_text(json.dumps(said))
