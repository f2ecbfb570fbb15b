"""The exceptions of gptoss, and the words in which options are refused."""

from __future__ import annotations

import difflib
import functools
import inspect
import operator
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, SupportsIndex, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)


class Error(Exception):
    """Base of every exception of gptoss. str() is a sentence for people; the attributes are for
    programs.

    Attributes (None where unknown):
        file: path of the file at fault.
        tensor: name of the tensor at fault.
        offset: byte offset in the file.
        expected: what should have been there.
        found: what was there.
    """

    def __init__(
        self,
        message: str = "",
        *,
        file: str | None = None,
        tensor: str | None = None,
        offset: int | None = None,
        expected: str | None = None,
        found: str | None = None,
    ) -> None:
        super().__init__(message)
        self.file = file
        self.tensor = tensor
        self.offset = offset
        self.expected = expected
        self.found = found

    def __str__(self) -> str:
        # KeyError and OSError, bases of some of the classes below, would dress the sentence up.
        return str(self.args[0])


class ArgumentError(Error, ValueError):
    """A value is out of its range, or an option does not exist."""


class FormatError(Error, ValueError):
    """A file's contents are not what its format demands."""


class FileError(Error, OSError):
    """A file could not be found, opened or read. errno is the system's number, or None."""

    def __init__(self, message: str = "", *, errno: int | None = None, **parts: Any) -> None:
        super().__init__(message, **parts)
        self.errno = errno


class ContextError(Error, ValueError):
    """The context is full.

    Attributes:
        max_context: positions there are.
        requested: positions asked for.
    """

    def __init__(
        self,
        message: str = "",
        *,
        max_context: int | None = None,
        requested: int | None = None,
        **parts: Any,
    ) -> None:
        super().__init__(message, **parts)
        self.max_context = max_context
        self.requested = requested


class StateError(Error, RuntimeError):
    """Not possible now: something is closed, in use by another thread, or not computed yet."""


class InUseError(Error, BufferError):
    """close() was called while arrays of the memory, or Generators, are alive."""


class NumericError(Error, ArithmeticError):
    """Logits are NaN."""


class UnsupportedError(Error, NotImplementedError):
    """Understood, but not available in this build or on this machine."""


class OutOfMemoryError(Error, MemoryError):
    """Memory or address space was refused."""


class DeviceError(Error, RuntimeError):
    """A GPU or its driver failed."""


class NotFoundError(Error, KeyError):
    """No tensor or captured activation has the name asked for."""


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """' (did you mean ...?)' naming the closest candidates, or ''."""
    close = difflib.get_close_matches(name, list(candidates), n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""


# What newcomers give to generate() itself; a test holds it against the fields of Sampling.
SAMPLING_OPTIONS = frozenset(
    (
        *("temperature", "top_k", "top_p", "min_p", "seed", "logit_bias"),
        *("repetition_penalty", "frequency_penalty", "presence_penalty"),
    )
)


def unknown_option(name: str, allowed: Iterable[str]) -> ArgumentError:
    """The exception that refuses an option, naming the closest of those allowed."""
    names = sorted(allowed)
    if "sampling" in names and name in SAMPLING_OPTIONS:
        return ArgumentError(f"unknown option {name!r}; pass sampling=gptoss.Sampling({name}=...)")
    hint = did_you_mean(name, names) or f"; the options are {', '.join(names)}"
    return ArgumentError(f"unknown option {name!r}{hint}")


def refuse_unknown_options(function: Callable[P, R]) -> Callable[P, R]:
    """Makes a function refuse keywords it does not have by unknown_option, in place of
    TypeError."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(function).parameters.values()
    allowed = frozenset(p.name for p in parameters if p.kind in kinds and p.name != "self")

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in allowed:
                raise unknown_option(name, allowed)
        return function(*args, **kwargs)

    return checked


def refuse_unknown_fields(cls: C) -> C:
    """Makes a dataclass refuse keywords it has no field for by unknown_option."""
    cls.__init__ = refuse_unknown_options(cls.__init__)  # type: ignore[misc]
    return cls


def require_integer(
    name: str, value: SupportsIndex, minimum: int, maximum: int | None = None
) -> int:
    """value as an int, or ArgumentError if it is no integer or out of its range."""
    try:
        number = operator.index(value)
    except TypeError:
        raise ArgumentError(f"{name} must be an integer, not {value!r}") from None
    if number < minimum or (maximum is not None and number > maximum):
        bound = f"at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
        raise ArgumentError(f"{name} must be {bound}, not {number}")
    return number
