"""Tokenizer: ids, bytes, special tokens, side files, streaming."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from gptoss import ArgumentError, Error, FileError, FormatError, UnsupportedError
from gptoss.locate import DEMO
from gptoss.tokenizer import StreamDecoder, SuggestedSampling, Tokenizer

TOKENIZER = Tokenizer(DEMO)
SPECIALS = sorted(TOKENIZER.special_tokens)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A copy of the demo's tokenizer files, to be spoiled."""
    for file in DEMO.iterdir():
        if file.suffix in (".json", ".jinja"):
            shutil.copy(file, tmp_path / file.name)
    return tmp_path


def edit(file: Path, **values: Any) -> None:
    content = json.loads(file.read_text())
    content.update(values)
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


def test_demo_facts() -> None:
    assert TOKENIZER.vocab_size == 4096
    assert (TOKENIZER.bos_id, TOKENIZER.eos_id, TOKENIZER.pad_id) == (4080, 4084, 4081)
    assert TOKENIZER.stop_token_ids == {4084, 4081, 4094}
    assert TOKENIZER.is_harmony
    assert TOKENIZER.token_id("<|message|>") == 4090 == TOKENIZER.special_tokens["<|message|>"]
    assert TOKENIZER.token_id("no such token") is None
    assert TOKENIZER.suggested_sampling == SuggestedSampling(do_sample=True)
    assert TOKENIZER.chat_template and "namespace functions" in TOKENIZER.chat_template
    assert Tokenizer(DEMO / "tokenizer.json").stop_token_ids == TOKENIZER.stop_token_ids


