"""What a request of vLLM tells an estimator."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from quietcore.scheduler.config import Settings
from quietcore.scheduler.estimate import RequestFacts
from quietcore.scheduler.vllm import hints
from quietcore.scheduler.vllm.text import PromptDecoder

# An arrival this long ago was not that: a clock was set, or the request is made up.
_MAX_AGE_S = 60.0
_SAMPLING = ("temperature", "top_p", "n")


class FactsReader:
    """Reads `vllm.v1.request.Request`; ``now`` is the clock that the queue goes by, ``warn`` takes lines for
    the log.
    """

    def __init__(
        self, settings: Settings, model_config: Any, now: Callable[[], float], warn: Callable[[str], None]
    ) -> None:
        self._now = now
        self._offset = 0.0
        self._tiers = settings.tiers
        self.decoder = PromptDecoder(settings.prompt_head, settings.prompt_tail)
        if not getattr(model_config, "skip_tokenizer_init", False):
            name = getattr(model_config, "tokenizer", None) or ""
            self.decoder.load_from(name, getattr(model_config, "tokenizer_revision", None), warn)

    def read(self, request: Any) -> RequestFacts:
        sampling = request.sampling_params
        given = hints.parse(request.priority, getattr(sampling, "extra_args", None), self._tiers)
        ids = request.prompt_token_ids or ()
        text = self.decoder.text(ids)
        lora = request.lora_request
        return RequestFacts(
            key=request.request_id,
            arrival=self._arrival(request.arrival_time),
            prompt_tokens=request.num_prompt_tokens,
            prompt=text,
            prompt_ids=() if text else ids,
            max_tokens=request.max_tokens,
            tenant=given.tenant,
            category=given.category,
            adapter=lora.lora_name if lora is not None else "",
            session=getattr(request, "session_id", None) or given.session,
            sampling=_sampling(sampling),
            least=max(getattr(sampling, "min_tokens", 0) or 0, 0),
            fixed=_is_fixed(sampling) and request.max_tokens > 0,
        )

    def _arrival(self, stamp: float) -> float:
        """The front end's time stamp, of the wall clock, in terms of our clock.

        What is not just before now (the wall clock was set, a test counts from zero) is taken as just
        arrived, and stamps after it are told by their distance to it.
        """
        now = self._now()
        for offset in (now - time.time(), self._offset):
            if now - _MAX_AGE_S <= stamp + offset <= now:
                return stamp + offset
        self._offset = now - stamp
        return now


def _is_fixed(parameters: Any) -> bool:
    """Whether only the cap ends it, as benchmarks ask for."""
    if not getattr(parameters, "ignore_eos", False):
        return False
    others = ("stop", "stop_token_ids", "repetition_detection")
    return not any(getattr(parameters, name, None) for name in others)


def _sampling(parameters: Any) -> dict[str, Any]:
    if parameters is None:
        return {}
    sampling = {name: getattr(parameters, name, None) for name in _SAMPLING}
    sampling["stop"] = len(getattr(parameters, "stop", None) or ())
    return sampling
