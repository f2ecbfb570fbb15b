"""Harmony: rendering like recorded prompts, the model's template, the document; parsing."""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
import zlib
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss import ArgumentError, UnsupportedError
from gptoss.chat_template import ChatTemplate
from gptoss.harmony import Delta, Harmony, HarmonyParser, Message, ResponseFormat, to_messages
from gptoss.locate import DEMO
from gptoss.tokenizer import Tokenizer
from gptoss.tools import Tool

TOKENIZER = Tokenizer(DEMO)
TEMPLATE = ChatTemplate(TOKENIZER)
MODEL = Harmony.of_template(TOKENIZER.chat_template)
OPENAI = Harmony(date="2025-06-28", reasoning="high")
SPECIAL = re.compile(r"(<\|\w+\|>)")


def parse(text: str, *, size: int = 3) -> HarmonyParser:
    """Parses a text in pieces of `size` characters; its special tokens are special."""
    parser = HarmonyParser()
    deltas: list[Delta] = []
    for part in SPECIAL.split(text):
        if SPECIAL.fullmatch(part):
            deltas += parser.push_special(part)
        else:
            for at in range(0, len(part), size):
                deltas += parser.push_text(part[at : at + size])
    deltas += parser.flush()
    check_deltas(parser, deltas)
    return parser


def check_deltas(parser: HarmonyParser, deltas: list[Delta]) -> None:
    """What was streamed is what the messages say."""
    for channel in ("analysis", "commentary", "final"):
        streamed = "".join(d.text for d in deltas if d.channel == channel)
        said = [m for m in parser.messages if m.role == "assistant" and m.channel == channel]
        assert streamed == "".join(m.content for m in said)


def brief(parser: HarmonyParser) -> list[tuple[str | None, ...]]:
    return [
        (m.channel, m.content) if m.recipient is None else (m.channel, m.recipient, m.content)
        for m in parser.messages
    ]


# ---- rendering: recorded prompts of the demo model ----


def test_every_evaluation_prompt(shared: Path) -> None:
    with (shared / "demo-model" / "eval_items.jsonl").open() as lines:
        for item in map(json.loads, lines):
            harmony = dataclasses.replace(MODEL, date=item["date"])
            messages = item["messages"]
            if item.get("developer"):
                messages = [{"role": "system", "content": item["developer"]}, *messages]
            tools = [Tool.of(tool) for tool in item.get("tools", ())]
            text = harmony.render(messages, tools=tools)
            assert zlib.crc32(text.encode()) == item["prompt_crc32"], f"item {item['id']}: {text}"
            ids = harmony.encode(TOKENIZER, messages, tools=tools)
            assert len(ids) == item["prompt_tokens"], f"item {item['id']}"


def test_every_prompt_of_the_oracle(shared: Path) -> None:
    entries = json.loads((shared / "oracle" / "demo_generations.json").read_text())
    for entry in entries:
        if entry["messages"] is None:
            assert TOKENIZER.encode(entry["prompt"]) == entry["prompt_ids"]
            continue
        harmony = dataclasses.replace(
            MODEL, date=entry["current_date"], reasoning=entry["reasoning_effort"]
        )
        tools = [Tool.of(tool) for tool in entry["tools"] or ()]
        assert harmony.render(entry["messages"], tools=tools) == entry["prompt"]
        assert harmony.encode(TOKENIZER, entry["messages"], tools=tools) == entry["prompt_ids"]


