"""datatrove's n-gram decontaminator, 12-grams, on documents and items that a folder holds.

    python -m tests.bench.peers.datatrove_ngrams FOLDER

FOLDER holds items.json, [{query, label}], and documents.json, [text]. Prints one line of JSON: {version, hits,
seconds, built}. Its indexer asks for lighteval, whose tasks it could load, even where none is asked for; so its n-grams
are taken from its own function and written in its own form. Query n-grams are on: by default it looks for those alone
that hold a part of the answer.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter, NGramsDecontIndexer
from datatrove.utils.hashing import create_hash_func
from datatrove.utils.word_tokenizers import load_word_tokenizer

folder = Path(sys.argv[1])
config = NGramsDecontConfig(find_query_ngrams=True)
indexer = SimpleNamespace(
    config=config, tokenizer=load_word_tokenizer("eng"), hash_func=create_hash_func(config.hash_config)
)
began = time.perf_counter()
hashes: set[int] = set()
for item in json.loads((folder / "items.json").read_text()):
    hashes.update(NGramsDecontIndexer.compute_hashes(indexer, item["label"], item["query"]))
index = folder / "index"
index.mkdir(exist_ok=True)
np.array(sorted(hashes), config.hash_config.np_descr).tofile(index / "all.index.hashes")

built = time.perf_counter() - began

decontaminator = NGramsDecontFilter(str(index), config, language="eng")
documents = [Document(text, str(n)) for n, text in enumerate(json.loads((folder / "documents.json").read_text()))]
decontaminator.filter(documents[0])  # loads the index
began = time.perf_counter()
hits = [decontaminator.filter(document) is not True for document in documents]
seconds = time.perf_counter() - began
print(
    json.dumps({"version": importlib.metadata.version("datatrove"), "hits": hits, "seconds": seconds, "built": built})
)
