"""Documents that say the same: equal texts, near-duplicates, and lines that many documents share.

What a document leaves behind when it is read (fingerprint, keys of its MinHash bands, sketch, rank) is written as
records; the rest are tasks over ranges of keys (`steps.py` puts them in order), none of which sees a text again.

exact     equal texts, but for Unicode form and white space
minhash   shingles, signatures, band keys and sketches of a batch of documents
sketches  files of sketches, and the Jaccard similarity of two
pairs     candidates that share a band, and which of them are similar
clusters  connected components of similar documents
ranks     which of several documents is preferred
survivors which document of a cluster stays
lines     lines and paragraphs of many documents
"""