def test_every_answer_of_the_oracle_is_parsed(shared: Path) -> None:
    entries = json.loads((shared / "oracle" / "demo_generations.json").read_text())
    for entry in entries:
        if entry["messages"] is None:
            continue
        parser = HarmonyParser(TOKENIZER)
        deltas = [delta for token in entry["generated_ids"] for delta in parser.push(token)]
        deltas += parser.flush()
        check_deltas(parser, deltas)
        assert parser.tokens == entry["generated_ids"]
        assert not parser.truncated
        assert parse(entry["generated_text"]).messages == parser.messages
        rendered = "".join(
            f"<|start|>assistant{m}"
            for m in re.findall(
                r"<\|channel\|>.*?(?:<\|end\|>|<\|call\|>)",
                entry["generated_text"].replace("<|return|>", "<|end|>"),
                re.DOTALL,
            )
        )
        harmony = Harmony(drop_analysis=False)
        assert harmony.render(parser.messages, generation_prompt=False).endswith(rendered)


# ---- rendering: the demo's own template ----

WORDS = st.text(
    st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30
) | st.sampled_from(["<|end|>", "<|start|>system<|message|>", "What is 2 + 2?", "äöü 世界"])
NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,12}", fullmatch=True)
LINES = st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1, max_size=20)
SIMPLE_TYPES = st.sampled_from(
    [{"type": kind} for kind in ("string", "number", "integer", "boolean", "object")]
)
PARAMETER = (
    SIMPLE_TYPES
    | st.lists(LINES, min_size=1, max_size=3).map(lambda v: {"type": "string", "enum": v})
    | SIMPLE_TYPES.map(lambda items: {"type": "array", "items": items})
)
DESCRIBED = st.builds(lambda p, d: {**p, **({"description": d} if d else {})}, PARAMETER, LINES)


@st.composite
def functions(draw: Any) -> dict[str, Any]:
    properties = draw(st.dictionaries(NAMES, DESCRIBED, max_size=4))
    required = [name for name in properties if draw(st.booleans())]
    function = {
        "name": draw(NAMES),
        "description": draw(LINES),
        "parameters": {"type": "object", "properties": properties, "required": required},
    }
    return {"type": "function", "function": function} if draw(st.booleans()) else function


ARGUMENTS = st.dictionaries(NAMES, st.none() | st.integers() | WORDS | st.lists(WORDS, max_size=2))


@st.composite
def conversations(draw: Any) -> list[dict[str, Any]]:
    """Turns that each end in a final message; the last one may still be calling tools."""
    messages: list[dict[str, Any]] = []
    if draw(st.booleans()):
        role = draw(st.sampled_from(["system", "developer"]))
        messages.append({"role": role, "content": draw(WORDS)})
    num_turns = draw(st.integers(1, 3))
    for turn in range(num_turns):
        messages.append({"role": "user", "content": draw(WORDS)})
        for _ in range(draw(st.integers(0, 2))):
            name, arguments = draw(NAMES), draw(ARGUMENTS)
            call = {"name": name, "arguments": draw(st.sampled_from([arguments, "{}"]))}
            thought = {"thinking": draw(WORDS)} if draw(st.booleans()) else {}
            calls = [draw(st.sampled_from([call, {"function": call}]))]
            messages.append({"role": "assistant", "tool_calls": calls, **thought})
            named = {"name": name} if draw(st.booleans()) else {}
            messages.append({"role": "tool", "content": draw(WORDS | ARGUMENTS), **named})
        if turn + 1 < num_turns:
            thought = {"thinking": draw(WORDS)} if draw(st.booleans()) else {}
            messages.append({"role": "assistant", "content": draw(WORDS), **thought})
    return messages


@given(
    conversations(),
    st.lists(functions(), max_size=3),
    st.sampled_from(["low", "medium", "high"]),
    st.dates().map(datetime.date.isoformat),
)
def test_equals_the_demo_template(
    messages: list[dict[str, Any]], tools: list[dict[str, Any]], reasoning: str, date: str
) -> None:
    harmony = dataclasses.replace(MODEL, reasoning=reasoning, date=date)
    ours = [Tool.of(tool) for tool in tools]
    options = {"tools": tools or None, "reasoning_effort": reasoning, "current_date": date}
    assert harmony.render(messages, tools=ours) == TEMPLATE.render(messages, **options)
    assert harmony.encode(TOKENIZER, messages, tools=ours) == TEMPLATE.encode(messages, **options)


