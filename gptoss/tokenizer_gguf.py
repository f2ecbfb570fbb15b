"""Tokenizers in the metadata of GGUF files, keys "tokenizer.*", as objects of Hugging Face's
`tokenizers`.

"gpt2" is byte-level BPE: tokens, merges, and the name of a way to cut texts (pre_tokenizers.py).
"llama" is SentencePiece's BPE: tokens and scores; of all neighbours those are joined first whose
token has the highest score.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, processors

from gptoss.errors import FormatError, UnsupportedError
from gptoss.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

SPACE = "\u2581"  # stands for a space in SentencePiece's tokens
BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")

# Control tokens that end a turn in the chat formats of several families. Harmony's <|end|> ends a
# message; the tokenizer knows.
_TURN_ENDS = frozenset(
    ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "<|end_of_text|>")
)


@dataclass
class Vocabulary:
    """What a file says of its tokenizer. library adds BOS and EOS as the model wants them, where it
    is asked to add special tokens."""

    library: tokenizers.Tokenizer
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    adds_bos: bool
    stop_ids: set[int]
    chat_template: str | None


def _describe(value: Any) -> str:
    """A value of the file, cut if it is long."""
    if isinstance(value, list | np.ndarray):
        return f"{len(value)} values"
    text = ascii(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


@dataclass
class _Reader:
    """size: ids in the tables. tokens: their texts, without those at the end that only fill the
    tables. kinds: their types."""

    metadata: Mapping[str, Any]
    file: str
    size: int
    tokens: list[str] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)

    def fail(self, key: str, expected: str, found: str) -> NoReturn:
        raise FormatError(
            f"{self.file}: key '{key}': expected {expected}, found {found}",
            file=self.file,
            expected=expected,
            found=found,
        )

    def value(self, key: str, kind: type, expected: str) -> Any:
        """None where there is no such key."""
        value = self.metadata.get(key)
        if value is None or (isinstance(value, kind) and isinstance(value, bool) == (kind is bool)):
            return value
        self.fail(key, expected, _describe(value))

    def texts(self, key: str, *, required: bool) -> list[str]:
        texts: list[str] | None = self.value(key, list, "an array of texts")
        if texts is None and required:
            self.fail(key, "an array of texts", "nothing")
        return texts or []

    def numbers(self, key: str, kinds: str, expected: str) -> np.ndarray[Any, Any] | None:
        """kinds: "i" and "u" of NumPy's dtypes, "f"; expected: what one is, for messages."""
        numbers = self.value(key, np.ndarray, f"an array of {expected}")
        if numbers is not None and numbers.dtype.kind not in kinds:
            self.fail(key, f"an array of {expected}", f"an array of {numbers.dtype}")
        if numbers is not None and len(numbers) != self.size:
            self.fail(key, f"{self.size}, one for each token", str(len(numbers)))
        return numbers  # type: ignore[no-any-return]

    def token_id(self, name: str) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        number: int | None = self.value(key, int, "the id of a token")
        if number is not None:
            self.check_id(key, number)
        return number

    def check_id(self, key: str, number: object) -> None:
        if not isinstance(number, int) or not 0 <= number < len(self.tokens):
            self.fail(key, f"the id of a token, below {len(self.tokens)}", str(number))

    def flag(self, name: str, default: bool) -> bool:
        value = self.value(f"tokenizer.ggml.{name}", bool, "true or false")
        return default if value is None else bool(value)


def read(metadata: Mapping[str, Any], file: str, vocab_size: int) -> Vocabulary | None:
    """The tokenizer of a model with vocab_size tokens; None if the file has none.

    Raises FormatError that names the key, UnsupportedError for kinds that are not known.
    """
    reader = _Reader(metadata, file, vocab_size)
    model = reader.value("tokenizer.ggml.model", str, "a text")
    if model in (None, "none", "no_vocab"):
        return None
    build = {"gpt2": _byte_level, "llama": _sentence_piece}.get(model)
    if build is None:
        _unknown(file, "tokenizer.ggml.model", model, ("gpt2", "llama"))
    _read_tokens(reader)
    library, adds_bos = build(reader)
    _add_tokens(reader, library)
    bos_id, eos_id = reader.token_id("bos"), reader.token_id("eos")
    adds_bos = reader.flag("add_bos_token", adds_bos) and bos_id is not None
    opening = [bos_id] if adds_bos and bos_id is not None else []
    closing = [eos_id] if reader.flag("add_eos_token", False) and eos_id is not None else []
    _post_process(reader, library, opening, closing)
    return Vocabulary(
        library,
        bos_id,
        eos_id,
        reader.token_id("padding"),
        adds_bos,
        _stop_ids(reader, eos_id),
        reader.value("tokenizer.chat_template", str, "a text"),
    )


