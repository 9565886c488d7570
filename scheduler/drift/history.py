"""Lengths of earlier requests, by everything that a request shares with them."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

from quietcore.scheduler.drift.baselines import Groups
from quietcore.scheduler.drift.text import PREFIXES, SUFFIXES, Reading
from quietcore.scheduler.estimate import RequestFacts

_LONG = 300.0  # the most that a group's past weighs against one new length
_SHORT = 12.0

NAMES = (
    *("all", "all recent", "category", "tenant", "both", "both n", "both recent", "adapter"),
    *("size", "size n", "same size", "same size n"),
    *("prefix 12", "prefix 64", "prefix", "prefix n", "suffix 24", "suffix", "suffix n"),
    *("prompt", "prompt n", "prompt last", "tail", "tail n", "session", "session last", "session n"),
)
"""Names of what `History.describe` answers, in order. Logs of tokens, except n: log of 1 + weight."""

BASE = NAMES.index("both")


class Mean:
    """Mean of a group's log lengths; old ones fade once it weighs 300, in ``recent`` once it weighs 12."""

    __slots__ = ("last", "mean", "recent", "weight")

    def __init__(self) -> None:
        self.weight = self.mean = self.recent = self.last = 0.0

    def add(self, value: float, weight: float) -> None:
        self.weight = min(self.weight + weight, _LONG)
        self.mean += (value - self.mean) * weight / self.weight
        self.recent += (value - self.recent) * weight / min(self.weight, _SHORT)
        self.last = value

    def toward(self, wider: float, strength: float) -> float:
        """The mean, drawn to that of the wider group as if by ``strength`` lengths of it."""
        return (self.weight * self.mean + strength * wider) / (self.weight + strength)


_NONE = Mean()


@dataclass(slots=True)
class Keys:
    """The groups that a request belongs to."""

    lengths: list[Hashable]
    prefixes: list[Hashable]
    suffixes: list[Hashable]
    residuals: list[tuple[str, Hashable]]


class History:
    """Means of groups. Prompts seen again are remembered by how far they were off their group's mean."""

    def __init__(self) -> None:
        self.groups: Groups[Mean] = Groups(Mean, most=1 << 15)

    @staticmethod
    def keys(facts: RequestFacts, reading: Reading) -> Keys:
        tenant, category, size = facts.tenant, facts.category, max(facts.prompt_tokens, 0)
        return Keys(
            [
                "all",
                ("category", category),
                ("tenant", tenant),
                (tenant, category, ""),
                ("adapter", facts.adapter),
                ("size", tenant, int(2 * math.log2(size + 1))),
                ("same size", tenant, size),
            ],
            [("prefix", key) for key in reading.prefixes],
            [("suffix", key) for key in reading.suffixes],
            [
                ("prompt", reading.whole),
                ("tail", reading.suffixes[-1] if reading.suffixes else reading.whole),
                ("session", facts.session),
            ],
        )

    def describe(self, keys: Keys) -> list[float]:
        find, log1p = self.groups.find, math.log1p
        total, category, tenant, both, adapter, size, same = [find(key) or _NONE for key in keys.lengths]
        mean = total.mean
        by_category = category.toward(mean, 3.0)
        by_tenant = tenant.toward(mean, 3.0)
        base = both.toward(by_category + by_tenant - mean, 3.0)
        by_size = size.toward(by_tenant, 4.0)
        row = [mean, total.recent, by_category, by_tenant, base, log1p(both.weight)]
        row += [both.recent if both.weight else base, adapter.toward(mean, 3.0)]
        row += [by_size, log1p(size.weight), same.toward(by_size, 1.5), log1p(same.weight)]
        heads, weight = self._descend(keys.prefixes, base, len(PREFIXES))
        row += [heads[0], heads[2], heads[-1], log1p(weight)]
        tails, weight = self._descend(keys.suffixes, base, len(SUFFIXES))
        row += [tails[0], tails[-1], log1p(weight)]
        prompt, tail, session = [find(key) or _NONE for key in keys.residuals]
        row += [prompt.toward(0.0, 0.7), log1p(prompt.weight), prompt.last]
        row += [tail.toward(0.0, 0.7), log1p(tail.weight)]
        row += [session.toward(0.0, 0.7), session.last, log1p(session.weight)]
        return row

    def _descend(self, keys: list[Hashable], value: float, levels: int) -> tuple[list[float], float]:
        """Means along ever longer heads (or tails), each drawn to the one before; weight of the last."""
        values, weight = [], 0.0
        for key in keys:
            group = self.groups.find(key)
            if group is None:
                break
            value, weight = group.toward(value, 5.0), group.weight
            values.append(value)
        return values + [value] * (levels - len(values)), weight

    def learn(self, keys: Keys, log_length: float, base: float, weight: float = 1.0) -> None:
        """``base``: the group's mean as it was described at admission."""
        touch = self.groups.touch
        for key in (*keys.lengths, *keys.prefixes, *keys.suffixes):
            touch(key).add(log_length, weight)
        for kind, name in keys.residuals:
            if name:
                touch((kind, name)).add(log_length - base, weight)