# ---- rendering: the format's document ----

WEATHER_TOOLS: list[dict[str, Any]] = [
    {"name": "get_location", "description": "Gets the location of the user."},
    {
        "name": "get_current_weather",
        "description": "Gets the current weather in the provided location.",
        "parameters": {
            "type": "object",
            "properties": {
                "location": {
                    "type": "string",
                    "description": "The city and state, e.g. San Francisco, CA",
                },
                "format": {
                    "type": "string",
                    "enum": ["celsius", "fahrenheit"],
                    "default": "celsius",
                },
            },
            "required": ["location"],
        },
    },
    {
        "name": "get_multiple_weathers",
        "description": "Gets the current weather in the provided list of locations.",
        "parameters": {
            "type": "object",
            "properties": {
                "locations": {
                    "type": "array",
                    "items": {"type": "string"},
                    "description": 'List of city and state, e.g. ["San Francisco, CA"]',
                },
                "format": {
                    "type": "string",
                    "enum": ["celsius", "fahrenheit"],
                    "default": "celsius",
                },
            },
            "required": ["locations"],
        },
    },
]

WEATHER_PROMPT = """\
<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.
Knowledge cutoff: 2024-06
Current date: 2025-06-28

Reasoning: high

# Valid channels: analysis, commentary, final. Channel must be included for every message.
Calls to these tools must go to the commentary channel: 'functions'.<|end|>\
<|start|>developer<|message|># Instructions

Use a friendly tone.

# Tools

## functions

namespace functions {

// Gets the location of the user.
type get_location = () => any;

// Gets the current weather in the provided location.
type get_current_weather = (_: {
// The city and state, e.g. San Francisco, CA
location: string,
format?: "celsius" | "fahrenheit", // default: celsius
}) => any;

// Gets the current weather in the provided list of locations.
type get_multiple_weathers = (_: {
// List of city and state, e.g. ["San Francisco, CA"]
locations: string[],
format?: "celsius" | "fahrenheit", // default: celsius
}) => any;

} // namespace functions<|end|><|start|>user<|message|>What is the weather like in SF?<|end|>"""

WEATHER_CALL = """\
<|start|>assistant<|channel|>analysis<|message|>Need to use function get_weather.<|end|>\
<|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>\
{"location":"San Francisco"}<|call|>\
<|start|>functions.get_weather to=assistant<|channel|>commentary<|message|>\
{"sunny": true, "temperature": 20}<|end|>"""


def test_tools_of_the_document() -> None:
    tools = [Tool.of(tool) for tool in WEATHER_TOOLS]
    question: list[Any] = [
        {"role": "system", "content": "Use a friendly tone."},
        {"role": "user", "content": "What is the weather like in SF?"},
    ]
    assert OPENAI.render(question, tools=tools) == WEATHER_PROMPT + "<|start|>assistant"
    call = {"name": "get_weather", "arguments": '{"location":"San Francisco"}'}
    loop = [
        *question,
        {
            "role": "assistant",
            "thinking": "Need to use function get_weather.",
            "tool_calls": [{"id": "7", "type": "function", "function": call}],
        },
        {"role": "tool", "tool_call_id": "7", "content": {"sunny": True, "temperature": 20}},
    ]
    expected = WEATHER_PROMPT + WEATHER_CALL
    assert OPENAI.render(loop, tools=tools) == expected + "<|start|>assistant"
    assert OPENAI.render(loop, tools=tools, generation_prompt=False) == expected


