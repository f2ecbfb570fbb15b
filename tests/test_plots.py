"""The figures of gptoss.plots show what was captured and generated."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import numpy as np
import pytest
from models import Spec

import gptoss

pytest.importorskip("matplotlib")

from gptoss import plots

GREEDY = gptoss.Sampling(temperature=0)


@pytest.fixture
def generator(demo: gptoss.Model) -> gptoss.Generator:
    return gptoss.Generator(demo, max_context=200)


def encode(model: gptoss.Model, text: str) -> list[int]:
    assert model.tokenizer is not None
    return model.tokenizer.encode(text)


def row_labels(axes: Any) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


def is_png(figure: Any) -> bool:
    data: bytes = figure._repr_png_()
    return data.startswith(b"\x89PNG") and len(data) > 5000


# ---- routing ----


def test_routing_shows_weights_at_the_chosen_experts(generator: gptoss.Generator) -> None:
    generator.capture("layers.*.router_*")
    generator.prefill(encode(generator.model, "Once upon\na time"))
    figure = plots.routing(generator)
    *panels, _ = figure.axes
    assert [axes.get_title() for axes in panels] == [f"layer {layer}" for layer in range(8)]
    assert row_labels(panels[0]) == ["Once", "·upon", "↵", "a", "·time"]
    for layer, axes in enumerate(panels):
        cells = axes.images[0].get_array()
        chosen = generator.taps[f"layers.{layer}.router_experts"]
        weights = generator.taps[f"layers.{layer}.router_weights"]
        assert cells.shape == (5, 8) and cells.count() == chosen.size
        assert np.array_equal(np.take_along_axis(cells.filled(), chosen, axis=1), weights)
    assert is_png(figure)


def test_routing_of_some_layers_and_positions(generator: gptoss.Generator) -> None:
    generator.prefill(encode(generator.model, "Once upon"))
    generator.capture("layers.[25].router_*", keep="all")
    generator.prefill(encode(generator.model, " a time"))
    generator.step(encode(generator.model, " there")[0])
    *panels, _ = plots.routing(generator, positions=range(3, 5)).axes
    assert [axes.get_title() for axes in panels] == ["layer 2", "layer 5"]
    assert row_labels(panels[0]) == ["·time", "·there"]
    *panels, _ = plots.routing(generator, layers=[5]).axes
    assert [axes.get_title() for axes in panels] == ["layer 5"]
    assert row_labels(panels[0]) == ["·a", "·time", "·there"]
    for positions in (range(0), range(1, 3), range(3, 6)):
        with pytest.raises(gptoss.ArgumentError, match=r"positions must lie in range\(2, 5\)"):
            plots.routing(generator, positions=positions)
    with pytest.raises(gptoss.NotFoundError, match=r"layers\.3\.router_experts"):
        plots.routing(generator, layers=[3])
    with pytest.raises(gptoss.ArgumentError, match="no layers"):
        plots.routing(generator, layers=[])


def test_what_was_not_captured(generator: gptoss.Generator) -> None:
    generator.prefill([1, 2])
    for plot in (plots.routing, plots.sink_mass):
        with pytest.raises(KeyError, match="call capture"):
            plot(generator)


def test_a_rewound_generator(generator: gptoss.Generator) -> None:
    generator.capture("*.sink_mass")
    generator.prefill([1, 2, 3])
    generator.rewind(1)
    with pytest.raises(gptoss.StateError, match="rewound"):
        plots.sink_mass(generator)


def test_tokens_that_are_hard_to_show(generator: gptoss.Generator) -> None:
    generator.capture("layers.0.router_*")
    generator.prefill(encode(generator.model, "$x$\t\x01"))
    figure = plots.routing(generator)
    assert row_labels(figure.axes[0]) == ["$", "x", "$", "⇥", "\\x01"]
    assert is_png(figure)  # "$x$" is no formula


def test_a_model_without_a_tokenizer(make_directory: Any) -> None:
    with gptoss.Model(make_directory(Spec())) as model:
        generator = gptoss.Generator(model, max_context=8)
        generator.capture("layers.0.router_*")
        generator.prefill([5, 7])
        assert row_labels(plots.routing(generator).axes[0]) == ["5", "7"]
        outputs = generator.generate(max_tokens=2, top_logprobs=2, sampling=GREEDY)
        assert all(label.isdecimal() for label in row_labels(plots.alternatives(outputs).axes[0]))


# ---- sink mass ----


def test_sink_mass_shows_medians_of_every_head(generator: gptoss.Generator) -> None:
    generator.capture("*.sink_mass")
    generator.prefill(encode(generator.model, "Once upon a time there was a fox."))
    figure = plots.sink_mass(generator)
    [axes] = figure.axes
    assert axes.get_title(loc="right") == "9 tokens"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "sliding window",
        "full attention",
    ]
    shown = [line for line in axes.lines if len(line.get_xdata())]
    for layer, line in enumerate(shown):
        mass = generator.taps[f"layers.{layer}.sink_mass"]
        assert np.allclose(line.get_ydata(), np.median(mass, axis=0))
        assert np.all(np.round(line.get_xdata()) == layer)
    assert len({line.get_color() for line in shown[::2]}) == 1
    assert shown[0].get_color() != shown[1].get_color()
    assert is_png(figure)


# ---- alternatives ----


def test_alternatives_are_as_long_as_they_are_likely(generator: gptoss.Generator) -> None:
    sampling = gptoss.Sampling(seed=0)
    outputs = list(
        generator.generate("Once upon a time", max_tokens=8, sampling=sampling, top_logprobs=3)
    )
    figure = plots.alternatives(outputs)
    [axes] = figure.axes
    assert row_labels(axes) == [out.text.replace(" ", "·") for out in outputs]
    for row, out in enumerate(outputs):
        bars = [bar for bar in axes.patches if round(bar.get_y() + 0.41) == row]
        tops = {top.token: top.logprob for top in out.top_logprobs} | {out.token: out.logprob}
        assert np.allclose([bar.get_width() for bar in bars], np.exp(list(tops.values())))
        colours = [bar.get_facecolor() for bar in bars]
        assert colours.count(colours[list(tops).index(out.token)]) == 1
    assert any(len({top.token for top in out.top_logprobs} - {out.token}) == 3 for out in outputs)
    assert is_png(figure)


def test_alternatives_of_nothing(generator: gptoss.Generator) -> None:
    for options in ({"max_tokens": 0, "top_logprobs": 2}, {"max_tokens": 2}):
        outputs = generator.generate("Once", sampling=GREEDY, **options)
        with pytest.raises(gptoss.ArgumentError, match="top_logprobs=5"):
            plots.alternatives(outputs)


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "gptoss.plots")
    with pytest.raises(gptoss.UnsupportedError, match=r"gptoss-engine\[notebook\]"):
        importlib.import_module("gptoss.plots")
