"""Tokenizers as metadata of GGUF files, with the keys of llama.cpp's converter."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from gptoss.errors import FormatError, UnsupportedError
from gptoss.pre_tokenizers import PRE_TOKENIZERS
from gptoss.tokenizer import Tokenizer
from gptoss.tokenizer_gguf import (
    BYTE,
    BYTE_TOKEN,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
)

# Numbers of the format.
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9


def tokenizer_values(tokenizer: Tokenizer, vocab_size: int) -> dict[str, tuple[int, Any]]:
    """Metadata of a tokenizer for a model with vocab_size tokens: key -> (type, value), as
    write_gguf takes them. Ids without a token are filled with unused ones.

    Raises UnsupportedError for a byte-level tokenizer that cuts texts in a way without a name, and
    for one that is neither byte-level nor such as sentencepiece makes; FormatError for one with
    more tokens than the model.
    """
    file, library = str(tokenizer.path), tokenizer._tokenizer
    settings = json.loads(library.to_str())
    tokens, kinds = [f"[PAD{i}]" for i in range(vocab_size)], [UNUSED] * vocab_size
    added = library.get_added_tokens_decoder()
    for text, index in library.get_vocab(with_added_tokens=True).items():
        if index >= vocab_size:
            raise FormatError(
                f"{file}: token {text!r} has the id {index}, but the model {vocab_size} tokens",
                file=file,
                expected=f"ids below {vocab_size}",
                found=str(index),
            )
        tokens[index] = text
        token = added.get(index)
        kinds[index] = NORMAL if token is None else CONTROL if token.special else USER_DEFINED
    merges = [tuple(m.split(" ") if isinstance(m, str) else m) for m in settings["model"]["merges"]]
    if settings["model"].get("byte_fallback"):
        values = _piece_values(settings, tokens, kinds, merges, file)
    else:
        values = {
            "tokenizer.ggml.model": (_STRING, "gpt2"),
            "tokenizer.ggml.pre": (_STRING, _name_of(settings, file)),
            "tokenizer.ggml.merges": (_ARRAY, (_STRING, [" ".join(merge) for merge in merges])),
        }
    values["tokenizer.ggml.tokens"] = (_ARRAY, (_STRING, tokens))
    values["tokenizer.ggml.token_type"] = (_ARRAY, (_INT32, kinds))
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "padding": tokenizer.pad_id}
    for which, token_id in ids.items():
        if token_id is not None:
            values[f"tokenizer.ggml.{which}_token_id"] = (_UINT32, token_id)
    values["tokenizer.ggml.add_bos_token"] = (_BOOL, tokenizer.adds_bos)
    if tokenizer.chat_template is not None:
        values["tokenizer.chat_template"] = (_STRING, tokenizer.chat_template)
    return values


def _name_of(settings: Mapping[str, Any], file: str) -> str:
    """The first name that stands for the tokenizer's patterns and normalizer."""
    pre, normalizer = settings["pre_tokenizer"] or {}, settings["normalizer"]
    steps = pre.get("pretokenizers", [pre])
    patterns = [s["pattern"].get("Regex") for s in steps if s.get("type") == "Split"]
    is_byte_level = bool(steps) and steps[-1].get("type") == "ByteLevel"
    if is_byte_level and steps[-1]["use_regex"]:
        patterns.append(PRE_TOKENIZERS["gpt-2"].patterns[0])  # the library's own
    digits = [s["individual_digits"] for s in steps if s.get("type") == "Digits"]
    if digits:
        patterns.insert(0, r"\p{N}" if digits[0] else r"\p{N}+")
    for name, way in PRE_TOKENIZERS.items():
        if (
            is_byte_level
            and list(way.patterns) == patterns
            and (normalizer or {}).get("type") == ("NFC" if way.nfc else None)
        ):
            return name
    raise UnsupportedError(
        f"{file}: GGUF has no name for the way in which this tokenizer cuts texts: "
        f"{json.dumps(pre)[:200]}",
        file=file,
        expected=", ".join(PRE_TOKENIZERS),
        found=json.dumps(pre)[:200],
    )


# ---- SentencePiece ----


def _piece_values(
    settings: Mapping[str, Any],
    tokens: list[str],
    kinds: list[int],
    merges: list[tuple[str, ...]],
    file: str,
) -> dict[str, tuple[int, Any]]:
    """Keys of SentencePiece's BPE alone; kinds become those of bytes and of the unknown token."""
    unknown = settings["model"].get("unk_token")
    for index, text in enumerate(tokens):
        if text == unknown:
            kinds[index] = UNKNOWN
        elif kinds[index] == NORMAL and BYTE_TOKEN.fullmatch(text):
            kinds[index] = BYTE
    normal = [text for text, kind in zip(tokens, kinds, strict=True) if kind == NORMAL]
    ranks = _ranks(normal, merges, file)
    scores = [
        -float(ranks.get(text, len(ranks))) if kind == NORMAL else 0.0
        for text, kind in zip(tokens, kinds, strict=True)
    ]
    values: dict[str, tuple[int, Any]] = {
        "tokenizer.ggml.model": (_STRING, "llama"),
        "tokenizer.ggml.pre": (_STRING, "default"),
        "tokenizer.ggml.scores": (_ARRAY, (_FLOAT32, scores)),
        "tokenizer.ggml.add_space_prefix": (_BOOL, _has_prefix(settings, file)),
    }
    if unknown in tokens:
        values["tokenizer.ggml.unknown_token_id"] = (_UINT32, tokens.index(unknown))
    return values


def _has_prefix(settings: Mapping[str, Any], file: str) -> bool:
    """Whether a space is put before texts; they are cut nowhere before merging."""
    normalizer, pre = settings["normalizer"] or {}, settings["pre_tokenizer"]
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    kinds = [step["type"] for step in steps]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if pre is None and steps and steps[-1] == replace and kinds[:-1] in ([], ["Prepend"]):
        return len(steps) == 2
    if not steps and pre and pre["type"] == "Metaspace" and pre.get("split") is False:
        return bool(pre["prepend_scheme"] != "never")
    found = json.dumps({"normalizer": settings["normalizer"], "pre_tokenizer": pre})
    _refuse_pieces(file, "spaces that become U+2581, and texts that are not cut", found)


def _ranks(normal: Iterable[str], merges: Iterable[tuple[str, ...]], file: str) -> dict[str, int]:
    """Which tokens are made first. Scores are of tokens, so that any two that make a third are
    joined: merges must be all of those there are, and those of one token neighbours."""
    usable, ranks, seen = set(normal), dict[str, int](), set[tuple[str, str]]()
    last = None
    for left, right in merges:
        made = left + right
        if not {left, right, made} <= usable:
            continue
        seen.add((left, right))
        if made in ranks and made != last:
            _refuse_pieces(file, "merges in the order of the tokens they make", f"{left} {right}")
        ranks.setdefault(made, len(ranks))
        last = made
    for made in ranks:
        for cut in range(1, len(made)):
            pair = made[:cut], made[cut:]
            if pair not in seen and set(pair) <= usable:
                _refuse_pieces(file, f"a merge of {pair[0]!r} and {pair[1]!r}", "none")
    return ranks


def _refuse_pieces(file: str, expected: str, found: str) -> NoReturn:
    raise UnsupportedError(
        f"{file}: GGUF cannot hold this tokenizer, which has byte tokens but is not as "
        f"sentencepiece makes them: expected {expected}, found {found[:200]}; without the file the "
        "model is converted without a vocabulary",
        file=file,
        expected=expected,
        found=found[:200],
    )
