"""Text to token ids and back, and what a model's tokenizer files say about stopping and sampling.

The vocabulary and the merges are read by Hugging Face `tokenizers`; this module adds what a
language model needs around them: special tokens that user text can never become, the bytes behind
each token, and text that streams as whole characters.
"""

from __future__ import annotations

import codecs
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tokenizers

from gptoss import tokenizer_gguf
from gptoss.errors import ArgumentError, FileError, FormatError, UnsupportedError
from gptoss.tokenizer_gguf import BYTE_TOKEN, SPACE

# Tokenizers that define all of these speak Harmony, the message format of gpt-oss.
_HARMONY_TOKENS = (
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|channel|>",
    "<|constrain|>",
    "<|return|>",
    "<|call|>",
)
# Early downloads of gpt-oss leave <|call|> out of generation_config.json. <|end|> closes a message,
# not the answer.
_HARMONY_STOPS = ("<|return|>", "<|call|>", "<|endoftext|>")


def _byte_alphabet() -> dict[str, int]:
    """The characters that spell bytes in byte-level vocabularies; printable ones are themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_alphabet()


@dataclass(frozen=True, slots=True)
class SuggestedSampling:
    """Sampling settings of generation_config.json; None where the file is silent."""

    do_sample: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None


class Tokenizer:
    """A tokenizer, byte-level or SentencePiece's BPE: tokenizer.json and what lies beside it, or
    metadata of a GGUF file (from_gguf). Immutable, safe to share.

    Args:
        path: a model directory, or its tokenizer.json. tokenizer_config.json, config.json,
            generation_config.json and chat_template.jinja are read from beside it if they exist.

    Raises FormatError for a missing or malformed file, UnsupportedError for another kind of
    tokenizer.

    Attributes:
        path: the tokenizer.json, or the GGUF file.
        special_tokens: mapping of each special token's text to its id.
        bos_id, eos_id, pad_id: token ids, or None.
        adds_bos: whether the model was made for texts that begin with bos_id. encode never adds it.
        stop_token_ids: the ids that end an answer.
        suggested_sampling: the sampling settings of generation_config.json.
        chat_template: the source of the model's Jinja chat template, or None.
        is_harmony: whether the special tokens of the Harmony message format are there.
    """

    def __init__(self, path: str | Path) -> None:
        location = Path(path)
        self.path = location / "tokenizer.json" if location.is_dir() else location
        self._tokenizer = _load(self.path)
        directory = self.path.parent
        config_file = directory / "tokenizer_config.json"
        config = _read_json(config_file)
        _add_configured_tokens(self._tokenizer, config, config_file)

        self._set_specials()
        self.chat_template = _read_chat_template(directory, config)
        self._read_generation_config(directory, config)

    @classmethod
    def from_gguf(
        cls, metadata: Mapping[str, Any], path: str | Path, vocab_size: int
    ) -> Tokenizer | None:
        """The tokenizer in the metadata of a GGUF file (Model.metadata) of a model with vocab_size
        tokens, None if there is none.

        Raises FormatError that names the key, UnsupportedError for kinds that are not known.
        """
        vocabulary = tokenizer_gguf.read(metadata, str(path), vocab_size)
        if vocabulary is None:
            return None
        self = cls.__new__(cls)
        self.path = Path(path)
        self._tokenizer = vocabulary.library
        self._tokenizer.encode_special_tokens = True
        self._set_specials()
        self.bos_id, self.eos_id = vocabulary.bos_id, vocabulary.eos_id
        self.pad_id, self.adds_bos = vocabulary.pad_id, vocabulary.adds_bos
        self.chat_template = vocabulary.chat_template
        self.stop_token_ids = self._complete_stops(vocabulary.stop_ids)
        self.suggested_sampling = SuggestedSampling()
        return self

    def _set_specials(self) -> None:
        specials = {
            token.content: index
            for index, token in sorted(self._tokenizer.get_added_tokens_decoder().items())
            if token.special
        }
        self.special_tokens: Mapping[str, int] = MappingProxyType(specials)
        self._special_text = {index: text for text, index in specials.items()}
        longest_first = sorted(specials, key=len, reverse=True)
        self._special_pattern = (
            re.compile(f"({'|'.join(map(re.escape, longest_first))})") if specials else None
        )

        self.is_harmony = all(token in specials for token in _HARMONY_TOKENS)
        decoder = _decoder_kinds(self._tokenizer)
        self._is_byte_level = "ByteLevel" in decoder
        self._strips_space = "Strip" in decoder  # SentencePiece's prefix

    def _complete_stops(self, stops: set[int]) -> frozenset[int]:
        if self.is_harmony:
            specials = self.special_tokens
            stops = stops | {specials[text] for text in _HARMONY_STOPS if text in specials}
            stops.discard(specials["<|end|>"])
        return frozenset(stops)

    def _read_generation_config(self, directory: Path, config: Mapping[str, Any]) -> None:
        file = directory / "generation_config.json"
        generation = _read_json(file)
        model_file = directory / "config.json"
        model = _read_json(model_file)

        def named(key: str) -> int | None:
            text = config.get(f"{key}_token")
            text = text.get("content") if isinstance(text, Mapping) else text
            if isinstance(text, str):
                return self.token_id(text)
            return next(iter(_ids(generation, f"{key}_token_id", file)), None)

        self.bos_id, self.eos_id, self.pad_id = named("bos"), named("eos"), named("pad")
        adds_bos = _field(config, "add_bos_token", bool, directory / "tokenizer_config.json")
        if adds_bos is None:  # then the template of tokenizer.json says
            adds_bos = self._tokenizer.encode("", add_special_tokens=True).ids[:1] == [self.bos_id]
        self.adds_bos = bool(adds_bos) and self.bos_id is not None
        stops = set(
            _ids(generation, "eos_token_id", file) or _ids(model, "eos_token_id", model_file)
        )
        if not stops and self.eos_id is not None:
            stops = {self.eos_id}
        self.stop_token_ids = self._complete_stops(stops)
        self.suggested_sampling = SuggestedSampling(
            do_sample=_field(generation, "do_sample", bool, file),
            temperature=_field(generation, "temperature", (int, float), file),
            top_p=_field(generation, "top_p", (int, float), file),
            top_k=_field(generation, "top_k", int, file),
        )

    def __repr__(self) -> str:
        return f"Tokenizer({str(self.path)!r}, vocab_size={self.vocab_size})"

    @property
    def vocab_size(self) -> int:
        """Tokens the files define. A model's logits may be wider; ids beyond stand for nothing."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def opening_ids(self) -> list[int]:
        """What belongs before a text that begins a sequence: BOS with adds_bos, else nothing."""
        return [self.bos_id] if self.adds_bos and self.bos_id is not None else []

    def token_id(self, text: str) -> int | None:
        """The id of a token by its spelling in the vocabulary, or None."""
        return self._tokenizer.token_to_id(text)

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Token ids of a text. Nothing is put before or after it.

        Special tokens spelled out in the text ("<|end|>") are ordinary characters unless
        allow_special is true.
        """
        if not isinstance(text, str):
            raise ArgumentError(f"the text to encode is a {type(text).__name__}, not a str")
        if not allow_special:
            return self._encode_plain(text)
        ids: list[int] = []
        for part in self.split_special(text):
            special = self.special_tokens.get(part)
            ids += self._encode_plain(part) if special is None else [special]
        return ids

    def split_special(self, text: str) -> list[str]:
        """The text cut before and after every special token that it spells out."""
        parts = self._special_pattern.split(text) if self._special_pattern else [text]
        return [part for part in parts if part]

    def _encode_plain(self, text: str) -> list[int]:
        try:
            text.encode()  # what UTF-8 cannot hold the library would refuse obscurely, or replace
        except UnicodeEncodeError as error:
            position = error.start
            raise ArgumentError(
                f"the text holds a lone surrogate, U+{ord(text[position]):04X}, "
                f"at character {position}"
            ) from None
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of token ids; bytes that are not UTF-8 become U+FFFD.

        Special tokens appear as they are spelled, or not at all with skip_special. Ids without a
        token give nothing. The space that SentencePiece puts before a text is taken away again.
        """
        if not isinstance(ids, Iterable):
            raise ArgumentError(f"decode takes a sequence of token ids, not {ids!r}")
        pieces = (self.token_bytes(i, skip_special=skip_special) for i in ids)
        text = b"".join(pieces).decode("utf-8", "replace")
        return text.removeprefix(" ") if self._strips_space else text

    def token_bytes(self, token: int, *, skip_special: bool = False) -> bytes:
        """The bytes that a token stands for; b"" for an id without a token."""
        special = self._special_text.get(token)
        if special is not None:
            return b"" if skip_special else special.encode()
        if token < 0:
            raise ArgumentError(f"token ids are not negative: {token}")
        text = self._tokenizer.id_to_token(token)
        if text is None:
            return b""
        if not self._is_byte_level:
            byte = BYTE_TOKEN.fullmatch(text)
            return bytes.fromhex(byte[1]) if byte else text.replace(SPACE, " ").encode()
        try:
            return bytes([_BYTE_OF_CHARACTER[c] for c in text])
        except KeyError:  # a token added as plain text
            return text.encode()

    def _byte_pairs(self) -> set[tuple[int, int]]:
        """Bytes that are next to each other in some token of plain text."""
        tokens = self._tokenizer.get_vocab().values()
        plain = (self.token_bytes(token, skip_special=True) for token in tokens)
        return {pair for token in plain for pair in itertools.pairwise(token)}


