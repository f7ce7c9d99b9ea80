"""The linear classifier learns, gives the same bits whoever trains it, and takes any text."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.classify import linear, train
from data_pipeline.classify.linear import Linear
from data_pipeline.classify.train import Sample
from data_pipeline.signals.tokens import Tokens

VOCABULARY = [f"word{n}" for n in range(400)]
BITS = 14


def document(rng: random.Random, positive: bool, words: int = 60) -> str:
    """Words of one vocabulary; each kind prefers one half of it, but not much."""
    halves = (VOCABULARY[:200], VOCABULARY[200:])
    return " ".join(rng.choice(halves[positive if rng.random() < 0.65 else not positive]) for _ in range(words))


def documents(count: int, seed: int = 1) -> list[tuple[str, bool]]:
    rng = random.Random(seed)
    return [(document(rng, number % 2 == 0), number % 2 == 0) for number in range(count)]


def sampled(texts: list[tuple[str, bool]], most_characters: int = train.MOST_CHARACTERS) -> Sample:
    sample = Sample(most_characters)
    sample.add(texts, "made up")
    return sample


def split_of(texts: list[tuple[str, bool]]) -> train.Split:
    return train.split(sampled(texts))


@pytest.fixture(scope="module")
def trained() -> train.Trained:
    return train.train(split_of(documents(1200)), bits=BITS)


def test_learns_and_measures_on_documents_it_never_saw(trained: train.Trained) -> None:
    held_out = trained.report["held_out"]
    assert held_out["accuracy"] >= 0.9
    assert held_out["auc"] >= 0.95
    fresh = documents(2000, seed=2)
    scores = trained.model.score(Tokens.of([text for text, _ in fresh]))
    right = np.mean((scores >= 0.5) == [positive for _, positive in fresh])
    assert right == pytest.approx(held_out["accuracy"], abs=4 * (0.25 / 120) ** 0.5)


def test_scores_are_probabilities() -> None:
    """Where three of ten labels are wrong, no score is sure, and of documents that score alike such a share is."""
    rng = random.Random(3)
    noisy = [(text, positive if rng.random() < 0.7 else not positive) for text, positive in documents(6000, seed=3)]
    held_out = train.train(split_of(noisy), bits=BITS).report["held_out"]
    documents_of = sum(row["documents"] for row in held_out["calibration"])
    assert documents_of > 400
    assert held_out["calibration_error"] < 0.08
    for row in held_out["calibration"]:
        spread = (row["mean"] * (1 - row["mean"]) / row["documents"]) ** 0.5
        assert abs(row["mean"] - row["share"]) < 4 * spread + 0.03


def test_same_bytes_in_another_process(trained: train.Trained) -> None:
    code = (
        "import hashlib\n"
        "from data_pipeline.classify import train\n"
        "from tests.data_pipeline.test_classify import BITS, documents, split_of\n"
        "print(hashlib.sha256(train.train(split_of(documents(1200)), bits=BITS).model.dump()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == hashlib.sha256(trained.model.dump()).hexdigest()


@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("most_characters", [train.MOST_CHARACTERS, 150_000])
def test_sample_does_not_depend_on_workers_or_order(workers: int, most_characters: int) -> None:
    rng = random.Random(8)
    texts = [(document(rng, number % 2 == 0, rng.choice((3, 30, 900))), number % 2 == 0) for number in range(600)]
    wanted = sampled(texts, most_characters).documents()
    shuffled = random.Random(workers).sample(texts, len(texts))
    parts = [sampled(shuffled[worker::workers], most_characters) for worker in range(workers)]
    merged = parts[0]
    for part in parts[1:]:
        merged.merge(part)
    assert merged.documents() == wanted
    assert sum(len(one.text) for one in wanted[0] if one.positive) <= most_characters


def test_copies_of_held_out_documents_are_not_learned_from() -> None:
    """Kinds are drawn by lot and every text stands eight times, with another word changed: only who has seen a copy
    can tell its kind. Hashes of places keep most copies together; what still stands elsewhere is not measured."""
    rng = random.Random(4)
    copies = []
    for text, _ in documents(1600, seed=4):
        positive = rng.random() < 0.5
        for _ in range(8):
            words = text.split()
            words[rng.randrange(len(words))] = rng.choice(VOCABULARY)
            copies.append((" ".join(words), positive))
    report = train.train(split_of(copies), bits=18).report
    assert report["documents"]["repeated"] > 0
    assert report["held_out"]["auc"] < 0.75


def test_text_of_both_kinds_is_left_out(trained: train.Trained) -> None:
    texts = documents(1200)
    both = [(text.title(), not positive) for text, positive in texts[:30]]
    found, left_out = sampled([*texts, *both]).documents()
    assert left_out == 30
    assert len(found) == 1170


HOSTILE = ["", " \n\t", "a", "!?.,;:()", "\x00\ufffd\U0010ffff", "=" * 1000, "ab" * 5_000_000, "ab " * 3_000_000]


@pytest.mark.parametrize("subwords", [False, True])
def test_hostile_texts_have_a_score(trained: train.Trained, subwords: bool) -> None:
    model = dataclasses.replace(trained.model, subwords=subwords)
    scores = model.score(Tokens.of(HOSTILE))
    assert scores.dtype == np.float32
    assert ((scores >= 0) & (scores <= 1)).all()
    without_words = scores[[0, 1, 3, 5]]
    assert (without_words == without_words[0]).all()
    assert model.score(Tokens.of([])).shape == (0,)


def test_hostile_texts_can_be_learned_from() -> None:
    texts = [*documents(1200), *((text, True) for text in HOSTILE)]
    trained = train.train(split_of(texts), bits=BITS)
    assert np.isfinite(trained.model.weights_B).all()


def test_score_does_not_depend_on_the_batch(trained: train.Trained) -> None:
    texts = [text for text, _ in documents(50)]
    together = trained.model.score(Tokens.of(texts))
    alone = np.concatenate([trained.model.score(Tokens.of([text])) for text in texts])
    assert together.tobytes() == alone.tobytes()


def test_kinds_that_never_err_stay_finite() -> None:
    texts = [(f"good number{n} " * 5, True) for n in range(600)] + [(f"bad number{n} " * 5, False) for n in range(600)]
    model = train.train(split_of(texts), bits=BITS).model
    scores = model.score(Tokens.of(["good", "bad"]))
    assert scores[0] > 0.95
    assert scores[1] < 0.05


def test_subwords_know_forms_that_were_never_seen(tmp_path: Path) -> None:
    rng = random.Random(6)
    stems = {True: ("hatt", "grumm"), False: ("lind", "warm")}

    def phrase(positive: bool, endings: tuple[str, ...]) -> str:
        filler = [rng.choice(VOCABULARY) for _ in range(9)]
        return " ".join([*filler, rng.choice(stems[positive]) + rng.choice(endings)])

    seen = [(phrase(n % 2 == 0, ("a", "ed", "ing", "ore")), n % 2 == 0) for n in range(3000)]
    unseen = [(phrase(n % 2 == 0, ("ulous", "imi", "Ést")), n % 2 == 0) for n in range(1000)]
    right = {}
    for subwords in (False, True):
        model = train.train(split_of(seen), bits=16, subwords=subwords).model
        (tmp_path / "model.npz").write_bytes(model.dump())
        scores = Linear.load(tmp_path / "model.npz").score(Tokens.of([text for text, _ in unseen]))
        right[subwords] = np.mean((scores >= 0.5) == [positive for _, positive in unseen])
    assert right[True] > 0.9
    assert right[False] < 0.65


def test_too_few_documents_are_refused() -> None:
    with pytest.raises(ValueError, match="no documents"):
        train.split(Sample())
    with pytest.raises(ValueError, match=r"positive documents are left .* at least 20 are needed"):
        train.train(split_of([*documents(40), *((text, False) for text, _ in documents(1200, seed=9))]))


def test_save_and_load(trained: train.Trained, tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    path.write_bytes(trained.model.dump())
    loaded = Linear.load(path)
    assert loaded.dump() == trained.model.dump()
    tokens = Tokens.of([text for text, _ in documents(20)])
    assert loaded.score(tokens).tobytes() == trained.model.score(tokens).tobytes()
    assert len(Linear(np.zeros(1 << linear.BITS, np.float32), 0.0).dump()) <= 16e6


def test_broken_files_are_refused(trained: train.Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, content = tmp_path / "model.npz", trained.model.dump()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, head=np.array([{}], dtype=object), weights=np.zeros(4, np.float32))
    odd = tmp_path / "odd.npz"
    np.savez(odd, head=np.frombuffer(content[:1], np.uint8), weights=np.zeros(3, np.float32))
    for broken in (b"", b"no model", content[:100], content[:-100], bytes(flipped), pickled.read_bytes(),
                   odd.read_bytes()):  # fmt: skip
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"model\.npz"):
            Linear.load(path)
    size_three = Linear(np.zeros(3, np.float32), 0.0).dump()
    not_finite = Linear(np.full(4, np.nan, np.float32), 0.0).dump()
    monkeypatch.setattr(linear, "FORMAT", 9)
    newer = trained.model.dump()
    monkeypatch.undo()
    for wrong, message in ((size_three, "power of two"), (not_finite, "finite"), (newer, "format 9, .* up to 1")):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=message):
            Linear.load(path)


def test_area_is_the_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(5)
    scores, positive = rng.integers(0, 8, 60) / 8, rng.random(60) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    assert train.area(scores, positive) == pytest.approx(np.mean(pairs), abs=1e-12)


def test_probability_is_the_logistic_function() -> None:
    margins = np.linspace(-39, 39, 1001)
    scores = linear.probabilities(margins, 1.0, 0.0)
    np.testing.assert_allclose(scores, (1 / (1 + np.exp(-margins))).astype(np.float32), rtol=3e-7)
