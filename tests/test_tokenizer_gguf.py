"""Tokenizers from GGUF metadata are those of tokenizer.json, and of sentencepiece."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import gguf_models
import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, processors, trainers

import gptoss
from gptoss import Tokenizer, UnsupportedError
from gptoss.pre_tokenizers import PRE_TOKENIZERS
from gptoss.tokenizer import StreamDecoder, StreamEncoder
from gptoss.tokenizer_gguf import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from gptoss.write_tokenizer import tokenizer_values

DEMO = gptoss.Model("demo").path
Metadata = dict[str, Any]

TEXTS = [
    "",
    " ",
    "a",
    "Hello, world! It's I'LL we'Ve 'tis don't.",
    "<|start|>user<|message|>hi<|end|> <s> </s> [INST] <unk> <0x0A> <tool>x</tool>",
    "héllo Ünïcode — “quotes” … ½ ﬁ ſ 'ſ",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪",
    "e\u0301 n\u0303 o\u0302\u0323 क्षि ก็ ﷽",
    "漢字かなカナ 한국어 𠮷野家",
    "שלום עולם مرحبا بالعالم \u202eabc",
    "\0\1\x07\x1b[0m\x7f\x80\xa0\ufeff\u2028\u2029\u3000",
    "tabs\t\tand\r\nlines\n\n\n  and   spaces     end   ",
    " " * 100 + "\n" * 50 + "\t" * 33,
    "1 12 123 1234 12345 3.14159 1,000,000 ٣٤٥ Ⅷ ²",
    "def f(x):\n    return x ** 2  # comment\n\n\nclass A:\n\tpass\n",
    "aaaaaaaaaaaaaaaaaaaaa ababababababa ------------======",
    "\u2581under\u2581\u2581scores _ __ ▂",
    "word " * 3000,
    "x" * 20_000,
]


def data_of(values: dict[str, tuple[int, Any]]) -> Metadata:
    """As Model.metadata shows what was written."""
    dtypes = {4: np.uint32, 5: np.int32, 6: np.float32}
    return {
        key: value
        if kind != 9
        else list(value[1])
        if value[0] == 8
        else np.array(value[1], dtypes[value[0]])
        for key, (kind, value) in values.items()
    }


def from_metadata(metadata: Metadata, size: int | None = None) -> Tokenizer:
    tokenizer = Tokenizer.from_gguf(
        metadata, "m.gguf", len(metadata["tokenizer.ggml.tokens"]) if size is None else size
    )
    assert tokenizer is not None
    return tokenizer


def assert_same(a: Tokenizer, b: Tokenizer, texts: list[str]) -> None:
    for text in texts:
        for special in (False, True):
            ids = a.encode(text, allow_special=special)
            assert b.encode(text, allow_special=special) == ids, (text[:60], special)
        assert a.decode(ids) == b.decode(ids)
        assert a.decode(ids, skip_special=True) == b.decode(ids, skip_special=True)
        with_special = a._tokenizer.encode(text).ids
        assert b._tokenizer.encode(text).ids == with_special
    assert a.special_tokens == b.special_tokens
    assert (a.bos_id, a.eos_id, a.adds_bos) == (b.bos_id, b.eos_id, b.adds_bos)
    assert a.opening_ids == b.opening_ids


# ---- the demo model ----


@pytest.fixture(scope="module")
def demo() -> tuple[Tokenizer, Tokenizer]:
    from_json = Tokenizer(DEMO)
    return from_json, from_metadata(data_of(tokenizer_values(from_json, 4096)))


def test_demo(demo: tuple[Tokenizer, Tokenizer]) -> None:
    from_json, from_gguf = demo
    assert_same(*demo, TEXTS)
    assert from_gguf.chat_template == from_json.chat_template
    assert from_gguf.stop_token_ids == from_json.stop_token_ids
    assert from_gguf.is_harmony and from_gguf.vocab_size == from_json.vocab_size
    assert (from_gguf.pad_id, from_gguf.path) == (from_json.pad_id, Path("m.gguf"))
    for token in range(4096):
        assert from_gguf.token_bytes(token) == from_json.token_bytes(token)


@settings(max_examples=150)
@given(text=st.text(max_size=60))
def test_demo_with_any_text(demo: tuple[Tokenizer, Tokenizer], text: str) -> None:
    assert_same(*demo, [text])


def test_ids_beyond_the_vocabulary_stand_for_nothing(demo: tuple[Tokenizer, Tokenizer]) -> None:
    padded = from_metadata(data_of(tokenizer_values(demo[0], 4200)))
    assert padded.vocab_size == demo[0].vocab_size
    assert padded.token_bytes(4150) == b"" and padded.token_id("[PAD4150]") is None
    with pytest.raises(gptoss.FormatError, match="has the id 4095, but the model 4095 tokens"):
        tokenizer_values(demo[0], 4095)


def test_a_gguf_file_of_the_demo_model_chats(tmp_path: Path) -> None:
    path = gguf_models.convert(DEMO, tmp_path / "demo.gguf", "f32")
    with gptoss.Model(path) as model, gptoss.Model(DEMO) as demo:
        assert model.tokenizer is not None and model.tokenizer.path == path
        assert_same(Tokenizer(DEMO), model.tokenizer, TEXTS[:6])
        answers = [
            gptoss.Chat(m, sampling=gptoss.Sampling(temperature=0), max_context=400).ask(
                "What is 2 + 3?", max_tokens=40
            )
            for m in (model, demo)
        ]
        assert answers[0].tokens[:4] == answers[1].tokens[:4]
    # A tokenizer in the file is the file's own: what lies beside it may be another model's.
    (tmp_path / "tokenizer.json").write_text("{}")
    with gptoss.Model(path) as model:
        assert model.tokenizer is not None and model.tokenizer.path == path


def test_a_kind_that_is_not_known_needs_a_tokenizer_beside_it(tmp_path: Path) -> None:
    values, tensors = gguf_models.read_raw(gguf_models.convert(DEMO, tmp_path / "m.gguf", "f32"))
    values["tokenizer.ggml.pre"] = (8, "something")
    (tmp_path / "m.gguf").unlink()
    path = gguf_models.write_raw(tmp_path / "m.gguf", values, tensors)
    match = "'something' is not known"
    with gptoss.Model(path) as model, pytest.raises(UnsupportedError, match=match) as caught:
        _ = model.tokenizer
    assert caught.value.file == str(path)
    with gptoss.Model(path, tokenizer=DEMO) as model:
        assert model.tokenizer is not None and model.tokenizer.is_harmony
    (tmp_path / "tokenizer.json").write_bytes((DEMO / "tokenizer.json").read_bytes())
    with gptoss.Model(path) as model:
        assert model.tokenizer is not None and model.tokenizer.path.name == "tokenizer.json"


# ---- byte-level BPE, trained here ----


def corpus(seed: int) -> list[str]:
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdeéstnr漢字ñ", k=rng.randint(1, 7))) for _ in range(300)]
    marks = [" ", " ", " ", "\n", ", ", ". ", "  ", "\n\n", " 12", " 3456 ", "'s ", "'LL ", "-"]
    lines = ["".join(rng.choice(words) + rng.choice(marks) for _ in range(50)) for _ in range(60)]
    return [*lines, *(text[:500] for text in TEXTS)]


def trained(name: str, directory: Path, seed: int, *, bos: bool) -> Tokenizer:
    """A tokenizer.json that cuts texts as name says."""
    way = PRE_TOKENIZERS[name]
    library = tokenizers.Tokenizer(models.BPE(ignore_merges=way.ignore_merges))
    library.pre_tokenizer, library.decoder = way.build(), decoders.ByteLevel()
    if (normalizer := way.normalizer()) is not None:
        library.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    library.train_from_iterator(corpus(seed), trainer)
    library.add_special_tokens(["<s>", "</s>", "<|end|>"])
    library.add_tokens([tokenizers.AddedToken("<tool>", normalized=False)])
    if bos:
        bos_id = library.token_to_id("<s>")
        library.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", bos_id)])
    library.save(str(directory / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer(directory)


@pytest.mark.parametrize("name", [*PRE_TOKENIZERS])
def test_byte_level(tmp_path: Path, name: str) -> None:
    seed = random.randrange(2**32)
    print(f"{seed=}")
    from_json = trained(name, tmp_path, seed, bos=bool(seed % 2))
    metadata = data_of(tokenizer_values(from_json, 720))
    ways = [n for n, way in PRE_TOKENIZERS.items() if way == PRE_TOKENIZERS[name]]
    assert metadata["tokenizer.ggml.pre"] in ways
    metadata["tokenizer.ggml.pre"] = name
    tokenizer = from_metadata(metadata)
    assert_same(from_json, tokenizer, [*TEXTS, *corpus(seed + 1)[:5]])
    end = from_json.special_tokens
    assert tokenizer.stop_token_ids == {end["</s>"], end["<|end|>"]}


def test_ways_of_the_library_have_names(tmp_path: Path) -> None:
    """GPT-2's pattern and SmolLM's digits as their tokenizer.json spell them."""
    from_json = trained("gpt-2", tmp_path, 1, bos=False)
    settings = json.loads((tmp_path / "tokenizer.json").read_text())
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    digits = {"type": "Digits", "individual_digits": True}
    for steps, name in (([], "gpt-2"), ([digits], "smollm")):
        settings["pre_tokenizer"] = {
            "type": "Sequence",
            "pretokenizers": [*steps, byte_level | {"use_regex": True}],
        }
        (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
        from_json = Tokenizer(tmp_path)
        metadata = data_of(tokenizer_values(from_json, 704))
        assert metadata["tokenizer.ggml.pre"] == name
        assert_same(from_json, from_metadata(metadata), TEXTS)
    settings["pre_tokenizer"]["pretokenizers"].insert(0, {"type": "WhitespaceSplit"})
    settings["pre_tokenizer"]["pretokenizers"][1]["individual_digits"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(UnsupportedError, match="no name for the way"):
        tokenizer_values(Tokenizer(tmp_path), 704)


@pytest.mark.parametrize("architecture", ["gpt-oss", "gptoss"])
@pytest.mark.parametrize("pre", ["default", None])
def test_early_converters_of_gpt_oss(
    demo: tuple[Tokenizer, Tokenizer], architecture: str, pre: str | None
) -> None:
    metadata = data_of(tokenizer_values(demo[0], 4096)) | {"general.architecture": architecture}
    del metadata["tokenizer.ggml.pre"]
    if pre is not None:
        metadata["tokenizer.ggml.pre"] = pre
    assert_same(demo[0], from_metadata(metadata), TEXTS)


# ---- SentencePiece ----


@pytest.fixture(scope="module")
def piece_model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    sentencepiece = pytest.importorskip("sentencepiece")
    directory = tmp_path_factory.mktemp("pieces")
    (directory / "corpus.txt").write_text("\n".join(corpus(5)).replace("\0", ""))
    sentencepiece.SentencePieceTrainer.train(
        input=str(directory / "corpus.txt"),
        model_prefix=str(directory / "m"),
        model_type="bpe",
        vocab_size=900,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        user_defined_symbols=["<tool>", "</tool>"],
        control_symbols=["[INST]"],
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_file=str(directory / "m.model"))


def piece_metadata(pieces: Any) -> Metadata:
    """As llama.cpp's converter tells a tokenizer.model."""
    ids = range(pieces.get_piece_size())
    kinds = [
        UNKNOWN
        if pieces.is_unknown(i)
        else CONTROL
        if pieces.is_control(i)
        else BYTE
        if pieces.is_byte(i)
        else UNUSED
        if pieces.is_unused(i)
        else USER_DEFINED
        if pieces.id_to_piece(i) in ("<tool>", "</tool>")
        else NORMAL
        for i in ids
    ]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [pieces.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": np.array([pieces.get_score(i) for i in ids], np.float32),
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_space_prefix": True,
    }


