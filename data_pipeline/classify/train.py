"""A classifier from documents of two kinds: a sample of them, a part kept out of training, the model, and its figures.

The user says which sources are good and which are bad; nothing here knows what the kinds mean. Which documents are
sampled, kept out or learned from, and in which order, follows from hashes of their words alone: neither the order in
which they are met nor who met them has any part in it.

Axes: those of `linear.py`.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from data_pipeline.batched import batched
from data_pipeline.classify import linear
from data_pipeline.classify.linear import Array, Linear
from data_pipeline.signals.hashing import nonzero, place, room
from data_pipeline.signals.tokens import SPOKEN, Tokens, mix

MOST_CHARACTERS = 16_000_000  # of each kind: seconds of training, and 1.4 GiB of memory with subwords
LONGEST = 20_000  # characters of a document that are looked at, so that a few long ones do not make up the sample
FEWEST_HELD_OUT = 20  # documents of each kind, below which figures would mean nothing
SHINGLE = 5  # words that must follow one another in two documents to be the same place
MOST_SHARED = 0.5  # of the shingles of a document outside of training that may stand in it
_PARTS = 10  # of ten documents one is held out and one calibrates
_EVEN = 0.5  # from this probability on, a document is told to be of the positive kind
_BINS = 10  # of the calibration table
_BATCH_CHARACTERS = 1 << 20
_BASE = np.uint64(0xC2B2AE3D27D4EB4F)
_OTHER = np.uint64(0x165667B19E3779F9)


class Sample:
    """Documents of both kinds, drawn by a hash of their words: those of the lowest hashes, up to a size of each kind.

    A document that was met twice counts once; one that was met as both kinds is left out. Samples of parts of the
    documents `merge` to the sample of all of them.
    """

    def __init__(self, most_characters: int = MOST_CHARACTERS) -> None:
        self._most = most_characters
        self._kinds = (_Lowest(most_characters), _Lowest(most_characters))

    def add(self, texts: Iterable[tuple[str, bool]], source: str = "") -> None:
        """Texts with whether they are of the positive kind. Texts without words are passed over."""
        looked_at = ((text[:LONGEST], positive) for text, positive in texts)
        for batch in batched(looked_at, lambda one: len(one[0]), _BATCH_CHARACTERS):
            prints = fingerprints(Tokens.of([text for text, _ in batch]))
            for (text, positive), print_ in zip(batch, prints.tolist(), strict=True):
                if print_:
                    self._kinds[positive].add(print_, text, source)

    def merge(self, other: Sample) -> None:
        """Take in what another sample holds."""
        for own, others in zip(self._kinds, other._kinds, strict=True):
            for print_, (text, source) in others.kept.items():
                own.add(print_, text, source)
            own.bound(others.limit)

    def documents(self) -> tuple[list[Document], int]:
        """The documents in the order of their hashes, and how many were left out as they are of both kinds."""
        bad, good = (kind.kept for kind in self._kinds)
        both = bad.keys() & good.keys()
        found = [
            Document(print_, text, positive, source)
            for positive, kept in ((False, bad), (True, good))
            for print_, (text, source) in kept.items()
            if print_ not in both
        ]
        return sorted(found, key=lambda document: document.print), len(both)


@dataclass(frozen=True)
class Document:
    """A document of a sample. `print` stands for its words without case, accents and signs."""

    print: int
    text: str
    positive: bool
    source: str


class _Lowest:
    """The texts of the lowest hashes that fit into a number of characters, whatever order they come in."""

    def __init__(self, most_characters: int) -> None:
        self.kept: dict[int, tuple[str, str]] = {}
        self.limit = 1 << 64  # nothing at or above it fits
        self._most, self._size = most_characters, 0
        self._highest: list[int] = []

    def add(self, print_: int, text: str, source: str) -> None:
        if print_ >= self.limit:
            return
        if print_ in self.kept:  # equal words: the lower of the two, so that the order does not matter
            lower = min(self.kept[print_], (text, source))
            self._size += len(lower[0]) - len(self.kept[print_][0])
            self.kept[print_] = lower
        else:
            self.kept[print_] = (text, source)
            self._size += len(text)
            heapq.heappush(self._highest, -print_)
        while self._size > self._most:
            self.bound(-self._highest[0])

    def bound(self, limit: int) -> None:
        self.limit = min(self.limit, limit)
        while self._highest and -self._highest[0] >= self.limit:
            self._size -= len(self.kept.pop(-heapq.heappop(self._highest))[0])


@dataclass(frozen=True)
class Split:
    """The documents of a sample, tokenised in batches, and which of them are for what.

    `repeated_D` are those outside of training that stand in it for the greater part: neither used nor measured.
    """

    documents: Sequence[Document]
    tokens: Sequence[Tokens]
    training_D: Array
    calibration_D: Array
    held_out_D: Array
    repeated_D: Array
    of_both_kinds: int

    @property
    def positive_D(self) -> npt.NDArray[np.bool_]:
        """Which of the documents are of the positive kind."""
        return np.array([document.positive for document in self.documents])


@dataclass(frozen=True)
class Trained:
    """A model and what the data card says about it."""

    model: Linear
    report: dict[str, Any]


def split(sample: Sample) -> Split:
    """Of ten documents, eight to learn from, one to make probabilities with, one to measure with.

    Documents that share two places drawn by hash go the same way, so copies that were edited a little stay together;
    any that still shares more than half of its runs of five words with the training is left out of the other two.
    Raises ValueError where too few documents of a kind are there.
    """
    documents, both = sample.documents()
    if not documents:
        raise ValueError("no documents to train from: both kinds need some")
    tokens = [Tokens.of(batch) for batch in batched((one.text for one in documents), len, _BATCH_CHARACTERS)]
    parts_D = np.concatenate([_drawn(one) for one in tokens]) % np.uint64(_PARTS)
    held_out_D, calibration_D, training_D = parts_D == 0, parts_D == 1, parts_D > 1
    repeated_D = _repeated(*_joined([_shingles_of(one) for one in tokens]), training_D)
    found = Split(
        documents, tokens, training_D, calibration_D & ~repeated_D, held_out_D & ~repeated_D, repeated_D, both
    )
    _check(found)
    return found


def train(found: Split, *, bits: int = linear.BITS, subwords: bool = False, epochs: int = linear.EPOCHS) -> Trained:
    """Learn, calibrate and measure, each with its own part of the documents.

    `subwords` (pieces of words) help where single words decide, in all their forms, as with what offends; where the
    manner of a whole document does, words and pairs of them are enough, and several times as fast.
    """
    positive_D = found.positive_D
    features_F, documents_D1 = _joined([linear.features(one, bits, subwords) for one in found.tokens])

    def part(chosen_D: Array) -> tuple[Array, Array, Array]:
        return *_only(features_F, documents_D1, chosen_D), positive_D[chosen_D]

    learned = linear.fit(*part(found.training_D), bits=bits, subwords=subwords, epochs=epochs)
    features, begins, positives = part(found.calibration_D)
    slope, offset = calibrate(learned.margins(features, begins), positives)
    model = dataclasses.replace(learned, slope=slope, offset=offset)
    features, begins, positives = part(found.held_out_D)
    scores = linear.probabilities(model.margins(features, begins), slope, offset)
    report = {
        "documents": {
            "training": _counts(positive_D, found.training_D),
            "calibration": _counts(positive_D, found.calibration_D),
            "held_out": _counts(positive_D, found.held_out_D),
            "repeated": int(np.count_nonzero(found.repeated_D)),
            "of_both_kinds": found.of_both_kinds,
        },
        "sources": _sources(found, scores),
        "characters": sum(len(document.text) for document in found.documents),
        "settings": {"buckets": 1 << bits, "epochs": epochs, "word_ngrams": 2, "subwords": subwords},
        "model_bytes": len(model.dump()),
        "held_out": measure(scores, positives),
    }
    return Trained(model, report)


def calibrate(margins_D: Array, positive_D: Array) -> tuple[float, float]:
    """Slope and offset that make probabilities of margins: Platt's, with his targets, by Newton's method.

    The targets (Lin, Lin and Weng 2007) keep both finite where the kinds are parted without an error.
    """
    positives = int(np.count_nonzero(positive_D))
    negatives = positive_D.size - positives
    targets_D = np.where(positive_D, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    return _platt(margins_D, targets_D)


def measure(scores_D: Array, positive_D: Array) -> dict[str, Any]:
    """How right the probabilities are: accuracy and AUC, what a threshold keeps, and the calibration table."""
    accuracy = float(np.mean((scores_D >= _EVEN) == positive_D))
    majority = max(float(positive_D.mean()), 1 - float(positive_D.mean()))
    bins_D = np.minimum((scores_D * _BINS).astype(np.int64), _BINS - 1)
    table = []
    error = 0.0
    for number in range(_BINS):
        inside_D = bins_D == number
        count = int(np.count_nonzero(inside_D))
        if count:
            mean, share = float(scores_D[inside_D].mean(dtype=np.float64)), float(positive_D[inside_D].mean())
            error += abs(mean - share) * count / scores_D.size
            table.append({"from": number / _BINS, "documents": count, "mean": round(mean, 4), "share": round(share, 4)})
    return {
        "accuracy": round(accuracy, 4),
        "majority": round(majority, 4),
        "auc": round(area(scores_D, positive_D), 4),
        "calibration_error": round(error, 4),
        "calibration": table,
    }


def area(scores_D: Array, positive_D: Array) -> float:
    """Area under the ROC curve: how often a positive document scores higher than a negative one, ties by half."""
    _, places_D, counts = np.unique(scores_D, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    positives = int(np.count_nonzero(positive_D))
    above = float(ranks[places_D[positive_D]].sum()) - positives * (positives + 1) / 2
    return above / (positives * (positive_D.size - positives))


def fingerprints(tokens: Tokens) -> npt.NDArray[np.uint64]:
    """Of each document's words, without case, accents and signs; 0 where there are none."""
    return _fingerprints(tokens.folded_W, tokens.kinds_W, tokens.words_D1)


