"""GGUF files in parts: opened whole by any of them, and every kind of damage told."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gguf_models
import numpy as np
import pytest
from gguf_models import Values, read_raw, write_parts, write_raw
from models import Spec
from support import assert_same_bits, open_generator, random_tokens

import gptoss
from gptoss import write_gguf

pytestmark = pytest.mark.usefixtures("one_minute", "modest_memory")

Raw = tuple[Values, list[tuple[write_gguf.Tensor, bytes]]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Raw]:
    path = tmp_path_factory.mktemp("whole") / "m.gguf"
    gguf_models.write_model(path, Spec(), np.random.default_rng(3), "q8_0")
    return path, read_raw(path)


def name(part: int, count: int) -> str:
    return f"m-{part:05d}-of-{count:05d}.gguf"


@pytest.mark.parametrize("count", [2, 3, 7, 40])
@pytest.mark.parametrize("mmap", [True, False])
def test_any_part_opens_all(
    tmp_path: Path, whole: tuple[Path, Raw], count: int, mmap: bool
) -> None:
    """More parts than tensors leaves some without any."""
    values, tensors = whole[1]
    paths = write_parts(tmp_path, values, tensors, count)
    with gptoss.Model(whole[0]) as model:
        tokens = random_tokens(model, 20)
        expected = open_generator(model, 20).prefill(tokens, all_logits=True)
    for path in (tmp_path, paths[0], paths[-1], paths[len(paths) // 2]):
        with gptoss.Model(path, mmap=mmap, verify=True) as model:
            assert len(model.tensors) == len(tensors)
            assert {model.tensor_info(tensor).file.name for tensor in model.tensors} <= {
                p.name for p in paths
            }
            memory = model.memory()
            sizes = sum(p.stat().st_size for p in paths)
            assert memory["mapped" if mmap else "read"] == sizes
            logits = open_generator(model, 20).prefill(tokens, all_logits=True)
            assert_same_bits(logits, expected, str(path))
            assert model.metadata["split.count"] == count
            assert model.metadata["general.name"] == values["general.name"][1]


def test_the_first_part_may_have_no_tensors(tmp_path: Path, whole: tuple[Path, Raw]) -> None:
    values, tensors = whole[1]
    write_parts(tmp_path, values, tensors, 1)
    split: Values = {"split.count": (2, 2), "split.tensors.count": (5, len(tensors))}
    write_raw(tmp_path / name(1, 2), values | split | {"split.no": (2, 0)}, [])
    write_raw(tmp_path / name(2, 2), split | {"split.no": (2, 1)}, tensors)
    with gptoss.Model(tmp_path / name(1, 2)) as model:
        assert len(model.tensors) == len(tensors)


def test_one_part_of_one(tmp_path: Path, whole: tuple[Path, Raw]) -> None:
    """Named and keyed as a part or plain: nothing else is looked for."""
    values, tensors = whole[1]
    (path,) = write_parts(tmp_path, values, tensors, 1)
    for place in (path, tmp_path):
        with gptoss.Model(place) as model:
            assert len(model.tensors) == len(tensors)
    shutil.copy(whole[0], tmp_path / name(1, 1))
    with gptoss.Model(tmp_path / name(1, 1)) as model:
        assert "split.count" not in model.metadata


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_missing_part_is_named(tmp_path: Path, whole: tuple[Path, Raw], missing: int) -> None:
    paths = write_parts(tmp_path, *whole[1], 3)
    paths[missing - 1].unlink()
    for path in (tmp_path, *(p for p in paths if p.exists())):
        match = f"part {missing} of 3.*no such file"
        with pytest.raises(gptoss.FormatError, match=match) as caught:
            gptoss.Model(path)
        assert Path(str(caught.value.file)).name == name(missing, 3)


@pytest.mark.parametrize("names", [["a-00001-of-00002.gguf", "b-00002-of-00002.gguf"], ["x.gguf"]])
def test_a_directory_with_parts_and_others(
    tmp_path: Path, whole: tuple[Path, Raw], names: list[str]
) -> None:
    write_parts(tmp_path, *whole[1], 2)
    for other in names:
        (tmp_path / other).write_bytes(b"GGUF")
    with pytest.raises(gptoss.FormatError, match=r"\d \.gguf files; give the path of one, as"):
        gptoss.Model(tmp_path)
    with gptoss.Model(tmp_path / name(2, 2)) as model:
        assert len(model.tensors) == len(whole[1][1])


@pytest.mark.parametrize(
    ("part", "key", "value", "match"),
    [
        (0, "split.no", (2, 1), "key 'split.no': expected 0, as its name says, found 1"),
        (1, "split.no", (2, 0), "key 'split.no': expected 1, as its name says, found 0"),
        (1, "split.no", None, "split.no': expected 1.*found nothing"),
        (2, "split.count", (2, 2), "key 'split.count': expected 3, as its name says, found 2"),
        (2, "split.count", (8, "3"), "split.count': expected 3"),
        (0, "split.count", None, "split.count': expected 3.*found nothing"),
        (2, "split.count", (9, (2, [3])), "found an array of 1"),
        (2, "split.count", (6, 2.5), "found 2.5"),
        (0, "split.tensors.count", (5, -1), "split.tensors.count': expected 0 or more, found -1"),
        (0, "split.tensors.count", None, "tensors.count': expected 0 or more, found nothing"),
        (1, "split.tensors.count", (5, 1), "as the parts before it say, found 1"),
        (0, "split.tensors.count", (5, 1), "expected 1, as the parts before it say"),
        (2, "split.tensors.count", (11, 2**62), "as the parts before it say"),
    ],
)
def test_keys_against_names_and_each_other(
    tmp_path: Path, whole: tuple[Path, Raw], part: int, key: str, value: Any, match: str
) -> None:
    paths = write_parts(tmp_path, *whole[1], 3)
    step = -(-len(whole[1][1]) // 3)
    values: Values = {
        "split.no": (2, part),
        "split.count": (2, 3),
        "split.tensors.count": (5, len(whole[1][1])),
    }
    del values[key]
    if value is not None:
        values[key] = value
    if part == 0:
        values = whole[1][0] | values
    write_raw(paths[part], values, whole[1][1][part * step : (part + 1) * step])
    with pytest.raises(gptoss.FormatError, match=match) as caught:
        gptoss.Model(paths[0])
    assert caught.value.expected and caught.value.found and "\n" not in str(caught.value)


def test_tensors_lost_and_doubled(tmp_path: Path, whole: tuple[Path, Raw]) -> None:
    values, tensors = whole[1]
    split: Values = {"split.count": (2, 2), "split.tensors.count": (5, len(tensors))}
    paths = [tmp_path / name(part, 2) for part in (1, 2)]
    write_raw(paths[0], values | split | {"split.no": (2, 0)}, tensors[:5])
    for chosen, match in (
        (tensors[6:], rf"tensors.count': expected {len(tensors) - 1}, the tensors of all parts"),
        (tensors[4:], "one tensor of this name, found another at byte .*m-00001-of-00002"),
    ):
        write_raw(paths[1], split | {"split.no": (2, 1)}, chosen)
        with pytest.raises(gptoss.FormatError, match=match):
            gptoss.Model(tmp_path)


@pytest.mark.parametrize(
    "other",
    [
        *("m.gguf", "m-1-of-2.gguf", "m-00000-of-00002.gguf", "m-00003-of-00002.gguf"),
        *("m-00001-of-00001.gguf", "-00001-of-00002.gguf", "m-0000a-of-00002.gguf"),
    ],
)
def test_a_part_under_another_name(tmp_path: Path, whole: tuple[Path, Raw], other: str) -> None:
    paths = write_parts(tmp_path, *whole[1], 2)
    paths[0].rename(tmp_path / other)
    with pytest.raises(gptoss.FormatError, match=r"split.count': expected 1, .*keep the names"):
        gptoss.Model(tmp_path / other)


def test_other_kinds_of_files_as_parts(tmp_path: Path, whole: tuple[Path, Raw]) -> None:
    paths = write_parts(tmp_path, *whole[1], 2)
    for damage in (b"", b"GGML", b"GGUF", paths[1].read_bytes()[:-33]):
        paths[1].write_bytes(damage)
        with pytest.raises(gptoss.FormatError, match="m-00002-of-00002"):
            gptoss.Model(paths[0])
    paths[1].unlink()
    paths[1].mkdir()
    with pytest.raises((gptoss.FormatError, gptoss.FileError), match="m-00002-of-00002"):
        gptoss.Model(paths[0])


def test_every_allocation_may_fail(tmp_path: Path, whole: tuple[Path, Raw]) -> None:
    paths = write_parts(tmp_path, *whole[1], 3)
    gptoss._core.fail_allocation(0)
    gptoss.Model(paths[0]).close()
    count = gptoss._core.fail_allocation(0)
    assert count > 10
    for n in range(1, count + 1):
        gptoss._core.fail_allocation(n)
        try:
            gptoss.Model(paths[1]).close()
        except gptoss.Error:
            pass
        finally:
            gptoss._core.fail_allocation(0)
    gptoss.Model(paths[2]).close()
