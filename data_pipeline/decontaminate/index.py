"""What is looked for, as arrays in one file: questions by the n-grams they consist of, and answers.

Clusters, as AI2's decon has them (SIMPLE, github.com/allenai/decon, doc/simple-details.md): grams of five words,
weighted by how few questions hold them. Runs, as GPT-3 has them (Brown et al. 2020, appendix C): any thirteen words in
a row. What differs from decon: words are compared by letters alone (`letters.py`); the questions are sampled, not the
texts; and a short question is told from a common phrase by how rare its words are.

Axes: Q different questions, I items, G grams of questions, A answers, B grams of answers, S places of seeds, K letters.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from conf.exits import ConfigError, DataError
from data_pipeline.decontaminate.items import Evaluation
from data_pipeline.decontaminate.letters import LONGEST, powers, signed, spell, stretch
from data_pipeline.signals.characters import characters
from data_pipeline.signals.hashing import Array, fill, nonzero, room
from data_pipeline.signals.tokens import mix

FORMAT = 1
_MAGIC = b"gemcutter benchmark index\n"
_ALIGNED = 64
_MOST_BITS = 20.0  # of a word that no question holds
_BARE_WORDS = 8  # so many numbers in a row are nowhere by chance


@dataclass(frozen=True)
class Method:
    """How questions are found; the defaults were found with tests/bench/decontamination.py.

    gram            words of a gram of a cluster
    sample          of the grams of a long question, one in so many is looked up
    hot             a gram of more questions begins no cluster, unless a question has no other
    misses          grams in a row that may be missing before a cluster ends, and words that may stand between two
    score           share of a question's grams, weighted, that counts as the question
    whole, long     words up to which a question must stand there whole, and from which on `score` is enough
    alone           bits of information with which a question proves itself
    together        bits that a question needs with an answer near it
    distance        words between question and answer; twice the answer's length where that is more
    generic         a question that so many items ask proves nothing without an answer, but for its signs
    tail            words at the end of a question of which half must be there: a passage before it is not enough
    run             words in a row that count as a run; 0 looks for none
    """

    gram: int = 5
    sample: int = 4
    hot: int = 32
    misses: int = 11
    score: float = 0.8
    whole: int = 20
    long: int = 50
    alone: float = 56.0
    together: float = 45.0
    distance: int = 50
    generic: int = 3
    tail: int = 12
    run: int = 13


DEFAULT = Method()


@dataclass(frozen=True)
class Index:
    """Questions and answers to look for.

    method, benchmarks, names_I   how, of which benchmarks, and what their items are called
    words_Q, grams_Q1   words of each question; its grams are `grams_Q1[q]:grams_Q1[q + 1]`
    grams_G, sizes_G, offsets_G, weights_G   hash, letters, first letter in the question, and weight of each gram
    weights_Q, bits_Q   sum of the weights, and information of the words
    items_Q1, items_T   items that ask each question
    signed_T, length_T  hash and number of the characters that are not blank in the item's own form of the question
    bare_Q              whether a question is short and holds few letters, so that its signs must be the same
    benchmark_I, answers_I1   of each item
    right_A, words_A, bits_A, grams_A1   whether an answer is right; its words, their information, its grams
    grams_B, sizes_B    hash and letters of each gram of an answer
    short_F, gram_F, run_F   bits, set for each hash of a seed shorter than a gram, of another seed, of a run
    sizes_M             of how many words seeds are
    seeds_K, places_K2  hashes in an open table (`signals.hashing`); the first place of each, and how many
    question_S, word_S  question and word where a seed stands
    runs_R, item_R      hashes of runs in an open table, and the item of each
    """

    method: Method
    benchmarks: tuple[str, ...]
    names_I: tuple[str, ...]
    words_Q: Array
    grams_Q1: Array
    grams_G: Array
    sizes_G: Array
    offsets_G: Array
    weights_G: Array
    weights_Q: Array
    bits_Q: Array
    items_Q1: Array
    items_T: Array
    signed_T: Array
    length_T: Array
    bare_Q: Array
    benchmark_I: Array
    answers_I1: Array
    right_A: Array
    words_A: Array
    bits_A: Array
    grams_A1: Array
    grams_B: Array
    sizes_B: Array
    short_F: Array
    gram_F: Array
    run_F: Array
    sizes_M: Array
    seeds_K: Array
    places_K2: Array
    question_S: Array
    word_S: Array
    runs_R: Array
    item_R: Array

    @staticmethod
    def build(evaluations: Sequence[Evaluation], scrub: Callable[[str], str] = str, method: Method = DEFAULT) -> Index:
        """Index the items; `scrub` is what is done to every text before it is looked at.

        Items of a benchmark with the same question and answers are one. Raises ConfigError where two evaluations share
        a name, or no item holds a word.
        """
        benchmarks = tuple(evaluation.benchmark for evaluation in evaluations)
        if len(set(benchmarks)) < len(benchmarks):
            raise ConfigError(f"benchmarks {', '.join(benchmarks)}: each needs a name of its own: rename one")
        items = [(b, item) for b, evaluation in enumerate(evaluations) for item in evaluation.items]
        forms = _spelled([scrub(form) for _, item in items for form in item.forms])
        answers = _spelled([scrub(text) for _, item in items for text in (*item.answers, *item.others)])
        form, answer = 0, 0
        kept: dict[tuple[int, ...], tuple[int, range, range, int]] = {}  # -> number, forms, answers, how many are right
        for number, (benchmark, item) in enumerate(items):
            own_forms = range(form, form := form + len(item.forms))
            own_answers = range(answer, answer := answer + len(item.answers) + len(item.others))
            right = sorted(int(answers.keys_T[a]) for a in own_answers[: len(item.answers)])
            asked = [f for f in own_forms if forms.words_T1[f + 1] > forms.words_T1[f] + 1]
            if asked:
                # Questions of equal letters may still differ in their signs.
                kept.setdefault(
                    (benchmark, int(forms.signed_T[asked[0]]), *right),
                    (number, own_forms, own_answers, len(item.answers)),
                )
        if not kept:
            raise ConfigError(
                f"benchmarks {', '.join(benchmarks)}: no item holds a word: correct the paths of their files"
            )
        numbers = [number for number, _, _, _ in kept.values()]
        asks = np.array(
            [
                (i, f) for i, (_, own, _, _) in enumerate(kept.values()) for f in own
                if forms.words_T1[f + 1] > forms.words_T1[f] + 1
            ],
            np.int64,
        )  # fmt: skip
        replies = np.array(
            [
                (i, a, n < right) for i, (_, _, own, right) in enumerate(kept.values()) for n, a in enumerate(own)
                if answers.words_T1[a + 1] > answers.words_T1[a] + 1
            ],
            np.int64,
        ).reshape(-1, 3)  # fmt: skip
        return Index(
            method=method,
            benchmarks=benchmarks,
            names_I=tuple(items[number][1].name for number in numbers),
            benchmark_I=np.array([items[number][0] for number in numbers], np.uint16),
            **_arrays(forms, answers, asks, replies, len(kept), method),
        )

    def save(self, path: Path) -> None:
        """Write the index into one file, equal bytes for equal items."""
        header: dict[str, Any] = {"format": FORMAT, "method": asdict(self.method), "benchmarks": self.benchmarks}
        header |= {"names": self.names_I, "arrays": {}}
        offset = 0
        for name, array in self._arrays().items():
            header["arrays"][name] = [array.dtype.str, array.shape, offset]
            offset += -(-array.nbytes // _ALIGNED) * _ALIGNED
        digest = hashlib.sha256(_packed(header))
        for array in self._arrays().values():
            digest.update(array.tobytes())
            digest.update(bytes(-array.nbytes % _ALIGNED))
        packed = _packed({**header, "sha256": digest.hexdigest()})
        packed += b" " * (-(len(_MAGIC) + 8 + len(packed)) % _ALIGNED)
        with path.open("wb") as file:
            file.write(_MAGIC + len(packed).to_bytes(8, "little") + packed)
            for array in self._arrays().values():
                file.write(array.tobytes())
                file.write(bytes(-array.nbytes % _ALIGNED))

    @staticmethod
    def open(path: Path) -> Index:
        """Map the file into memory, which processes share. Raises DataError where it is no index of this format, or
        is not as it was written: all of it is read once for that."""
        try:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read as an index of benchmarks ({error}): build it again") from error
        head = len(_MAGIC) + 8
        if mapped[: len(_MAGIC)] != _MAGIC:
            raise DataError(f"{path} is no index of benchmarks: build it again")
        size = int.from_bytes(mapped[len(_MAGIC) : head], "little")
        try:
            header = json.loads(mapped[head : head + size])
            written, stated = header["format"], header.pop("sha256", "")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is damaged, its header does not read ({error!r}): build it again") from error
        if written != FORMAT:
            raise DataError(f"{path} has format {written}; this version reads {FORMAT}: build it again")
        digest = hashlib.sha256(_packed(header))
        digest.update(memoryview(mapped)[head + size :])
        if digest.hexdigest() != stated:
            raise DataError(f"{path} is damaged or cut off, it has another sha256 than it states: build it again")
        arrays = {}
        for name, (dtype, shape, offset) in header["arrays"].items():
            count = int(np.prod(shape))
            arrays[name] = np.frombuffer(mapped, dtype, count, head + size + offset).reshape(shape)
        return Index(Method(**header["method"]), tuple(header["benchmarks"]), tuple(header["names"]), **arrays)

    def _arrays(self) -> dict[str, Array]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


def _packed(header: dict[str, Any]) -> bytes:
    return json.dumps(header, separators=(",", ":")).encode()


@dataclass(frozen=True)
class _Spelled:
    """Texts as letters; one hash more than letters, and one begin more than words, for each text.

    keys_T     hash of all letters of a text
    signed_T, length_T     hash and number of its characters from the first letter on, without blanks
    alpha_T    how many of its characters are letters
    hashes_L, letters_T1   of the letters before, and where those of each text begin
    begins_W, words_T1     first letter of each word, within the text, and where those of each text begin
    joined_W, joined_T1    the same, where signs do not part words
    """

    keys_T: Array
    signed_T: Array
    length_T: Array
    alpha_T: Array
    hashes_L: Array
    letters_T1: Array
    begins_W: Array
    words_T1: Array
    joined_W: Array
    joined_T1: Array


def _spelled(texts: Sequence[str]) -> _Spelled:
    text_C = np.frombuffer("".join(texts).encode("utf-32-le", "replace"), np.uint32)
    texts_T1 = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(text) for text in texts], out=texts_T1[1:])
    table = characters()
    return _Spelled(*_spell_all(text_C, texts_T1, table.kinds, table.folded, table.alpha))


@njit(cache=True)
def _spell_all(
    text_C: Array, texts_T1: Array, kinds: Array, folded: Array, alpha: Array
) -> tuple[Array, ...]:  # fmt: skip
    T = texts_T1.size - 1
    longest = np.diff(texts_T1).max() + 1 if T else 1
    at_L, begins_L1 = np.empty(longest, np.int64), np.empty(longest, np.uint8)
    keys_T, signed_T = np.zeros(T, np.uint64), np.zeros(T, np.uint64)
    length_T, alpha_T = np.zeros(T, np.int64), np.zeros(T, np.int64)
    hashes_L, begins_W = np.empty(text_C.size + T, np.uint64), np.empty(text_C.size + T, np.int32)
    joined_W, spare_L1 = np.empty(text_C.size + T, np.int32), np.empty(longest, np.uint64)
    letters_T1, words_T1, joined_T1 = np.zeros(T + 1, np.int64), np.zeros(T + 1, np.int64), np.zeros(T + 1, np.int64)
    for t in range(T):
        start, stop = texts_T1[t], texts_T1[t + 1]
        own = hashes_L[letters_T1[t] :]
        letters, words = spell(
            text_C, start, stop, kinds, folded, False, at_L, own, begins_L1, begins_W[words_T1[t] :]
        )  # fmt: skip
        keys_T[t] = mix(own[letters])
        if letters:
            signed_T[t], length_T[t] = signed(text_C, at_L[0], stop, kinds, folded, stop - start)
        for at in range(start, stop):
            alpha_T[t] += alpha[text_C[at]]
        letters_T1[t + 1], words_T1[t + 1] = letters_T1[t] + letters + 1, words_T1[t] + words + 1
        _, words = spell(text_C, start, stop, kinds, folded, True, at_L, spare_L1, begins_L1, joined_W[joined_T1[t] :])
        joined_T1[t + 1] = joined_T1[t] + words + 1
    return (
        keys_T, signed_T, length_T, alpha_T, hashes_L[: letters_T1[-1]].copy(), letters_T1,
        begins_W[: words_T1[-1]].copy(), words_T1, joined_W[: joined_T1[-1]].copy(), joined_T1,
    )  # fmt: skip


def _arrays(
    forms: _Spelled, answers: _Spelled, asks: Array, replies: Array, items: int, method: Method
) -> dict[str, Array]:
    """All arrays but the items' benchmarks. asks [n, 2]: item, form. replies [n, 3]: item, answer, right."""
    _, firsts, question = np.unique(forms.keys_T[asks[:, 1]], return_index=True, return_inverse=True)
    chosen_Q = asks[firsts, 1]
    Q = chosen_Q.size
    order = np.lexsort((asks[:, 1], asks[:, 0], question))
    owner, form, question = asks[order, 0], asks[order, 1], question[order]
    once = np.r_[True, (np.diff(question) != 0) | (np.diff(owner) != 0)]
    few = forms.alpha_T[chosen_Q] * 2 < forms.length_T[chosen_Q]
    table = powers()
    words_Q = forms.words_T1[chosen_Q + 1] - forms.words_T1[chosen_Q] - 1
    grams_Q1 = _bounds(np.maximum(words_Q - method.gram + 1, 1))
    grams_G, sizes_G, offsets_G, asked_G = _grams(forms, chosen_Q, words_Q, grams_Q1, method.gram, table)
    order = np.lexsort((grams_G, asked_G))
    again = np.zeros(order.size, bool)
    again[order[1:]] = (np.diff(grams_G[order]) == 0) & (np.diff(asked_G[order]) == 0)
    _, which, often = np.unique(grams_G[~again], return_inverse=True, return_counts=True)
    held_G = np.full(
        grams_G.size, np.iinfo(np.int64).max
    )  # questions that hold each gram; a gram met before is no place
    held_G[~again] = often[which]
    # A gram of many questions tells little even of those: what items of one template share is not what they ask.
    weights_G = np.where(again, 0, np.log((Q + 1) / held_G) / np.sqrt(held_G)).astype(np.float32)
    spoken, asked_W = _words(forms, chosen_Q, words_Q, table)
    vocabulary, often = np.unique(spoken, return_counts=True)
    bits_V = np.minimum(np.log2(spoken.size / often), _MOST_BITS)
    bits_Q = np.bincount(asked_W, bits_V[np.searchsorted(vocabulary, spoken)], Q)

    chosen_A = replies[:, 1]
    words_A = answers.words_T1[chosen_A + 1] - answers.words_T1[chosen_A] - 1
    grams_A1 = _bounds(np.where(words_A <= 2 * method.gram, 1, words_A // method.gram))
    grams_B, sizes_B = _answer_grams(answers, chosen_A, words_A, grams_A1, method.gram, table)
    said, answered_W = _words(answers, chosen_A, words_A, table)
    at = np.minimum(np.searchsorted(vocabulary, said), vocabulary.size - 1)
    bits_A = np.bincount(answered_W, np.where(vocabulary[at] == said, bits_V[at], _MOST_BITS), chosen_A.size)

    keys, question_S, word_S, needed = _seeds(
        forms, chosen_Q, words_Q, grams_Q1, grams_G, sizes_G, held_G, method, table
    )
    order = np.lexsort((word_S, question_S, keys))
    unique, counts = np.unique(keys, return_counts=True)
    stay = (np.repeat(counts, counts) <= method.hot) | needed[order]
    order = order[stay]
    unique, firsts, counts = np.unique(keys[order], return_index=True, return_counts=True)
    seeds_K, at = _table(unique)
    places_K2 = np.zeros((seeds_K.size, 2), np.uint32)
    places_K2[at] = np.stack([firsts, counts], 1)
    runs, item_R = _runs(forms, answers, asks, replies, method.run, table) if method.run else (unique[:0], unique[:0])
    runs, firsts = np.unique(runs, return_index=True)
    runs_R, at = _table(runs)
    of_runs = np.zeros(runs_R.size, np.uint32)
    of_runs[at] = item_R[firsts]
    return {
        "words_Q": words_Q.astype(np.uint32),
        "grams_Q1": grams_Q1,
        "grams_G": grams_G.astype(np.uint32),
        "sizes_G": sizes_G,
        "offsets_G": offsets_G,
        "weights_G": weights_G,
        "weights_Q": np.bincount(asked_G, weights_G, Q).astype(np.float32),
        "bits_Q": bits_Q.astype(np.float32),
        "items_Q1": _bounds(np.bincount(question[once], minlength=Q)),
        "items_T": owner[once].astype(np.uint32),
        "signed_T": forms.signed_T[form[once]],
        "length_T": forms.length_T[form[once]].astype(np.uint32),
        "bare_Q": (few & (words_Q < _BARE_WORDS)).astype(np.uint8),
        "answers_I1": _bounds(np.bincount(replies[:, 0], minlength=items)),
        "right_A": replies[:, 2].astype(np.uint8),
        "words_A": words_A.astype(np.uint32),
        "bits_A": bits_A.astype(np.float32),
        "grams_A1": grams_A1,
        "grams_B": grams_B,
        "sizes_B": sizes_B,
        "short_F": _filter(np.unique(keys[order][words_Q[question_S[order]] < method.gram])),
        "gram_F": _filter(unique),
        "run_F": _filter(runs),
        "sizes_M": np.unique(np.minimum(words_Q, method.gram)).astype(np.int64),
        "seeds_K": seeds_K,
        "places_K2": places_K2,
        "question_S": question_S[order].astype(np.uint32),
        "word_S": word_S[order].astype(np.uint32),
        "runs_R": runs_R,
        "item_R": of_runs,
    }


def _bounds(counts: Array) -> Array:
    bounds = np.zeros(counts.size + 1, np.int64)
    np.cumsum(counts, out=bounds[1:])
    return bounds


def _grams(
    spelled: _Spelled, chosen: Array, words: Array, bounds: Array, gram: int, table: Array
) -> tuple[Array, Array, Array, Array]:
    return _slide(
        spelled.hashes_L, spelled.letters_T1, spelled.begins_W, spelled.words_T1, chosen, words, bounds, gram, 1, table
    )  # fmt: skip


def _answer_grams(
    spelled: _Spelled, chosen: Array, words: Array, bounds: Array, gram: int, table: Array
) -> tuple[Array, Array]:
    """Short answers whole; of long ones grams that do not overlap."""
    return _slide(
        spelled.hashes_L, spelled.letters_T1, spelled.begins_W, spelled.words_T1, chosen, words, bounds, gram, gram,
        table,
    )[:2]  # fmt: skip


@njit(cache=True)
def _slide(
    hashes_L: Array, letters_T1: Array, begins_W: Array, words_T1: Array, chosen_N: Array, words_N: Array,
    bounds_N1: Array, gram: int, step: int, powers_L: Array,
) -> tuple[Array, Array, Array, Array]:  # fmt: skip
    """Hash, letters, first letter and text of the grams of texts, where each has as many as `bounds_N1` says.

    One gram alone holds the whole text. A gram of more letters than are looked up has none.
    """
    G = bounds_N1[-1]
    hashes, sizes = np.zeros(G, np.uint64), np.zeros(G, np.uint16)
    offsets, texts = np.zeros(G, np.uint32), np.zeros(G, np.int64)
    for n in range(chosen_N.size):
        own_L = hashes_L[letters_T1[chosen_N[n]] :]
        own_W = begins_W[words_T1[chosen_N[n]] :]
        grams = bounds_N1[n + 1] - bounds_N1[n]
        for i in range(grams):
            g = bounds_N1[n] + i
            first = own_W[i * step]
            size = own_W[words_N[n] if grams == 1 else i * step + gram] - first
            texts[g], offsets[g] = n, first
            if size <= LONGEST:
                hashes[g], sizes[g] = stretch(own_L, powers_L, first, size), size
    return hashes, sizes, offsets, texts


def _words(spelled: _Spelled, chosen: Array, words: Array, table: Array) -> tuple[Array, Array]:
    """Hash and text of each word."""
    return _each_word(
        spelled.hashes_L, spelled.letters_T1, spelled.begins_W, spelled.words_T1, chosen, _bounds(words), table
    )  # fmt: skip


@njit(cache=True)
def _each_word(
    hashes_L: Array, letters_T1: Array, begins_W: Array, words_T1: Array, chosen_N: Array, bounds_N1: Array,
    powers_L: Array,
) -> tuple[Array, Array]:  # fmt: skip
    hashes, texts = np.zeros(bounds_N1[-1], np.uint64), np.zeros(bounds_N1[-1], np.int64)
    for n in range(chosen_N.size):
        own_L, own_W = hashes_L[letters_T1[chosen_N[n]] :], begins_W[words_T1[chosen_N[n]] :]
        for w in range(bounds_N1[n + 1] - bounds_N1[n]):
            size = min(own_W[w + 1] - own_W[w], LONGEST)
            texts[bounds_N1[n] + w] = n
            hashes[bounds_N1[n] + w] = stretch(own_L, powers_L, own_W[w], size)
    return hashes, texts


def _seeds(
    forms: _Spelled, chosen: Array, words: Array, bounds: Array, grams: Array, sizes: Array, held: Array,
    method: Method, table: Array,
) -> tuple[Array, Array, Array, Array]:  # fmt: skip
    """Hash, question and word of each place where a cluster may begin, and whether its question has no rarer."""
    return _choose(
        forms.hashes_L, forms.letters_T1, forms.begins_W, forms.words_T1, forms.joined_W, forms.joined_T1, chosen,
        words, bounds, grams, sizes, held, method.gram, method.sample, table,
    )  # fmt: skip


@njit(cache=True)
def _choose(
    hashes_L: Array, letters_T1: Array, begins_W: Array, words_T1: Array, joined_W: Array, joined_T1: Array,
    chosen_Q: Array, words_Q: Array, grams_Q1: Array, grams_G: Array, sizes_G: Array, held_G: Array, gram: int,
    sample: int, powers_L: Array,
) -> tuple[Array, Array, Array, Array]:  # fmt: skip
    most = 2 * (grams_G.size + chosen_Q.size)
    keys, questions, words = np.zeros(most, np.uint64), np.zeros(most, np.int64), np.zeros(most, np.int64)
    needed = np.zeros(most, np.bool_)
    count = 0
    for q in range(chosen_Q.size):
        first, grams = grams_Q1[q], grams_Q1[q + 1] - grams_Q1[q]
        step = sample if grams > 4 * sample else 1
        rarest = np.argmin(held_G[first : first + grams])
        for i in range(grams):
            if sizes_G[first + i] and (i % step == 0 or i == rarest):
                keys[count], questions[count], words[count] = nonzero(grams_G[first + i]), q, i
                needed[count] = i == rarest
                count += 1
        # The same where signs inside words were dropped.
        t = chosen_Q[q]
        parted_W, own_W, own_L = begins_W[words_T1[t] :], joined_W[joined_T1[t] :], hashes_L[letters_T1[t] :]
        joined = joined_T1[t + 1] - joined_T1[t] - 1
        if joined == words_Q[q]:
            continue
        w = 0
        for i in range(0, max(joined - gram + 1, 1), step):
            end = min(i + gram, joined)
            while parted_W[w] < own_W[i]:
                w += 1
            size = own_W[end] - own_W[i]
            if w + gram <= words_Q[q] and size == parted_W[w + gram] - parted_W[w]:
                continue  # no word of it was parted
            if 0 < size <= LONGEST and count < most:
                keys[count], questions[count], words[count] = nonzero(stretch(own_L, powers_L, own_W[i], size)), q, w
                count += 1
    return keys[:count].copy(), questions[:count].copy(), words[:count].copy(), needed[:count].copy()


def _runs(
    forms: _Spelled, answers: _Spelled, asks: Array, replies: Array, run: int, table: Array
) -> tuple[Array, Array]:
    """Hash and item of each run of questions and of right answers. Texts of fewer words have none."""
    hashes, items = [], []
    for spelled, chosen, owner in (
        (forms, asks[:, 1], asks[:, 0]), (answers, replies[replies[:, 2] > 0, 1], replies[replies[:, 2] > 0, 0]),
    ):  # fmt: skip
        words = spelled.words_T1[chosen + 1] - spelled.words_T1[chosen] - 1
        long = words >= run
        chosen, owner, words = chosen[long], owner[long], words[long]
        found = _slide(
            spelled.hashes_L, spelled.letters_T1, spelled.begins_W, spelled.words_T1, chosen, words,
            _bounds(words - run + 1), run, 1, table,
        )  # fmt: skip
        there = found[1] > 0
        hashes.append(np.maximum(found[0][there], np.uint64(1)))
        items.append(owner[found[3][there]])
    return np.concatenate(hashes), np.concatenate(items)


def _table(keys: Array) -> tuple[Array, Array]:
    """An open table of different hashes, and where each stands."""
    table = np.zeros(room(keys.size), np.uint64)
    return table, fill(keys, table)


def _filter(keys: Array) -> Array:
    """Sixteen bits for each hash, of which its own is set: nearly all that is not looked for ends here."""
    bits = max(6, int(np.ceil(np.log2(max(keys.size, 1) * 16))))
    at = keys >> np.uint64(64 - bits)
    filter_F = np.zeros(1 << (bits - 6), np.uint64)
    np.bitwise_or.at(filter_F, (at >> np.uint64(6)).astype(np.int64), np.uint64(1) << (at & np.uint64(63)))
    return filter_F
