"""An engine without a model around a scheduler of vLLM: requests end after the lengths they are given.

Runs in vLLM's environment, with any version from 0.24.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from quietcore.scheduler.bench.modelless import BLOCK, EngineShape, build_scheduler

STOP, TOKEN = 2, 5


@dataclass
class Outcome:
    """What became of a request: the step it was first scheduled in and the one it ended in, its tokens."""

    first: int = -1
    last: int = -1
    tokens: list[int] = field(default_factory=list)
    reason: str = ""


class Engine:
    """``depth`` steps are in flight, as in vLLM's engine loop; 1 is the synchronous one."""

    def __init__(self, cls: Any, shape: EngineShape, *, depth: int = 1) -> None:
        self.scheduler: Any = build_scheduler(cls, shape)
        self._hasher = _prefix_hasher() if shape.prefix_caching else None
        self.depth = depth
        self.steps = 0
        self.outcomes: dict[str, Outcome] = {}
        self._length: dict[str, int] = {}
        self._flight: deque[tuple[Any, dict[str, list[int]]]] = deque()

    def add(self, key: str, length: int, *, prompt: int = 16, **fields: Any) -> Any:
        """A request that stops at its ``length``-th token.

        ``fields``: sampling, priority, arrival_time, prompt_ids.
        """
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        sampling = {"max_tokens": 4096, "stop_token_ids": [STOP], "detokenize": False}
        own = {name: fields.pop(name) for name in ("priority", "arrival_time") if name in fields}
        request = Request(
            request_id=key,
            prompt_token_ids=fields.pop("prompt_ids", [TOKEN] * prompt),
            block_hasher=self._hasher,
            sampling_params=SamplingParams(**{**sampling, **fields}),
            pooling_params=None,
            **own,
        )
        self._length[key] = length
        self.outcomes[key] = Outcome()
        self.scheduler.add_request(request)
        return request

    def length(self, key: str) -> int:
        return self._length[key]

    def abort(self, *keys: str) -> None:
        from vllm.v1.request import RequestStatus

        self.scheduler.finish_requests(list(keys), RequestStatus.FINISHED_ABORTED)

    def step(self) -> bool:
        """Schedules a step, and takes in the output of the oldest if the pipeline is full; false if idle."""
        output = self.scheduler.schedule() if self.scheduler.has_requests() else None
        if output is not None:
            self.steps += 1
            self._flight.append((output, self._sample(output)))
            if len(self._flight) < self.depth and output.total_num_scheduled_tokens:
                return True
        if not self._flight:
            return False
        self._update(*self._flight.popleft())
        return True

    def drain(self, most: int = 100_000) -> None:
        """Steps until nothing is left; fails if that does not come about."""
        for _ in range(most):
            if not self.scheduler.has_unfinished_requests() and not self._flight:
                return
            self.step()
        raise AssertionError(f"not done after {most} steps: {self.scheduler.get_request_counts()}")

    def _sample(self, output: Any) -> dict[str, list[int]]:
        sampled = {}
        for key in output.num_scheduled_tokens:
            request = self.scheduler.requests[key]
            outcome = self.outcomes[key]
            if outcome.first < 0:
                outcome.first = self.steps
            # Done with its prompt (and, if preempted before, with its output so far).
            done = request.num_computed_tokens >= request.num_tokens
            sampled[key] = [TOKEN] if done else []
        return sampled

    def _update(self, output: Any, sampled: dict[str, list[int]]) -> None:
        from vllm.v1.outputs import ModelRunnerOutput

        for key, tokens in sampled.items():
            request = self.scheduler.requests.get(key)
            if tokens and request is not None and request.num_output_tokens + 1 >= self._length[key]:
                tokens[0] = STOP
        keys = list(sampled)
        result = self.scheduler.update_from_output(
            output,
            ModelRunnerOutput(
                req_ids=keys,
                req_id_to_index={key: index for index, key in enumerate(keys)},
                sampled_token_ids=[sampled[key] for key in keys],
                logprobs=None,
                prompt_logprobs_dict={},
                pooler_output=[],
            ),
        )
        for client in result.values():
            for each in client.outputs:
                outcome = self.outcomes[each.request_id]
                outcome.tokens += each.new_token_ids
                if each.finish_reason is not None:
                    outcome.last, outcome.reason = self.steps, str(each.finish_reason)


def _prefix_hasher() -> Any:
    """What makes the hashes of a request's blocks, as the engine core has it."""
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash

    init_none_hash(sha256)
    return get_request_block_hasher(BLOCK, sha256)