def test_schema_spellings_of_openai_harmony() -> None:
    properties = {
        "string": {
            "type": "string",
            "title": "STRING",
            "description": "A string",
            "examples": ["hello", "world"],
        },
        "string_nullable": {
            "type": "string",
            "nullable": True,
            "description": "A nullable string",
            "default": "the default",
        },
        "string_enum": {"type": "string", "enum": ["a", "b", "c"]},
        "oneof_string_or_number": {
            "oneOf": [
                {"type": "string", "default": "default_string_in_oneof"},
                {"type": "number", "description": "numbers can happen too"},
            ],
            "description": "a oneof",
            "default": 20,
        },
    }
    parameters = {"description": "params object", "type": "object", "properties": properties}
    tool = Tool("kitchensink", "A function with various complex schemas.", parameters)
    assert (
        tool.typescript
        == """\
// A function with various complex schemas.
type kitchensink = (_: // params object
{
// STRING
//
// A string
// Examples:
// - "hello"
// - "world"
string?: string,
// A nullable string
string_nullable?: string | null, // default: "the default"
string_enum?: "a" | "b" | "c",
// a oneof
// default: 20
oneof_string_or_number?:
 | string // default: "default_string_in_oneof"
 | number // numbers can happen too
,
}) => any;"""
    )


@pytest.mark.parametrize(
    ("schema", "typescript"),
    [
        ({"type": "integer"}, "number"),
        ({"type": ["string", "null"]}, "string | null"),
        ({"type": ["integer", "number"]}, "number | number"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "number | null"),
        ({"anyOf": [{"type": "integer"}, {"type": "number"}]}, "number"),
        ({"enum": [1, "a", None]}, '1 | "a" | null'),
        ({"const": "x"}, '"x"'),
        ({"type": "array"}, "any[]"),
        (
            {"type": "array", "items": {"type": "array", "items": {"type": "boolean"}}},
            "boolean[][]",
        ),
        ({"type": "object"}, "object"),
        ({}, "any"),
        (True, "any"),
        ({"type": "nonsense"}, "any"),
        ({"type": "object", "properties": [1], "required": 3}, "object"),
        ({"oneOf": 3, "anyOf": "x", "enum": {}, "examples": 1, "title": 2, "type": 4}, "any"),
        ({"$ref": "#/$defs/Point"}, "{\n    x: number,\n    y?: number,\n    }"),
        ({"$ref": "#/$defs/Tree"}, "{\n    left?: any,\n    }"),
        ({"$ref": "#/nowhere"}, "any"),
        ({"$ref": "other.json"}, "any"),
    ],
)
def test_types(schema: Any, typescript: str) -> None:
    definitions = {
        "Point": {
            "type": "object",
            "properties": {"x": {"type": "number"}, "y": {"type": "number"}},
            "required": ["x"],
        },
        "Tree": {"type": "object", "properties": {"left": {"$ref": "#/$defs/Tree"}}},
    }
    tool = Tool("f", "", {"properties": {"value": schema}, "$defs": definitions})
    assert tool.typescript == f"type f = (_: {{\nvalue?: {typescript},\n}}) => any;"


def test_tool_from_a_function() -> None:
    def book(
        city: str,
        nights: int,
        budget: float | None = None,
        kind: Literal["hotel", "hostel"] = "hotel",
        tags: list[str] = [],  # noqa: B006
    ) -> str:
        """Books a room.

        Waits for the confirmation.

        Args:
            city: The city and state,
                e.g. San Francisco, CA
            nights (int): How many nights.

        Returns:
            A code.
        """
        return ""

    tool = Tool.of(book)
    assert tool.name == "book"
    assert tool.parameters["required"] == ["city", "nights"]
    assert (
        tool.typescript
        == """\
// Books a room.
//
// Waits for the confirmation.
type book = (_: {
// The city and state, e.g. San Francisco, CA
city: string,
// How many nights.
nights: number,
budget?: number | null,
kind?: "hotel" | "hostel", // default: hotel
tags?: string[], // default: []
}) => any;"""
    )


