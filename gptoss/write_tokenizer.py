"""Tokenizers as metadata of GGUF files, with the keys of llama.cpp's converter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gptoss.errors import FormatError, UnsupportedError
from gptoss.pre_tokenizers import PRE_TOKENIZERS
from gptoss.tokenizer import Tokenizer
from gptoss.tokenizer_gguf import CONTROL, NORMAL, UNUSED, USER_DEFINED

# Numbers of the format.
_UINT32, _INT32, _BOOL, _STRING, _ARRAY = 4, 5, 7, 8, 9


def tokenizer_values(tokenizer: Tokenizer, vocab_size: int) -> dict[str, tuple[int, Any]]:
    """Metadata of a byte-level tokenizer for a model with vocab_size tokens: key -> (type, value),
    as write_gguf takes them. Ids without a token are filled with unused ones.

    Raises UnsupportedError for a tokenizer that is not byte-level, or that cuts texts in a way
    without a name; FormatError for one with more tokens than the model.
    """
    file, library = str(tokenizer.path), tokenizer._tokenizer
    settings = json.loads(library.to_str())
    name = _name_of(settings, file)
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
    merges = [m if isinstance(m, str) else " ".join(m) for m in settings["model"]["merges"]]
    values: dict[str, tuple[int, Any]] = {
        "tokenizer.ggml.model": (_STRING, "gpt2"),
        "tokenizer.ggml.pre": (_STRING, name),
        "tokenizer.ggml.tokens": (_ARRAY, (_STRING, tokens)),
        "tokenizer.ggml.token_type": (_ARRAY, (_INT32, kinds)),
        "tokenizer.ggml.merges": (_ARRAY, (_STRING, merges)),
    }
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
