"""Text to token ids and back: the SentencePiece model, loaded or trained. The only importer of sentencepiece.

Knows nothing of files of documents, shards or batches.

A document is `<bos> pieces <eos>`. The special ids are Gemma's and fixed: everything downstream (packing, scoring,
exports) relies on them, so a model with others is refused when it is loaded.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from conf.exits import ConfigError, DataError

PAD, EOS, BOS, UNK = 0, 1, 2, 3

# As in Gemma's models: `<mask>` is id 4, and runs of newlines and of blanks are single pieces, so that layout survives
# at little cost. Runs of one blank are left to training, which attaches them to the word that follows.
_BLANK = "▁"  # SentencePiece's sign for U+0020
_SYMBOLS = (
    ["<mask>"] + ["\n" * n for n in range(1, 32)] + [_BLANK * n for n in range(2, 32)] + ["\t" * n for n in range(1, 8)]
)

# The trainer silently skips a line of more than `max_sentence_length` bytes; a character has at most 4.
_LINE_CHARACTERS = 16_384


@dataclass(frozen=True)
class Tokenizer:
    """A SentencePiece model with Gemma's special ids.

    Every text decodes to itself after encoding, but for U+2581, which SentencePiece uses for the blank and which
    therefore decodes as a blank, in Gemma's own models too.
    """

    vocab_size: int
    sha256: str  # of the bytes of the .model file
    pad: int
    eos: int
    bos: int
    unk: int
    processor: SentencePieceProcessor

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a .model file.

        Raises DataError where it is missing or no SentencePiece model, ConfigError where its special ids are not
        Gemma's.
        """
        try:
            proto = Path(path).read_bytes()
        except OSError as error:
            raise DataError(
                f"the tokenizer {path} cannot be read ({error.strerror}): set tokenizer.model to an existing "
                "SentencePiece .model, or set it to null and run `gemcutter tokenize` to train one"
            ) from error
        processor = SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(proto)
        except RuntimeError as error:
            raise DataError(
                f"{path} ({len(proto)} bytes) is not a SentencePiece model: set tokenizer.model to a .model file "
                "written by SentencePiece"
            ) from error
        ids = {
            "pad": processor.pad_id(),
            "eos": processor.eos_id(),
            "bos": processor.bos_id(),
            "unk": processor.unk_id(),
        }
        expected = {"pad": PAD, "eos": EOS, "bos": BOS, "unk": UNK}
        if ids != expected:
            raise ConfigError(
                f"the tokenizer {path} has the special ids {ids}, but Gemma models need {expected}: "
                "use a Gemma tokenizer, or set tokenizer.model=null to train one"
            )
        digest = hashlib.sha256(proto).hexdigest()
        return cls(vocab_size=processor.vocab_size(), sha256=digest, processor=processor, **ids)

    def encode(self, text: str) -> list[int]:
        """The pieces of a text, without BOS and EOS."""
        return self.processor.encode(text)

    def encode_document(self, text: str) -> np.ndarray:
        """int32 array: BOS, the pieces of the text, EOS."""
        return self.encode_documents([text])[0]

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Each text as `encode_document` gives it; the texts are shared out over all cores."""
        rows = self.processor.encode(list(texts), add_bos=True, add_eos=True)
        return [np.array(row, dtype=np.int32) for row in rows]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of a sequence of ids; PAD, EOS and BOS have none."""
        return self.processor.decode([int(i) for i in ids])

    def decode_documents(self, documents: Sequence[np.ndarray]) -> list[str]:
        """The text of each array of ids, as `decode` gives it; the arrays are shared out over all cores."""
        return self.processor.decode([ids.tolist() for ids in documents])


def train(texts: Iterable[str], vocab_size: int, threads: int = 1) -> bytes:
    """Train a model on texts with the settings of Gemma's tokenizers; returns the bytes of its .model file.

    Settings: BPE, byte fallback, digits apart, no normalisation, no dummy prefix, whitespace kept, pieces of at most
    16 characters (as the Gemma 1 and 2 model files state them). Equal texts in equal order give equal bytes with one
    thread; with more only the pieces are equal.

    Raises ConfigError where the texts cannot yield `vocab_size` pieces.
    """
    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
            model_writer=model,
            vocab_size=vocab_size,
            num_threads=threads,
            model_type="bpe",
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            max_sentencepiece_length=16,
            character_coverage=0.9995,  # rarer characters are left to the byte pieces
            user_defined_symbols=_SYMBOLS,
            pad_id=PAD,
            eos_id=EOS,
            bos_id=BOS,
            unk_id=UNK,
            pad_piece="<pad>",
            eos_piece="<eos>",
            bos_piece="<bos>",
            unk_piece="<unk>",
            max_sentence_length=4 * _LINE_CHARACTERS,
            minloglevel=2,
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(_explain(str(error), vocab_size)) from error
    return model.getvalue()


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """The lines of the texts, the long ones cut at blanks. A newline is a piece of its own, so no merge crosses it."""
    for text in texts:
        for line in text.split("\n"):
            while len(line) > _LINE_CHARACTERS:
                cut = line.rfind(" ", 1, _LINE_CHARACTERS)
                cut = cut if cut > 0 else _LINE_CHARACTERS
                yield line[:cut]
                line = line[cut:]
            if line:
                yield line