def _unknown(file: str, key: str, found: str, known: Iterable[str]) -> NoReturn:
    expected = ", ".join(sorted(known))
    raise UnsupportedError(
        f"{file}: key '{key}': {found[:80]!r} is not known, only {expected}; "
        "Model(path, tokenizer=...) takes a tokenizer.json instead",
        file=file,
        expected=expected,
        found=found[:80],
    )


def _read_tokens(reader: _Reader) -> None:
    key, key_of_types = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
    tokens = list(reader.texts(key, required=True))
    if len(tokens) != reader.size:
        reader.fail(key, f"{reader.size}, as the model has tokens", str(len(tokens)))
    reader.tokens = tokens
    types = reader.numbers(key_of_types, "iu", "integers")
    kinds = [NORMAL] * len(tokens) if types is None else types.tolist()
    for index, kind in enumerate(kinds):
        if not NORMAL <= kind <= BYTE:
            reader.fail(f"{key_of_types}[{index}]", "a type from 1 to 6", str(kind))
    seen: dict[str, int] = {}
    for index, text in enumerate(tokens):
        tokens[index] = text = text or f"[EMPTY_{index}]"
        if (first := seen.setdefault(text, index)) != index:
            found = f"that of token {first}, {_describe(text)}"
            reader.fail(f"{key}[{index}]", "a text of its own", found)
        if kinds[index] == BYTE and not BYTE_TOKEN.fullmatch(text):
            reader.fail(f"{key}[{index}]", "a byte, as '<0x0A>'", _describe(text))
    # A converter fills the rows that the original vocabulary leaves unused.
    while tokens and kinds[-1] == UNUSED and tokens[-1] == f"[PAD{len(tokens) - 1}]":
        del tokens[-1], kinds[-1]
    reader.kinds = kinds


def _vocabulary(reader: _Reader) -> dict[str, int]:
    """Ids by text, without the tokens at the end that are added: plain text never becomes those."""
    added = (CONTROL, USER_DEFINED, UNKNOWN)
    count = len(reader.tokens)
    while count > 0 and reader.kinds[count - 1] in added:
        count -= 1
    # Texts that are no UTF-8 cannot come of any, but have their ids.
    texts = (text.encode("utf-8", "surrogateescape") for text in reader.tokens[:count])
    return {text.decode("utf-8", "backslashreplace"): index for index, text in enumerate(texts)}


def _byte_level(reader: _Reader) -> tuple[tokenizers.Tokenizer, bool]:
    way = _pre_tokenizer(reader)
    vocabulary, merges = _vocabulary(reader), []
    key = "tokenizer.ggml.merges"
    for index, merge in enumerate(reader.texts(key, required=True)):
        left, space, right = merge.partition(" ")
        for text in (left, right, left + right):
            if not space or text not in vocabulary:
                reader.fail(f"{key}[{index}]", "two tokens that make a third", _describe(merge))
        merges.append((left, right))
    model = models.BPE(vocabulary, merges, ignore_merges=way.ignore_merges)
    library = tokenizers.Tokenizer(model)
    if (normalizer := way.normalizer()) is not None:
        library.normalizer = normalizer
    library.pre_tokenizer = way.build()
    library.decoder = decoders.ByteLevel()
    return library, way.adds_bos


