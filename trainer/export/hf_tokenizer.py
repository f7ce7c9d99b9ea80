"""A SentencePiece BPE model as a `tokenizer.json` of Hugging Face's tokenizers: the same ids for every text.

Written as plain JSON, so that an export needs no library of Hugging Face.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conf.exits import ConfigError
from data_pipeline.tokenizer import BOS, EOS, PAD, UNK, pieces

_BLANK = "▁"


def tokenizer_json(model: Path) -> dict[str, Any]:
    """The content of `tokenizer.json`; BOS opens every text, EOS closes none (Gemma's convention).

    Raises:
        ConfigError: the model has pieces of kind `unused`, which the format cannot express.
    """
    table = pieces(model)
    unused = [text for text, _, kind in table if kind == "unused"]
    if unused:
        raise ConfigError(
            f"{model} has {len(unused)} pieces of kind unused, such as {unused[0]!r}, which tokenizer.json cannot "
            "express: export with a tokenizer that has none"
        )
    bos = table[BOS][0]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": index,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                # SentencePiece looks for user-defined pieces after blanks have become ▁, and never for control pieces.
                "normalized": kind == "user_defined",
                "special": kind in ("control", "unknown"),
            }
            for index, (text, _, kind) in enumerate(table)
            if kind in ("control", "unknown", "user_defined")
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": _BLANK},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"SpecialToken": {"id": bos, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": bos, "type_id": 1}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {bos: {"id": bos, "ids": [BOS], "tokens": [bos]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _BLANK}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": table[UNK][0],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {text: index for index, (text, _, _) in enumerate(table)},
            "merges": _merges(table),
        },
    }


def tokenizer_config(model: Path) -> dict[str, Any]:
    """The content of `tokenizer_config.json`. Control pieces spelt out in a text stay text, as in training."""
    table = pieces(model)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": table[BOS][0],
        "eos_token": table[EOS][0],
        "pad_token": table[PAD][0],
        "unk_token": table[UNK][0],
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
        "model_max_length": 10**30,
        "padding_side": "left",
    }


def _merges(table: list[tuple[str, float, str]]) -> list[list[str]]:
    """Every pair of pieces that forms a piece, best first.

    SentencePiece joins whichever neighbours form the piece of the highest score; the other format lists pairs by rank.
    So each piece contributes all its splits, at the rank of its score. User-defined pieces take part in no merge.
    """
    normal = {text: index for index, (text, _, kind) in enumerate(table) if kind == "normal"}
    by_score = sorted(normal, key=lambda text: (-table[normal[text]][1], normal[text]))
    return [
        [text[:cut], text[cut:]]
        for text in by_score
        for cut in range(1, len(text))
        if text[:cut] in normal and text[cut:] in normal
    ]


def write_tokenizer(model: Path, folder: Path) -> None:
    """Writes tokenizer.model, tokenizer.json and tokenizer_config.json into a folder."""
    (folder / "tokenizer.model").write_bytes(model.read_bytes())
    for name, content in (
        ("tokenizer.json", tokenizer_json(model)),
        ("tokenizer_config.json", tokenizer_config(model)),
    ):
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
