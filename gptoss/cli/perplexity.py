"""`gptoss perplexity`: how well a model predicts a text, and how far it is from another one."""

import codecs
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any, BinaryIO

import typer
from rich.text import Text

import gptoss
from gptoss.cli import console, options
from gptoss.cli.generate import require_tokenizer
from gptoss.perplexity import Chunks, Estimate, Statistics, encode_pieces
from gptoss.score import Scorer

_PIECE_BYTES = 1 << 16

EXAMPLES = (
    "gptoss perplexity wiki.test.raw --model ~/models/gpt-oss-20b",
    "gptoss perplexity book.txt --context 2048 --chunks 20",
    "gptoss perplexity book.txt --model small.gguf --reference ~/models/gpt-oss-20b",
    "gptoss perplexity book.txt --json | jq .perplexity.value",
)


@contextmanager
def open_text(file: str) -> Iterator[Iterator[str]]:
    """A file's text, of standard input for "-", in pieces; one final newline is dropped."""
    if file == "-":
        yield _read_pieces(sys.stdin.buffer, file)
    else:
        with open(file, "rb") as stream:
            yield _read_pieces(stream, file)


def _read_pieces(stream: BinaryIO, file: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, newline, is_empty = 0, "", True
    while data := stream.read(_PIECE_BYTES):
        text = newline + _decode(decoder, data, offset, file)
        offset += len(data)
        piece = text.removesuffix("\n")
        newline = text[len(piece) :]  # final, or of the next piece
        is_empty &= not piece
        yield piece
    _decode(decoder, b"", offset, file)
    if is_empty:
        raise gptoss.FormatError(f"{file}: the file is empty", file=file)


def _decode(decoder: codecs.IncrementalDecoder, data: bytes, offset: int, file: str) -> str:
    """The characters that data completes, no data being the end of the file."""
    kept, _ = decoder.getstate()
    try:
        return decoder.decode(data, final=not data)
    except UnicodeDecodeError as error:
        byte, place = error.object[error.start], offset - len(kept) + error.start
        raise gptoss.FormatError(
            f"{file}: not UTF-8 text: byte 0x{byte:02x} at offset {place}",
            file=file,
            offset=place,
            expected="UTF-8",
            found=f"byte 0x{byte:02x}",
        ) from None


def require_positions(size: int, models: list[gptoss.Model]) -> None:
    for model in models:
        limit = model.config.max_positions
        if size > limit:
            raise gptoss.ContextError(
                f"a chunk of {size:,} tokens is longer than the {limit:,} positions that "
                f"{model.path} was made for: choose a smaller --context",
                max_context=limit,
                requested=size,
            )


def measure(scorer: Scorer, chunks: Chunks, tokens: Any, has_bos: bool) -> Statistics:
    """Scores every chunk, showing the perplexity so far."""
    statistics, total = Statistics(), chunks.count * chunks.size
    with console.progress_bar("perplexity") as advance:
        for number, start in enumerate(chunks):
            before = number * chunks.size

            def progress(done: int, _: int, before: int = before) -> None:
                advance(before + done, total)

            chunk = chunks.tokens(tokens, start, has_bos)
            try:
                statistics.add(scorer.score(chunk, chunks.first, progress))
            except KeyboardInterrupt:
                if number > 0:
                    value, error = statistics.perplexity
                    so_far = f"perplexity {value:.4f} ± {error:.4f}"
                    console.note(f"gptoss: stopped after {number:,} chunks: {so_far}")
                raise
            so_far = f"perplexity {statistics.perplexity.value:.4f}"
            advance(before + chunks.size, total, so_far)
    return statistics


def evaluate(
    file: str,
    text: Iterable[str],
    model: str,
    reference: str | None,
    context: int = 512,
    stride: int | None = None,
    chunks: int | None = None,
    adapters: list[tuple[str, float]] | None = None,
    kv: str = "f16",
    quiet: bool = False,
    **how: Any,
) -> tuple[dict[str, Any], Statistics]:
    """Opens the models and measures the file's text, in pieces; what was measured, as JSON types,
    and the outcome. how: of both models."""
    with ExitStack() as stack:
        handle = stack.enter_context(options.open_model(model, adapters=adapters or [], **how))
        tokenizer = require_tokenizer(handle)
        other = None
        if reference is not None:
            other = stack.enter_context(options.open_model(reference, **how))
        tokens, has_bos = encode_pieces(tokenizer, text, None if other is None else other.tokenizer)
        cut = Chunks.cut(len(tokens), context, stride, chunks)
        require_positions(cut.size, [handle] if other is None else [handle, other])
        facts = {
            "model": str(handle.path),
            "adapters": {str(each.path): each.scale for each in handle.adapters},
            "reference": None if other is None else str(other.path),
            "device": handle.device,
            "precision": handle.precision,
            "file": file,
            "tokens": len(tokens),
            "context": context,
            "stride": stride,
            "chunks": cut.count,
        }
        if not quiet:
            _note(facts, cut)
        with Scorer(handle, other, cut.size, kv_dtype=kv) as scorer:
            return facts, measure(scorer, cut, tokens, has_bos)


# ---- what is printed ----


def _note(facts: dict[str, Any], chunks: Chunks) -> None:
    counts = f"{chunks.count:,} chunks of {chunks.size:,}, {chunks.num_scored:,} tokens count"
    console.note(f"{facts['file']}: {facts['tokens']:,} tokens, {counts}")


def _number(value: float, scale: float = 1.0) -> str:
    return f"{scale * value:.4f}" if scale > 1 else f"{value:.6f}"


def _print_rows(title: str, rows: list[tuple[str, float, float | None]], unit: str = "") -> None:
    """Names, values and, but for None, errors, below a title. unit "%": shares in percent."""
    table = console.table("", "", "", right=(1,))
    table.show_header = False
    scale = 100.0 if unit else 1.0
    for name, value, error in rows:
        margin = "" if error is None else f"± {_number(error, scale)}{unit}"
        table.add_row(f"  {name}", _number(value, scale) + unit, Text(margin, "dim"))
    out = console.console()
    out.print(Text(title, "bold"))
    out.print(table)


def show(statistics: Statistics) -> None:
    """The perplexity; with a reference the tables of divergence."""
    if not statistics.has_reference:
        value, error = statistics.perplexity
        print(f"perplexity {value:.4f} ± {error:.4f}")
        return
    estimates = [
        ("the model's", statistics.perplexity),
        ("the reference's", statistics.reference_perplexity),
        ("ratio", statistics.ratio),
        ("ln(ratio)", statistics.log_ratio),
        ("difference", statistics.difference),
    ]
    rows: list[tuple[str, float, float | None]] = [(name, *pair) for name, pair in estimates]
    rows.append(("correlation", statistics.correlation, None))
    _print_rows("Perplexity", rows)
    kl = _distribution(statistics.kl, statistics.kl_distribution())
    _print_rows("KL divergence of the reference, nats", kl)
    delta = _distribution(statistics.delta, statistics.delta_distribution())
    delta.insert(1, ("root mean square", *statistics.rms_delta))
    _print_rows("Probability of the right token, less the reference's", delta, "%")
    _print_rows("Likeliest token", [("the same", *statistics.same_top)], "%")


def _distribution(
    mean: Estimate, percentiles: dict[str, float]
) -> list[tuple[str, float, float | None]]:
    names = {"max": "maximum", "50%": "median", "min": "minimum"}
    rest = [(names.get(name, name), value, None) for name, value in percentiles.items()]
    return [("mean", *mean), *rest]


File = Annotated[str, typer.Argument(metavar="FILE", help="The text, UTF-8; -: standard input.")]
Size = Annotated[
    int, typer.Option("--context", "-c", min=3, metavar="N", help="Tokens a chunk; default: 512.")
]
Stride = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Chunks of context + N/2 tokens begin N tokens apart, and the last N of each count; "
        "default: chunks one behind the other.",
    ),
]
MaxChunks = Annotated[
    int | None,
    typer.Option("--chunks", min=1, metavar="N", help="Only the first N chunks; default: all."),
]
Reference = Annotated[
    str | None,
    typer.Option(
        "--reference", "-r", metavar="PATH", help="Compare with this model, of the same vocabulary."
    ),
]