class StreamDecoder:
    """Decodes one token at a time into text that is whole UTF-8 characters."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> tuple[str, bytes]:
        """Takes a token; returns the characters it completes (perhaps none) and its own bytes."""
        data = self._tokenizer.token_bytes(token, skip_special=self._skip_special)
        return self._decoder.decode(data), data

    def flush(self) -> str:
        """Ends the text: U+FFFD if it stops within a character, else ""."""
        return self._decoder.decode(b"", final=True)


# Of a StreamEncoder: characters on both sides of a place that decide whether it may cut there, and
# places that it tries.
_REACH, _MAX_TRIES = 64, 64


class StreamEncoder:
    """Encodes a text that comes in pieces, in memory that does not depend on its length; the ids
    are those of encode(the whole text).

    The text is cut where nothing can join what lies apart: before a space between two letters, or
    behind a line end between a character that is no space and a letter. Words end there in every
    known way to cut texts. Besides, no token of the vocabulary may hold the two bytes beside the
    cut next to each other, so that no merge crosses it, and the ids of the characters around it
    must be those of both sides. What has no such place, as a book without spaces in one line, is
    encoded as a whole.

    Args:
        tokenizer: the Tokenizer.
        piece: characters to collect before some are encoded.
    """

    def __init__(self, tokenizer: Tokenizer, piece: int = 1 << 16) -> None:
        self._tokenizer = tokenizer
        self._piece = piece
        self._pairs: set[tuple[int, int]] | None = None
        self._before = ""  # the end of what is encoded
        self._text = ""
        self._searched = 1  # no cut lies before

    def push(self, text: str) -> list[int]:
        """Takes a piece; returns the ids that are certain now, perhaps none."""
        self._text += text
        if len(self._text) - self._searched < max(self._piece, _REACH):
            return []
        last = len(self._text) - _REACH
        cut = next(filter(self._is_cut, self._places(last)), None)
        if cut is None:
            self._searched = last
            return []
        ids = self._behind(self._before, self._text[:cut])
        self._before = (self._before + self._text[:cut])[-_REACH:]
        self._text, self._searched = self._text[cut:], 1
        return ids

    def flush(self) -> list[int]:
        """Ends the text; returns the ids of the rest."""
        text, self._text = self._text, ""
        return self._behind(self._before, text)

    def _behind(self, before: str, text: str) -> list[int]:
        """Ids of text, where it follows before."""
        encode = self._tokenizer.encode
        return encode(before + text)[len(encode(before)) :] if before else encode(text)

    def _places(self, last: int) -> Iterator[int]:
        """Where words end, from the last on, a few."""
        text = self._text
        places = (
            i
            for i in range(last, self._searched, -1)
            if (text[i] == " " and text[i - 1].isalpha() and text[i + 1].isalpha())
            or (text[i - 1] == "\n" and text[i].isalpha() and not text[i - 2].isspace())
        )
        return itertools.islice(places, _MAX_TRIES)

    def _is_cut(self, place: int) -> bool:
        """Whether tokens end at a place, whatever lies farther away."""
        left, right = self._text[max(0, place - _REACH) : place], self._text[place:][:_REACH]
        if self._pairs is None:
            self._pairs = self._tokenizer._byte_pairs()
        if (left.encode()[-1], right.encode()[0]) in self._pairs:
            return False
        encode = self._tokenizer.encode
        return encode(left) + self._behind(left, right) == encode(left + right)


def _load(file: Path) -> tokenizers.Tokenizer:
    again = "download it again from where the model came"
    try:
        text = file.read_bytes().decode()
        tokenizer = tokenizers.Tokenizer.from_str(text)
    except FileNotFoundError:
        raise FormatError(
            f"{file}: there is no tokenizer.json; {again}, or give the path of one", file=str(file)
        ) from None
    except OSError as error:
        raise FileError(f"{file}: {error.strerror}", file=str(file)) from error
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises plain Exception, and pyo3's PanicException
        raise FormatError(f"{file}: not a tokenizer ({error}); {again}", file=str(file)) from error
    _check_kind(tokenizer, file)
    # A file may ask for truncation or padding, which would shorten or lengthen texts in silence.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = (
        True  # special tokens spelled out in a text are ordinary characters
    )
    return tokenizer


def _decoder_kinds(tokenizer: tokenizers.Tokenizer) -> list[str]:
    """Types of the steps that make text of tokens."""
    decoder = json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder is not None else {}
    return [str(part.get("type")) for part in decoder.get("decoders", [decoder])]


def _check_kind(tokenizer: tokenizers.Tokenizer, file: Path) -> None:
    kinds = _decoder_kinds(tokenizer)
    if "ByteLevel" not in kinds and "ByteFallback" not in kinds:
        found = ", ".join(kinds)
        raise UnsupportedError(
            f"{file}: only tokenizers that decode by ByteLevel or ByteFallback are supported, this "
            f"one does by {found}",
            file=str(file),
            expected="ByteLevel or ByteFallback",
            found=found,
        )


def _add_configured_tokens(
    tokenizer: tokenizers.Tokenizer, config: Mapping[str, Any], file: Path
) -> None:
    """Adds tokens of tokenizer_config.json that tokenizer.json lacks or does not call special."""
    declared = _field(config, "added_tokens_decoder", dict, file) or {}
    present = tokenizer.get_added_tokens_decoder()
    for key, entry in sorted(
        declared.items(), key=lambda item: int(item[0]) if item[0].isdecimal() else -1
    ):
        if (
            not key.isdecimal()
            or not isinstance(entry, Mapping)
            or not isinstance(entry.get("content"), str)
        ):
            raise FormatError(
                f"{file}: added_tokens_decoder[{key!r}] is not a token", file=str(file)
            )
        special = bool(entry.get("special"))
        known = present.get(int(key))
        if (
            known is not None
            and known.content == entry["content"]
            and (known.special or not special)
        ):
            continue
        token = tokenizers.AddedToken(entry["content"], special=special, normalized=False)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token])
        found = tokenizer.token_to_id(entry["content"])
        if found != int(key):
            raise FormatError(
                f"{file}: token {entry['content']!r} has id {key} here and {found} in "
                "tokenizer.json; the two files belong to different models",
                file=str(file),
                expected=key,
                found=str(found),
            )


def _read_chat_template(directory: Path, config: Mapping[str, Any]) -> str | None:
    """chat_template.jinja, else the (default) template of tokenizer_config.json."""
    file = directory / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(f"{file}: not UTF-8 text ({error})", file=str(file)) from error
    template = config.get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, Mapping)]
        template = next(
            (entry.get("template") for entry in named if entry.get("name") == "default"), None
        )
    return template if isinstance(template, str) else None


def _read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; {} if there is no such file."""
    if not file.exists():
        return {}
    try:
        value = json.loads(file.read_bytes())
    except OSError as error:
        raise FileError(f"{file}: {error.strerror}", file=str(file)) from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file}: not JSON ({error})", file=str(file)) from error
    if not isinstance(value, dict):
        found = type(value).__name__
        raise FormatError(
            f"{file}: expected a JSON object, found {found}",
            file=str(file),
            expected="object",
            found=found,
        )
    return value


def _field(values: Mapping[str, Any], key: str, kind: type | tuple[type, ...], file: Path) -> Any:
    """values[key], or None if it is absent or null; FormatError if it is of another kind."""
    value = values.get(key)
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if value is None or (
        isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
    ):
        return value
    expected = " or ".join(k.__name__ for k in kinds)
    found = json.dumps(value)[:80]
    raise FormatError(
        f"{file}: {key} is {found}, expected {expected}",
        file=str(file),
        expected=expected,
        found=found,
    )


def _ids(values: Mapping[str, Any], key: str, file: Path) -> list[int]:
    """A token id or a list of them, as a list; empty if absent."""
    value = _field(values, key, (int, list), file)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise FormatError(
            f"{file}: {key} holds something that is no token id",
            file=str(file),
            expected="token ids",
            found=str(value),
        )
    return ids
