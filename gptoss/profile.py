"""What a model's passes spent on each operation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

from gptoss.errors import NotFoundError, did_you_mean

# Operations whose work is products of weights and vectors.
LINEAR = frozenset(
    (
        "norm_linear",
        "linear_residual",
        "mlp_up",
        "route",
        "expert_gate_up",
        "expert_down",
        "unembed",
    )
)


@dataclass(frozen=True)
class Operation:
    """One kind of operation, its calls added up.

    rows: tokens, counted in each call. weight_bytes: of weights; each matrix counts once a call,
    of experts those that were chosen. kv_bytes: of keys and values; those that any row of a
    sequence sees count once a call, and those stored. flops: of matrix products and attention, two
    a multiply-add.
    """

    name: str
    calls: int
    seconds: float
    rows: int
    weight_bytes: int
    kv_bytes: int
    flops: int

    @property
    def bytes(self) -> int:
        return self.weight_bytes + self.kv_bytes

    @property
    def bytes_per_second(self) -> float:
        return self.bytes / self.seconds if self.seconds else 0.0

    @property
    def flops_per_second(self) -> float:
        return self.flops / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Profile:
    """The operations in the order of a pass, and the time of whole passes. Iterable; profile[name]
    is one operation.

    passes: how often the model was run, one prefill or step being one. seconds: of the passes, from
    the model's turn on; other_seconds: of these, what lies between the operations, as filling in
    rotary positions and keeping activations.
    """

    operations: tuple[Operation, ...]
    passes: int
    seconds: float

    @classmethod
    def of(cls, entries: Iterable[tuple[str, int, int, int, int, int, int]]) -> Profile:
        """From what the engine counted, "pass" last."""
        *operations, whole = (
            Operation(name, calls, nanoseconds / 1e9, *counts)
            for name, calls, nanoseconds, *counts in entries
        )
        return cls(tuple(operations), whole.calls, whole.seconds)

    def __iter__(self) -> Iterator[Operation]:
        return iter(self.operations)

    def __len__(self) -> int:
        return len(self.operations)

    def __getitem__(self, name: str) -> Operation:
        for operation in self.operations:
            if operation.name == name:
                return operation
        names = [operation.name for operation in self.operations]
        raise NotFoundError(f"there is no operation {name!r}{did_you_mean(name, names)}")

    @property
    def other_seconds(self) -> float:
        return max(0.0, self.seconds - sum(operation.seconds for operation in self))

    @property
    def weight_bytes(self) -> int:
        return sum(operation.weight_bytes for operation in self)

    @property
    def kv_bytes(self) -> int:
        return sum(operation.kv_bytes for operation in self)

    @property
    def flops(self) -> int:
        return sum(operation.flops for operation in self)

    @property
    def linear_flops(self) -> int:
        """Those of products with weights alone, without attention."""
        return sum(operation.flops for operation in self if operation.name in LINEAR)

    def __add__(self, other: Profile) -> Profile:
        counts = [field.name for field in fields(Operation)][1:]
        operations = (
            Operation(mine.name, *(getattr(mine, name) + getattr(its, name) for name in counts))
            for mine, its in zip(self, other, strict=True)
        )
        passes, seconds = self.passes + other.passes, self.seconds + other.seconds
        return Profile(tuple(operations), passes, seconds)

    def __str__(self) -> str:
        titles = ("calls", "ms", "share", "GB/s", "GFLOP/s")
        lines = ["{:<16} {:>8} {:>10} {:>6} {:>8} {:>8}".format("operation", *titles)]
        for operation in self:
            share = operation.seconds / self.seconds if self.seconds else 0.0
            lines.append(
                f"{operation.name:<16} {operation.calls:>8} {operation.seconds * 1e3:>10.3f} "
                f"{share:>6.1%} {operation.bytes_per_second / 1e9:>8.2f} "
                f"{operation.flops_per_second / 1e9:>8.1f}"
            )
        share = self.other_seconds / self.seconds if self.seconds else 0.0
        lines.append(f"{'other':<16} {'':>8} {self.other_seconds * 1e3:>10.3f} {share:>6.1%}")
        lines.append(f"{'all':<16} {self.passes:>8} {self.seconds * 1e3:>10.3f}")
        return "\n".join(lines)
