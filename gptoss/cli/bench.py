"""`gptoss bench`: how fast a model runs here, beside what the machine allows at most."""

import contextlib
import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import gptoss
from gptoss import synthetic
from gptoss.benchmark import Benchmark, Peer, PeerResult, Report, Test, make_tests
from gptoss.benchmark.limits import available_memory
from gptoss.cli import bench_tables, console, doctor, options

EXAMPLES = (
    "gptoss bench",
    "gptoss bench ~/models/gpt-oss-20b --prompt 512,2048 --depth 0,8192 --profile",
    "gptoss bench --preset gpt-oss-20b --layers 4 --keep /data/gpt-oss-4-layers",
    "gptoss bench model.gguf --peer ~/llama.cpp/build/bin/llama-bench --json > bench.json",
    "gptoss bench --preset gpt-oss-20b --layers 2 --layout gguf --peer llama-bench",
)

Layout = Literal["hf", "gguf"]

_TESTS = "Tests"
_COMPARE = "Comparison"
_SYNTHETIC = "Synthetic model"


def sizes(text: str, option: str, minimum: int = 1, *, none: bool = False) -> list[int]:
    """'512,2048' -> [512, 2048]. none: '0' -> []."""
    try:
        numbers = [int(part) for part in text.replace("_", "").split(",")]
    except ValueError:
        raise typer.BadParameter(f"{option} takes numbers such as 128,512, not {text!r}") from None
    if none and numbers == [0]:
        return []
    if small := [number for number in numbers if number < minimum]:
        raise typer.BadParameter(f"{option} takes numbers from {minimum} on, not {small[0]}")
    return numbers


@contextlib.contextmanager
def _model_path(
    model: str | None,
    preset: str | None,
    layers: int | None,
    layout: Layout | None,
    keep: Path | None,
    seed: int,
) -> Iterator[str | Path]:
    """What to open: the model named, or the preset, written for the time of the block."""
    if preset is None:
        if layers is not None or keep is not None or layout is not None:
            raise typer.BadParameter("--layers, --layout and --keep are for the models of --preset")
        yield model or "demo"
        return
    if model is not None:
        raise typer.BadParameter("give MODEL or --preset, not both")
    chosen = synthetic.find_preset(preset, layers)
    layout = layout or "hf"
    needed, available = synthetic.weight_bytes(chosen, layout), available_memory()
    if keep is None and available is not None and needed > 0.9 * available:
        raise gptoss.OutOfMemoryError(
            f"{preset} with {chosen.num_layers} layers needs {needed / 1e9:.1f} GB of memory, and "
            f"{available / 1e9:.1f} GB is available: choose fewer --layers (or --keep DIR, to "
            "measure how fast the disk is)"
        )
    size = bench_tables.amount(needed, "B")
    console.note(f"{preset}, layers: {chosen.num_layers}, random weights: {size}")
    with contextlib.ExitStack() as stack:
        with console.progress_bar("writing the model", unit="bytes") as progress:
            written = synthetic.synthetic_model(chosen, seed, keep, progress, layout)
            path = stack.enter_context(written)
        yield path


