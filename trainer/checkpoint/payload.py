"""One process's tensors as a safetensors file: written as a stream, and read by ranges of bytes.

The format: 8 bytes that say how long the header is, little-endian; the header, JSON of each tensor's dtype, shape and
place; then the values. It carries no code, unlike pickle. https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainer.checkpoint.committed import PIECE, BrokenError, Committed, Part
from trainer.checkpoint.store import Store

_ALIGNMENT = 8  # bytes: the values begin at a multiple of it
_SAFETENSORS_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass
class Digest:
    """Of bytes that pass by."""

    size: int = 0
    _sha256: Any = field(default_factory=hashlib.sha256)

    def of(self, chunks: Iterator[bytes | memoryview]) -> Iterator[bytes | memoryview]:
        """The same chunks."""
        for chunk in chunks:
            self._sha256.update(chunk)
            self.size += len(chunk)
            yield chunk

    @property
    def entry(self) -> dict[str, Any]:
        """What a manifest says of a file of these bytes."""
        return {"bytes": self.size, "sha256": self._sha256.hexdigest()}


def write_tensors(store: Store, name: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write a safetensors file; returns its bytes and sha256. Of tensors on a device one is on the host at a time.

    Raises OSError where the store does not take it.
    """
    passed = Digest()
    store.write(name, passed.of(_stream(tensors)))
    return passed.entry


def _stream(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    # The widest first, so that each begins at a multiple of its own width.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    header, end = {}, 0
    for key, tensor in ordered:
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[key] = {
            "dtype": _SAFETENSORS_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    yield len(text).to_bytes(8, "little") + text
    for _, tensor in ordered:
        flat = tensor.detach().to("cpu").contiguous().reshape(-1)
        if flat.numel():
            values = flat.view(torch.uint8).numpy().data
            for begin in range(0, len(values), PIECE):
                yield values[begin : begin + PIECE]


class Payload:
    """The payload files of a checkpoint, by ranges of bytes. Each must have been verified before it is read from."""

    def __init__(self, checkpoint: Committed) -> None:
        self._checkpoint = checkpoint
        self._headers: dict[str, tuple[int, dict[str, Any]]] = {}  # of each file: where values begin, and the header

    def rows(self, part: Part, first: int, stop: int) -> Tensor:
        """Rows of a part, on the host; of one without dimensions all. Raises BrokenError, DataError."""
        start, header = self._header(part.file)
        dtype = getattr(torch, self._checkpoint.tensors[part.tensor]["dtype"])
        begin, end = self._place(part, header, dtype)
        shape = list(part.shape)
        if shape:
            width = (end - begin) // shape[0]
            begin, end, shape[0] = begin + first * width, begin + stop * width, stop - first
        data = self._checkpoint.payload.read(part.file, start + begin, end - begin)
        if len(data) != end - begin:
            raise BrokenError(f"{self._checkpoint.payload}/{part.file} ends within {part.key}", self._checkpoint.step)
        return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)

    def _header(self, file: str) -> tuple[int, dict[str, Any]]:
        if file not in self._headers:
            payload, size = self._checkpoint.payload, self._checkpoint.files[file]["bytes"]
            length = int.from_bytes(payload.read(file, 0, 8), "little")
            if not 0 < length <= size - 8:
                raise BrokenError(f"{payload}/{file} has a header of {length:,} bytes", self._checkpoint.step)
            try:
                header = json.loads(payload.read(file, 8, length))
            except ValueError as error:
                raise BrokenError(f"{payload}/{file} has a header that is not JSON", self._checkpoint.step) from error
            self._headers[file] = 8 + length, header
        return self._headers[file]

    def _place(self, part: Part, header: dict[str, Any], dtype: torch.dtype) -> tuple[int, int]:
        """Where a part's values lie behind the header, which must say of it what the manifest says."""
        said = header.get(part.key, {})
        begin, end = said.get("data_offsets", (0, 0))
        due = {"dtype": _SAFETENSORS_NAMES[dtype], "shape": part.shape, "bytes": math.prod(part.shape) * dtype.itemsize}
        found = {"dtype": said.get("dtype"), "shape": said.get("shape"), "bytes": end - begin}
        if found != due or begin < 0:
            raise BrokenError(
                f"{self._checkpoint.payload}/{part.file} says of {part.key} {found}, the manifest {due}",
                self._checkpoint.step,
            )
        return begin, end
