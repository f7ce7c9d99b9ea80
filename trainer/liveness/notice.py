"""What Google's cloud announces to a machine before it takes it away: maintenance and preemption.

Its metadata server answers a question that waits for a change, so nothing is missed and nothing is polled. Other
schedulers announce by signals, which `StopSignal` listens for. Format of the server's answers and meaning of the keys:
https://cloud.google.com/compute/docs/metadata/predefined-metadata-keys
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.liveness.stop import MAINTENANCE, PREEMPTION, StopSignal

_PRODUCT = Path("/sys/class/dmi/id/product_name")
_ANSWER_SECONDS = 120  # after which the server answers without a change
_LONGEST_ANSWER = 2**22  # bytes; it holds what the owner of the machine keeps there, at most 512 KB
_LONGEST_PAUSE = 300.0  # seconds between tries where the server does not answer


def watch(stop: StopSignal) -> None:
    """From now on ask for a stop when the machine is to be taken away, where a metadata server says so.

    Where that is slow, absent or talks nonsense, training neither waits nor ends. One process of a host watches.
    """
    host = metadata_host()
    if host is not None and os.environ.get("LOCAL_RANK", "0") == "0":
        threading.Thread(target=_watch, args=(host, stop), name="notice", daemon=True).start()


def metadata_host() -> str | None:
    """Name and port of this machine's metadata server, as Google's libraries find it; None elsewhere."""
    if host := os.environ.get("GCE_METADATA_HOST"):
        return host
    try:
        return "metadata.google.internal" if _PRODUCT.read_text().startswith("Google") else None
    except OSError:  # no such file where the machine has no firmware tables
        return None


def announced(instance: Mapping[str, Any]) -> str | None:
    """Why the machine is about to be taken away, from what the server says of it; None: it is not."""
    if instance.get("preempted") == "TRUE":
        return PREEMPTION
    # Where a machine can move while it runs, and one with accelerators cannot, the event has another name.
    return MAINTENANCE if instance.get("maintenanceEvent") == "TERMINATE_ON_HOST_MAINTENANCE" else None


def _watch(host: str, stop: StopSignal) -> None:
    seen, pause = "0", 1.0  # what the server called its last answer
    while True:
        try:
            instance, seen = _changed(host, seen)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if pause == 1.0:
                print(
                    f"the metadata server {host} does not answer as it should ({error}): training goes on, and does "
                    "not hear of maintenance or preemption until it does",
                    file=sys.stderr,
                )
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            continue
        pause = 1.0
        if by := announced(instance):
            stop.ask(by)
            return


def _changed(host: str, seen: str) -> tuple[dict[str, Any], str]:
    """What the server says of this machine, as soon as that is not what it had called `seen`, and its new name.

    Raises OSError, HTTPException or ValueError where the answer is none.
    """
    asked = {"recursive": "true", "wait_for_change": "true", "last_etag": seen, "timeout_sec": str(_ANSWER_SECONDS)}
    request = urllib.request.Request(
        f"http://{host}/computeMetadata/v1/instance/?{urllib.parse.urlencode(asked)}",
        headers={"Metadata-Flavor": "Google"},
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy would tell of its own machine
    with direct.open(request, timeout=_ANSWER_SECONDS + 30) as answer:
        body = answer.read(_LONGEST_ANSWER + 1)
        etag = answer.headers.get("ETag")
    if answer.headers.get("Metadata-Flavor") != "Google" or etag is None or len(body) > _LONGEST_ANSWER:
        raise ValueError("another server answered")
    instance = json.loads(body)
    if not isinstance(instance, dict):
        raise ValueError(f"it said {body[:100]!r}")
    return instance, etag
