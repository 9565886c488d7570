"""vLLM's scheduler without a model: its real class, built from a configuration of one tiny layer.

The classes of vLLM are not typed for us: what comes from there is ``Any``.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quietcore.scheduler.bench import BenchError

MAX_MODEL_LEN = 1 << 20  # tokens; longer than any request
BLOCK = 64  # tokens; large, since "unlimited" KV memory is made of Python objects
_QUIET = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # standard output may be JSON
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
_MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_MODEL_LEN,
    "vocab_size": 64,
    "torch_dtype": "bfloat16",
}


@dataclass(frozen=True, slots=True)
class EngineShape:
    """What of an engine's configuration decides about the queue.

    Attributes:
        slots: ``--max-num-seqs``.
        step_tokens: ``--max-num-batched-tokens``; longer prompts are prefilled in chunks.
        kv_tokens: room for keys and values, in tokens.
        policy: ``--scheduling-policy`` of vLLM.
        prefix_caching: off, as recorded streams are replayed without what their prompts share.
        additional_config: as of ``--additional-config``.
    """

    slots: int = 32
    step_tokens: int = 8192
    kv_tokens: int = 1 << 20
    policy: str = "fcfs"
    prefix_caching: bool = False
    additional_config: Mapping[str, Any] = field(default_factory=dict)


def import_vllm() -> str:
    """Import vLLM, quietly; its version.

    Raises:
        BenchError: it cannot be imported.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("vllm").setLevel(logging.ERROR)
    try:
        import vllm
        import vllm.v1.core.sched.async_scheduler
    except Exception as e:  # a broken installation fails in many ways
        raise BenchError(
            f"virtual time drives vLLM's scheduler, and vllm cannot be imported ({type(e).__name__}: {e})",
            "run in the environment of vllm, with quietcore[bench] installed there",
        ) from e
    return str(vllm.__version__)


def stock_class() -> Any:
    """The scheduler of vLLM itself that our plug-in extends."""
    import_vllm()
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    return AsyncScheduler


def build_scheduler(cls: Any, shape: EngineShape) -> Any:
    """An instance of a scheduler class of vLLM (``Scheduler`` or a class derived from it)."""
    import_vllm()
    import torch
    from vllm.config import CacheConfig, VllmConfig
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    blocks = -(-shape.kv_tokens // BLOCK) + shape.slots + 1
    cache = CacheConfig(block_size=BLOCK, enable_prefix_caching=shape.prefix_caching)
    cache.num_gpu_blocks = blocks
    config = VllmConfig(
        model_config=_model_config(),
        scheduler_config=_scheduler_config(shape),
        cache_config=cache,
        additional_config=dict(shape.additional_config),
    )
    layer = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
    return cls(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], layer)]
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK,
        log_stats=False,
    )


def _model_config() -> Any:
    from vllm.config import ModelConfig

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(_MODEL))
        return ModelConfig(
            model=folder, skip_tokenizer_init=True, dtype="bfloat16", max_model_len=MAX_MODEL_LEN
        )


def _scheduler_config(shape: EngineShape) -> Any:
    from vllm.config import SchedulerConfig

    settings: dict[str, Any] = {
        "max_num_seqs": shape.slots,
        "max_num_batched_tokens": shape.step_tokens,
        "max_model_len": MAX_MODEL_LEN,
        "enable_chunked_prefill": True,
        "policy": shape.policy,
        "async_scheduling": False,
    }
    if "is_encoder_decoder" in inspect.signature(SchedulerConfig).parameters:
        settings["is_encoder_decoder"] = False
    return SchedulerConfig(**settings)
