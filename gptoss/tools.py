"""Function tools: from OpenAI-style dicts or Python functions to the TypeScript of Harmony."""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, Union

from gptoss.errors import ArgumentError

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_JSON_TYPES = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    dict: "object",
    type(None): "null",
}


@dataclass(frozen=True)
class Tool:
    """A function the model may call.

    Attributes:
        name: without a namespace.
        description: what it does, for the model.
        parameters: a JSON schema of type object; empty for a function without arguments.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ArgumentError(
                f"{self.name!r} is no name for a tool: letters, digits, '_' and '-' only"
            )
        if not isinstance(self.description, str):
            raise ArgumentError(f"the description of tool {self.name!r} is not a str")
        if not isinstance(self.parameters, Mapping):
            raise ArgumentError(f"the parameters of tool {self.name!r} are not a JSON schema")

    @classmethod
    def of(cls, tool: Tool | Mapping[str, Any] | Callable[..., Any]) -> Tool:
        """A Tool from an OpenAI-style dict or from a Python function.

        A dict has name, description and parameters, at the top or under "function". Of a function,
        the signature's annotations give the schema and the docstring (Google or Sphinx style) gives
        the descriptions.
        """
        if isinstance(tool, Tool):
            return tool
        if isinstance(tool, Mapping):
            function = tool.get("function", tool)
            if not isinstance(function, Mapping) or "name" not in function:
                raise ArgumentError(
                    "a tool given as a dict needs a 'name', at the top or under 'function'"
                )
            return cls(
                function["name"],
                function.get("description") or "",
                function.get("parameters") or {},
            )
        if callable(tool):
            return _from_callable(tool)
        raise ArgumentError(f"a tool is a dict or a Python function, not a {type(tool).__name__}")

    @property
    def typescript(self) -> str:
        """The declaration as Harmony writes it: `type name = (_: {...}) => any;` below comments."""
        comment = "".join(f"{line}\n" for line in comment_lines(self.description))
        if not _mapping(self.parameters, "properties"):
            return f"{comment}type {self.name} = () => any;"
        body = _Schema(self.parameters).object_type(self.parameters, "")
        return f"{comment}type {self.name} = (_: {body}) => any;"


def _from_callable(function: Callable[..., Any]) -> Tool:
    name = getattr(function, "__name__", type(function).__name__)
    summary, described = _parse_docstring(inspect.getdoc(function) or "")
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError):
        hints = {}
    properties: dict[str, Any] = {}
    required = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
            parameter.POSITIONAL_ONLY,
        ):
            raise ArgumentError(
                f"tool {name!r}: parameter {parameter} cannot be passed by name; "
                "a model calls a tool with named arguments only"
            )
        schema = _schema_of(hints.get(parameter.name, Any))
        if parameter.name in described:
            schema["description"] = described[parameter.name]
        if parameter.default is parameter.empty:
            required.append(parameter.name)
        elif parameter.default is not None:
            schema["default"] = (
                parameter.default.value
                if isinstance(parameter.default, Enum)
                else parameter.default
            )
        properties[parameter.name] = schema
    return Tool(name, summary, {"type": "object", "properties": properties, "required": required})


def _schema_of(hint: Any) -> dict[str, Any]:
    """JSON schema of a type annotation; {} (anything) where there is no equivalent."""
    if hint in _JSON_TYPES:
        return {"type": _JSON_TYPES[hint]}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {"enum": [member.value for member in hint]}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema_of(a) for a in arguments]}
    if hint in (list, tuple, set) or origin in (list, tuple, set, Sequence):
        items = [a for a in arguments if a is not Ellipsis]
        return {"type": "array", **({"items": _schema_of(items[0])} if items else {})}
    if origin in (dict, Mapping):
        return {"type": "object"}
    return {}


def _parse_docstring(text: str) -> tuple[str, dict[str, str]]:
    """The part before the parameters, and what is said of each parameter."""
    described: dict[str, str] = {}
    summary: list[str] = []
    section, current = "summary", None
    for line in text.splitlines():
        sphinx = re.match(r":param (?:[^:]* )?(\w+):\s*(.*)", line)
        entry = re.match(r"\s+\*{0,2}(\w+)(?: ?\([^)]*\))?:\s*(.*)", line)
        if re.match(r"(args|arguments|parameters):\s*$", line, re.IGNORECASE):
            section, current = "parameters", None
        elif sphinx:
            section, current = "parameters", sphinx[1]
            described[current] = sphinx[2]
        elif re.match(r":\w+|(returns?|raises|yields|examples?|notes?):\s*$", line, re.IGNORECASE):
            section, current = "other", None
        elif section == "parameters" and entry:
            current = entry[1]
            described[current] = entry[2]
        elif section == "parameters" and current and line.strip():
            described[current] = f"{described[current]} {line.strip()}"
        elif section == "summary":
            summary.append(line)
    return "\n".join(summary).strip(), described


class _Schema:
    """JSON schema to TypeScript as openai/harmony spells it; root: what "$ref" points into."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._open: list[
            str
        ] = []  # references being expanded, so that a recursive schema ends in `any`

    def type(self, schema: Any, indent: str) -> str:
        if not isinstance(schema, Mapping):
            return "any"
        reference = schema.get("$ref")
        if isinstance(reference, str):
            return self._referenced(reference, indent)
        text = self._plain_type(schema, indent)
        if schema.get("nullable") is True and "null" not in text:
            text += " | null"
        return text

    def _plain_type(self, schema: Mapping[str, Any], indent: str) -> str:
        kind = schema.get("type")
        if _list(schema, "oneOf"):
            return "".join(f"\n{line}" for line in self._variants(schema, indent))
        if _list(schema, "anyOf"):
            return " | ".join(
                dict.fromkeys(self.type(variant, indent) for variant in schema["anyOf"])
            )
        if _list(schema, "enum"):
            return " | ".join(json.dumps(value, ensure_ascii=False) for value in schema["enum"])
        if "const" in schema:
            return json.dumps(schema["const"], ensure_ascii=False)
        if isinstance(kind, list):
            return " | ".join(self.type({**schema, "type": one}, indent) for one in kind) or "any"
        if kind == "object":
            return self.object_type(schema, indent) if _mapping(schema, "properties") else "object"
        if kind == "array":
            return f"{self.type(schema.get('items'), indent)}[]"
        simple = {
            "integer": "number",
            "number": "number",
            "string": "string",
            "boolean": "boolean",
            "null": "null",
        }
        return simple.get(kind, "any") if isinstance(kind, str) else "any"

    def _referenced(self, reference: str, indent: str) -> str:
        if reference in self._open or not reference.startswith("#/"):
            return "any"
        target: Any = self._root
        for part in reference[2:].split("/"):
            target = target.get(part) if isinstance(target, Mapping) else None
        self._open.append(reference)
        try:
            return self.type(target, indent)
        finally:
            self._open.pop()

    def object_type(self, schema: Mapping[str, Any], indent: str) -> str:
        required = _list(schema, "required")
        lines = ["{"]
        if not indent:  # a nested object's description already stands above its property
            lines[:0] = comment_lines(schema.get("description"))
        for name, value in _mapping(schema, "properties").items():
            value = value if isinstance(value, Mapping) else {}
            lines += [f"{indent}{line}" for line in _comments(value)]
            name = f"{name}{'' if name in required else '?'}"
            default = _default(value)
            if _list(value, "oneOf"):
                lines += [f"{indent}// {default}"] if default else []
                lines += [f"{indent}{name}:", *self._variants(value, indent), f"{indent},"]
            else:
                comment = f" // {default}" if default else ""
                lines.append(f"{indent}{name}: {self.type(value, indent + '    ')},{comment}")
        return "\n".join([*lines, f"{indent}}}"])

    def _variants(self, schema: Mapping[str, Any], indent: str) -> list[str]:
        """One line for each alternative of oneOf, its description and default behind it."""
        lines = []
        for variant in schema["oneOf"]:
            line = f"{indent} | {self.type(variant, indent + '   ')}"
            if isinstance(variant, Mapping):
                text = variant.get("description")
                own = text if isinstance(text, str) and text != schema.get("description") else ""
                notes = " ".join(filter(None, [*own.splitlines(), _default(variant)]))
                line += f" // {notes}" if notes else ""
            lines.append(line)
        return lines


def _comments(schema: Mapping[str, Any]) -> list[str]:
    """Title, description and examples of a property, as the comment lines above it."""
    lines = []
    if title := comment_lines(schema.get("title")):
        lines += [*title, "//"]
    lines += comment_lines(schema.get("description"))
    examples = [
        json.dumps(e, ensure_ascii=False) for e in _list(schema, "examples") if isinstance(e, str)
    ]
    if examples:
        lines += ["// Examples:", *(f"// - {example}" for example in examples)]
    return lines


def _default(schema: Mapping[str, Any]) -> str:
    if "default" not in schema:
        return ""
    value = schema["default"]
    bare = isinstance(value, str) and _list(schema, "enum")
    return f"default: {value if bare else json.dumps(value, ensure_ascii=False, default=str)}"


def comment_lines(text: Any) -> list[str]:
    """A text as TypeScript comments; none if it is no text."""
    lines = text.splitlines() if isinstance(text, str) else []
    return [f"// {line}" if line else "//" for line in lines]


def _mapping(schema: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = schema.get(key)
    return value if isinstance(value, Mapping) else {}


def _list(schema: Mapping[str, Any], key: str) -> list[Any]:
    value = schema.get(key)
    return list(value) if isinstance(value, list | tuple) else []
