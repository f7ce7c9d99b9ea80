"""Which language a text is in, by CLD2, whose model is compiled into its package.

Knows nothing of thresholds or of which languages are wanted.
"""

from __future__ import annotations

UNKNOWN = "und"
# CLD2 writes three withdrawn codes, and tells the Chinese scripts apart; we write ISO 639-1.
ISO_639_1 = {"un": UNKNOWN, "xxx": UNKNOWN, "iw": "he", "jw": "jv", "mo": "ro", "zh-Hant": "zh"}
# Enough text to be sure; more only takes time.
SAMPLED_CHARACTERS = 20_000


def identify(text: str) -> tuple[str, float]:
    """ISO 639-1 code of the main language, and the share of the text that is in it (0 to 1).

    ("und", 0.0) where CLD2 finds no language. `text` holds no control characters (`extract.repair` removes them): CLD2
    refuses those. Only the first 20,000 characters are looked at. Where CLD2 calls its own answer unreliable, the share
    is halved.
    """
    import pycld2

    reliable, _, found = pycld2.detect(text[:SAMPLED_CHARACTERS], isPlainText=True, bestEffort=True)
    _, code, percent, _ = found[0]
    code = ISO_639_1.get(code, code)
    if code == UNKNOWN:
        return UNKNOWN, 0.0
    return code, percent / 100 * (1.0 if reliable else 0.5)