def test_tools_that_cannot_be() -> None:
    with pytest.raises(ArgumentError, match="by name"):
        Tool.of(lambda *args: None)
    with pytest.raises(ArgumentError, match="no name for a tool"):
        Tool.of({"name": "two words"})
    with pytest.raises(ArgumentError, match="'name'"):
        Tool.of({"type": "function"})
    with pytest.raises(ArgumentError, match="not a int"):
        Tool.of(3)  # type: ignore[arg-type]


def test_response_format() -> None:
    wished = ResponseFormat("shopping_list", {"type": "object"}, "What to buy")
    messages = [Message("developer", "You help."), Message("user", "Coffee")]
    assert (
        "<|start|>developer<|message|># Instructions\n\nYou help.\n\n# Response Formats\n\n"
        '## shopping_list\n\n// What to buy\n{"type":"object"}<|end|>'
    ) in OPENAI.render(messages, response_format=wished)


def test_lines_of_the_system_message_can_be_left_out() -> None:
    bare = Harmony(identity=None, knowledge_cutoff=None, date=None, reasoning=None)
    channels = (
        "# Valid channels: analysis, commentary, final. Channel must be included for every message."
    )
    assert bare.render([]) == f"<|start|>system<|message|>{channels}<|end|><|start|>assistant"
    assert f"Current date: {datetime.date.today()}" in Harmony().render([])
    with pytest.raises(ArgumentError, match="extreme"):
        Harmony(reasoning="extreme")


def test_defaults_of_a_template() -> None:
    assert MODEL.identity == "You are gptoss demo, a very small gpt-oss model."
    assert MODEL.knowledge_cutoff == "2024-06"
    spelled = """{%- set model_identity = "You are ChatGPT, a large language model." %}
        {{- model_identity + "\\n" }}{{- "Knowledge cutoff: 2025-12\\n" }}"""
    assert Harmony.of_template(spelled) == Harmony(
        identity="You are ChatGPT, a large language model.", knowledge_cutoff="2025-12"
    )
    assert Harmony.of_template("{{ 'You are it\\n' }}") == Harmony(identity="You are it")
    assert Harmony.of_template(None) == Harmony.of_template("{{ messages }}") == Harmony()


# ---- rendering: which reasoning stays ----

THOUGHT = Message("assistant", "hm", channel="analysis")
CALL = Message("assistant", "{}", "commentary", "functions.f", "json")
RESULT = Message("tool", "1", "commentary", "assistant", name="functions.f")
FINAL = Message("assistant", "4", channel="final")
USER = Message("user", "2 + 2?")


@pytest.mark.parametrize(
    ("messages", "num_thoughts"),
    [
        ([USER, THOUGHT, FINAL, USER], 0),
        ([USER, THOUGHT, CALL, RESULT], 1),
        ([USER, THOUGHT, CALL, RESULT, THOUGHT, CALL, RESULT], 2),
        ([USER, THOUGHT, CALL, RESULT, THOUGHT, FINAL, USER], 0),
        ([USER, THOUGHT, FINAL, USER, THOUGHT, FINAL, USER], 0),
        ([USER, THOUGHT, FINAL, USER, THOUGHT, CALL, RESULT], 1),
        ([USER, THOUGHT, CALL, RESULT, USER], 1),
    ],
)
def test_analysis_is_dropped_once_its_turn_is_final(
    messages: list[Message], num_thoughts: int
) -> None:
    assert OPENAI.render(messages).count("<|channel|>analysis") == num_thoughts
    everything = dataclasses.replace(OPENAI, drop_analysis=False).render(messages)
    assert everything.count("<|channel|>analysis") == messages.count(THOUGHT)


# ---- rendering: safety and input forms ----


