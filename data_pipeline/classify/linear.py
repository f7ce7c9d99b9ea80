"""A linear classifier over hashed words, pairs of words and pieces of words: how probably a document is of one kind.

The model of fastText (Joulin et al. 2016, arXiv:1607.01759) for two classes: there, the mean of the vectors of all
features goes through one more matrix, whose product with them is a single number a feature. Here that number is learned
directly, by AdaGrad (Duchi et al. 2011). A last step makes probabilities of margins (Platt 1999), on documents that the
numbers were not learned from.

Every sum has one fixed order and every exponential is computed here, so equal documents give equal bits on any machine.

Axes: B buckets, F features of all documents one after another, D documents, W words.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from numba import njit

from data_pipeline.signals.characters import SIGN, characters
from data_pipeline.signals.tokens import IDEOGRAPHIC, SPOKEN, Tokens, mix

Array: TypeAlias = npt.NDArray[Any]

FORMAT = 1
BITS = 20  # a million buckets: 4 MiB
EPOCHS = 5
RATE = 4.0  # of AdaGrad: how far the first step of a feature leads
_BASE = np.uint64(0x9FB21C651E98DF25)  # odd; other than that of words, so that a pair is no word


@dataclass(frozen=True)
class Linear:
    """A trained model.

    weights_B   float32, of the features that fall into a bucket
    bias, slope, offset   probability = sigmoid(slope * (bias + mean weight of the features) + offset)
    subwords              whether pieces of words are features, too
    """

    weights_B: npt.NDArray[np.float32]
    bias: float
    subwords: bool = False
    slope: float = 1.0
    offset: float = 0.0

    @property
    def bits(self) -> int:
        """Bits of the number of a bucket."""
        return int(self.weights_B.size).bit_length() - 1

    def margins(self, features_F: Array, documents_D1: Array) -> npt.NDArray[np.float64]:
        """Before calibration: positive where the positive kind is the more likely."""
        return _margins(features_F, documents_D1, self.weights_B, self.bias)

    def score(self, tokens: Tokens) -> npt.NDArray[np.float32]:
        """The probability of each document, float32. Of a document without words it is that of the bias alone."""
        margins_D = self.margins(*features(tokens, self.bits, self.subwords))
        return probabilities(margins_D, self.slope, self.offset)

    def dump(self) -> bytes:
        """The model as an .npz file; equal models give equal bytes."""
        numbers = {"bias": self.bias, "slope": self.slope, "offset": self.offset}
        head = {"format": FORMAT, "subwords": self.subwords, **numbers}
        file = io.BytesIO()
        np.savez(file, head=np.frombuffer(json.dumps(head).encode(), np.uint8), weights=self.weights_B)
        return file.getvalue()

    @staticmethod
    def load(path: Path) -> Linear:
        """Read what `dump` wrote. Raises ValueError where a file is none of ours, is broken, or of a newer format."""
        try:
            # Opened here: numpy leaves open what it cannot read.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                head = json.loads(arrays["head"].tobytes())
                weights_B = arrays["weights"]
                format_, subwords = int(head["format"]), bool(head["subwords"])
                bias, slope, offset = (float(head[key]) for key in ("bias", "slope", "offset"))
        except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is no classifier of ours: {error}") from error
        if format_ > FORMAT:
            raise ValueError(f"{path} has format {format_}, this version reads up to {FORMAT}")
        size = weights_B.size
        if weights_B.dtype != np.float32 or weights_B.ndim != 1 or size < 2 or size & (size - 1):
            raise ValueError(f"{path}: weights are {weights_B.dtype} {weights_B.shape}, not float32 of a power of two")
        if not (np.isfinite(weights_B).all() and np.isfinite([bias, slope, offset]).all()):
            raise ValueError(f"{path}: weights are not all finite")
        return Linear(weights_B, bias, subwords, slope, offset)


def features(
    tokens: Tokens, bits: int = BITS, subwords: bool = False
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """The bucket of each word, and of each pair of words that follow one another; where each document begins.

    Words count without case and accents, and signs not at all. A letter of a script without blanks is a word. With
    `subwords` every run of 3, 4 or 5 letters of a word counts too, where begin and end of the word are letters: so
    forms of a word that were never seen still say something. Of a word, the first 40 letters are looked at.
    """
    spoken_W = tokens.kinds_W & SPOKEN != 0
    most = 2 * int(np.count_nonzero(spoken_W))
    if subwords:
        lengths_W = np.minimum(tokens.ends_W - tokens.starts_W, _LONGEST_WORD) + 2
        most += len(_RUNS) * int(lengths_W[spoken_W].sum(dtype=np.int64))
    features_F = np.empty(most, np.uint32)
    documents_D1 = np.zeros(tokens.words_D1.size, np.int64)
    table = characters()
    _features(
        tokens.text_C, tokens.starts_W, tokens.ends_W, tokens.folded_W, tokens.kinds_W, tokens.words_D1, table.folded,
        table.kinds, bits, subwords, features_F, documents_D1,
    )  # fmt: skip
    return features_F[: documents_D1[-1]].copy(), documents_D1


def fit(
    features_F: Array, documents_D1: Array, positive_D: Array, *, bits: int = BITS, subwords: bool = False,
    epochs: int = EPOCHS, rate: float = RATE,
) -> Linear:  # fmt: skip
    """Learn from documents, which are gone through in their order, `epochs` times. The two kinds weigh the same.

    `bits` and `subwords` say how the features were made. Raises ValueError where there is one kind only.
    """
    weights_B, squares_B = np.zeros(1 << bits, np.float32), np.full(1 << bits, _FIRST_SQUARE, np.float32)
    positives = int(np.count_nonzero(positive_D))
    if not 0 < positives < positive_D.size:
        raise ValueError(f"{positives} of {positive_D.size} documents are positive: both kinds are needed")
    bias = _fit(features_F, documents_D1, positive_D, positives / positive_D.size, epochs, rate, weights_B, squares_B)
    return Linear(weights_B, bias, subwords)


_RUNS = (3, 4, 5)  # letters of a piece of a word
_LONGEST_WORD = 40
_BEGIN, _END = np.uint64(0x110000), np.uint64(0x110001)  # no code points
_FIRST_SQUARE = np.float32(1e-12)


@njit(cache=True)
def _features(
    text_C: Array, starts_W: Array, ends_W: Array, folded_W: Array, kinds_W: Array, words_D1: Array, folded: Array,
    kinds: Array, bits: int, subwords: bool, features_F: Array, documents_D1: Array,
) -> None:  # fmt: skip
    shift = np.uint64(64 - bits)
    letters = np.empty(_LONGEST_WORD + 2, np.uint64)
    count = 0
    for d in range(words_D1.size - 1):
        before, first = np.uint64(0), True
        for w in range(words_D1[d], words_D1[d + 1]):
            if kinds_W[w] & SPOKEN == 0:
                continue
            word = folded_W[w]
            features_F[count] = mix(word * _BASE) >> shift
            count += 1
            if not first:
                features_F[count] = mix((before + np.uint64(1)) * _BASE + word) >> shift
                count += 1
            before, first = word, False
            if not subwords or kinds_W[w] & IDEOGRAPHIC:
                continue
            letters[0] = _BEGIN
            length = 1
            for at in range(starts_W[w], min(ends_W[w], starts_W[w] + _LONGEST_WORD)):
                letter = folded[text_C[at]]
                if kinds[text_C[at]] != SIGN and letter:
                    letters[length] = letter
                    length += 1
            letters[length] = _END
            length += 1
            for begin in range(length):
                run = np.uint64(0)
                for at in range(begin, min(begin + _RUNS[-1], length)):
                    run = (run + letters[at]) * _BASE
                    if at - begin + 1 >= _RUNS[0]:
                        features_F[count] = mix(run) >> shift
                        count += 1
        documents_D1[d + 1] = count


@njit(cache=True)
def _margins(features_F: Array, documents_D1: Array, weights_B: Array, bias: float) -> Array:
    margins_D = np.empty(documents_D1.size - 1, np.float64)
    for d in range(margins_D.size):
        first, stop = documents_D1[d], documents_D1[d + 1]
        total = 0.0
        for at in range(first, stop):
            total += weights_B[features_F[at]]
        margins_D[d] = bias + total / max(stop - first, 1)
    return margins_D


@njit(cache=True)
def _fit(
    features_F: Array, documents_D1: Array, positive_D: Array, share: float, epochs: int, rate: float,
    weights_B: Array, squares_B: Array,
) -> float:  # fmt: skip
    bias, bias_square = 0.0, 1e-12
    for _ in range(epochs):
        for d in range(documents_D1.size - 1):
            first, stop = documents_D1[d], documents_D1[d + 1]
            size = max(stop - first, 1)
            total = 0.0
            for at in range(first, stop):
                total += weights_B[features_F[at]]
            probability = sigmoid(bias + total / size)
            slope = (probability - 1.0) * 0.5 / share if positive_D[d] else probability * 0.5 / (1.0 - share)
            step = slope / size
            for at in range(first, stop):
                bucket = features_F[at]
                squares_B[bucket] += np.float32(step * step)
                weights_B[bucket] -= np.float32(rate * step / np.sqrt(squares_B[bucket]))
            bias_square += slope * slope
            bias -= rate * slope / np.sqrt(bias_square)
    return bias


@njit(cache=True)
def probabilities(margins_D: Array, slope: float, offset: float) -> Array:
    probabilities_D = np.empty(margins_D.size, np.float32)
    for d in range(margins_D.size):
        probabilities_D[d] = sigmoid(slope * margins_D[d] + offset)
    return probabilities_D


@njit(cache=True)
def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), of additions and products alone: those of a C library differ in their last bits."""
    x = min(max(x, -40.0), 40.0)
    halvings = int(abs(x)) + 1
    part = -x / halvings
    term, exponential = 1.0, 1.0
    for n in range(1, 20):  # of a part between -1 and 1: exact to the last bits
        term *= part / n
        exponential += term
    power = 1.0
    for _ in range(halvings):
        power *= exponential
    return 1.0 / (1.0 + power)
