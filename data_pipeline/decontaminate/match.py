"""Where texts hold items of benchmarks: clusters of a question's grams, answers near them, and runs of words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from data_pipeline.decontaminate.index import Index
from data_pipeline.decontaminate.letters import Number, powers, signed, spell, stretch
from data_pipeline.signals.characters import characters
from data_pipeline.signals.hashing import Array, nonzero, place
from data_pipeline.signals.tokens import Tokens

CLUSTER, RUN = 0, 1
_FIELDS = 8  # of a span as the loops write it
_SIGNS = 8  # that tell items apart whose letters are the same
_MOST_PER_QUESTION = 16  # items of one question that are named


@dataclass(frozen=True)
class Spans:
    """What a batch of documents holds of benchmarks, in the order of the documents; N spans.

    documents_D1   those of document d are `documents_D1[d]:documents_D1[d + 1]`
    kind_N         CLUSTER, or RUN
    start_N, stop_N   characters of the question within the document
    item_N, benchmark_N   numbers in `Index.names_I` and `Index.benchmarks`
    score_N        share of the question that is there; of runs, 0
    answered_N     whether a right answer stands near it
    answer_start_N, answer_stop_N   characters of the answer, or of another choice; -1 where there is none
    """

    documents_D1: Array
    kind_N: Array
    start_N: Array
    stop_N: Array
    item_N: Array
    benchmark_N: Array
    score_N: Array
    answered_N: Array
    answer_start_N: Array
    answer_stop_N: Array


def match(index: Index, tokens: Tokens) -> Spans:
    """Find every question and run of the index in a batch of documents, of some million characters at most."""
    table, how = characters(), index.method
    rows, scores, count = _match(
        tokens.text_C, tokens.texts_D1, table.kinds, table.folded, powers(),
        (index.short_F, index.gram_F, index.run_F, index.sizes_M, index.seeds_K, index.places_K2, index.question_S,
         index.word_S),
        (index.words_Q, index.grams_Q1, index.grams_G, index.sizes_G, index.offsets_G, index.weights_G, index.weights_Q,
         index.bits_Q, index.items_Q1, index.items_T, index.signed_T, index.length_T,
         index.bare_Q),
        (index.answers_I1, index.right_A, index.words_A, index.bits_A, index.grams_A1, index.grams_B, index.sizes_B),
        (index.runs_R, index.item_R),
        (how.gram, how.misses, how.distance, how.generic, how.run, how.tail - how.gram + 1),
        (how.score, how.whole, how.long, how.alone, how.together),
    )  # fmt: skip
    # A question may be found twice, by a form within another; and an item's clusters come before its runs.
    order = np.lexsort((rows[:count, 4], rows[:count, 3], rows[:count, 2], rows[:count, 1], rows[:count, 0]))
    rows, scores = rows[order], scores[order]
    documents, kind, start, stop, item, answered, answer_start, answer_stop = rows.T
    return Spans(
        np.searchsorted(documents, np.arange(tokens.texts_D1.size)),
        kind.astype(np.uint8), start, stop, item.astype(np.uint32), index.benchmark_I[item], scores,
        answered.astype(bool), answer_start, answer_stop,
    )  # fmt: skip


@njit(cache=True)
def _match(
    text_C: Array, texts_D1: Array, kinds: Array, folded: Array, powers_L: Array, seeds: tuple[Array, ...],
    questions: tuple[Array, ...], answers: tuple[Array, ...], runs: tuple[Array, ...], sizes: tuple[int, ...],
    limits: tuple[float, ...],
) -> tuple[Array, Array, int]:  # fmt: skip
    short_F, gram_F, run_F, sizes_M, seeds_K, places_K2, question_S, word_S = seeds
    words_Q, grams_Q1, grams_G, sizes_G, offsets_G, weights_G, weights_Q, bits_Q = questions[:8]
    items_Q1, items_T, signed_T, length_T, bare_Q = questions[8:]
    answers_I1, right_A, words_A, bits_A, grams_A1, grams_B, sizes_B = answers
    runs_R, item_R = runs
    gram, misses, distance, generic, run, tail = sizes
    score, whole, long, alone, together = limits
    D = texts_D1.size - 1
    longest = (np.diff(texts_D1).max() if D else 0) + 1
    at_L, hashes_L1 = np.empty(longest, np.int64), np.empty(longest, np.uint64)
    begins_L1, words_W1 = np.empty(longest, np.uint8), np.empty(longest, np.int32)
    short, long_, run_ = _beyond(short_F), _beyond(gram_F), _beyond(run_F)
    done_Q = np.full(words_Q.size, -1, np.int64)  # the last document in which a question was looked at
    until_Q = np.zeros(words_Q.size, np.int64)  # and the word up to which it was
    rows, scores = np.empty((256, _FIELDS), np.int64), np.empty(256, np.float32)
    count = 0
    for d in range(D):
        start = texts_D1[d]
        letters, words = spell(
            text_C, start, texts_D1[d + 1], kinds, folded, False, at_L, hashes_L1, begins_L1, words_W1
        )  # fmt: skip
        last_run = -1
        for w in range(words):
            first = words_W1[w]
            for m in range(sizes_M.size):
                end = w + sizes_M[m]
                if end > words or words_W1[end] - first >= powers_L.size:
                    break
                hash_ = nonzero(stretch(hashes_L1, powers_L, first, words_W1[end] - first))
                if sizes_M[m] < gram:
                    if not _may_be(short_F, short, hash_):
                        continue
                elif not _may_be(gram_F, long_, hash_):
                    continue
                at = place(seeds_K, seeds_K.size, hash_)
                if seeds_K[at] != hash_:
                    continue
                for s in range(places_K2[at, 0], places_K2[at, 0] + places_K2[at, 1]):
                    q = np.int64(question_S[s])
                    if done_Q[q] == d and w < until_Q[q]:
                        continue
                    need = score
                    if words_Q[q] < long:
                        need = 1 - (1 - score) * max(words_Q[q] - whole, 0.0) / (long - whole)
                    share, begin, close = _cluster(
                        hashes_L1, begins_L1, words_W1, letters, words, w, powers_L, grams_Q1[q], grams_Q1[q + 1],
                        np.int64(word_S[s]), grams_G, sizes_G, offsets_G, weights_G, weights_Q[q], need,
                        misses, tail,
                    )  # fmt: skip
                    behind = np.searchsorted(words_W1[:words], close)  # words up to the end of the question
                    done_Q[q], until_Q[q] = d, behind if behind > w else w + 1
                    if share < need - 1e-4:
                        continue
                    before = np.searchsorted(words_W1[:words], begin)
                    bits = share * bits_Q[q]
                    items = items_Q1[q + 1] - items_Q1[q]
                    proven = bits >= alone and items < generic and not bare_Q[q]
                    named = 0
                    for t in range(items_Q1[q], items_Q1[q + 1]):
                        item = np.int64(items_T[t])
                        best, answer_bits, from_, to = np.int64(-1), 0.0, np.int64(-1), np.int64(-1)
                        for a in range(answers_I1[item], answers_I1[item + 1]):
                            if best >= 0 and (right_A[best] > right_A[a] or answer_bits >= bits_A[a]):
                                continue
                            far = 2 * np.int64(words_A[a])
                            left, right = _answer(
                                hashes_L1, begins_L1, words_W1, words, letters, powers_L, before, behind,
                                far if far > distance else distance, grams_B[grams_A1[a] : grams_A1[a + 1]],
                                sizes_B[grams_A1[a] : grams_A1[a + 1]], score,
                            )  # fmt: skip
                            if left >= 0:
                                best, answer_bits, from_, to = np.int64(a), bits_A[a], np.int64(left), np.int64(right)
                        enough = proven or (best >= 0 and bits + answer_bits >= together and not bare_Q[q])
                        if not enough and share > 0.999:
                            length = np.int64(length_T[t])
                            there, found = signed(text_C, at_L[begin], texts_D1[d + 1], kinds, folded, length)
                            same = found == length and there == signed_T[t]
                            last = grams_Q1[q + 1] - 1
                            signs = length - np.int64(offsets_G[last]) - np.int64(sizes_G[last])
                            enough = same and (
                                (items >= generic and signs >= _SIGNS) or (bare_Q[q] and bits + answer_bits >= together)
                            )
                        if not enough:
                            continue
                        if count == rows.shape[0]:
                            rows, scores = _doubled(rows, scores)
                        row = rows[count]
                        row[0], row[1], row[2], row[3] = d, CLUSTER, at_L[begin] - start, at_L[close - 1] + 1 - start
                        row[4], row[5] = item, best >= 0 and right_A[best] != 0
                        row[6], row[7] = -1, -1
                        if best >= 0:
                            row[6], row[7] = at_L[from_] - start, at_L[to - 1] + 1 - start
                        scores[count] = share
                        count += 1
                        named += 1
                        if named == _MOST_PER_QUESTION:
                            break
            if run and w + run <= words and words_W1[w + run] - first < powers_L.size:
                hash_ = nonzero(stretch(hashes_L1, powers_L, first, words_W1[w + run] - first))
                if _may_be(run_F, run_, hash_):
                    at = place(runs_R, runs_R.size, hash_)
                    if runs_R[at] == hash_:
                        item = np.int64(item_R[at])
                        begin, close = at_L[first] - start, at_L[words_W1[w + run] - 1] + 1 - start
                        if last_run >= 0 and rows[last_run, 4] == item and begin <= rows[last_run, 3]:
                            rows[last_run, 3] = close
                        else:
                            if count == rows.shape[0]:
                                rows, scores = _doubled(rows, scores)
                            row = rows[count]
                            row[0], row[1], row[2], row[3], row[4] = d, RUN, begin, close, item
                            row[5], row[6], row[7] = 0, -1, -1
                            scores[count] = 0
                            last_run = count
                            count += 1
    return rows, scores, count


@njit(cache=True)
def _beyond(filter_F: Array) -> np.uint64:
    """How many bits of a hash a filter does not look at."""
    beyond, places = np.uint64(64), filter_F.size * 64
    while places > 1:
        beyond -= np.uint64(1)
        places //= 2
    return beyond


@njit(cache=True, inline="always")
def _may_be(filter_F: Array, beyond: np.uint64, hash_: np.uint64) -> bool:
    bit = hash_ >> beyond
    return (filter_F[bit >> np.uint64(6)] >> (bit & np.uint64(63))) & np.uint64(1) != np.uint64(0)


@njit(cache=True)
def _doubled(rows: Array, scores: Array) -> tuple[Array, Array]:
    more, higher = np.empty((2 * rows.shape[0], rows.shape[1]), np.int64), np.empty(2 * scores.size, np.float32)
    more[: rows.shape[0]], higher[: scores.size] = rows, scores
    return more, higher


@njit(cache=True)
def _cluster(
    hashes_L1: Array, begins_L1: Array, words_W1: Array, letters: int, words: int, w: int, powers_L: Array,
    first: int, stop: int, seed: Number, grams_G: Array, sizes_G: Array, offsets_G: Array, weights_G: Array,
    total: float, need: float, misses: int, tail: int,
) -> tuple[float, Number, Number]:  # fmt: skip
    """How much of a question stands around a word, by weight; and its first letter, and that behind its last one.

    From the seed the grams are followed to the right and to the left: each is where the one before lets expect it, or
    some words further. Ends after so many misses in a row, and as soon as too much is missing to reach `need`.
    """
    spare = total * (1 - need) * (1 + 1e-6) + 1e-6  # what may be missing
    begin: Number = words_W1[w]
    close: Number = words_W1[w] + 1
    standing, ending = 0, 0  # grams found, and those of the end among them
    for direction in (1, -1):
        shift = words_W1[w] - np.int64(offsets_G[first + seed])  # of the question's letters in the text
        near, missed = w, 0  # the word in the text where the last gram stood
        g = first + seed if direction == 1 else first + seed - 1
        while first <= g < stop:
            size, hash_ = np.int64(sizes_G[g]), grams_G[g]
            found: Number = np.int64(-1)
            at = shift + np.int64(offsets_G[g])
            if size and _stands(hashes_L1, begins_L1, letters, powers_L, at, size, hash_, g == first, g == stop - 1):
                found = at
            elif size:
                for away in range(1, misses + 2):
                    word = near + direction * away
                    if word < 0 or word >= words:
                        break
                    at = words_W1[word]
                    if _stands(hashes_L1, begins_L1, letters, powers_L, at, size, hash_, g == first, g == stop - 1):
                        found, near = at, word
                        break
            if found >= 0:
                shift, missed = found - np.int64(offsets_G[g]), 0
                begin = found if found < begin else begin
                close = found + size if found + size > close else close
                standing += 1
                if g >= stop - tail:
                    ending += 1
                while direction == 1 and near + 1 < words and words_W1[near + 1] <= found:
                    near += 1
                while direction == -1 and near > 0 and words_W1[near] > found:
                    near -= 1
            else:
                spare -= weights_G[g]
                missed += 1
                if spare < 0 or missed > misses:
                    break
            g += direction
        while first <= g < stop:  # what lies behind the end of the cluster
            if spare < 0:
                return 0.0, begin, close
            g += direction
            if first <= g < stop:
                spare -= weights_G[g]
    # By weight alone, what is not of a template would be enough of a question; by number, the template.
    if 2 * ending < min(tail, stop - first) or standing < need * (stop - first) - 1e-3:
        return 0.0, begin, close
    missing = total * (1 - need) * (1 + 1e-6) + 1e-6 - spare
    return max(0.0, 1 - missing / total) if total > 0 else 1.0, begin, close


@njit(cache=True, inline="always")
def _stands(
    hashes_L1: Array, begins_L1: Array, letters: int, powers_L: Array, at: Number, size: Number,
    hash_: np.uint32, is_first: bool, is_last: bool,
) -> bool:  # fmt: skip
    """Whether a gram stands at a letter; a question begins and ends with a word."""
    if at < 0 or at + size > letters:
        return False
    if (is_first and not begins_L1[at]) or (is_last and not begins_L1[at + size]):
        return False
    return np.uint32(stretch(hashes_L1, powers_L, at, size)) == hash_


@njit(cache=True)
def _answer(
    hashes_L1: Array, begins_L1: Array, words_W1: Array, words: int, letters: int, powers_L: Array, before: Number,
    behind: Number, distance: Number, grams_B: Array, sizes_B: Array, score: float,
) -> tuple[Number, Number]:  # fmt: skip
    """First letter of an answer near a question, and that behind its last; -1 where it is not there."""
    found, left, right = 0, np.int64(-1), np.int64(-1)
    for b in range(grams_B.size):
        size = np.int64(sizes_B[b])
        if size == 0:
            continue
        for part in range(2):  # behind the question first
            low, high = (behind, behind + distance) if part == 0 else (before - distance, before)
            place_ = np.int64(-1)
            for word in range(max(0, int(low)), min(words, int(high))):
                at = words_W1[word]
                if at + size > letters:
                    break
                if begins_L1[at + size] and stretch(hashes_L1, powers_L, at, size) == grams_B[b]:
                    place_ = at
                    break
            if place_ >= 0:
                left = place_ if left < 0 else min(left, place_)
                right = max(right, place_ + size)
                found += 1
                break
        if found + (grams_B.size - b - 1) < score * grams_B.size:
            return np.int64(-1), np.int64(-1)
    return left, right