@given(WORDS)
def test_no_text_becomes_a_special_token(text: str) -> None:
    plain = [Message("developer", "."), USER, CALL, RESULT, FINAL, Message("developer", ".")]
    spiked = [dataclasses.replace(m, content=text) for m in plain]
    tools = [Tool("f", text, {"properties": {"x": {"description": text}}})]
    specials = set(TOKENIZER.special_tokens.values())

    def markup(messages: list[Message]) -> list[int]:
        return [i for i in OPENAI.encode(TOKENIZER, messages, tools=tools) if i in specials]

    assert markup(spiked) == markup(plain)
    ids = OPENAI.encode(TOKENIZER, spiked, tools=tools)
    assert TOKENIZER.decode(ids) == OPENAI.render(spiked, tools=tools)


def test_dicts_become_messages() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    dicts: list[Any] = [
        {"role": "user", "content": parts, "name": "ann"},
        {"role": "assistant", "reasoning_content": "hm", "content": "I look it up."}
        | {"tool_calls": [{"function": {"name": "f", "arguments": {"x": "é"}}}]},
        {"role": "tool", "content": parts},
        {"role": "tool", "content": [1, 2], "name": "browser.search"},
        {"role": "assistant", "content": "done", "thinking": ""},
        USER,
    ]
    assert to_messages(dicts) == [
        Message("user", "ab", name="ann"),
        Message("assistant", "hm", channel="analysis"),
        Message("assistant", "I look it up.", channel="commentary"),
        Message("assistant", '{"x": "é"}', "commentary", "functions.f", "json"),
        Message("tool", "ab", "commentary", "assistant", name="functions.f"),
        Message("tool", "[1, 2]", "commentary", "assistant", name="browser.search"),
        Message("assistant", "done", channel="final"),
        USER,
    ]
    assert "<|start|>user:ann<|message|>ab<|end|>" in OPENAI.render(dicts)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"role": "user", "contents": "x"}, "no 'content'; its keys are 'role', 'contents'"),
        ({"role": "user", "content": None}, "not NoneType"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": ""}]}, "text parts"),
        ({"role": "assistant"}, "no 'content'"),
        ({"role": "assistant", "tool_calls": [{"name": 3}]}, "tool call"),
        ({"role": "assistant", "content": "x", "channel": "aside"}, "'aside' is no channel"),
        ({"role": "user", "content": "x", "name": 7}, "7 cannot stand in the header"),
        ({"role": "bot", "content": "x"}, "'bot'"),
        ({"content": "x"}, "None"),
        ({"role": "tool", "content": "x"}, "give it a 'name'"),
        ("hello", "str"),
    ],
)
def test_messages_that_cannot_be(message: Any, words: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(words)):
        to_messages([message])


def test_a_tokenizer_without_harmony_is_refused(tmp_path: Path) -> None:
    content = json.loads((DEMO / "tokenizer.json").read_text())
    content["added_tokens"] = content["added_tokens"][:2]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = Tokenizer(tmp_path)
    assert not tokenizer.is_harmony
    with pytest.raises(UnsupportedError, match=r"<\|start\|>"):
        OPENAI.encode(tokenizer, [USER])


# ---- parsing ----

GOLDEN = (
    '<|channel|>analysis<|message|>User asks: "What is 2 + 2?" Simple arithmetic. Provide answer.'
    "<|end|><|start|>assistant<|channel|>final<|message|>2 + 2 = 4.<|return|>"
)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_golden_completion(size: int) -> None:
    parser = parse(GOLDEN, size=size)
    assert parser.messages == [
        Message(
            "assistant",
            'User asks: "What is 2 + 2?" Simple arithmetic. Provide answer.',
            channel="analysis",
        ),
        Message("assistant", "2 + 2 = 4.", channel="final"),
    ]
    assert not parser.truncated


CALL_OF_F = Message("assistant", '{"x": 1}', "commentary", "functions.f", "json")


