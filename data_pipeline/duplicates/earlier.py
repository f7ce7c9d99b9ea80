"""What a later curation must know of this one, to find the duplicates of what it kept.

The documents that were kept are given to it as folders like those of tasks that read documents. Its own numbers begin
behind theirs, and theirs stay: it finds among its documents what one curation of both would have found that prefers
the earlier ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.duplicates import exact, minhash, ranks, sketches
from data_pipeline.engine import records


@dataclass(frozen=True)
class Hand:
    """Task: take over what a task wrote of its documents, without those that are gone.

    folder   of a task that read documents
    gone     files of records whose keys are documents that were not kept
    """

    folder: Path
    gone: Sequence[Path]


def hand(task: Hand, folder: Path) -> dict[str, Any]:
    """Write the fingerprints, bands, ranks and sketches of what was kept."""
    for name, field in ((exact.FILE, "document"), (minhash.FILE, "document"), (ranks.FILE, "key")):
        stored = np.load(task.folder / name, allow_pickle=False)
        records.write(folder / name, stored[_kept(stored[field], task.gone)])
    entries = np.load(task.folder / sketches.ENTRIES, allow_pickle=False)
    entries = entries[_kept(entries["key"], task.gone)]
    them = sketches.Stored([task.folder]).read(entries["key"])
    entries["first"] = them.starts_N1[:-1]
    sketches.write(folder, [entries], [them.values])
    return {"documents": len(entries)}


def _kept(documents: records.Records, gone: Sequence[Path]) -> Any:
    numbers, places = np.unique(documents, return_inverse=True)
    return ~records.among(gone, numbers)[places]
