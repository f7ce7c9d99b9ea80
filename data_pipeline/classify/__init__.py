"""What documents are, as models tell it that need no network: their language, and how much they look like one set of
documents rather than another (quality, toxicity).

`language.py` asks CLD2. `linear.py` is a linear classifier over words and pairs of words; `train.py` trains one from
documents that the user calls good and bad, and measures it on documents that it never saw.
"""