@pytest.mark.parametrize(
    "header",
    [
        "<|channel|>commentary to=functions.f <|constrain|>json",
        "<|channel|>commentary to=functions.f<|constrain|>json",
        "<|channel|>commentary to=functions.f json",
        " to=functions.f<|channel|>commentary json",
        " to=functions.f<|channel|>commentary <|constrain|>json",
        " to=functions.f<|channel|>commentary<|constrain|>json",
        "<|end|><|start|>assistant to=functions.f<|channel|>commentary <|constrain|>json",
        "<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json",
        "<|channel|>commentary to=assistant<|channel|>commentary? to=functions.f <|constrain|>json",
        " to=functions.f <|constrain|>json",
        "<|start|>assistant to=functions.f json",
    ],
)
def test_headers_of_a_tool_call(header: str) -> None:
    assert parse(f'{header}<|message|>{{"x": 1}}<|call|>').messages == [CALL_OF_F]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # text without any header: reasoning if another message follows, else the answer
        (
            "I must refuse<|end|><|start|>assistant<|channel|>final<|message|>No.<|return|>",
            [("analysis", "I must refuse"), ("final", "No.")],
        ),
        ("Forty-two.<|return|>", [("final", "Forty-two.")]),
        ("Forty-two.", [("final", "Forty-two.")]),
        ("👍<|return|>", [("final", "👍")]),
        ("<|start|>assistant<|message|>Hi<|return|>", [("final", "Hi")]),
        ("<|start|>Hi there.<|return|>", [("final", "Hi there.")]),
        # <|message|> is missing
        ("<|channel|>analysis I must refuse<|end|>", [("analysis", "I must refuse")]),
        ('<|channel|>final {"answer": 42}<|return|>', [("final", '{"answer": 42}')]),
        (
            '<|channel|>commentary to=functions.f {"x": 1}<|call|>',
            [("commentary", "functions.f", '{"x": 1}')],
        ),
        (
            '<|channel|>commentary to=functions.f <|constrain|>json {"x": 1}<|call|>',
            [("commentary", "functions.f", '{"x": 1}')],
        ),
        ("<|channel|>commentary to=functions.f<|call|>", [("commentary", "functions.f", "")]),
        ("<|start|>assistantfinal Hello you<|return|>", [("final", "Hello you")]),
        # channel words that are none
        ("<|channel|>finalx<|message|>Hi<|return|>", [("final", "Hi")]),
        ("<|channel|>commentary?commentary?<|message|>Hi<|end|>", [("commentary", "Hi")]),
        ("<|channel|>\u2013\u2013commentary<|message|>Hi<|end|>", [("commentary", "Hi")]),
        ("<|channel|>??<|message|>Hi<|return|>", [("final", "Hi")]),
        ("<|channel|><|message|>Hi<|return|>", [("final", "Hi")]),
        ("<|channel|>??<|end|><|start|>assistant<|channel|>final<|message|>a", [("final", "a")]),
        ("final<|message|>Hi<|return|>", [("final", "Hi")]),
        ("<|start|>assistant analysis<|message|>Hi<|end|>", [("analysis", "Hi")]),
        ("<|start|>assistantfinal<|message|>Hi<|return|>", [("final", "Hi")]),
        ("<|channel|>analysis<|channel|>final<|message|>Hi<|return|>", [("final", "Hi")]),
        # markup in strange places
        (
            "<|channel|>analysis<|message|>hm<|channel|>final<|message|>Hi<|return|>",
            [("analysis", "hm"), ("final", "Hi")],
        ),
        (
            "<|channel|>analysis<|message|>hm<|start|>assistant<|channel|>final<|message|>Hi",
            [("analysis", "hm"), ("final", "Hi")],
        ),
        ("<|channel|>final<|message|>a<|message|>b<|constrain|>c<|x|>d", [("final", "abcd")]),
        ("<|start|><|start|>assistant<|channel|>final<|message|>a<|end|>", [("final", "a")]),
        ("<|end|>\n<|start|>assistant<|channel|>final<|message|>a<|end|>\n", [("final", "a")]),
        # cut off
        ("<|channel|>final<|message|>Hal", [("final", "Hal")]),
        ("<|channel|>ana", []),
        ("<|channel|>commentary to=functions.f <|constrain|>js", []),
        ("<|channel|>commentary t", []),
        ("<|channel|>final<|message|>a<|end|><|start|>assist", [("final", "a")]),
        ("", []),
    ],
)
def test_malformed_output(text: str, expected: list[tuple[str, ...]]) -> None:
    assert brief(parse(text)) == expected


