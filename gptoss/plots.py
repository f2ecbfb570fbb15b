"""Plots of what a Generator captured and of what it generated, for notebooks. Needs matplotlib.

Each function returns a matplotlib Figure: a notebook shows it as the value of a cell, savefig
writes it. pyplot knows nothing of it, so there is nothing to close.

In labels a space is a middle dot and a line end is an arrow.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gptoss.errors import ArgumentError, StateError, UnsupportedError
from gptoss.generation import Output, TokenLogprob
from gptoss.generator import Generator

try:
    from matplotlib import colormaps
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import PercentFormatter
except ImportError:
    raise UnsupportedError("plots need matplotlib: pip install 'gptoss-engine[notebook]'") from None

Array = npt.NDArray[Any]

_INK, _QUIET, _PALE = "#333333", "#8c8c8c", "#e3e3e3"
_BLUE, _LIGHT_BLUE, _ORANGE = "#2f6f9f", "#a9cbe6", "#d9822b"
_KINDS = {
    "sliding_attention": ("sliding window", _ORANGE),
    "full_attention": ("full attention", _BLUE),
}
_VISIBLE = str.maketrans({" ": "·", "\n": "↵", "\t": "⇥"})
_ROW_INCHES = 0.19  # a line of small text
_BAR_INCHES = 6.0


class _Figure(Figure):
    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()


def routing(
    generator: Generator, *, layers: Iterable[int] | None = None, positions: range | None = None
) -> Figure:
    """Which experts each token was sent to, and how much each counts: a row a token, a panel a
    layer, a column an expert.

    Args:
        generator: has captured "layers.*.router_experts" and "layers.*.router_weights".
        layers: which to show, by default all that were captured.
        positions: of the tokens to show, by default all that were captured.

    Raises NotFoundError (a KeyError) for layers and ArgumentError for positions that were not
    captured.
    """
    taps, num_experts = generator.taps, generator.model.config.num_experts
    shown = _captured_layers(generator, "router_experts") if layers is None else list(layers)
    experts = [taps[f"layers.{layer}.router_experts"] for layer in shown]
    weights = [taps[f"layers.{layer}.router_weights"] for layer in shown]
    if not shown:
        raise ArgumentError("there are no layers to show")
    rows, labels = _rows(generator, len(experts[0]), positions)
    cell = min(0.16, 12 / (len(shown) * num_experts))
    size = (1.9 + len(shown) * (num_experts * cell + 0.1), 1.0 + len(labels) * _ROW_INCHES)
    figure = _Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.02, wspace=0.02))
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    colours = ScalarMappable(Normalize(0, 1), colormaps["magma_r"].with_extremes(bad="#f5f5f5"))
    for axes, layer, chosen, weight in zip(panels, shown, experts, weights, strict=True):
        cells = np.full((len(labels), num_experts), np.nan, np.float32)
        np.put_along_axis(cells, chosen[rows], weight[rows], axis=1)
        axes.imshow(cells, colours.cmap, colours.norm, aspect="auto", interpolation="nearest")
        axes.hlines(np.arange(1, len(labels)) - 0.5, -0.5, num_experts - 0.5, "white", lw=0.6)
        axes.set_title(f"layer {layer}", fontsize=8, color=_INK)
        axes.set_xticks([0, num_experts - 1])
        _bare(axes)
    _label_rows(panels[0], labels)
    panels[0].set_xlabel("expert", fontsize=8, color=_QUIET, loc="left")
    bar = figure.colorbar(colours, ax=panels, pad=0.01, aspect=40, fraction=0.02)
    bar.set_label("weight of the expert", fontsize=8, color=_INK)
    _bare(bar.ax)
    return figure


def sink_mass(generator: Generator, *, positions: range | None = None) -> Figure:
    """How much of its attention each head leaves on its sink: for each layer the heads side by
    side, the median over tokens as a dot and the middle half of them as a line.

    Args:
        generator: has captured "layers.*.sink_mass".
        positions: of the tokens to count, by default all that were captured.

    Raises NotFoundError (a KeyError) if no layer and ArgumentError for positions that were not
    captured.
    """
    config, layers = generator.model.config, _captured_layers(generator, "sink_mass")
    masses = [generator.taps[f"layers.{layer}.sink_mass"] for layer in layers]
    rows, labels = _rows(generator, len(masses[0]), positions)
    offsets = (np.arange(config.num_heads) - (config.num_heads - 1) / 2) / config.num_heads * 0.7
    figure = _Figure(figsize=(min(12, 1.6 + 0.62 * len(layers)), 3.4), layout="constrained")
    axes = figure.subplots()
    size = max(1.5, 5.5 - 0.06 * config.num_heads)
    shade = min(0.45, 6 / config.num_heads)  # of lines that lie close together
    for column, (layer, mass) in enumerate(zip(layers, masses, strict=True)):
        low, median, high = np.percentile(mass[rows], (25, 50, 75), axis=0)
        _, colour = _KINDS[config.layer_types[layer]]
        axes.vlines(column + offsets, low, high, colour, lw=size / 2.5, alpha=shade)
        axes.plot(column + offsets, median, "o", color=colour, ms=size, mew=0)
    axes.set_xticks(range(len(layers)), [str(layer) for layer in layers])
    axes.set_xlabel(f"layer ({config.num_heads} heads each)", fontsize=8, color=_INK)
    axes.set_ylabel("attention on the sink", fontsize=8, color=_INK)
    axes.set_xlim(-0.7, len(layers) - 0.3)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(axis="y", color=_PALE, lw=0.6)
    axes.set_axisbelow(True)
    _bare(axes)
    for kind in dict.fromkeys(config.layer_types[layer] for layer in layers):
        name, colour = _KINDS[kind]
        axes.plot([], [], "o", color=colour, ms=4, label=name)
    axes.legend(
        fontsize=8, frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(-0.02, 1),
        borderaxespad=0, labelcolor=_INK, handletextpad=0.2, columnspacing=1,
    )  # fmt: skip
    axes.set_title(f"{len(labels)} tokens", fontsize=8, color=_QUIET, loc="right")
    return figure


def alternatives(outputs: Iterable[Output]) -> Figure:
    """What else each token of an answer might have been: a row a token, a bar of the likeliest
    tokens as long as they are likely, the one that was drawn in blue.

    Args:
        outputs: of Generator.generate with top_logprobs; read to their end.

    Raises ArgumentError if there are none, or they have no top_logprobs.
    """
    shown = list(outputs)
    if not shown or not all(output.top_logprobs for output in shown):
        raise ArgumentError("there are no alternatives to show: generate with top_logprobs=5")
    figure = _Figure(figsize=(_BAR_INCHES + 1.6, 0.6 + 0.23 * len(shown)), layout="constrained")
    axes = figure.subplots()
    labels = []
    for row, output in enumerate(shown):
        text = output.bytes.decode("utf-8", "replace")
        labels.append(_visible(text, output.token))
        choices = list(output.top_logprobs)
        if output.token not in [choice.token for choice in choices]:
            choices.append(TokenLogprob(output.token, output.logprob, text))
        _draw_choices(axes, row, output.token, choices)
        share = f"{np.exp(output.logprob):.0%}"
        axes.text(1.01, row, share, va="center_baseline", fontsize=7.5, color=_QUIET)
    axes.set_xlim(0, 1)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("probability", fontsize=8, color=_INK)
    _label_rows(axes, labels)
    _bare(axes)
    return figure


def _draw_choices(axes: Axes, row: int, drawn: int, choices: Sequence[TokenLogprob]) -> None:
    """One bar. What is too short for its text has it behind the bar, as far as there is room."""
    left, behind = 0.0, []
    for token, logprob, text in choices:
        length, label = float(np.exp(logprob)), _visible(text, token)
        colour = _LIGHT_BLUE if token == drawn else _PALE
        axes.barh(row, length, 0.82, left, color=colour, edgecolor="white", lw=0.8)
        if _text_width(label) < length:
            style: Any = {"ha": "center", "va": "center_baseline", "color": _INK}
            axes.text(left + length / 2, row, label, fontsize=7.5, parse_math=False, **style)
        elif token != drawn:
            behind.append(label)
        left += length
    left += 0.01
    while behind and left + _text_width("  ".join(behind)) > 1:
        behind.pop()
    style = {"ha": "left", "va": "center_baseline", "color": _QUIET}
    axes.text(left, row, "  ".join(behind), fontsize=7.5, parse_math=False, **style)


def _text_width(text: str) -> float:
    """Of small text and its margins, where 1 is the length of a whole bar; a little too much."""
    return (0.1 + 0.075 * len(text)) / _BAR_INCHES


def _captured_layers(generator: Generator, name: str) -> list[int]:
    layers = range(generator.model.config.num_layers)
    captured = [layer for layer in layers if f"layers.{layer}.{name}" in generator.taps]
    return captured or [0]  # of which taps will say that it was not captured


def _rows(
    generator: Generator, num_rows: int, positions: range | None
) -> tuple[npt.NDArray[np.intp], list[str]]:
    """The rows of taps that belong to positions, and their tokens."""
    first, tokens = generator.taps.first_position, generator.tokens
    if first + num_rows > len(tokens):
        raise StateError("the Generator was rewound: its tokens are not those that were captured")
    captured = range(first, first + num_rows)
    wanted = captured if positions is None else positions
    if len(wanted) == 0 or wanted[0] not in captured or wanted[-1] not in captured:
        raise ArgumentError(f"positions must lie in {captured}, which was captured, not {wanted}")
    tokenizer = generator.model.tokenizer
    labels = [
        _visible("" if tokenizer is None else tokenizer.decode([tokens[p]]), int(tokens[p]))
        for p in wanted
    ]
    return np.array(wanted) - first, labels


def _visible(text: str, token: int) -> str:
    """A token as one line of characters that show; its id if it has no text."""
    shown = text.translate(_VISIBLE) or str(token)
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in shown)


def _label_rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    for label in axes.get_yticklabels():
        label.set(fontsize=7.5, color=_INK, parse_math=False)  # a token may be "$"


def _bare(axes: Axes) -> None:
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=7.5, labelcolor=_INK)