# sentencepiece itself takes U+2581 for a space, ends a text at NUL, and puts its prefix only at
# the very beginning.
PIECE_TEXTS = [text for text in TEXTS if "\0" not in text and "<" not in text]


def test_pieces(piece_model: Any) -> None:
    tokenizer = from_metadata(piece_metadata(piece_model))
    for text in [*PIECE_TEXTS, *(line for seed in range(30) for line in corpus(seed)[:20])]:
        ids = tokenizer.encode(text)
        assert ids == piece_model.encode(text), text[:80]
        assert tokenizer.decode(ids) == text.replace("\u2581", " ") == piece_model.decode(ids)
        assert [1, *ids] == tokenizer._tokenizer.encode(text).ids
    assert tokenizer.encode("x<tool>y")[-3:] != tokenizer.encode("xy")
    assert tokenizer.token_id("<tool>") in tokenizer.encode("x<tool>y")
    assert tokenizer.special_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2, "[INST]": 3}
    assert 1 not in tokenizer.encode("<s>") and tokenizer.encode("<s>", allow_special=True) == [1]
    assert (tokenizer.adds_bos, tokenizer.opening_ids) == (True, [1])
    assert tokenizer.stop_token_ids == {2}
    assert tokenizer.token_bytes(tokenizer.token_id("<0x0A>") or 0) == b"\n"
    stream = StreamDecoder(tokenizer)
    text = "héllo 👩‍👩‍👧 漢\n  x"
    said = "".join(stream.push(token)[0] for token in tokenizer.encode(text)) + stream.flush()
    assert said == " " + text


