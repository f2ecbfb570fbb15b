"""Fixtures that every test file may use."""

from __future__ import annotations

import resource
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from models import Spec, write_model

import gptoss

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "benchmarks"))

# A shell's background job ignores Ctrl-C, and its children inherit that. Python's own handler
# brings it back, here and, since exec resets a handled signal, in the programs that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Engine and reference run for tens of milliseconds an example: no deadline. A failure prints its
# example and its seed.
hypothesis.settings.register_profile(
    "gptoss",
    deadline=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
)
hypothesis.settings.load_profile("gptoss")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The project's shared data (oracle, evaluation items), beside a checkout and no part of it."""
    directory = REPOSITORY.parent / "shared"
    if not (directory / "oracle").is_dir():
        pytest.skip(f"needs the shared data in {directory}")
    return directory


@pytest.fixture(scope="session")
def demo() -> Iterator[gptoss.Model]:
    with gptoss.Model("demo") as model:
        yield model


@pytest.fixture(scope="session")
def make_directory(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """make_directory(spec, seed=0, layout="hf"): a model's directory, made once a session."""
    made: dict[tuple[str, int, str], Path] = {}

    def make(spec: Spec, seed: int = 0, layout: str = "hf") -> Path:
        key = (repr(spec), seed, layout)
        if key not in made:
            directory = tmp_path_factory.mktemp("model")
            made[key] = write_model(directory, spec, np.random.default_rng(seed), layout)
        return made[key]

    return make


@pytest.fixture(autouse=True)
def show_seed(request: pytest.FixtureRequest) -> None:
    """A test that fails shows the seed of its module, SEED."""
    if hasattr(request.module, "SEED"):
        print(f"seed {request.module.SEED}")


@pytest.fixture(scope="module")
def directory(request: pytest.FixtureRequest, make_directory: Callable[..., Path]) -> Path:
    """A directory of the module's SPEC."""
    return make_directory(request.module.SPEC)


@pytest.fixture(scope="module")
def model(directory: Path) -> Iterator[gptoss.Model]:
    """The model in it."""
    with gptoss.Model(directory) as opened:
        yield opened


@pytest.fixture
def one_minute() -> Iterator[None]:
    """Fails a test that hangs."""

    def hang(*_: Any) -> None:
        raise TimeoutError("a minute is over")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def modest_memory() -> Iterator[None]:
    """Fails a module that takes much memory at any time."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 1_000_000, f"{grown} kB more"