def _joined(pieces: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Flat arrays of batches as one, with where each document begins."""
    lengths = np.concatenate([np.diff(begins) for _, begins in pieces])
    return np.concatenate([flat for flat, _ in pieces]), np.concatenate([[0], np.cumsum(lengths)])


def _only(flat_F: Array, documents_D1: Array, chosen_D: Array) -> tuple[Array, Array]:
    """The same of some of the documents."""
    lengths = np.diff(documents_D1)
    return flat_F[np.repeat(chosen_D, lengths)], np.concatenate([[0], np.cumsum(lengths[chosen_D])])


def _shingles_of(tokens: Tokens) -> tuple[Array, Array]:
    shingles_S = np.empty(tokens.folded_W.size + tokens.words_D1.size, np.uint64)
    shingles_D1 = np.zeros(tokens.words_D1.size, np.int64)
    _shingles(tokens.folded_W, tokens.kinds_W, tokens.words_D1, SHINGLE, shingles_S, shingles_D1)
    return shingles_S[: shingles_D1[-1]].copy(), shingles_D1


def _drawn(tokens: Tokens) -> npt.NDArray[np.uint64]:
    return _places(*_shingles_of(tokens))


def _check(found: Split) -> None:
    positive_D = found.positive_D
    for name, chosen_D in (("to measure", found.held_out_D), ("to calibrate", found.calibration_D)):
        for kind, of_kind_D in (("positive", positive_D), ("negative", ~positive_D)):
            count = int(np.count_nonzero(chosen_D & of_kind_D))
            if count < FEWEST_HELD_OUT:
                total = int(np.count_nonzero(of_kind_D))
                raise ValueError(
                    f"{count} of {total} different {kind} documents are left {name}: at least {FEWEST_HELD_OUT} are "
                    f"needed, so about {2 * _PARTS * FEWEST_HELD_OUT} in all that are no copies of one another"
                )


def _counts(positive_D: Array, chosen_D: Array) -> dict[str, int]:
    positives = int(np.count_nonzero(positive_D & chosen_D))
    return {"positive": positives, "negative": int(np.count_nonzero(chosen_D)) - positives}


def _sources(found: Split, scores_H: Array) -> list[dict[str, Any]]:
    """A row for each source and kind: its documents, and how many of those held out were told rightly."""
    rows: dict[tuple[str, bool], list[int]] = {}
    for document in found.documents:
        rows.setdefault((document.source, document.positive), [0, 0, 0])[0] += 1
    for at, score in zip(np.flatnonzero(found.held_out_D).tolist(), scores_H.tolist(), strict=True):
        row = rows[found.documents[at].source, found.documents[at].positive]
        row[1] += 1
        row[2] += int((score >= _EVEN) == found.documents[at].positive)
    return [
        {"source": source, "positive": positive, "documents": documents, "held_out": held_out, "right": right}
        for (source, positive), (documents, held_out, right) in sorted(rows.items())
    ]


@njit(cache=True)
def _fingerprints(folded_W: Array, kinds_W: Array, words_D1: Array) -> Array:
    prints_D = np.zeros(words_D1.size - 1, np.uint64)
    for d in range(prints_D.size):
        hash_, words = np.uint64(0), 0
        for w in range(words_D1[d], words_D1[d + 1]):
            if kinds_W[w] & SPOKEN:
                hash_ = (hash_ + folded_W[w] + np.uint64(1)) * _BASE
                words += 1
        if words:
            prints_D[d] = nonzero(mix(hash_))
    return prints_D


@njit(cache=True)
def _shingles(
    folded_W: Array, kinds_W: Array, words_D1: Array, size: int, shingles_S: Array, shingles_D1: Array
) -> None:
    """Runs of spoken words; of a document with fewer words, all of them."""
    count = 0
    last = np.zeros(size, np.uint64)
    for d in range(words_D1.size - 1):
        words = 0
        for w in range(words_D1[d], words_D1[d + 1]):
            if kinds_W[w] & SPOKEN == 0:
                continue
            last[words % size] = folded_W[w]
            words += 1
            if words >= size:
                hash_ = np.uint64(0)
                for back in range(size):
                    hash_ = (hash_ + last[(words + back) % size] + np.uint64(1)) * _BASE
                shingles_S[count] = nonzero(mix(hash_))
                count += 1
        if 0 < words < size:
            hash_ = np.uint64(0)
            for at in range(words):
                hash_ = (hash_ + last[at] + np.uint64(1)) * _BASE
            shingles_S[count] = nonzero(mix(hash_))
            count += 1
        shingles_D1[d + 1] = count


@njit(cache=True)
def _places(shingles_S: Array, shingles_D1: Array) -> Array:
    """A hash of two shingles of each document, the least of them by two hashes."""
    drawn_D = np.empty(shingles_D1.size - 1, np.uint64)
    for d in range(drawn_D.size):
        one, other = ~np.uint64(0), ~np.uint64(0)
        for at in range(shingles_D1[d], shingles_D1[d + 1]):
            one = min(one, mix(shingles_S[at] * _BASE))
            other = min(other, mix(shingles_S[at] * _OTHER))
        drawn_D[d] = mix(one * _BASE + other)
    return drawn_D


@njit(cache=True)
def _repeated(shingles_S: Array, shingles_D1: Array, training_D: Array) -> Array:
    """Documents outside of training too much of which stands in it."""
    places = room(shingles_S.size)
    table = np.zeros(places, np.uint64)
    for d in range(training_D.size):
        if training_D[d]:
            for at in range(shingles_D1[d], shingles_D1[d + 1]):
                table[place(table, places, shingles_S[at])] = shingles_S[at]
    repeated_D = np.zeros(training_D.size, np.bool_)
    for d in range(training_D.size):
        if not training_D[d]:
            shared = 0
            for at in range(shingles_D1[d], shingles_D1[d + 1]):
                shared += table[place(table, places, shingles_S[at])] != 0
            repeated_D[d] = shared > MOST_SHARED * (shingles_D1[d + 1] - shingles_D1[d])
    return repeated_D


@njit(cache=True)
def _platt(margins_D: Array, targets_D: Array) -> tuple[float, float]:
    scale = max(np.abs(margins_D).max(), 1e-9)
    slope, offset = 1.0, 0.0
    for _ in range(100):
        g0 = g1 = h11 = h12 = h22 = 0.0
        for d in range(margins_D.size):
            x = margins_D[d] / scale
            p = linear.sigmoid(slope * x + offset)
            g0 += (p - targets_D[d]) * x
            g1 += p - targets_D[d]
            weight = p * (1.0 - p)
            h11 += weight * x * x
            h12 += weight * x
            h22 += weight
        h11 += _RIDGE
        h22 += _RIDGE
        g0 += _RIDGE * slope
        g1 += _RIDGE * offset
        determinant = h11 * h22 - h12 * h12
        step_slope = (h22 * g0 - h12 * g1) / determinant
        step_offset = (h11 * g1 - h12 * g0) / determinant
        longest = max(abs(step_slope), abs(step_offset))
        shorter = min(1.0, 4.0 / longest) if longest > 0 else 1.0  # far from the end Newton's step leads too far
        slope -= shorter * step_slope
        offset -= shorter * step_offset
        if longest < 1e-10:
            break
    return slope / scale, offset


_RIDGE = 1e-6  # so that there is an end where all margins are equal