@settings(max_examples=150)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0\u2581<["), max_size=40))
def test_pieces_of_any_text(piece_model: Any, text: str) -> None:
    tokenizer = from_metadata(piece_metadata(piece_model))
    assert tokenizer.encode(text) == piece_model.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=150)
@given(text=st.text("ab 1-=漢.\n", max_size=60))
def test_pieces_of_runs(piece_model: Any, text: str) -> None:
    """Repetitions, where many pairs compete."""
    assert from_metadata(piece_metadata(piece_model)).encode(text) == piece_model.encode(text)


@pytest.mark.parametrize("prefix", [True, False])
def test_pieces_against_tokenizer_json(tmp_path: Path, prefix: bool) -> None:
    """The library's own SentencePiece-like BPE, whose ranks become scores."""
    seed = random.randrange(2**32)
    print(f"{seed=}")
    library = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    prepend = [normalizers.Prepend("\u2581")] if prefix else []
    library.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "\u2581")])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    library.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    words = tokenizers.pre_tokenizers.Split("\u2581", "merged_with_next")
    library.pre_tokenizer = words
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=specials, show_progress=False)
    library.train_from_iterator(corpus(seed), trainer)
    settings = json.loads(library.to_str())
    settings["added_tokens"] = settings["added_tokens"][:3]
    settings["pre_tokenizer"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    from_json = Tokenizer(tmp_path)

    vocabulary = settings["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * (len(tokens) - 259)]
    tokenizer = from_metadata(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": -np.arange(len(tokens), dtype=np.float32),
            "tokenizer.ggml.token_type": np.array(kinds, np.int32),
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.add_space_prefix": prefix,
        }
    )
    for text in [*TEXTS, *corpus(seed + 1)[:5]]:
        ids = from_json.encode(text)
        assert tokenizer.encode(text) == ids, text[:60]
        assert tokenizer.decode(ids) == from_json.decode(ids)
    assert tokenizer.adds_bos and from_json.adds_bos


# ---- texts in pieces ----

FRAGMENTS = [
    *("a", "bé", "nest", "漢字", "カナ", "ab", "ñ", "e\u0301", "\u1161", "'s", "'LL", "1", "23456"),
    *(" ", " ", " ", " ", " ", "  ", "\n", "\n", "\n\n", " \n", "\n ", "\r\n", "\t", "\u3000", "/"),
    *(".", ", ", "-", "<tool>", "[INST]", "<s>", "👍🏽", "\ufeff"),
]
in_pieces = st.lists(
    st.lists(st.sampled_from(FRAGMENTS), max_size=200).map("".join) | st.text(max_size=30),
    max_size=6,
)


def encode_in_pieces(tokenizer: Tokenizer, pieces: list[str], size: int) -> tuple[list[int], int]:
    """The ids, and how many of them came before the end of the text."""
    encoder, ids = StreamEncoder(tokenizer, size), []
    for piece in pieces:
        ids += encoder.push(piece)
    early = len(ids)
    return ids + encoder.flush(), early


@pytest.fixture(scope="module")
def every_kind(piece_model: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Tokenizer]:
    """The demo's, each way to cut texts into words, SentencePiece with and without its prefix."""
    seed = random.randrange(2**32)
    print(f"{seed=}")
    ways = {way: name for name, way in PRE_TOKENIZERS.items()}
    make = tmp_path_factory.mktemp
    byte_level = [trained(name, make("way"), seed, bos=False) for name in ways.values()]
    metadata = piece_metadata(piece_model)
    prefixed = [metadata | {"tokenizer.ggml.add_space_prefix": prefix} for prefix in (True, False)]
    return [Tokenizer(DEMO), *byte_level, *map(from_metadata, prefixed)]


@settings(max_examples=100)
@given(pieces=in_pieces, size=st.integers(1, 100))
def test_pieces_have_the_ids_of_the_whole(
    every_kind: list[Tokenizer], pieces: list[str], size: int
) -> None:
    for tokenizer in every_kind:
        whole = tokenizer.encode("".join(pieces))
        assert encode_in_pieces(tokenizer, pieces, size)[0] == whole, tokenizer


def test_long_texts_are_cut(every_kind: list[Tokenizer]) -> None:
    """Prose at words, Chinese at lines, CRLF at words; what cannot be cut comes whole."""
    rng = random.Random(seed := random.randrange(2**32))
    print(f"{seed=}")
    prose = "".join(rng.choice(["cat ", "dogs, ", "nést. ", "bed\r\n", "a "]) for _ in range(3000))
    chinese = "".join(rng.choice(["漢字。\n", "字", "漢字", "\n", "，"]) for _ in range(3000))
    for tokenizer in every_kind:
        for text in (prose, chinese, "a" * 3000, " " * 3000, "\n" * 3000, "12" * 1500):
            cuts = sorted(rng.randrange(len(text)) for _ in range(40))
            pieces = [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]
            ids, early = encode_in_pieces(tokenizer, pieces, 200)
            assert ids == tokenizer.encode(text)
            assert (early > len(ids) * 0.8) == (text in (prose, chinese)), (tokenizer, text[:9])


def test_a_token_over_the_cut_forbids_it(tmp_path: Path) -> None:
    """Tokens of two words, which lie as the distant beginning has it; an added token that takes the
    space behind it."""
    vocabulary = {text: i for i, text in enumerate(["a", " ", " a", " a a"])}
    library = tokenizers.Tokenizer(models.BPE(vocabulary, [(" ", "a"), (" a", " a")]))
    library.decoder = decoders.ByteFallback()
    library.save(str(tmp_path / "tokenizer.json"))
    joining = Tokenizer(tmp_path)
    assert joining.encode("a a a a") == [0, 3, 2]
    greedy = trained("gpt-2", tmp_path, 0, bos=False)
    greedy._tokenizer.add_tokens([tokenizers.AddedToken("bed", rstrip=True, normalized=False)])
    for size in range(60, 260, 9):
        for tokenizer, text in ((joining, "a " * 400), (greedy, "a bed a " * 100)):
            pieces = [text[i : i + 7] for i in range(0, len(text), 7)]
            assert encode_in_pieces(tokenizer, pieces, size)[0] == tokenizer.encode(text)


# ---- BOS, EOS, ends ----


def test_bos_and_eos(demo: tuple[Tokenizer, Tokenizer]) -> None:
    metadata = data_of(tokenizer_values(demo[0], 4096))
    bos, eos = demo[0].bos_id, demo[0].eos_id
    plain = demo[0].encode("a dog")
    for adds_bos in (True, False):
        for adds_eos in (True, False):
            flags = {
                "tokenizer.ggml.add_bos_token": adds_bos,
                "tokenizer.ggml.add_eos_token": adds_eos,
            }
            tokenizer = from_metadata(metadata | flags)
            expected = [*([bos] if adds_bos else []), *plain, *([eos] if adds_eos else [])]
            assert tokenizer._tokenizer.encode("a dog").ids == expected
            assert tokenizer.encode("a dog") == plain
            assert tokenizer.opening_ids == ([bos] if adds_bos else [])
    del metadata["tokenizer.ggml.add_bos_token"]
    assert not from_metadata(metadata).adds_bos
    assert from_metadata(metadata | {"tokenizer.ggml.pre": "llama-bpe"}).adds_bos


def test_a_text_begins_with_bos(tmp_path: Path) -> None:
    path = gguf_models.convert(DEMO, tmp_path / "demo.gguf", "f32")
    values, tensors = gguf_models.read_raw(path)
    values["tokenizer.ggml.add_bos_token"] = (7, True)
    other = gguf_models.write_raw(tmp_path / "bos.gguf", values, tensors)
    with gptoss.Model(other) as model:
        assert model.tokenizer is not None
        ids = model.tokenizer.encode("A dog")
        generator = gptoss.Generator(model, max_context=64)
        list(generator.generate("A dog", max_tokens=1))
        assert generator.tokens.tolist()[: len(ids) + 1] == [model.tokenizer.bos_id, *ids]
        position = generator.position
        list(generator.generate("A dog", max_tokens=1))
        assert model.tokenizer.bos_id not in generator.tokens.tolist()[position:]


def test_ends(demo: tuple[Tokenizer, Tokenizer]) -> None:
    metadata = data_of(tokenizer_values(demo[0], 4096))
    kinds = metadata["tokenizer.ggml.token_type"].copy()
    kinds[demo[0].special_tokens["<|message|>"]] = USER_DEFINED  # no longer Harmony
    ends = {
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.eos_token_id": 5,
        "tokenizer.ggml.eot_token_id": 6,
        "tokenizer.ggml.eom_token_id": 7,
        "tokenizer.ggml.eos_token_ids": np.array([8, 9], np.int32),
    }
    tokenizer = from_metadata(metadata | ends)
    texts = ("<|end|>", "<|endoftext|>")
    assert tokenizer.stop_token_ids == {5, 6, 7, 8, 9, *(demo[0].special_tokens[t] for t in texts)}


# ---- malformed ----


def small() -> Metadata:
    """A sound byte-level vocabulary of a few tokens."""
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["a", "b", "ab", "<s>"],
        "tokenizer.ggml.token_type": np.array([1, 1, 1, 3], np.int32),
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 3,
        "tokenizer.ggml.eos_token_id": 3,
    }


