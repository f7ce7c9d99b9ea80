"""What the weights of a model learnt from, and what was kept out of that: it travels with every checkpoint.

A checkpoint holds it itself, certificates included: its digest guards them, it knows which stages of a mixture had
begun and what the weights had learnt before the run, and it still tells where the data are gone. Knows nothing of
scores.

An entry is {"manifest_sha256", "decontamination"} of token shards, their certificate or null; or {"unknown": why}.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_pipeline.decontaminate import certificate
from data_pipeline.reader import Shards
from trainer.checkpoint import Committed

Entry = dict[str, Any]

_IMPORTED = {"unknown": "weights were imported"}
_EARLIER = {"unknown": "an earlier version trained, which kept no certificates"}


@dataclass(frozen=True)
class Lineage:
    """Of a run in progress.

    before  what the weights had learnt from when the run began
    begun   the shards that had a part in the samples before one
    """

    before: list[Entry]
    begun: Callable[[int], Sequence[Shards]]

    def at(self, samples_done: int) -> dict[str, list[Entry]]:
        """What a checkpoint that stands before this sample keeps."""
        here = [
            {"manifest_sha256": shards.sha256, "decontamination": shards.decontamination}
            for shards in self.begun(samples_done)
        ]
        return {"before": self.before, "here": here}


def before(last: Committed | None, begin: Committed | None) -> list[Entry]:
    """What the weights of a run had learnt from when it began: it goes on from `last`, else began with `begin`."""
    if last is None:
        return [] if begin is None else learnt_from(begin)
    if (kept := last.state.get("learnt_from")) is not None:
        return list(kept["before"])
    return [_EARLIER] if "init_sha256" in last.state["origin"] else []


def learnt_from(checkpoint: Committed) -> list[Entry]:
    """All that the weights of a checkpoint learnt from, each once. Raises DataError where a certificate was changed."""
    if (kept := checkpoint.state.get("learnt_from")) is None:
        return [_IMPORTED if "imported_sha256" in checkpoint.state["identity"] else _EARLIER]
    entries: list[Entry] = []
    for entry in (*kept["before"], *kept["here"]):
        if entry not in entries:
            certificate.check(entry.get("decontamination"), f"step {checkpoint.step} in {checkpoint.payload}")
            entries.append(entry)
    return entries


def kept_out(entries: Sequence[Entry], benchmark: str, files: Mapping[str, str]) -> dict[str, Any]:
    """Whether a benchmark was kept out of all that weights learnt from.

    decontaminated          yes, other files, no or unknown; unknown where it is of any part, else what the worst part
                            says, as `certificate.covers` does
    unknown                 why; null where it is known
    contaminated_fraction   of the benchmark's items that were found, and dropped or cut: the largest that a
                            certificate states; null where none names the benchmark
    certificates            sha256 of those that name it

    Args:
        files: name -> sha256 of those that are scored.
    """
    unknown = [entry["unknown"] for entry in entries if "unknown" in entry]
    stated = [entry["decontamination"] for entry in entries if "unknown" not in entry]
    answers = {certificate.covers(each, benchmark, files) for each in stated}
    naming = [each for each in stated if certificate.covers(each, benchmark, {}) == "yes"]
    worst = next((answer for answer in ("no", "other files") if answer in answers), "yes")
    return {
        "decontaminated": "unknown" if unknown else worst,
        "unknown": "; ".join(unknown) or None,
        "contaminated_fraction": max(
            (each["benchmarks"][benchmark]["contaminated_fraction"] for each in naming), default=None
        ),
        "certificates": sorted({each["sha256"] for each in naming}),
    }
