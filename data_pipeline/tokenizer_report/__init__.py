"""The tokenizer report: what a tokenizer makes of the text it was used on, by language and by piece.

Counted while the job `tokenize` encodes, so it costs no second reading. Knows nothing of shards and their order. Its
bytes depend on the curated text and the tokenizer alone.
"""

from data_pipeline.tokenizer_report.page import render
from data_pipeline.tokenizer_report.report import TokenizerReport

__all__ = ["TokenizerReport", "render"]
