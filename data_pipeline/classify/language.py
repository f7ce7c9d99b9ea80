"""Which languages a text is in, by CLD2, whose model is compiled into its package.

Knows nothing of thresholds or of which languages are wanted.
"""

from __future__ import annotations

from bisect import bisect
from dataclasses import dataclass

UNKNOWN = "und"
# CLD2 writes three withdrawn codes, and tells apart what has one code together: the Chinese scripts, the two ways to
# write Norwegian, Serbian of Montenegro; we write ISO 639-1. The last ones are jokes of its authors.
ISO_639_1 = {
    "iw": "he", "jw": "jv", "mo": "ro", "zh-Hant": "zh", "nn": "no", "sr-ME": "sr",
    "un": UNKNOWN, "xxx": UNKNOWN, "tlh": UNKNOWN, "zzb": UNKNOWN, "zze": UNKNOWN, "zzh": UNKNOWN, "zzp": UNKNOWN,
}  # fmt: skip
_SCRIPT = "xx-"  # how codes begin that name a script, not a language
# Enough text to be sure; more only takes time. Of longer texts, pieces at equal distances, so that the shares of
# languages are those of the whole.
SAMPLED_CHARACTERS = 8_000
_PIECES = 8
# How often CLD2 is right at a score (its points for each 1024 bytes), as measured on every other of the 6,000 sentences
# of the test set of ELD in 60 languages; straight lines between.
_SCORES = (0.0, 150.0, 300.0, 500.0, 700.0, 900.0, 1200.0)
_RIGHT = (0.30, 0.55, 0.87, 0.935, 0.97, 0.985, 0.998)


@dataclass(frozen=True)
class Detected:
    """The languages of a text, as ISO 639-1 codes (639-3 where there is none).

    language, share     that of most of the text, and the share of its bytes of letters, 0 to 1; ("und", 0.0) for none
    second, second_share   the next one; ("", 0.0) where there is none
    certainty           how often such an answer is right about the main language, 0 to 1
    """

    language: str
    share: float
    second: str
    second_share: float
    certainty: float


def identify(text: str) -> tuple[str, float]:
    """Code of the main language, and our confidence: the share of the text that is expected to be in it (0 to 1).

    That is its share times how often CLD2 is right when it is as sure as here: a document all in one language has about
    0.97, one of which half is in another 0.5, and a few odd words 0.3. ("und", 0.0) where no language is found.
    """
    found = detect(text)
    return found.language, found.share * found.certainty


def detect(text: str) -> Detected:
    """The two languages that most of a text is in.

    `text` holds no control characters (`extract.repair` removes them): CLD2 refuses those. Of a text of more than 8,000
    characters, eight pieces of 1,000 are looked at. What has one code together is counted together.
    """
    import pycld2

    _, _, found = pycld2.detect(_sampled(text), isPlainText=True, bestEffort=True)
    shares: dict[str, int] = {}
    scores: dict[str, float] = {}
    for _, code, percent, score in found:  # the largest share first
        code = UNKNOWN if code.startswith(_SCRIPT) else ISO_639_1.get(code, code)
        if code != UNKNOWN and percent > 0:
            shares[code] = shares.get(code, 0) + percent
            scores.setdefault(code, score)
    ordered = sorted(shares, key=lambda code: -shares[code])  # stable: equal shares stay in CLD2's order
    if not ordered:
        return Detected(UNKNOWN, 0.0, "", 0.0, 0.0)
    second = ordered[1] if len(ordered) > 1 else ""
    main = ordered[0]
    return Detected(main, shares[main] / 100, second, shares.get(second, 0) / 100, _certainty(scores[main]))


def _sampled(text: str) -> str:
    if len(text) <= SAMPLED_CHARACTERS:
        return text
    length = SAMPLED_CHARACTERS // _PIECES
    last = len(text) - length
    return "\n".join(text[at : at + length] for at in (last * piece // (_PIECES - 1) for piece in range(_PIECES)))


def _certainty(score: float) -> float:
    above = bisect(_SCORES, score)
    if above == len(_SCORES):
        return _RIGHT[-1]
    part = (score - _SCORES[above - 1]) / (_SCORES[above] - _SCORES[above - 1])
    return _RIGHT[above - 1] + part * (_RIGHT[above] - _RIGHT[above - 1])