@given(st.text() | st.lists(st.sampled_from([*SPECIALS, "a", " ", "<|", "end|>"])).map("".join))
def test_plain_text_round_trip_and_has_no_special_token(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert not set(ids) & set(TOKENIZER.special_tokens.values())


@given(st.lists(st.sampled_from([*SPECIALS, "hello", " \n", "<|", "é"])))
def test_specials_are_tokens_when_allowed(parts: list[str]) -> None:
    text = "".join(parts)
    ids = TOKENIZER.encode(text, allow_special=True)
    assert TOKENIZER.decode(ids) == text
    named = [part for part in parts if part in TOKENIZER.special_tokens]
    assert [TOKENIZER.decode([i]) for i in ids if i in TOKENIZER.special_tokens.values()] == named
    plain = "".join(part for part in parts if part not in TOKENIZER.special_tokens)
    assert TOKENIZER.decode(ids, skip_special=True) == plain


def test_equals_the_library_with_specials() -> None:
    library = tokenizers.Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    text = "<|start|>user<|message|>What's 47 + 38?\n\n  Grüße, 世界<|end|><|start|>assistant"
    assert TOKENIZER.encode(text, allow_special=True) == library.encode(text).ids


def test_token_bytes() -> None:
    assert b"".join(map(TOKENIZER.token_bytes, TOKENIZER.encode("世界 é"))) == "世界 é".encode()
    assert TOKENIZER.token_bytes(4084) == b"<|return|>"
    assert TOKENIZER.token_bytes(4084, skip_special=True) == b""
    assert sorted(TOKENIZER.token_bytes(i) for i in range(256)) == [bytes([b]) for b in range(256)]
    assert TOKENIZER.token_bytes(4096) == TOKENIZER.token_bytes(201_087) == b""
    assert TOKENIZER.decode([4096, 40, 4097]) == TOKENIZER.decode([40])
    with pytest.raises(ArgumentError, match="-1"):
        TOKENIZER.token_bytes(-1)


@given(st.lists(st.integers(0, 4200)))
def test_stream_decoder_gives_the_text_of_decode_in_whole_characters(ids: list[int]) -> None:
    decoder = StreamDecoder(TOKENIZER)
    pushed = [decoder.push(i) for i in ids]
    text = "".join(t for t, _ in pushed) + decoder.flush()
    assert text == TOKENIZER.decode(ids)
    assert b"".join(data for _, data in pushed) == b"".join(map(TOKENIZER.token_bytes, ids))


def test_stream_decoder_holds_an_unfinished_character_back() -> None:
    first, *rest = [
        TOKENIZER.token_id(c) for c in "ä¸ĸ"
    ]  # the bytes of 世 as the vocabulary spells them
    assert first is not None
    decoder = StreamDecoder(TOKENIZER)
    assert decoder.push(first) == ("", b"\xe4")
    assert [decoder.push(i or 0)[0] for i in rest] == ["", "世"]
    assert decoder.flush() == ""
    decoder.push(first)
    assert decoder.flush() == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("allow_special", [False, True])
def test_text_that_is_no_text(allow_special: bool) -> None:
    with pytest.raises(ArgumentError, match="U\\+D800, at character 2"):
        TOKENIZER.encode("ab\ud800", allow_special=allow_special)
    with pytest.raises(ArgumentError, match="bytes"):
        TOKENIZER.encode(b"ab", allow_special=allow_special)  # type: ignore[arg-type]


def test_threads_share_a_tokenizer() -> None:
    text = "The fox <|end|> and the lantern. " * 50
    expected = {True: TOKENIZER.encode(text, allow_special=True), False: TOKENIZER.encode(text)}
    wrong: list[bool] = []

    def work(allow: bool) -> None:
        for _ in range(50):
            if TOKENIZER.encode(text, allow_special=allow) != expected[allow]:
                wrong.append(allow)

    threads = [threading.Thread(target=work, args=(bool(i % 2),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_stop_tokens_of_early_downloads(directory: Path) -> None:
    edit(directory / "generation_config.json", eos_token_id=[4084, 4081])
    assert Tokenizer(directory).stop_token_ids == {4084, 4081, 4094}
    edit(
        directory / "generation_config.json", eos_token_id=[4084, 4089]
    )  # <|end|> ends a message only
    assert Tokenizer(directory).stop_token_ids == {4084, 4081, 4094}
    (directory / "generation_config.json").unlink()
    (directory / "config.json").unlink()
    assert Tokenizer(directory).stop_token_ids == {4084, 4081, 4094}


def test_suggested_sampling(directory: Path) -> None:
    edit(
        directory / "generation_config.json", do_sample=False, temperature=0.6, top_p=0.95, top_k=20
    )
    assert Tokenizer(directory).suggested_sampling == SuggestedSampling(False, 0.6, 0.95, 20)


def test_tokenizer_json_alone_is_enough(tmp_path: Path) -> None:
    shutil.copy(DEMO / "tokenizer.json", tmp_path)
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.encode("Once upon") == TOKENIZER.encode("Once upon")
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.chat_template) == (None, None, None)
    assert tokenizer.stop_token_ids == {4084, 4081, 4094}


def test_truncation_and_padding_are_switched_off(directory: Path) -> None:
    edit(
        directory / "tokenizer.json",
        truncation={"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        padding={
            "strategy": {"Fixed": 64},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "!",
        },
    )
    assert Tokenizer(directory).encode("one two three four") == TOKENIZER.encode(
        "one two three four"
    )


def test_tokens_that_only_the_configuration_has(directory: Path) -> None:
    file = directory / "tokenizer_config.json"
    declared = json.loads(file.read_text())["added_tokens_decoder"]
    new = {"content": "<|new|>", "special": True}
    edit(file, added_tokens_decoder=declared | {"4096": new}, bos_token={"content": "<|new|>"})
    tokenizer = Tokenizer(directory)
    assert tokenizer.encode("a<|new|>", allow_special=True)[-1] == 4096 == tokenizer.bos_id
    assert 4096 not in tokenizer.encode("a<|new|>")
    edit(file, added_tokens_decoder=declared | {"5000": new})
    with pytest.raises(FormatError, match=r"tokenizer_config.json.*5000.*4096"):
        Tokenizer(directory)


def test_template_in_tokenizer_config(directory: Path) -> None:
    (directory / "chat_template.jinja").unlink()
    edit(directory / "tokenizer_config.json", chat_template="{{ messages }}")
    assert Tokenizer(directory).chat_template == "{{ messages }}"
    named = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    edit(directory / "tokenizer_config.json", chat_template=named)
    assert Tokenizer(directory).chat_template == "d"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b""),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"version https://git-lfs.github.com/spec/v1\n"),
        ("tokenizer.json", b"\xff\xfe"),
        ("tokenizer.json", b"[" * 100_000),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": 1}}'),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"4096": {"special": true}}}'),
        ("generation_config.json", b"\xff"),
        ("generation_config.json", b"[" * 100_000),
        ("generation_config.json", b'{"eos_token_id": "x"}'),
        ("generation_config.json", b'{"eos_token_id": [1, -2]}'),
        ("generation_config.json", b'{"eos_token_id": true}'),
        ("generation_config.json", b'{"temperature": "hot"}'),
        ("chat_template.jinja", b"\xff"),
    ],
)
def test_malformed_files(directory: Path, name: str, content: bytes) -> None:
    (directory / name).write_bytes(content)
    with pytest.raises(FormatError, match=name) as caught:
        Tokenizer(directory)
    assert caught.value.file == str(directory / name)


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="there is no tokenizer"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(FileError):
        Tokenizer(tmp_path)


def test_other_kinds_of_tokenizers_are_refused(directory: Path) -> None:
    edit(
        directory / "tokenizer.json", decoder={"type": "WordPiece", "prefix": "##", "cleanup": True}
    )
    with pytest.raises(UnsupportedError, match="WordPiece"):
        Tokenizer(directory)


@given(st.data())
def test_spoiled_tokenizer_json_never_escapes_as_another_exception(data: Any) -> None:
    raw = bytearray((DEMO / "tokenizer.json").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "tokenizer.json").write_bytes(raw)
        try:
            Tokenizer(name)
        except Error as error:
            assert "tokenizer.json" in str(error)
