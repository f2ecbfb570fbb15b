"""Sound checkpoints with bytes changed at random: they compute or are refused, none crashes."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from dense_models import Gpt2, Llama, write_hf
from hypothesis import given, settings
from hypothesis import strategies as st
from malformed import SPEC
from models import write_model

import gptoss

pytestmark = pytest.mark.usefixtures("modest_memory")

EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "set", "insert", "delete", "truncate", "repeat"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=6,
)


def mutate(data: bytes, edits: list[tuple[str, float, int]], limit: int) -> bytes:
    """Edits within the first limit bytes."""
    out = bytearray(data)
    for action, where, value in edits:
        at = int(where * min(limit, max(len(out), 1)))
        if action == "flip" and at < len(out):
            out[at] ^= 1 << value % 8
        elif action == "set" and at < len(out):
            out[at] = value
        elif action == "insert":
            out[at:at] = bytes([value])
        elif action == "delete":
            del out[at : at + 1 + value % 8]
        elif action == "repeat":
            out[at:at] = out[at : at + value]
        elif action == "truncate" and value < 64:
            del out[at:]
    return bytes(out)


@pytest.fixture(scope="module")
def sound_directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    dense = {"llama": Llama(attention_bias=True), "gpt2": Gpt2()}
    return {
        layout: write_model(
            tmp_path_factory.mktemp("sound"), SPEC, np.random.default_rng(0), layout
        )
        for layout in ("hf", "hf_sharded", "original")
    } | {name: write_hf(tmp_path_factory.mktemp(name), spec, rng) for name, spec in dense.items()}


@settings(max_examples=400)
@given(
    layout=st.sampled_from(["hf", "hf", "hf_sharded", "original", "llama", "gpt2"]),
    choice=st.integers(0, 10),
    edits=EDITS,
    in_header=st.booleans(),
)
def test_mutated_bytes(
    sound_directories: dict[str, Path],
    layout: str,
    choice: int,
    edits: list[tuple[str, float, int]],
    in_header: bool,
) -> None:
    """Either it is refused, or it is a model that computes something."""
    files = sorted(sound_directories[layout].iterdir())
    file = files[choice % len(files)]
    sound = file.read_bytes()
    limit = len(sound)
    if file.suffix == ".safetensors" and in_header:
        limit = 8 + struct.unpack_from("<Q", sound)[0]
    try:
        file.write_bytes(mutate(sound, edits, limit))
        with warnings.catch_warnings(), gptoss.Model(file.parent) as model:
            warnings.simplefilter("ignore")
            gptoss.Generator(model).prefill([1, 2, 3, 1, 2, 3, 0, 0, 7])
    except (gptoss.FormatError, gptoss.FileError, gptoss.UnsupportedError) as error:
        assert error.file is not None
    except (gptoss.NumericError, gptoss.ArgumentError):
        pass
    finally:
        file.write_bytes(sound)
