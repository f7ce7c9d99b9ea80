"""Whether text comes back from its tokens as it was, and if not, why: tried on a sample of each language.

The sample is chosen by hashes of ids: every document at first, then fewer the more text of a language there is, but
never under one in 16. So a rare language is tried whole, and a large collection costs little.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from data_pipeline.shards import order_key
from data_pipeline.tokenizer import UNK, Tokenizer

_WHOLE_BYTES = 2**15  # of text of a language, before documents are left out
_FEWEST = 1 / 16  # of the documents of a language
_SHOWN = 4  # characters of an example

_INVISIBLE = re.compile("[\0-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]+")

# What a tokenizer may do to a text, each as what is left of a text where that makes no difference, upon those before.
_CHANGES: dict[str, Callable[[str], str]] = {
    "blank_sign": lambda text: text.replace("▁", " "),
    "white_space": lambda text: "".join(text.split()),
    "invisible": lambda text: _INVISIBLE.sub("", text),
    "nfc": lambda text: unicodedata.normalize("NFC", text),
    "nfkc": lambda text: "".join(unicodedata.normalize("NFKC", text).split()),
    "case": lambda text: unicodedata.normalize("NFKC", text.casefold()),
}


class RoundTrip:
    """Documents that were decoded, by language, and what differed.

    tried, exact   documents by language; exact ones decode to the text that was encoded
    changes        kind of change -> {"documents", "id", "text", "decoded"}: of the first such document its id, and the
                   code points where the two part
    """

    def __init__(self, model: Tokenizer) -> None:
        self._model = model
        self._seen: dict[str, int] = {}
        self.tried: dict[str, int] = {}
        self.exact: dict[str, int] = {}
        self.changes: dict[str, dict[str, Any]] = {}

    def add(
        self,
        ids: Sequence[str],
        texts: Sequence[str],
        sizes: Sequence[int],
        languages: Sequence[str],
        tokens: Sequence[np.ndarray],
    ) -> None:
        """Try those documents of a batch that fall into the sample."""
        chosen = [n for n in range(len(ids)) if self._falls_into_the_sample(ids[n], sizes[n], languages[n])]
        decoded = self._model.decode_documents([tokens[n] for n in chosen])
        for n, back in zip(chosen, decoded, strict=True):
            language = languages[n]
            self.tried[language] = self.tried.get(language, 0) + 1
            self.exact[language] = self.exact.get(language, 0) + (back == texts[n])
            if back != texts[n]:
                kind, before, after = change(texts[n], back, bool((tokens[n] == UNK).any()))
                example = {"documents": 0, "id": ids[n], "text": before, "decoded": after}
                self.changes.setdefault(kind, example)["documents"] += 1

    def _falls_into_the_sample(self, document: str, size: int, language: str) -> bool:
        before = self._seen.get(language, 0)
        self._seen[language] = before + size
        return before <= _WHOLE_BYTES or order_key(document) < max(_FEWEST, _WHOLE_BYTES / before) * 2**64


def change(text: str, decoded: str, unknown: bool) -> tuple[str, str, str]:
    """What made a text differ from what its tokens decode to, and code points of both from where they part.

    A kind of `_CHANGES` is given where it and those before it explain the whole difference; `unknown` where pieces
    were unknown, and `other` where nothing explains it.
    """
    if unknown:
        return ("unknown", *_parting(text, decoded))
    for kind, ignoring in _CHANGES.items():
        left, right = ignoring(text), ignoring(decoded)
        if left == right:
            return (kind, *_parting(text, decoded))
        text, decoded = left, right
    return ("other", *_parting(text, decoded))


def _parting(text: str, decoded: str) -> tuple[str, str]:
    at = next(n for n, (a, b) in enumerate(zip_longest(text, decoded)) if a != b)
    return _code_points(text[at : at + _SHOWN]), _code_points(decoded[at : at + _SHOWN])


def _code_points(text: str) -> str:
    return " ".join(f"U+{ord(character):04X}" for character in text)
