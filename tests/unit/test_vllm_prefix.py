"""Looking into vLLM's prefix cache."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from quietcore.scheduler.vllm.prefix import PrefixCache

BLOCK = 16


class Pool:
    hash_block_size = BLOCK

    def __init__(self, cached: int) -> None:
        self.cached = cached
        self.asked = 0

    def get_cached_block(self, block_hash: int, group_ids: list[int]) -> list[object] | None:
        assert group_ids == [0]
        self.asked += 1
        return [object()] if block_hash < self.cached else None


def scheduler(pool: object, *, caching: bool = True) -> Any:
    return SimpleNamespace(kv_cache_manager=SimpleNamespace(block_pool=pool, enable_caching=caching))


def request(tokens: int, **fields: Any) -> Any:
    return SimpleNamespace(num_tokens=tokens, block_hashes=list(range(tokens // BLOCK)), **fields)


@pytest.mark.parametrize("cached", [0, 1, 2, 31, 32, 500, 1999, 2000])
def test_the_first_missing_block_is_found_with_few_looks(cached: int) -> None:
    pool = Pool(cached)
    assert PrefixCache(scheduler(pool)).tokens(request(2000 * BLOCK + 3)) == cached * BLOCK
    assert pool.asked <= 12


def test_the_last_token_is_never_cached() -> None:
    assert PrefixCache(scheduler(Pool(9))).tokens(request(4 * BLOCK)) == 3 * BLOCK


def test_nothing_is_cached_where_nothing_may_be_read() -> None:
    assert PrefixCache(scheduler(Pool(9), caching=False)).tokens(request(99)) == 0
    assert PrefixCache(scheduler(Pool(9))).tokens(request(99, skip_reading_prefix_cache=True)) == 0
    assert PrefixCache(scheduler(Pool(9))).tokens(request(3)) == 0


def test_another_cache_counts_as_none() -> None:
    assert PrefixCache(scheduler(SimpleNamespace())).tokens(request(99)) == 0
    assert PrefixCache(SimpleNamespace()).tokens(request(99)) == 0
