"""How much of a prompt the engine need not compute, as its prefix cache holds it already."""

from __future__ import annotations

from typing import Any


class PrefixCache:
    """Looks into the cache of one scheduler of vLLM, without a trace in it (vLLM's own look-up counts hits).

    Where a version of vLLM has another cache, nothing of a prompt counts as cached.
    """

    def __init__(self, scheduler: Any) -> None:
        manager = getattr(scheduler, "kv_cache_manager", None)
        pool = getattr(manager, "block_pool", None)
        self._find = getattr(pool, "get_cached_block", None)
        self._block = getattr(pool, "hash_block_size", 0) or getattr(scheduler, "block_size", 0)
        if not getattr(manager, "enable_caching", False):
            self._find = None

    def tokens(self, request: Any) -> int:
        """Tokens at the head of a waiting request that are in the cache now.

        Blocks leave the cache from the tail, and each one's hash stands for all before it: the first that is
        missing is found by halving. Only the first group of layers is asked.
        """
        hashes = getattr(request, "block_hashes", None)
        if self._find is None or not hashes or not self._block:
            return 0
        if getattr(request, "skip_reading_prefix_cache", False):
            return 0
        # the last token is computed in any case
        low, high = 0, min(len(hashes), (request.num_tokens - 1) // self._block)
        while low < high:
            middle = (low + high + 1) // 2
            if self._find(hashes[middle - 1], [0]) is None:
                high = middle - 1
            else:
                low = middle
        return low * self._block