def test_roles_that_the_model_makes_up_are_not_its_answer() -> None:
    parser = parse(
        "<|channel|>final<|message|>a<|end|><|start|>user<|message|>b<|end|>"
        "<|start|>functions.f to=assistant<|channel|>commentary<|message|>c<|end|>"
    )
    assert parser.messages == [
        Message("assistant", "a", channel="final"),
        Message("user", "b"),
        Message("tool", "c", "commentary", "assistant", name="functions.f"),
    ]


def test_truncation_is_told() -> None:
    assert parse("<|channel|>final<|message|>Hal").truncated
    assert not parse("<|channel|>final<|message|>Hal<|return|>").truncated
    assert not parse("<|channel|>final<|message|>Hal<|end|><|start|>assi").truncated


PIECES = st.sampled_from(
    [
        *("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|call|>"),
        *("<|return|>", "<|endoftext|>", "<|startoftext|>", "assistant", "user", "analysis"),
        *("final", "commentary", " to=functions.f", "json", " ", "\n", "?", '{"x": 1}', "a.b", ""),
    ]
)


@given(st.lists(PIECES | st.text(max_size=5)), st.integers(1, 5))
def test_any_output_is_parsed_without_markup(pieces: list[str], size: int) -> None:
    parser = parse("".join(pieces), size=size)
    for message in parser.messages:
        assert not SPECIAL.search(message.content)
        assert message.role != "assistant" or message.channel in ("analysis", "commentary", "final")
    whole = parse("".join(pieces), size=1000)
    assert whole.messages == parser.messages
    Harmony().render(parser.messages)


@given(st.lists(st.integers(0, 4200) | st.integers(4080, 4095)))
def test_any_tokens_are_parsed(tokens: list[int]) -> None:
    parser = HarmonyParser(TOKENIZER)
    deltas = [delta for token in tokens for delta in parser.push(token)] + parser.flush()
    check_deltas(parser, deltas)
    assert parser.tokens == tokens


@given(st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=3))
def test_what_is_rendered_is_parsed_back(texts: list[str]) -> None:
    messages = [Message("assistant", text, channel="commentary") for text in texts]
    messages += [CALL_OF_F, Message("assistant", "<|end|>", channel="final")]
    harmony = dataclasses.replace(OPENAI, drop_analysis=False)
    ids = harmony.encode(TOKENIZER, messages, generation_prompt=False)
    start = len(harmony.encode(TOKENIZER, []))
    parser = HarmonyParser(TOKENIZER)
    deltas = [delta for token in ids[start:] for delta in parser.push(token)] + parser.flush()
    check_deltas(parser, deltas)
    assert parser.messages == messages


def test_streamed_text_is_whole_characters() -> None:
    parser = HarmonyParser(TOKENIZER)
    text = "<|channel|>final<|message|>世界<|return|>"
    ids = TOKENIZER.encode(text, allow_special=True)
    texts = [delta.text for token in ids for delta in parser.push(token)]
    assert "".join(texts) == "世界"
    assert len(ids) > 6  # the characters are spread over several tokens
    byte = TOKENIZER.token_id("ä")
    assert byte is not None
    parser = HarmonyParser(TOKENIZER)
    for token in [*ids[:3], byte, ids[-1]]:
        parser.push(token)
    assert brief(parser) == [("final", "\N{REPLACEMENT CHARACTER}")]


def test_a_parser_without_a_tokenizer_takes_no_tokens() -> None:
    with pytest.raises(ArgumentError, match="push_text"):
        HarmonyParser().push(1)