class Session:
    """A run: our tests and, after each, the peers', until all is done or Ctrl-C."""

    def __init__(
        self, benchmark: Benchmark, repetitions: int, peers: list[Peer], gguf: Path | None
    ) -> None:
        self._benchmark = benchmark
        self._repetitions = repetitions
        self._peers = peers
        self._gguf = gguf
        self.peer_results: list[PeerResult] = []
        self.missing: list[str] = []
        self.failures: list[str] = []
        self.interrupted = False

    def run(self) -> Report:
        try:
            for number, test in enumerate(self._benchmark.tests, 1):
                title = f"{test} ({number} of {len(self._benchmark.tests)})"
                with console.progress_bar(title, refresh=2.0) as progress:
                    self._benchmark.measure(test, self._repetitions, progress)
                self._run_peers(test)
        except KeyboardInterrupt:
            self.interrupted = True
        return self._benchmark.report(again=not self.interrupted)

    def _run_peers(self, test: Test) -> None:
        """A peer that fails is not asked again."""
        threads = self._benchmark.model.threads
        for peer in list(self._peers):
            assert self._gguf is not None
            with console.progress_bar(f"{test}: {peer.name}") as progress:
                progress(0, self._repetitions * test.all_tokens)
                try:
                    result = peer.measure(
                        test, self._gguf, threads=threads, repetitions=self._repetitions
                    )
                except gptoss.UnsupportedError as error:
                    self.missing.append(f"{test}: {peer.name}: {error}")
                except gptoss.Error as error:
                    self.failures.append(str(error))
                    self._peers.remove(peer)
                else:
                    self.peer_results.append(result)

    def end(self) -> None:
        """Says what of the comparison is missing, and ends the program with its exit code."""
        for missing in self.missing:
            console.note(f"gptoss: {missing}")
        for failure in self.failures:
            console.error(failure)
        if self.interrupted:
            raise KeyboardInterrupt
        if self.failures:
            raise typer.Exit(1)

    def facts(self, report: Report) -> dict[str, Any]:
        """All of it as JSON types."""
        machine = doctor.machine_facts()
        return {
            "schema": 1,
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **{name: machine.pop(name) for name in ("gptoss", "python", "numpy", "platform")},
            "machine": {name: machine[name] for name in ("cpu", "cpu_features", "cpus")},
            **report.as_dict(),
            "peers": [result.as_dict() for result in self.peer_results],
            "peer_missing": self.missing,
            "peer_failures": self.failures,
            "interrupted": self.interrupted,
        }


def _open(path: str | Path, tests: list[Test], **how: Any) -> Benchmark:
    with console.progress_bar("loading the weights", unit="bytes") as loading:
        return Benchmark(path, tests, loading=loading, **how)


def _find_peers(
    commands: list[str], gguf: Path | None, path: str | Path
) -> tuple[list[Peer], Path]:
    """The peers, by different names, and the file that they read."""
    model = gguf or Path(path).expanduser()
    if model.suffix != ".gguf":
        raise typer.BadParameter("--peer reads GGUF alone: give it --peer-model FILE.gguf")
    if not model.is_file():
        raise gptoss.FileError(f"there is no file {str(model)!r}", file=str(model))
    peers = [Peer(command) for command in commands]
    names = [peer.name for peer in peers]
    for number, peer in enumerate(peers, 1):
        if names.count(peer.name) > 1:
            peer.name += f" {number}"
    return peers, model


Model = Annotated[
    str | None, typer.Argument(metavar="MODEL", help=options.MODEL_HELP, show_default=False)
]
Prompt = Annotated[
    str,
    typer.Option(
        "--prompt",
        "-p",
        metavar="N,..",
        help="Prefill so many tokens at once; 0: no such test; default: 512.",
        rich_help_panel=_TESTS,
    ),
]
Generate = Annotated[
    str,
    typer.Option(
        "--generate",
        "-n",
        metavar="N,..",
        help="Decode so many tokens one by one; 0: no such test; default: 128.",
        rich_help_panel=_TESTS,
    ),
]
Depth = Annotated[
    str,
    typer.Option(
        "--depth",
        "-d",
        metavar="N,..",
        help="Each test behind so many tokens of context; default: 0.",
        rich_help_panel=_TESTS,
    ),
]
Batch = Annotated[
    str,
    typer.Option(
        metavar="N,..",
        help="Decode in so many sequences at a time; default: 1.",
        rich_help_panel=_TESTS,
    ),
]
Repeat = Annotated[
    int,
    typer.Option(
        "--repeat",
        "-r",
        min=1,
        metavar="N",
        help="Times each test is timed, after a warm-up; default: 5.",
        rich_help_panel=_TESTS,
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        min=0,
        metavar="N",
        help="Of the random tokens and weights; default: 0.",
        rich_help_panel=_TESTS,
    ),
]
ShowProfile = Annotated[
    bool,
    typer.Option(
        "--profile",
        help="Show time, GB/s and GFLOP/s of each operation; a GPU is slower when they are timed.",
    ),
]
Peers = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH",
        help="Run this llama-bench (llama.cpp's or ik_llama.cpp's) in turn, and print ratios; "
        "may be given several times, and carry options of its own in quotes.",
        rich_help_panel=_COMPARE,
    ),
]
PeerModel = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The GGUF file for it; default: MODEL, where that is one.",
        rich_help_panel=_COMPARE,
    ),
]
PresetName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"Random weights of a model's sizes: {', '.join(synthetic.PRESETS)}.",
        rich_help_panel=_SYNTHETIC,
    ),
]
Layers = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=synthetic.MAX_LAYERS,
        metavar="N",
        help="So many layers, for small machines; default: all.",
        rich_help_panel=_SYNTHETIC,
    ),
]
LayoutName = Annotated[
    Layout | None,
    typer.Option(
        metavar="hf|gguf",
        help="Hugging Face's files (bfloat16 dense weights) or one GGUF file (Q8_0), which a peer "
        "reads, too; default: hf.",
        rich_help_panel=_SYNTHETIC,
    ),
]
Keep = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="Write it there and leave it, or use what is there; default: TMPDIR or /var/tmp, "
        "removed afterwards.",
        rich_help_panel=_SYNTHETIC,
    ),
]


