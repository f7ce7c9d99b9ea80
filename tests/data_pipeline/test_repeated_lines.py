"""Promises about lines and paragraphs that many documents share: which they are, and that one document keeps them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.duplicates import lines
from data_pipeline.engine import records
from data_pipeline.signals.tokens import Tokens

LETTERS = 20
NOTICE = "Copyright 2019 The Authors, all rights reserved."


def own(number: int) -> str:
    """A line that no other document has."""
    return f"What only document {'abcdefghijklmnopqrstuvwxyz'[number % 26] * (1 + number // 26)} has to tell."


def counts(folder: Path, tasks: list[list[str]], documents: int, ranges: int = 1) -> list[Path]:
    """Count the passages of documents, which have numbers in order; returns the files of common ones."""
    paths = []
    for number, texts in enumerate(tasks):
        inside = folder / f"task-{number}"
        inside.mkdir(parents=True)
        numbers = np.uint64(number << 32) + np.arange(len(texts), dtype=np.uint64)
        # In two batches, as a task has many.
        batches = [
            lines.counted(numbers[at], lines.passages(Tokens.of(texts[at]), LETTERS))
            for at in (slice(None, len(texts) // 2), slice(len(texts) // 2, None))
        ]
        lines.write(inside, batches)
        paths.append(inside / lines.FILE)
    common = []
    for number, bounds in enumerate(records.ranges(ranges, 1)):
        out = folder / f"count-{number}"
        out.mkdir()
        lines.count(lines.Count(paths, documents, *bounds), out)
        common.append(out / lines.COMMON_FILE)
    return common


def cut(tasks: list[list[str]], common: list[Path]) -> tuple[list[list[str]], list[list[float]]]:
    """The texts without what is common, and the share that each loses."""
    left, shares = [], []
    for number, texts in enumerate(tasks):
        numbers = np.uint64(number << 32) + np.arange(len(texts), dtype=np.uint64)
        found = lines.cuts(Tokens.of(texts), numbers, LETTERS, common)
        spans: list[list[tuple[int, int]]] = [[] for _ in texts]
        for document, first, stop in found.spans_S3.tolist():
            spans[document].append((first, stop))
        left.append([lines.cut(text, mine) for text, mine in zip(texts, spans, strict=True)])
        shares.append(found.shares_D.tolist())
    return left, shares


def test_a_line_of_many_documents_stays_in_the_first_alone(tmp_path: Path) -> None:
    tasks = [[f"{own(3 * task + n)}\n{NOTICE}" for n in range(3)] for task in range(3)]
    left, shares = cut(tasks, counts(tmp_path, tasks, 9))
    assert left == [[tasks[0][0], own(1), own(2)], *[[own(3 * task + n) for n in range(3)] for task in (1, 2)]]
    assert shares[0][0] == 0
    letters = [sum(map(str.isalnum, line)) for line in (own(1), NOTICE)]
    assert shares[0][1] == pytest.approx(letters[1] / sum(letters))
    assert cut(tasks, counts(tmp_path / "more", tasks, 10))[0] == tasks


def test_case_signs_blanks_and_digits_do_not_matter(tmp_path: Path) -> None:
    tasks = [[own(0) + "\n" + NOTICE], [own(1) + "\n  copyright (2023):  THE AUTHORS — all rights réserved  "]]
    left, _ = cut(tasks, counts(tmp_path, tasks, 2))
    assert left == [tasks[0], [own(1)]]


def test_short_lines_stay(tmp_path: Path) -> None:
    tasks = [[f"Yes.\n{own(n)}\nNo, said the old man.\nYes." for n in range(20)]]
    assert cut(tasks, counts(tmp_path, tasks, 5))[0] == tasks


def test_a_paragraph_that_is_wrapped_elsewhere_is_the_same(tmp_path: Path) -> None:
    words = list("abcdefghijklmnopqrstuvwxyz")
    tasks = [[f"{own(n)}\n\n{' '.join(words[:n])}\n{' '.join(words[n:])}\n\n{own(n + 30)}" for n in range(5, 9)]]
    left, shares = cut(tasks, counts(tmp_path, tasks, 4))
    assert left == [[tasks[0][0], *(f"{own(n)}\n\n{own(n + 30)}" for n in range(6, 9))]]
    assert all(0 < share < 1 for share in shares[0][1:])


def test_a_line_counts_once_for_a_document_however_often_it_stands_there(tmp_path: Path) -> None:
    tasks = [["\n".join([NOTICE] * 50), own(1)], [NOTICE, own(2)]]
    assert cut(tasks, counts(tmp_path, tasks, 3))[0] == tasks
    left, shares = cut(tasks, counts(tmp_path / "two", tasks, 2))
    assert left == [tasks[0], ["", own(2)]]
    assert shares == [[0, 0], [1, 0]]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(st.lists(st.integers(0, 6), max_size=5), min_size=2, max_size=6), min_size=1, max_size=3
    ),
    st.integers(2, 5),
    st.sampled_from([1, 3, 17]),
)  # fmt: skip
def test_cuts_are_those_of_plain_counting_for_any_ranges(tmp_path_factory, tasks, documents, ranges) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("lines")
    texts = [["\n\n".join(own(n) for n in numbers) for numbers in task] for task in tasks]
    left, _ = cut(texts, counts(folder, texts, documents, ranges))
    everything = [numbers for task in tasks for numbers in task]
    kept, seen = [], set()
    for numbers in everything:
        common = {n for n in numbers if sum(n in other for other in everything) >= documents}
        kept.append([n for n in numbers if n not in common or n not in seen])
        seen |= set(numbers)
    assert [[line for line in text.split("\n") if line] for task in left for text in task] == [
        [own(n) for n in numbers] for numbers in kept
    ]
