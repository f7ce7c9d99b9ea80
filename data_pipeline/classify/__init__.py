"""What documents are, as models tell it that need no network: their language, and how much they look like one set of
documents rather than another.

`language.py` asks CLD2. `linear.py` is a linear classifier; `train.py` trains one in seconds from documents that the
user calls good and bad, and measures it on documents that it never saw. That is quality where good and bad are sources,
and toxicity where they are texts with and without offence: in the languages of those texts, and in no other, as words
tell nothing across languages. No model of toxicity comes with this package: there is no collection of labelled texts in
several languages that could be passed on. Where nothing is labelled, word lists may label: what is learned from the
texts that hold a listed word also finds others.
"""