def _explain(error: str, vocab_size: int) -> str:
    if found := re.search(r"value <= (\d+)", error):
        return (
            f"tokenizer.vocab_size={vocab_size} is more than the training text yields: use "
            f"tokenizer.vocab_size={found[1]} or less, or more text (tokenizer.train_bytes, curate.sources)"
        )
    if found := re.search(r"required_chars\D+(\d+) vs (\d+)", error):
        return (
            f"tokenizer.vocab_size={vocab_size} is less than the {found[2]} special, byte and character pieces "
            f"of the training text: use tokenizer.vocab_size={found[2]} or more"
        )
    return f"SentencePiece cannot train a model of tokenizer.vocab_size={vocab_size}: {error}"


_KINDS = {1: "normal", 2: "unknown", 3: "control", 4: "user_defined", 5: "unused", 6: "byte"}


def pieces(path: str | Path) -> list[tuple[str, float, str]]:
    """Every piece of a .model file in id order: its text, its score and its kind.

    Kinds are those of sentencepiece_model.proto: normal, unknown, control, user_defined, unused, byte. The library
    tells user-defined pieces from normal ones only through the protobuf package, so the few fields are read here.

    Raises what `Tokenizer.load` raises.
    """
    Tokenizer.load(path)  # the bytes below are then a sound model
    table = []
    for field, entry in _protobuf_fields(Path(path).read_bytes()):
        if field == 1:  # ModelProto.pieces
            values = dict(_protobuf_fields(entry))
            score = struct.unpack("<f", values[2])[0] if 2 in values else 0.0
            kind = int.from_bytes(values.get(3, b"\x01"), "little")
            table.append((values[1].decode(), score, _KINDS[kind]))
    return table


_MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


@dataclass(frozen=True)
class Settings:
    """What a .model file states of itself.

    model_type      unigram, bpe, word or char
    byte_fallback   a character without a piece becomes its UTF-8 bytes, not the unknown piece
    normalizer      name of the rule by which characters are changed before a text is cut into pieces
    changes_characters   whether that rule changes any
    adds_prefix     a blank is put before each text
    removes_blanks  blanks at the ends of a text go, and of several in a row all but one
    """

    model_type: str
    byte_fallback: bool
    normalizer: str
    changes_characters: bool
    adds_prefix: bool
    removes_blanks: bool


def settings(path: str | Path) -> Settings:
    """The settings of a .model file, with the defaults of sentencepiece_model.proto where it states none.

    Raises what `Tokenizer.load` raises.
    """
    Tokenizer.load(path)  # the bytes below are then a sound model
    fields = _protobuf_fields(Path(path).read_bytes())
    specs = {field: dict(_protobuf_fields(value)) for field, value in fields if field in (2, 3)}
    trainer, normalizer = specs.get(2, {}), specs.get(3, {})  # ModelProto.trainer_spec, ModelProto.normalizer_spec

    def number(spec: dict[int, bytes], field: int, default: int) -> int:
        return int.from_bytes(spec[field], "little") if field in spec else default

    return Settings(
        model_type=_MODEL_TYPES[number(trainer, 3, 1)],
        byte_fallback=bool(number(trainer, 35, 0)),
        normalizer=normalizer.get(1, b"").decode(),
        changes_characters=bool(normalizer.get(2)),
        adds_prefix=bool(number(normalizer, 3, 1)),
        removes_blanks=bool(number(normalizer, 4, 1)),
    )


def _protobuf_fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Field numbers and raw values of a protobuf message; a varint comes as its little-endian bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        tag = varint()
        wire = tag & 7
        if wire == 0:
            yield tag >> 3, varint().to_bytes(8, "little")
            continue
        size = {1: 8, 2: 0, 5: 4}[wire] or varint()
        yield tag >> 3, message[at : at + size]
        at += size
