"""What a profiled model counts is what its operations read and compute, and its bits stay."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from support import assert_same_bits, random_tokens
from vulkan_support import needs_vulkan

import gptoss
from gptoss.profile import Profile

ATTENTION = ("q_proj", "k_proj", "v_proj")


@pytest.fixture(scope="module")
def profiled() -> Iterator[gptoss.Model]:
    with gptoss.Model("demo", profile=True) as model:
        yield model


class Expected:
    """Bytes from the sizes of the tensors in the file, FLOP from the shapes."""

    def __init__(self, model: gptoss.Model, kv_bytes: int) -> None:
        self.model = model
        self.config = model.config
        self.kv_bytes = kv_bytes  # of one element

    def size(self, *names: str) -> int:
        return sum(self.model.tensor_info(name).num_bytes for name in names)

    def layers(self, *names: str) -> int:
        return sum(
            self.size(f"model.layers.{layer}.{name}")
            for layer in range(self.config.num_layers)
            for name in names
        )

    def experts(self, layer: int, name: str, chosen: np.ndarray) -> int:
        """Bytes of the different experts among those chosen."""
        prefix = f"model.layers.{layer}.mlp.experts.{name}"
        whole = self.size(prefix + "_blocks", prefix + "_scales", prefix + "_bias")
        return whole // self.config.num_experts * len(np.unique(chosen))

    def visible(self, layer: int, position: int) -> set[int]:
        sliding = self.config.layer_types[layer] == "sliding_attention"
        window = self.config.sliding_window if sliding else position + 1
        return set(range(max(0, position + 1 - window), position + 1))

    def attention(self, blocks: list[range]) -> tuple[int, int]:
        """Bytes of keys and values that are seen by any row of a block, and FLOP of all rows."""
        c, rows, pairs = self.config, 0, 0
        for layer in range(c.num_layers):
            for block in blocks:
                seen = [self.visible(layer, position) for position in block]
                rows += len(set().union(*seen))
                pairs += sum(map(len, seen))
        flops = 2 * 2 * pairs * c.num_heads * c.head_dim
        return rows * 2 * c.num_kv_heads * c.head_dim * self.kv_bytes, flops

    def counts(
        self, blocks: list[range], experts: list[np.ndarray]
    ) -> dict[str, tuple[int, int, int, int, int]]:
        """name -> calls, rows, weight bytes, KV bytes, FLOP. experts: [layer] (rows, chosen)."""
        c, n = self.config, sum(map(len, blocks))
        layers, calls, first = c.num_layers, len(blocks), blocks[0].start
        queries, keys = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        gate_up = down = 0
        for block in blocks:
            for layer in range(layers):
                chosen = experts[layer][block.start - first : block.stop - first]
                gate_up += self.experts(layer, "gate_up_proj", chosen)
                down += self.experts(layer, "down_proj", chosen)
        kv, attention = self.attention(blocks)
        linear = 2 * n * layers * c.hidden_size
        mixture = linear * c.experts_per_token * c.intermediate_size
        attend = [f"self_attn.{name}.{part}" for name in ATTENTION for part in ("weight", "bias")]
        out = ("self_attn.o_proj.weight", "self_attn.o_proj.bias")
        route = ("post_attention_layernorm.weight", "mlp.router.weight", "mlp.router.bias")
        stored = 2 * n * layers * keys * self.kv_bytes
        head = self.size("model.norm.weight", "lm_head.weight")
        return {
            "embed": (calls, n, n * c.hidden_size * 2, 0, 0),
            "norm_linear": (
                calls * layers,
                n * layers,
                calls * self.layers("input_layernorm.weight", *attend),
                0,
                linear * (queries + 2 * keys),
            ),
            "rope_append": (calls * layers, n * layers, 0, stored, 0),
            "attention": (
                calls * layers,
                n * layers,
                calls * self.layers("self_attn.sinks"),
                kv,
                attention,
            ),
            "linear_residual": (
                calls * layers,
                n * layers,
                calls * self.layers(*out),
                0,
                linear * queries,
            ),
            "route": (
                calls * layers,
                n * layers,
                calls * self.layers(*route),
                0,
                linear * c.num_experts,
            ),
            "expert_gate_up": (calls * layers, n * layers, gate_up, 0, 2 * mixture),
            "expert_down": (calls * layers, n * layers, down, 0, mixture),
            "unembed": (1, 1, head, 0, 2 * c.hidden_size * c.vocab_size),
        }


def counted(profile: Profile) -> dict[str, tuple[int, int, int, int, int]]:
    return {
        operation.name: (
            operation.calls,
            operation.rows,
            operation.weight_bytes,
            operation.kv_bytes,
            operation.flops,
        )
        for operation in profile
    }


@pytest.mark.parametrize(
    ("before", "tokens", "block_size", "kv_dtype"),
    [
        (0, 1, 512, "f16"),
        (127, 1, 512, "f32"),
        (128, 1, 512, "f16"),
        (300, 1, 512, "f16"),
        (0, 200, 512, "f16"),
        (50, 333, 100, "f32"),
    ],
)
def test_counts_by_hand(
    profiled: gptoss.Model, before: int, tokens: int, block_size: int, kv_dtype: str
) -> None:
    generator = gptoss.Generator(profiled, kv_dtype=kv_dtype, block_size=block_size)
    every = random_tokens(profiled, before + tokens)
    if before:
        generator.prefill(every[:before])
    generator.capture("layers.*.router_experts")
    profiled.reset_profile()
    if tokens == 1:
        generator.step(every[-1])
    else:
        generator.prefill(every[before:])
    profile = profiled.profile()
    experts = [
        generator.taps[f"layers.{layer}.router_experts"]
        for layer in range(profiled.config.num_layers)
    ]
    end = before + tokens
    blocks = [range(i, min(i + block_size, end)) for i in range(before, end, block_size)]
    expected = Expected(profiled, 2 if kv_dtype == "f16" else 4)
    assert counted(profile) == expected.counts(blocks, experts)
    assert profile.passes == 1
    assert profile.linear_flops == profile.flops - profile["attention"].flops
    assert all(operation.seconds > 0 for operation in profile)
    assert 0 <= profile.other_seconds < profile.seconds


@pytest.mark.parametrize("device", ["cpu", pytest.param("vulkan", marks=needs_vulkan)])
def test_counts_alone(device: str, demo: gptoss.Model) -> None:
    """A GPU that is not timed counts the same."""
    tokens = random_tokens(demo, 12)
    profiles = []
    for profile in (True, "counts"):
        with gptoss.Model("demo", device=device, profile=profile) as model:
            generator = gptoss.Generator(model)
            generator.prefill(tokens)
            generator.step(1)
            profiles.append(model.profile())
    timed, not_timed = profiles
    assert counted(timed) == counted(not_timed) and not_timed.passes == 2
    assert not_timed.seconds > 0
    assert all(operation.seconds > 0 for operation in timed)
    assert all((operation.seconds > 0) == (device == "cpu") for operation in not_timed)
    with pytest.raises(gptoss.ArgumentError, match="profile must be"):
        gptoss.Model("demo", profile=2)  # type: ignore[arg-type]


def test_bits_are_the_same(profiled: gptoss.Model, demo: gptoss.Model) -> None:
    tokens = random_tokens(demo, 150, seed=1)
    logits = [
        gptoss.Generator(model, block_size=64).prefill(tokens, all_logits=True)
        for model in (profiled, demo)
    ]
    assert_same_bits(logits[0], logits[1])


def test_rewound_rows_and_forks_count(profiled: gptoss.Model) -> None:
    generator = gptoss.Generator(profiled)
    generator.prefill(random_tokens(profiled, 20))
    copy = generator.fork()
    profiled.reset_profile()
    generator.rewind(10)
    assert profiled.profile().passes == 0
    generator.step(1)
    copy.step(2)
    profile = profiled.profile()
    assert profile.passes == 2
    assert profile["unembed"].calls == 2


def test_threads_add_up(profiled: gptoss.Model) -> None:
    generators = [gptoss.Generator(profiled) for _ in range(4)]
    profiled.reset_profile()

    def steps(generator: gptoss.Generator) -> None:
        for token in range(10):
            generator.step(token)
            profiled.profile()

    threads = [threading.Thread(target=steps, args=(generator,)) for generator in generators]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    profile = profiled.profile()
    assert profile.passes == profile["embed"].rows == 40


def test_profile_is_off_by_default(demo: gptoss.Model) -> None:
    with pytest.raises(gptoss.StateError, match=r"Model\(\.\.\., profile=True\)"):
        demo.profile()
    demo.reset_profile()


def test_profile_looks_up_adds_and_prints(profiled: gptoss.Model) -> None:
    profiled.reset_profile()
    empty = profiled.profile()
    assert (empty.passes, empty.seconds, empty.flops, empty.weight_bytes) == (0, 0, 0, 0)
    assert str(empty).count("\n") == len(empty) + 2
    gptoss.Generator(profiled).step(5)
    one = profiled.profile()
    both = one + one
    assert both.passes == 2 and both.flops == 2 * one.flops
    assert both["attention"].kv_bytes == 2 * one["attention"].kv_bytes
    assert str(one).splitlines()[4].split()[:2] == ["attention", str(profiled.config.num_layers)]
    with pytest.raises(gptoss.NotFoundError, match="did you mean 'attention'"):
        one["atention"]