def pieces() -> Metadata:
    return small() | {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.scores": np.array([-1, -2, 0, 0], np.float32),
    }


def test_the_sound_ones() -> None:
    assert from_metadata(small()).encode("abba") == [2, 1, 0]
    # No bytes, no unknown token: what has no token is lost, as in the other engines.
    assert from_metadata(pieces() | {"tokenizer.ggml.add_space_prefix": False}).encode("ab") == [2]


@pytest.mark.parametrize("model", [None, "none", "no_vocab"])
def test_without_a_vocabulary(model: str | None) -> None:
    metadata = small() | {"tokenizer.ggml.model": model}
    if model is None:
        del metadata["tokenizer.ggml.model"]
    assert Tokenizer.from_gguf(metadata, "m.gguf", 4) is None


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("model", 7, "model': expected a text, found 7"),
        ("pre", ["a"], "pre': expected a text, found 1 values"),
        ("tokens", None, "tokens': expected an array of texts, found nothing"),
        ("tokens", "abc", "tokens': expected an array of texts, found 'abc'"),
        ("tokens", np.zeros(4, np.int32), "tokens': expected an array of texts, found 4 values"),
        ("tokens", ["a", "b", "ab"], "tokens': expected 4, as the model has tokens, found 3"),
        ("tokens", ["a", "b", "ab", "<s>", "x"], "expected 4, as the model has tokens, found 5"),
        ("tokens", ["a", "b", "ab", "a"], r"tokens\[3\]': .*that of token 0, 'a'"),
        ("tokens", ["a", "b", "ab", "\udcff"], r"tokens\[3\]': expected UTF-8"),
        ("token_type", np.array([1, 1, 1], np.int32), "token_type': expected 4.*found 3"),
        ("token_type", np.array([1, 1, 1, 0], np.int32), r"token_type\[3\]': expected a type from"),
        ("token_type", np.array([1, 7, 1, 3], np.int32), r"token_type\[1\]'.*found 7"),
        ("token_type", np.array([1, 1, 1, 3], np.float32), "found an array of float32"),
        ("token_type", np.array([True] * 4), "found an array of bool"),
        ("token_type", ["1"] * 4, "expected an array of integers, found 4 values"),
        ("token_type", np.array([1, 1, 6, 3], np.int32), r"tokens\[2\]': expected a byte"),
        ("merges", None, "merges': expected an array of texts, found nothing"),
        ("merges", ["a c"], r"merges\[0\]': expected two tokens that make a third, found 'a c'"),
        ("merges", ["a b", "b a"], r"merges\[1\]'"),
        ("merges", ["ab"], r"merges\[0\]'"),
        ("merges", [""], r"merges\[0\]'"),
        ("merges", ["a  b"], r"merges\[0\]'"),
        ("merges", 5, "merges'"),
        ("bos_token_id", 4, "bos_token_id': expected the id of a token, below 4, found 4"),
        ("bos_token_id", -1, "bos_token_id'"),
        ("bos_token_id", True, "bos_token_id': expected the id of a token, found True"),
        ("bos_token_id", False, "bos_token_id'"),
        ("bos_token_id", "3", "bos_token_id'"),
        ("eos_token_id", 2**32 - 1, "eos_token_id'"),
        ("eot_token_id", 1.0, "eot_token_id'"),
        ("padding_token_id", 99, "padding_token_id'"),
        ("eos_token_ids", np.array([1, 4], np.int32), r"eos_token_ids\[1\]'"),
        ("eos_token_ids", np.array([0.5], np.float32), r"eos_token_ids\[0\]'"),
        ("eos_token_ids", 3, "eos_token_ids'"),
        ("add_bos_token", 1, "add_bos_token': expected true or false, found 1"),
        ("add_eos_token", "yes", "add_eos_token'"),
    ],
)
@pytest.mark.parametrize("make", [small, pieces])
def test_malformed(make: Any, key: str, value: Any, match: str) -> None:
    metadata = (small if key in ("merges", "pre") else make)()  # the others have no such keys
    name = f"tokenizer.ggml.{key}"
    metadata[name] = value
    if value is None:
        del metadata[name]
    with pytest.raises(gptoss.FormatError, match=match) as caught:
        Tokenizer.from_gguf(metadata, "dir/m.gguf", 4)
    error = caught.value
    assert error.file == "dir/m.gguf" and error.expected and error.found
    assert "\n" not in str(error) and re.search(r"key 'tokenizer\.ggml\.\w+(\[\d+\])?'", str(error))


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (None, "scores': expected an array of numbers, found nothing"),
        (np.zeros(3, np.float32), "scores': expected 4, one for each token, found 3"),
        (np.array([0, 0, np.nan, 0], np.float32), r"scores\[2\]': expected a number, found NaN"),
        (["0"] * 4, "scores'"),
        (0.5, "scores'"),
    ],
)
def test_malformed_scores(value: Any, match: str) -> None:
    metadata = pieces() | {"tokenizer.ggml.scores": value}
    if value is None:
        del metadata["tokenizer.ggml.scores"]
    with pytest.raises(gptoss.FormatError, match=match):
        from_metadata(metadata)


