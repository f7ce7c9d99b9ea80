"""Items of benchmarks as they get into texts (`WAYS`): as a prompt shows them, that in other case or with other white
space and signs, and question and answer apart; and what looks like it and is no copy (`partly`)."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from data_pipeline.decontaminate.items import Item

PROMPTS = (
    "{question}\n{answer}",
    "{question} {answer}",
    "Question: {question}\nAnswer: {answer}",
    "Q: {question}\nA: {answer}\n",
    "{question}\n\n{answer}",
)
LONG = 300  # characters of what is a passage, not a choice
CHOICES = ("{letter}. {choice}", "({letter}) {choice}", "{letter}) {choice}")


def prompt(item: Item, draw: random.Random) -> str:
    """The item as a prompt shows it: with its right answer, of several choices often with all of them before."""
    question = item.forms[0]
    passages = [other for other in item.others if len(other) > LONG]
    if passages and draw.random() < 0.5:
        question = f"{passages[0]}\n{question}"
    answer = item.answers[0] if item.answers else ""
    choices = [*item.answers[:1], *(other for other in item.others if len(other) <= LONG)]
    if 3 <= len(choices) <= 5 and draw.random() < 0.4:
        draw.shuffle(choices)
        form = draw.choice(CHOICES)
        listed = "\n".join(form.format(letter=letter, choice=c) for letter, c in zip("ABCDE", choices, strict=False))
        return f"{question}\n{listed}\nAnswer: {answer}"
    return draw.choice(PROMPTS).format(question=question, answer=answer)


def insert(text: str, planted: str, draw: random.Random) -> str:
    """The text with something planted as a paragraph of its own: at a line break, at an end of a text without any."""
    breaks = [match.start() for match in re.finditer(r"\n\n|\n", text)] or [0, len(text)]
    at = draw.choice(breaks)
    return f"{text[:at]}\n\n{planted}\n\n{text[at:]}"


def verbatim(item: Item, text: str, draw: random.Random) -> str:
    """Word for word, as a prompt shows it."""
    return insert(text, prompt(item, draw), draw)


def recased(item: Item, text: str, draw: random.Random) -> str:
    """In capitals, in small letters, with capitals at the beginning of words, or at random."""
    change: Callable[[str], str] = draw.choice(
        (str.upper, str.lower, str.title, lambda t: "".join(draw.choice((c.upper(), c.lower())) for c in t))
    )
    return insert(text, change(prompt(item, draw)), draw)


def rewrapped(item: Item, text: str, draw: random.Random) -> str:
    """With other white space, line breaks, bullets and quotes, and with other punctuation or none."""
    planted = prompt(item, draw)
    kind = draw.randrange(5)
    if kind == 0:
        planted = re.sub(r"\s+", lambda _: draw.choice((" ", "  ", "\n", "\t", " \n ")), planted)
    elif kind in (1, 2):
        words, width, lines = planted.split(), draw.randrange(20, 90), [""]
        for word in words:
            if len(lines[-1]) + len(word) > width:
                lines.append("")
            lines[-1] += f"{word} "
        mark = draw.choice(("> ", "* ", "  - ", "• ", "# ", "    ", "// "))
        planted = "\n".join(mark + line.rstrip() for line in lines)
    elif kind == 3:
        planted = planted.replace('"', draw.choice(("”", "''", "«", ""))).replace("'", draw.choice(("’", "`", "")))
        planted = draw.choice(("“{}”", "*{}*", "«{}»", "**{}**", "<<{}>>")).format(planted)
    else:
        planted = re.sub(r"[^\w\s]", draw.choice(("", " ")), planted)
    return insert(text, planted, draw)


def apart(item: Item, text: str, draw: random.Random, *, words: tuple[int, int] = (5, 40)) -> str:
    """The answer so many words behind the question."""
    between = text.split()
    count = draw.randrange(*words)
    start = draw.randrange(max(1, len(between) - count))
    middle = " ".join(between[start : start + count])
    answer = item.answers[0] if item.answers else ""
    return insert(text, f"{item.forms[0]}\n{middle}\n{answer}", draw)


def far_apart(item: Item, text: str, draw: random.Random) -> str:
    """The answer some hundred words behind the question."""
    return apart(item, text, draw, words=(150, 400))


WAYS: dict[str, Callable[[Item, str, random.Random], str]] = {
    "verbatim": verbatim,
    "re-cased": recased,
    "re-wrapped": rewrapped,
    "apart": apart,
    "far apart": far_apart,
}


def partly(item: Item, text: str, draw: random.Random) -> str:
    """No copy of the item: a part of its question, its choices, or a passage that it asks about."""
    words = min(item.forms, key=len).split()
    first, share = draw.random() < 0.5, int(len(words) * draw.uniform(0.3, 0.6))
    planted = " ".join(words[:share] if first else words[len(words) - share :])
    passages = [other for other in item.others if len(other) > LONG]
    if passages and draw.random() < 0.5:
        planted = passages[0]
    return insert(text, planted, draw)
