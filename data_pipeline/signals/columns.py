"""Every signal by name: what it counts and in which type, for Parquet and the data card; and all of them at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from data_pipeline.signals import c4, fineweb, gopher, refinedweb, repetition
from data_pipeline.signals.hashing import Array
from data_pipeline.signals.tokens import Tokens

# Languages whose scripts put no blanks between words. Rules on the inside of words do not apply to them, and where
# words are counted two letters are taken for one.
UNSPACED = frozenset(("zh", "ja", "th", "lo", "km", "my", "bo", "dz"))


class Column(NamedTuple):
    """A number of each document. Shares lie between 0 and 1."""

    dtype: Literal["int32", "float32"]
    meaning: str


_OF_TOP = "characters of the most frequent run of {} words, all its places, by those of the text"
_OF_DUPLICATES = "characters in runs of {} words that were met before, by those of the text"

COLUMNS: dict[str, Column] = {
    "words": Column("int32", "words with a letter or a digit"),
    "mean_word_length": Column("float32", "characters; NaN where the script has no blanks"),
    "hashes": Column("float32", "# for each word or sign"),
    "ellipses": Column("float32", "... and … for each word or sign"),
    "bullet_lines": Column("float32", "share of the lines that begin with • or -"),
    "ellipsis_lines": Column("float32", "share of the lines that end in ... or …"),
    "alphabetic_words": Column("float32", "share of words and signs with a letter; NaN where the script has no blanks"),
    "stop_words": Column("int32", "different stop words; -1 where there is no list for the language"),
    "duplicate_paragraphs": Column("float32", "share of the paragraphs that were met before"),
    "duplicate_paragraph_characters": Column("float32", "their share of the characters"),
    "duplicate_lines": Column("float32", "share of the lines with anything in them that were met before"),
    "duplicate_line_characters": Column("float32", "their share of the characters"),
    **{f"top_{n}_gram": Column("float32", _OF_TOP.format(n)) for n in repetition.TOP},
    **{f"duplicate_{n}_grams": Column("float32", _OF_DUPLICATES.format(n)) for n in repetition.DUPLICATE},
    "c4_long_word_lines": Column("int32", "lines with a word of more than 1000 characters"),
    "c4_short_lines": Column("int32", "lines of one or two words"),
    "c4_javascript_lines": Column("int32", "lines that say javascript"),
    "c4_policy_lines": Column("int32", "lines with a phrase of cookie and privacy notices"),
    "c4_paragraphs": Column("int32", "lines of 200 characters and more"),
    "c4_citations": Column("int32", "[1], [edit] and the like in lines that stay"),
    "c4_lorem_ipsum": Column("int32", "lines that say lorem ipsum"),
    "c4_curly_brackets": Column("int32", "lines that hold {"),
    "c4_sentences": Column("int32", "sentences of the lines that stay"),
    "c4_ended_lorem_ipsum": Column("int32", "the same of lines that end in punctuation only"),
    "c4_ended_curly_brackets": Column("int32", "the same of lines that end in punctuation only"),
    "c4_ended_sentences": Column("int32", "the same of lines that end in punctuation only"),
    "line_punctuation": Column("float32", "share of the lines that end in punctuation; NaN without lines"),
    "short_lines": Column("float32", "share of the lines of at most 30 characters; NaN without lines"),
    "repeated_line_characters": Column("float32", "characters of lines met before, by those of all lines"),
    "line_feeds": Column("float32", "for each word or sign"),
    "refinedweb_mean_word_length": Column("float32", "characters between blanks; NaN where the script has none"),
    "refinedweb_symbols": Column("float32", "# and ellipses for each word between blanks; NaN likewise"),
    "refinedweb_bullet_lines": Column("float32", "share of the lines that begin with ● • * or -"),
    "refinedweb_ellipsis_lines": Column("float32", "share of the lines that end in ... or … or . . ."),
    "refinedweb_other_words": Column("float32", "share of the words between blanks without a letter; NaN likewise"),
    "refinedweb_stop_words": Column("int32", "English stop words, each time; -1 where the script has no blanks"),
    "refinedweb_removed_words": Column("float32", "share of the words that the line edits of RefinedWeb take"),
}


def measure(
    tokens: Tokens, languages: Sequence[str], stop_words: Mapping[str, Sequence[str]] = gopher.STOP_WORDS
) -> dict[str, Array]:
    """The columns of a batch, one value a document, whatever else is in the batch.

    `languages` are ISO 639-1 codes, one a document; `stop_words` the lists of those that have one, in lower case.
    Texts hold no white space at their ends (`extract.repair`): else a blank line or two counts more than it does with
    datatrove. Time and memory grow with the characters.
    """
    unspaced_D = np.array([language in UNSPACED for language in languages], np.bool_)
    columns = {
        **gopher.measure(tokens, languages, unspaced_D, stop_words),
        **repetition.measure(tokens, unspaced_D),
        **c4.measure(tokens, unspaced_D),
        **fineweb.measure(tokens, unspaced_D),
        **refinedweb.measure(tokens, unspaced_D),
    }
    return {name: columns[name] for name in COLUMNS}
