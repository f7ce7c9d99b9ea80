"""Encoding repair: what was mis-decoded is put right, and what cannot be part of a text goes."""

from __future__ import annotations

import re

TERMINAL_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
LINE_ENDS = re.compile(r"\r\n|[\r\v\f\x1c-\x1e]")
NOT_PLAIN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
ASCII_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1b\x1f\x7f]")
# What is left after repair and cannot be part of a text: C1 controls, surrogates, noncharacters.
NOT_CHARACTERS = re.compile(
    "[\x80-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(f"{chr(p << 16 | 0xFFFE)}{chr(p << 16 | 0xFFFF)}" for p in range(17))
    + "]"
)
# What ftfy changes in a text that does not look mis-decoded.
UNUSUAL = re.compile("[\x80-\x9f\u2028\u2029\u206a-\u206f\ufeff\ufff9-\ufffc\ud800-\udfff]")
SURROGATE_PAIRS = re.compile("[\ud800-\udbff][\udc00-\udfff]")


def repair(text: str) -> str:
    """Text with mis-decoded passages put right, `\\n` line ends and no control characters; otherwise unchanged.

    Encoding repair is ftfy's (Speer 2019). All that ftfy can do beyond that is off: quotes stay curled, ligatures and
    wide characters stay, entities stay, and no Unicode normal form is imposed.
    """
    if NOT_PLAIN.search(text):  # one scan for the many texts that need none of this
        text = ASCII_CONTROLS.sub("", LINE_ENDS.sub("\n", TERMINAL_ESCAPES.sub("", text)))
    if not text.isascii():
        # ftfy's search for signs of trouble is slow: it is spared the lines that cannot hold any.
        if _needs_repair("\n".join(line for line in text.split("\n") if not line.isascii())):
            text = "\n".join(_repair_line(line) for line in text.split("\n"))
        text = SURROGATE_PAIRS.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)
        text = NOT_CHARACTERS.sub("", text)
    return text.strip()


def _needs_repair(text: str) -> bool:
    """Whether ftfy might change anything in a line, or in any of several."""
    from ftfy.badness import is_bad

    return is_bad(text) or UNUSUAL.search(text) is not None


def _repair_line(line: str) -> str:
    if line.isascii() or not _needs_repair(line):
        return line
    import ftfy

    return ftfy.fix_text(
        line,
        unescape_html=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        normalization=None,
        explain=False,
    )