def run(
    model: Model = None,
    prompt: Prompt = "512",
    generate: Generate = "128",
    depth: Depth = "0",
    batch: Batch = "1",
    repeat: Repeat = 5,
    seed: Seed = 0,
    profile: ShowProfile = False,
    as_json: options.Json = False,
    peer: Peers = None,
    peer_model: PeerModel = None,
    preset: PresetName = None,
    layers: Layers = None,
    layout: LayoutName = None,
    keep: Keep = None,
    device: options.Device = "cpu",
    gpu_memory: options.GpuMemory = None,
    threads: options.Threads = None,
    isa: options.Isa = None,
    precision: options.Precision = None,
    kv: options.KvDtype = "f16",
    block_size: options.BlockSize = None,
) -> None:
    """Measure how fast a model runs here, beside what the machine allows at most.

    Tests have the names of llama-bench: pp512 feeds 512 random tokens at once, tg128 feeds 128 one
    by one (no sampling, and no prompt in the time), @4096 says how many are in the context before.
    Each is warmed up, then timed several times; shown are the median, the slowest, the fastest.

    The limit is a roofline. A token takes at least its bytes / read bandwidth: of weights (experts
    that were chosen, others not) and of keys and values, shared among the tokens of a pass; and at
    least its FLOP / FMA peak: of the matrix products, attention left out. Both limits are
    measured in the same run with the same threads: plain vector loads over memory larger than the
    caches, and independent multiply-adds at the precision, the best round of each. "reached" is the
    median's share of the nearer limit. Bytes and FLOP are counted, not estimated. None on a GPU.
    """
    tests = make_tests(
        sizes(prompt, "--prompt", none=True),
        sizes(generate, "--generate", none=True),
        sizes(depth, "--depth", minimum=0),
        sizes(batch, "--batch"),
    )
    if not tests:
        raise typer.BadParameter("--prompt 0 and --generate 0 leave nothing to measure")
    if peer_model is not None and not peer:
        raise typer.BadParameter("--peer-model is the file for --peer, which is missing")
    with _model_path(model, preset, layers, layout, keep, seed) as path:
        peers, gguf = _find_peers(peer, peer_model, path) if peer else ([], None)
        engine = {"device": device, "gpu_memory": gpu_memory, "threads": threads, "isa": isa}
        how = {"precision": precision, "kv_dtype": kv, "block_size": block_size}
        with _open(path, tests, seed=seed, profile=profile, **engine, **how) as benchmark:
            session = Session(benchmark, repeat, peers, gguf)
            report = session.run()
        if as_json:
            print(json.dumps(session.facts(report), indent=2))
        else:
            bench_tables.show(report, session.peer_results, preset or model or "demo", profile)
    session.end()