@pytest.mark.parametrize("value", [7, ["x"], True])
def test_malformed_template(value: Any) -> None:
    with pytest.raises(gptoss.FormatError, match=r"tokenizer\.chat_template': expected a text"):
        from_metadata(small() | {"tokenizer.chat_template": value})


@pytest.mark.parametrize(
    ("key", "value"), [("model", "bert"), ("model", "rwkv"), ("pre", "kimi-k2"), ("pre", "x" * 999)]
)
def test_kinds_that_are_not_known(key: str, value: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"tokenizer\.ggml\.{key}'.*is not known") as caught:
        from_metadata(small() | {f"tokenizer.ggml.{key}": value})
    known = "gpt2, llama" if key == "model" else ", ".join(sorted(PRE_TOKENIZERS))
    assert caught.value.expected == known and known in str(caught.value)
    assert len(str(caught.value)) < 600


scalars = st.one_of(st.none(), st.booleans(), st.integers(-5, 10), st.floats(), st.text(max_size=4))
arrays = st.one_of(
    st.lists(st.text("ab <>s0x", max_size=4), max_size=6),
    st.lists(st.integers(-9, 9), max_size=6).map(lambda v: np.array(v, np.int32)),
    st.lists(st.floats(width=32), max_size=6).map(lambda v: np.array(v, np.float32)),
)


@settings(max_examples=300)
@given(
    changes=st.dictionaries(
        st.sampled_from(
            [
                *("tokens", "token_type", "merges", "scores", "pre", "model", "eos_token_ids"),
                *("bos_token_id", "eos_token_id", "add_bos_token", "add_space_prefix"),
            ]
        ),
        st.one_of(scalars, arrays),
        max_size=3,
    ),
    base=st.sampled_from([small, pieces]),
)
def test_any_metadata(changes: dict[str, Any], base: Any) -> None:
    """Refused by name, or sound enough to encode with."""
    metadata = base() | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    try:
        tokenizer = Tokenizer.from_gguf(metadata, "m.gguf", 4)
    except (gptoss.FormatError, UnsupportedError) as error:
        assert "tokenizer.ggml." in str(error)
        return
    if tokenizer is not None:
        assert all(0 <= token < 4 for token in tokenizer.encode("abba <s>", allow_special=True))