def run(
    file: File,
    model: options.Model = "demo",
    context: Size = 512,
    stride: Stride = None,
    reference: Reference = None,
    chunks: MaxChunks = None,
    as_json: options.Json = False,
    device: options.Device = "cpu",
    gpu_memory: options.GpuMemory = None,
    threads: options.Threads = None,
    isa: options.Isa = None,
    precision: options.Precision = None,
    adapter: options.Adapters = None,
    kv: options.KvDtype = "f16",
) -> None:
    """Measure how well a model predicts a text, and with --reference how far it is from another.

    Defined as llama.cpp's llama-perplexity does: the text is cut into chunks of --context tokens,
    each read anew, with the BOS token in place of its first token if the tokenizer adds one. The
    first half of a chunk is context only; perplexity is exp of the mean negative log-probability of
    the tokens of the second halves, and ± one standard error.

    With --reference (the better model, as a rule) both read the same tokens, and the statistics are
    those of llama-perplexity --kl-divergence. No file of logits is written or needed.
    """
    if stride is not None and stride > context:
        raise typer.BadParameter(f"--stride {stride} is more than --context {context}")
    with open_text(file) as text:
        facts, statistics = evaluate(
            file,
            text,
            model,
            reference,
            context,
            stride,
            chunks,
            options.adapters(adapter),
            kv,
            quiet=as_json,
            device=device,
            gpu_memory=gpu_memory,
            threads=threads,
            isa=isa,
            precision=precision,
        )
    if as_json:
        print(json.dumps(facts | statistics.as_dict(), indent=2))
    else:
        show(statistics)
