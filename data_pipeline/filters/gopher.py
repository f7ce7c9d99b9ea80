"""The quality rules of Gopher (Rae et al. 2021, arXiv:2112.11446, appendix A.1.1), counted once and judged later.

The paper states them for English words between blanks. Here:

- the stop word rule is applied only to English; other languages have no list yet and are not judged by it;
- scripts without blanks between words (`UNSPACED`) have no words to count. Their `words` are estimated as half the
  letters and digits, so that the limits on length still hold, and the rules on the inside of words do not apply.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
UNSPACED = frozenset(("zh", "ja", "th", "lo", "km", "my", "bo", "dz"))
LETTERS_PER_WORD = 2  # of a script without blanks; Chinese words have about 1.6 characters, Japanese 2 to 3

SHORTEST_MEAN_WORD, LONGEST_MEAN_WORD = 3.0, 10.0  # characters
MOST_SYMBOLS = 0.1  # hashes, and ellipses, per word
MOST_BULLET_LINES = 0.9  # of the lines that are not blank
MOST_ELLIPSIS_LINES = 0.3
FEWEST_ALPHABETIC_WORDS = 0.8
FEWEST_STOP_WORDS = 2  # different ones

BULLETS = ("•", "‣", "-", "*", "◦", "▪", "●", "–")
ELLIPSES = ("...", "…")

_ALPHANUMERIC = re.compile(r"[^\W_]")
_ALPHABETIC = re.compile(r"[^\W\d_]")
_EDGES = "\"'`([{<>}]).,;:!?*_"


@dataclass(frozen=True)
class Signals:
    """What the rules look at. Ratios lie in 0..1 but for `hashes` and `ellipses`, which are per word.

    None where the rule does not apply to the language of the text.
    """

    words: int
    mean_word_length: float | None
    hashes: float
    ellipses: float
    bullet_lines: float
    ellipsis_lines: float
    alphabetic_words: float | None
    stop_words: int | None


def measure(text: str, language: str) -> Signals:
    """Count. A word is a run between blanks that holds a letter or a digit; a token is any run between blanks."""
    tokens = text.split()
    lines = [line.strip() for line in text.split("\n") if not line.isspace() and line]
    mean = alphabetic = stop_words = None
    if language in UNSPACED:
        count = len(_ALPHANUMERIC.findall(text)) // LETTERS_PER_WORD
    else:
        words = [token for token in tokens if _ALPHANUMERIC.search(token)]
        count = len(words)
        mean = sum(map(len, words)) / max(1, count)
        alphabetic = sum(1 for token in tokens if _ALPHABETIC.search(token)) / max(1, len(tokens))
        if language == "en":
            vocabulary = {word.strip(_EDGES).lower() for word in set(words)}
            stop_words = len(STOP_WORDS & vocabulary)
    return Signals(
        words=count,
        mean_word_length=mean,
        hashes=text.count("#") / max(1, count),
        ellipses=(text.count("...") + text.count("…")) / max(1, count),
        bullet_lines=sum(line.startswith(BULLETS) for line in lines) / max(1, len(lines)),
        ellipsis_lines=sum(line.endswith(ELLIPSES) for line in lines) / max(1, len(lines)),
        alphabetic_words=alphabetic,
        stop_words=stop_words,
    )


def broken_rules(signals: Signals, min_words: int, max_words: int, margin: float = 1.0) -> list[str]:
    """Names of the rules that the text breaks, in the order of the paper; `rules` many apply.

    `margin` > 1 makes each limit stricter by that factor: an upper limit is divided by it, a lower limit multiplied;
    the share of alphabetic words must miss 1 by no more than the allowed miss over `margin`.
    """
    s, broken = signals, []
    if s.words < min_words * margin:
        broken.append("gopher_too_few_words")
    if s.words > max_words / margin:
        broken.append("gopher_too_many_words")
    if s.mean_word_length is not None:
        # Words of 3 to 10 characters; with a margin the range narrows towards its middle on both sides.
        middle, reach = (SHORTEST_MEAN_WORD + LONGEST_MEAN_WORD) / 2, (LONGEST_MEAN_WORD - SHORTEST_MEAN_WORD) / 2
        if abs(s.mean_word_length - middle) > reach / margin:
            broken.append("gopher_mean_word_length")
    if s.hashes > MOST_SYMBOLS / margin:
        broken.append("gopher_hashes")
    if s.ellipses > MOST_SYMBOLS / margin:
        broken.append("gopher_ellipses")
    if s.bullet_lines > MOST_BULLET_LINES / margin:
        broken.append("gopher_bullet_lines")
    if s.ellipsis_lines > MOST_ELLIPSIS_LINES / margin:
        broken.append("gopher_ellipsis_lines")
    if s.alphabetic_words is not None and 1 - s.alphabetic_words > (1 - FEWEST_ALPHABETIC_WORDS) / margin:
        broken.append("gopher_alphabetic_words")
    if s.stop_words is not None and s.stop_words < FEWEST_STOP_WORDS * margin:
        broken.append("gopher_stop_words")
    return broken


def rules(signals: Signals) -> int:
    """How many rules apply to a text."""
    return 9 - (signals.mean_word_length is None) - (signals.alphabetic_words is None) - (signals.stop_words is None)


def quality(signals: Signals, min_words: int, max_words: int) -> float:
    """Share of the applicable rules that hold even with limits twice as strict (0 to 1).

    A coarse order among documents that passed, in steps of a ninth at the finest: it says how far a text is from the
    limits, not how good it is to read. No model is behind it.
    """
    strict = broken_rules(signals, min_words, max_words, margin=2.0)
    return 1 - len(strict) / rules(signals)
