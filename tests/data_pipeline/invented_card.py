"""A data card of documents that never were: 20 sources, 30 languages and 17 benchmarks, in the millions."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np

from data_pipeline.card.changes import changes
from data_pipeline.card.reasons import REASONS
from data_pipeline.card.tally import Tally
from data_pipeline.classify import train
from data_pipeline.decontaminate.index import DEFAULT
from data_pipeline.private.found import KINDS
from data_pipeline.signals.thresholds import DEFAULTS, Thresholds

SOURCES = (
    "commoncrawl-2026-05", "commoncrawl-2025-51", "commoncrawl-2025-22", "wikipedia", "books-public-domain", "arxiv",
    "stackexchange", "github-readmes", "europarl", "gutenberg", "pubmed-abstracts", "usenet", "patents",
    "court-opinions", "python-documentation", "government-reports", "news-archive", "recipes", "subtitles",
    "project-wikis",
)  # fmt: skip
LANGUAGES = (
    "en", "de", "fr", "es", "ru", "ja", "zh", "it", "pt", "pl", "nl", "tr", "ar", "fa", "cs", "vi", "ko", "sv", "hu",
    "ro", "el", "uk", "he", "fi", "da", "th", "id", "hi", "bg", "no",
)  # fmt: skip
LICENSES = ("CC-BY-SA-4.0", "CC-BY-4.0", "CC0-1.0", "public domain", "Apache-2.0", "MIT", "OGL-UK-3.0", "")
BENCHMARKS = (
    "agieval", "arc_challenge", "arc_easy", "bbh", "boolq", "commonsense_qa", "drop", "gsm8k", "hellaswag", "humaneval",
    "mbpp", "mmlu", "openbookqa", "piqa", "siqa", "triviaqa", "winogrande",
)  # fmt: skip
TEXTS = {
    "ar": "تقع المدينة القديمة على ضفة النهر، ويعيش فيها صيادون وتجار منذ قرون. ",
    "he": "הטחנה עומדת ליד הנהר, ואנשים באים מכל הכפרים לטחון בה את התבואה. ",
    "ja": "川のそばに古い水車小屋があり、近くの村の人々が粉を挽きに来る。",
    "ru": "Мельница стоит у реки, и люди из всех окрестных деревень везут туда зерно. ",
    "hi": "नदी के किनारे एक पुरानी चक्की है जहाँ आसपास के गाँवों के लोग आते हैं। ",
    "en": "The mill stands by the river, and people of all villages around come to have their grain ground there. ",
}
PROHIBITED = 3
CONFIG = {
    "sources": [
        {"kind": "local", "name": name, "paths": [f"{name}/*.jsonl.zst"], "split": "train", "license": "CC-BY-4.0"}
        for name in SOURCES
    ],
    "languages": [],
    "language_confidence": 0.5,
    "thresholds": {"en": {"c4": None}},
    "quality": {"model": None, "least": 0.2},
    "toxicity": {"model": None, "most": 0.1},
    "duplicates": {"similarity": 0.75, "repeated_in": 100, "earlier": ["webmix-2025"]},
    "decontaminate": {"benchmarks": {}, "action": "drop"},
    "private": {"most_items": 50},
    "harm": {"most_words": 20, "blocked": ["blocked.txt"], "prohibited": [], "lexicons": []},
    "extract": {"seconds": 10.0, "memory_bytes": 2**30, "largest_bytes": 16 * 2**20},
}


def row(id_: str, text: str, language: str = "en", **columns: Any) -> dict[str, Any]:
    """The columns of a document that a tally asks for; those that are not given are the plainest."""
    return {
        "id": id_, "text": text, "source": "", "language": language, "license": "", "quality": None, "exact_copies": 1,
        "near_copies": 1, "cut_characters": 0, **{f"scrubbed_{kind}": 0 for kind in KINDS}, **columns,
    }  # fmt: skip


def documents(count: int, seed: int) -> Iterator[tuple[dict[str, Any], str, int, str]]:
    """Arguments of `Tally.add`."""
    draw = random.Random(seed)
    every = [reason for reason in REASONS if reason != "prohibited" and not reason.startswith("refinedweb")]
    weights = [draw.paretovariate(0.9) for _ in every]
    for n in range(count):
        label = SOURCES[min(int(draw.expovariate(0.25)), 19)]
        language = LANGUAGES[min(int(draw.expovariate(0.18)), 29)]
        sentence = TEXTS.get(language, TEXTS["en"])
        text = sentence * max(1, int(draw.lognormvariate(2.2, 1.3)))
        reason = draw.choices(every, weights)[0] if draw.random() < 0.42 else ""
        if reason in ("unreadable", "too_large", "damaged", "empty"):
            text, language = "", ""
        extracted = len(text.encode())
        columns = {
            "license": draw.choice(LICENSES),
            "quality": round(draw.betavariate(6, 2), 3),
            "exact_copies": 1 + int(draw.random() < 0.1) * int(draw.paretovariate(1)),
            "near_copies": 1 + int(draw.random() < 0.1) * int(draw.paretovariate(1)),
            "cut_characters": draw.randint(50, 900) if draw.random() < 0.04 else 0,
            **{f"scrubbed_{kind}": int(draw.random() < 0.02) * draw.randint(1, 3) for kind in KINDS},
        }
        yield (
            row(f"{label}/{hashlib.sha256(str(n).encode()).hexdigest()[:16]}", text, language, **columns),
            reason,
            extracted,
            label,
        )


def tally(count: int = 4000, doublings: int = 0, seed: int = 7) -> Tally:
    """Of so many documents, each counted two to the power of `doublings` times."""
    counted = Tally()
    for one in documents(count, seed):
        counted.add(*one)
    counted.prohibited(SOURCES[0], PROHIBITED)
    for _ in range(doublings):
        counted.merge(Tally.from_json({**counted.to_json(), "samples": {}}))
    return counted


def certificate(draw: random.Random) -> dict[str, Any]:
    """As `decontaminate.certificate.certify` writes it."""
    benchmarks = {}
    for benchmark in BENCHMARKS:
        items = draw.randint(164, 14_042)
        found = int(items * draw.betavariate(1, 12))
        benchmarks[benchmark] = {
            "files": {f"{benchmark}/test.jsonl": hashlib.sha256(benchmark.encode()).hexdigest()},
            "fields": "question: question; answers: answer",
            "items_sha256": hashlib.sha256(benchmark[::-1].encode()).hexdigest(),
            "items_read": items + 3,
            "items": items,
            "contaminated_documents": {"clusters": 5 * found, "answered": 2 * found, "runs": 3 * found},
            "contaminated_items": {"clusters": found, "answered": found // 2, "runs": found // 3},
            "contaminated_fraction": round(found / items, 6),
        }
    return {
        "format": 1, "action": "drop", "method": dataclasses.asdict(DEFAULT), "documents": 1_123_456,
        "benchmarks": benchmarks, "sha256": hashlib.sha256(b"certificate").hexdigest(),
    }  # fmt: skip


def report(seed: int, sources: tuple[str, ...]) -> dict[str, Any]:
    """As `classify.train.train` writes it."""
    draw = np.random.default_rng(seed)
    positive_D = draw.random(2400) < 0.5
    scores_D = np.clip(draw.normal(np.where(positive_D, 0.85, 0.15), 0.2), 0, 1)
    return {
        "documents": {
            "training": {"positive": 9_612, "negative": 9_500},
            "calibration": {"positive": 1_201, "negative": 1_180},
            "held_out": {"positive": int(positive_D.sum()), "negative": int((~positive_D).sum())},
            "repeated": 41, "of_both_kinds": 2,
        },
        "sources": [
            {"source": name, "positive": n % 2 == 0, "documents": 9000 + n, "held_out": 900 + n, "right": 880 + n}
            for n, name in enumerate(sources)
        ],
        "characters": 31_000_000, "model_bytes": 4_194_500,
        "settings": {"buckets": 1 << 20, "epochs": 5, "word_ngrams": 2, "subwords": False},
        "held_out": train.measure(scores_D, positive_D),
    }  # fmt: skip


def card(doublings: int = 11) -> dict[str, Any]:
    """All of it, with a version before it."""
    draw = random.Random(3)
    now = about(tally(doublings=doublings).card_values())
    before = about(tally(3600, doublings, seed=8).card_values())
    before["config"] = {**CONFIG, "language_confidence": 0.65, "languages": ["de", "en"]}
    limits = {language: dataclasses.asdict(of) for language, of in DEFAULTS.items()}
    for n, language in enumerate(("de", "fr", "ru", "ja", "ar")):
        moved = dataclasses.asdict(Thresholds(c4=None))
        moved["repetition"]["max_top_2_gram"] = round(0.2 - 0.013 * n, 3)
        moved["gopher"]["min_alphabetic_words"] = round(0.8 - 0.02 * (n % 3), 3)
        limits[language] = moved
    now |= {
        "contamination": certificate(draw),
        "classifiers": {
            "quality": report(1, ("wikipedia", "link-farms", "books-public-domain", "spam")),
            "toxicity": report(2, ("insults", "polite-letters")),
        },
        "thresholds": limits,
        "calibrated": {"de": 2400, "fr": 1800, "ru": 1200, "ja": 900, "ar": 450},
        "signals": {
            "words": [58.0, 412.0, 2210.0], "mean_word_length": [4.1, 4.8, 5.6], "duplicate_lines": [0.0, 0.01, 0.12],
            "top_2_gram": [0.004, 0.011, 0.034], "line_punctuation": [0.31, 0.72, 1.0],
        },
    }  # fmt: skip
    now["duplicates"]["earlier"] = ["webmix-2025"]
    return now | {"changes": changes(before, now)}


def about(values: dict[str, Any]) -> dict[str, Any]:
    """The card of a tally's values, without what else a curation may have done."""
    return {
        "format": 2, "name": "webmix-2026", "lineage": hashlib.sha256(str(values).encode()).hexdigest(), **values,
        "contamination": None, "classifiers": {}, "thresholds": {}, "calibrated": {}, "config": CONFIG, "changes": None,
    }  # fmt: skip
