"""The values of the report: `tokenizer_report.json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.tokenizer import Tokenizer, pieces, settings
from data_pipeline.tokenizer_report.counts import UNSPACED, Counts, Use
from data_pipeline.tokenizer_report.round_trip import RoundTrip

FORMAT = 1

_BASIS = "en"  # the language that the others are held against
_OFTEN = 100  # times a piece must come to be learnt at all, about
_EXAMPLES = 20
_COVERAGE = (1, 10, 50)  # per cent of the pieces, the most frequent first
_FROM_TEXT = ("normal", "user_defined", "byte")  # kinds of pieces that a text can hold


class TokenizerReport:
    """Counts over all documents of a job, taken in batches as they are encoded."""

    def __init__(self, path: str | Path) -> None:
        """The tokenizer by its .model file. Raises what `Tokenizer.load` raises."""
        self._path = path
        self._model = Tokenizer.load(path)
        self._pieces = pieces(path)
        self._counts = Counts(self._pieces)
        self._round_trip = RoundTrip(self._model)

    def add(
        self,
        ids: Sequence[str],
        texts: Sequence[str],
        sizes: Sequence[int],
        languages: Sequence[str],
        tokens: list[np.ndarray],
    ) -> None:
        """Count documents: ids, texts, UTF-8 bytes of these, codes of languages, and tokens from BOS to EOS."""
        self._counts.add(texts, sizes, languages, tokens)
        self._round_trip.add(ids, texts, sizes, languages, tokens)

    def values(self, lineage: str) -> dict[str, Any]:
        """Everything counted, for JSON. `lineage` is the sha256 of what the documents were read from."""
        languages, tried = self._counts.languages, self._round_trip
        whole, basis = Use.sum(languages.values()), languages.get(_BASIS)
        most = sorted(languages, key=lambda code: (-languages[code].bytes, code))
        return {
            "format": FORMAT,
            "lineage": lineage,
            "tokenizer": {
                "sha256": self._model.sha256,
                "vocab_size": self._model.vocab_size,
                **asdict(settings(self._path)),
            },
            "all": _figures(whole, None, sum(tried.tried.values()), sum(tried.exact.values())),
            "languages": {
                code: {
                    "spaced": code not in UNSPACED,
                    **_figures(languages[code], basis, tried.tried.get(code, 0), tried.exact.get(code, 0)),
                }
                for code in most
            },
            "changes": dict(sorted(tried.changes.items())),
            "vocabulary": self._vocabulary(whole),
        }

    def _vocabulary(self, whole: Use) -> dict[str, Any]:
        kinds = np.array([kind for _, _, kind in self._pieces])
        from_text = np.isin(kinds, _FROM_TEXT)
        times = self._counts.pieces_V
        used, falling = from_text & (times > 0), np.sort(times[from_text])[::-1]
        unused = np.flatnonzero(from_text & ~used)
        lengths: dict[str, dict[str, int]] = {}
        for (text, _, kind), count in zip(self._pieces, times.tolist(), strict=True):
            if kind not in _FROM_TEXT:
                continue
            row = lengths.setdefault("byte" if kind == "byte" else str(len(text)), {"pieces": 0, "tokens": 0})
            row["pieces"] += 1
            row["tokens"] += count
        return {
            "kinds": dict(sorted(Counter(kinds.tolist()).items())),
            "used": int(used.sum()),
            f"used_{_OFTEN}_times": int((from_text & (times >= _OFTEN)).sum()),
            "unused": dict(sorted(Counter(kinds[unused].tolist()).items())),
            "unused_examples": [self._pieces[n][0] for n in unused if kinds[n] == "normal"][:_EXAMPLES],
            "several_digits": sum(_holds_several_digits(text) for text, _, kind in self._pieces if kind == "normal"),
            "coverage": {
                str(percent): _ratio(int(falling[: -(-len(falling) * percent // 100)].sum()), whole.tokens)
                for percent in _COVERAGE
            },
            "lengths": {
                name: lengths[name] for name in sorted(lengths, key=lambda name: (name != "byte", len(name), name))
            },
        }


def _figures(use: Use, basis: Use | None, tried: int, exact: int) -> dict[str, Any]:
    counted = asdict(use)
    spaced_tokens = counted.pop("spaced_tokens")
    premium = None
    if basis is not None and basis.tokens and use.tokens:
        premium = {
            "bytes": _ratio(use.tokens * basis.bytes, use.bytes * basis.tokens),
            "characters": _ratio(use.tokens * basis.characters, use.characters * basis.tokens),
        }
    return {
        **counted,
        "bytes_per_token": _ratio(use.bytes, use.tokens),
        "characters_per_token": _ratio(use.characters, use.tokens),
        "tokens_per_word": _ratio(spaced_tokens, use.words),
        "premium": premium,
        "round_trip": {"tried": tried, "exact": exact},
    }


def _ratio(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def _holds_several_digits(text: str) -> bool:
    return any(a.isdigit() and b.isdigit() for a, b in pairwise(text))
