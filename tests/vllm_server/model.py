"""Write a tiny random-weight Llama configuration and a BPE tokenizer for vLLM.

    VENV/bin/python model.py OUT_DIR

No weights are written: vLLM makes them up itself (``--load-format dummy``).  The tokenizer is trained on
the spot on generated words.  The same input gives the same bytes, and nothing is downloaded.
Runs inside the virtual environment made by ``install.sh`` (needs the ``tokenizers`` package).
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path

VOCAB_SIZE = 2048
MAX_POSITIONS = 4096
SPECIAL = ("<unk>", "<s>", "</s>")

CONFIG: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "max_position_embeddings": MAX_POSITIONS,
    "vocab_size": VOCAB_SIZE,
    "unk_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}

TOKENIZER_CONFIG: dict[str, object] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": MAX_POSITIONS,
    "unk_token": "<unk>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "</s>",
    "clean_up_tokenization_spaces": False,
    "chat_template": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:",
}


def corpus(lines: int = 1500) -> list[str]:
    """Lines of made-up words, common ones more often; the same on every call."""
    rng = random.Random(20240607)
    onset = [*"bcdfghklmnprstv", "st", "tr", "pl", "sh"]
    nucleus = [*"aeiou", "ai", "ou", "ea"]
    coda = ["", "", "n", "r", "s", "t", "l", "nd", "st"]
    words = [
        "".join(rng.choice(onset) + rng.choice(nucleus) + rng.choice(coda) for _ in range(rng.randint(1, 4)))
        for _ in range(4000)
    ]
    weights = [1.0 / (rank + 1) for rank in range(len(words))]
    return [" ".join(rng.choices(words, weights, k=12)) + "." for _ in range(lines)]


def write_model(out_dir: Path) -> None:
    """Fill ``out_dir`` with config.json, generation_config.json and the tokenizer's two files."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one thread: the merges come in the same order
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    out_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise SystemExit(f"model.py: the tokenizer has {tokenizer.get_vocab_size()} tokens, not {VOCAB_SIZE}")
    tokenizer.save(str(out_dir / "tokenizer.json"))
    for name, value in (
        ("config.json", CONFIG),
        ("tokenizer_config.json", TOKENIZER_CONFIG),
        ("generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}),
    ):
        (out_dir / name).write_text(json.dumps(value, indent=2) + "\n")


def main(argv: list[str]) -> int:
    if len(argv) != 2 or argv[1].startswith("-"):
        print("usage: model.py OUT_DIR", file=sys.stderr)
        return 2
    try:
        write_model(Path(argv[1]))
    except ImportError as error:
        print(f"model.py: {error}; run it with the python of the venv made by install.sh", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv))
