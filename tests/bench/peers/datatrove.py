"""datatrove: the filters of FineWeb's published pipeline, in one process and without its executor.

    python -m tests.bench.peers.datatrove decide TEXTS OUT       every rule alone
    python -m tests.bench.peers.datatrove read TEXTS SECONDS     the chain, as fast as it goes

TEXTS holds a JSON string a line. `decide` writes a JSON object a line, {rule: whether it drops the text}, by our names
of the rules. `read` runs the chain over the texts again and again for about SECONDS and prints one line of JSON: what
was done, {settings, characters, dropped, seconds, cpu_seconds}. As in a pipeline, a text that one filter drops is not
shown to the next. Words are tokenised once for the filters that see the same text, which its own cache does.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4ParagraphFilter,
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.filters.base_filter import BaseFilter


def chain() -> list[BaseFilter]:
    """Filters in FineWeb's order, with its settings."""
    return [
        GopherRepetitionFilter(),
        GopherQualityFilter(),
        C4QualityFilter(filter_no_terminal_punct=False),
        FineWebQualityFilter(),
    ]


def alone() -> dict[str, BaseFilter]:
    """A filter for each of our rules that has only this one on."""
    quality = {
        "too_few_words": {"min_doc_words": 50}, "too_many_words": {"max_doc_words": 100_000},
        "mean_word_length": {"min_avg_word_length": 3, "max_avg_word_length": 10},
        "bullet_lines": {"max_bullet_lines_ratio": 0.9}, "ellipsis_lines": {"max_ellipsis_lines_ratio": 0.3},
        "symbols": {"max_symbol_word_ratio": 0.1}, "alphabetic_words": {"max_non_alpha_words_ratio": 0.8},
        "stop_words": {"min_stop_words": 2},
    }  # fmt: skip
    off_quality = dict.fromkeys(key for keys in quality.values() for key in keys)
    repetition = {
        "duplicate_paragraphs": {"dup_para_frac": 0.3}, "duplicate_paragraph_characters": {"dup_para_char_frac": 0.2},
        "duplicate_lines": {"dup_line_frac": 0.3}, "duplicate_line_characters": {"dup_line_char_frac": 0.2},
        **{f"top_{n}_gram": {"top_n_grams": ((n, share),)} for n, share in ((2, 0.2), (3, 0.18), (4, 0.16))},
        **{f"duplicate_{n}_grams": {"dup_n_grams": ((n, (20 - n) / 100),)} for n in range(5, 11)},
    }  # fmt: skip
    off_repetition = dict.fromkeys(key for keys in repetition.values() for key in keys) | {
        "top_n_grams": (), "dup_n_grams": (),
    }  # fmt: skip
    c4 = {
        "lorem_ipsum": {"filter_lorem_ipsum": True}, "curly_brackets": {"filter_curly_bracket": True},
        "sentences": {"min_num_sentences": 5},
    }  # fmt: skip
    off_c4 = {"filter_lorem_ipsum": False, "filter_curly_bracket": False, "min_num_sentences": -1}
    fineweb = {
        "line_punctuation": {"line_punct_thr": 0.12}, "short_lines": {"short_line_thr": 0.67},
        "repeated_line_characters": {"char_duplicates_ratio": 0.01}, "line_feeds": {"new_line_ratio": 0.3},
    }  # fmt: skip
    off_fineweb = {
        "line_punct_thr": -1.0, "short_line_thr": 2.0, "char_duplicates_ratio": 2.0, "new_line_ratio": 1e9,
    }  # fmt: skip
    return {
        **{f"gopher_{name}": GopherQualityFilter(**off_quality | keys) for name, keys in quality.items()},
        **{f"repetition_{name}": GopherRepetitionFilter(**off_repetition | keys) for name, keys in repetition.items()},
        **{f"c4_{name}": C4QualityFilter(filter_no_terminal_punct=False, **off_c4 | keys) for name, keys in c4.items()},
        **{f"c4_ended_{name}": C4QualityFilter(**off_c4 | keys) for name, keys in c4.items()},
        "c4_paragraphs": C4ParagraphFilter(),
        **{f"fineweb_{name}": FineWebQualityFilter(**off_fineweb | keys) for name, keys in fineweb.items()},
    }


def keeps(rule: BaseFilter, document: Document) -> bool:
    """Whether a filter keeps a document; not one without words, where datatrove divides by their number."""
    try:
        return rule.filter(document) is True
    except ZeroDivisionError:
        return False


def decide(texts: list[str], out: Path) -> None:
    """Write what each rule says of each text."""
    rules = alone()
    with out.open("w") as file:
        for text in texts:
            file.write(
                json.dumps({name: not keeps(rule, Document(text=text, id="")) for name, rule in rules.items()}) + "\n"
            )


def read(texts: list[str], seconds: float) -> None:
    """Run the chain and tell how long it took."""
    filters = chain()
    for text in texts[:10]:  # loads the tokenizer
        passes(filters, text)
    times, kept = 0, 0
    began, cpu = time.perf_counter(), time.process_time()
    while times == 0 or time.perf_counter() - began < seconds:
        kept = sum(passes(filters, text) for text in texts)
        times += 1
    result = {
        "settings": "GopherRepetition, GopherQuality, C4Quality without terminal punctuation, FineWebQuality; spaCy",
        "characters": times * sum(map(len, texts)),
        "dropped": len(texts) - kept,
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
    }
    print(json.dumps(result))


def passes(filters: list[BaseFilter], text: str) -> bool:
    """Whether all filters keep a text, which those of C4 edit for the next."""
    document = Document(text=text, id="")
    return all(keeps(rule, document) for rule in filters)


def main() -> None:
    """Do what the command line asks for."""
    command, file, last = sys.argv[1:]
    texts = [json.loads(line) for line in Path(file).read_text().splitlines()]
    if command == "decide":
        decide(texts, Path(last))
    else:
        read(texts, float(last))


if __name__ == "__main__":
    main()