def _pre_tokenizer(reader: _Reader) -> PreTokenizer:
    key = "tokenizer.ggml.pre"
    name = reader.value(key, str, "a text") or "default"
    architecture = reader.metadata.get("general.architecture")
    if name == "default" and architecture in ("gptoss", "gpt-oss"):
        name = "gpt-4o"  # converters that did not know it yet
    if name not in PRE_TOKENIZERS:
        _unknown(reader.file, key, name, PRE_TOKENIZERS)
    return PRE_TOKENIZERS[name]


def _sentence_piece(reader: _Reader) -> tuple[tokenizers.Tokenizer, bool]:
    key = "tokenizer.ggml.scores"
    numbers = reader.numbers(key, "fiu", "numbers")
    if numbers is None:
        reader.fail(key, "an array of numbers", "nothing")
    if np.isnan(numbers).any():
        reader.fail(f"{key}[{int(np.isnan(numbers).argmax())}]", "a number", "NaN")
    vocabulary = _vocabulary(reader)
    kinds = zip(reader.tokens, reader.kinds, strict=True)
    unknown = next((text for text, kind in kinds if kind == UNKNOWN), None)
    model = models.BPE(
        vocabulary,
        _merges_of_scores(reader, vocabulary, numbers),
        unk_token=unknown if unknown in vocabulary else None,
        fuse_unk=True,
        byte_fallback=True,
    )
    library = tokenizers.Tokenizer(model)
    prefixed = reader.flag("add_space_prefix", True)
    steps = [normalizers.Prepend(SPACE)] if prefixed else []
    library.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if prefixed else []
    library.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return library, True


def _merges_of_scores(
    reader: _Reader, vocabulary: Mapping[str, int], scores: np.ndarray[Any, Any]
) -> list[tuple[str, str]]:
    """Every way to make a normal token of two, best score first."""
    made = (NORMAL, UNUSED)
    usable = {t for t, i in vocabulary.items() if reader.kinds[i] in made}
    pairs = [
        (-float(scores[vocabulary[text]]), vocabulary[text], cut, text)
        for text in usable
        for cut in range(1, len(text))
        if text[:cut] in usable and text[cut:] in usable
    ]
    return [(text[:cut], text[cut:]) for _, _, cut, text in sorted(pairs)]


def _add_tokens(reader: _Reader, library: tokenizers.Tokenizer) -> None:
    special, plain = (UNKNOWN, CONTROL), (USER_DEFINED,)
    for index, (text, kind) in enumerate(zip(reader.tokens, reader.kinds, strict=True)):
        if kind not in (*special, *plain):
            continue
        try:
            text.encode()
        except UnicodeEncodeError:
            reader.fail(f"tokenizer.ggml.tokens[{index}]", "UTF-8", _describe(text))
        token = AddedToken(text, special=kind in special, normalized=False)
        (library.add_special_tokens if kind in special else library.add_tokens)([token])
        assert library.token_to_id(text) == index, text


def _post_process(
    reader: _Reader, library: tokenizers.Tokenizer, opening: list[int], closing: list[int]
) -> None:
    if not opening and not closing:
        return
    # The template's own names: texts of tokens may hold its punctuation.
    names = {index: f"t{index}" for index in (*opening, *closing)}
    begin, end = [names[i] for i in opening], [names[i] for i in closing]
    library.post_processor = processors.TemplateProcessing(
        single=[*begin, "$A:0", *end],
        pair=[*begin, "$A:0", *begin, "$B:0", *end],
        special_tokens=[
            {"id": name, "ids": [index], "tokens": [reader.tokens[index]]}
            for index, name in names.items()
        ],
    )


def _stop_ids(reader: _Reader, eos_id: int | None) -> set[int]:
    stops = {eos_id, reader.token_id("eot"), reader.token_id("eom")} - {None}
    key = "tokenizer.ggml.eos_token_ids"  # of Ollama
    several = reader.value(key, np.ndarray, "an array of ids")
    for index, number in enumerate([] if several is None else several.tolist()):
        reader.check_id(f"{key}[{index}]", number)
        stops.add(number)
    for index, (text, kind) in enumerate(zip(reader.tokens, reader.kinds, strict=True)):
        if kind == CONTROL and text in _TURN_ENDS:
            stops.add(index)
    return {stop for stop in stops if stop is not None}
