"""The requests of the experiment: job types, tenants, phases.

From the paper and its repository (kpalania1/driftsched): 3,000 requests, a third of them a learning phase
with gaps of 50 to 150 ms and the mix 40/25/25/10, the others a stress phase with gaps of 5 to 30 ms and the
mix 10/20/40/30 of short question, summary, technical explanation and report; ``max_tokens`` 64/256/384/512 by
job type, equal to the budgets; three tenants, equally likely; prompts of some twenty words that name the job
type.

Assumed here, since no recorded answers are published:

- ``pinned``: every answer fills its ``max_tokens``.
- ``natural``: an answer would have a log-normal length (median 300 tokens, sigma 0.6, as answers of many
  models to short "explain" and "describe" prompts of public data sets have) and is cut at its ``max_tokens``.
- An answer has 0.79 words a token (standard deviation 0.09), as answers to short questions of the same
  sources have by cl100k_base. The published estimator is told words, while its budgets are tokens.
- A prompt has 1.35 tokens a word.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from quietcore.scheduler.estimate import RequestFacts

Lengths = Literal["pinned", "natural"]

REQUESTS = 3000
BUDGETS = {"short_qa": 64, "summary": 256, "technical": 384, "report": 512}
TENANTS = ("premium", "standard", "batch")
LEARNING_SHARE = 1 / 3
PAUSE_S = 15.0
"""Between the drained learning phase and the stress phase."""
_MIX = {"learning": (40, 25, 25, 10), "stress": (10, 20, 40, 30)}
_GAP_S = {"learning": (0.05, 0.15), "stress": (0.005, 0.03)}

_NATURAL_MEDIAN, _NATURAL_SIGMA = 300.0, 0.6  # tokens
_WORDS_PER_TOKEN, _WORDS_SIGMA = 0.79, 0.09
_PROMPT_TOKENS_PER_WORD = 1.35

_SUBJECTS = (
    *("consistent hashing", "raft elections", "copy-on-write file systems", "page tables", "B-trees"),
    *("congestion control", "certificate rotation", "speculative decoding", "paged attention", "NUMA hosts"),
    *("log-structured storage", "vector clocks", "blue-green releases", "write-ahead logs", "bloom filters"),
    *("tensor parallelism", "cgroup quotas", "interrupt affinity", "zero-copy networking", "leader leases"),
    *("schema migrations", "rate limiters", "content delivery", "index compression", "thread pools"),
)
_PROMPTS = {
    "short_qa": ("What are {} good for?", "Who needs {}, and when?", "Why do teams choose {}?"),
    "summary": (
        "Summarize the idea behind {} and its architecture.",
        "Summarize what operators should know about {}.",
        "Summarize the usual objections to {}.",
    ),
    "technical": (
        "Describe step by step how {} work inside, with the data structures involved.",
        "Explain where {} lose time under load and how that is measured.",
        "Explain which invariants {} depend on, and what the code must check.",
    ),
    "report": (
        "Write a detailed report about {}: design, operation, cost, risks and alternatives.",
        "Write a comprehensive review of {} for a steering committee.",
        "Write a report that compares three ways to introduce {} in a large company.",
    ),
}


@dataclass(frozen=True, slots=True)
class WorkRequest:
    """A request of the experiment.

    Attributes:
        gap_s: seconds after the one before, inside a phase.
        output_tokens: what the engine generates.
        output_words: what the published estimator is told of it.
    """

    facts: RequestFacts
    job_type: str
    phase: str
    gap_s: float
    output_tokens: int
    output_words: int


def make(seed: int, lengths: Lengths = "pinned", count: int = REQUESTS) -> list[WorkRequest]:
    """One run's requests; the same for the same arguments."""
    rng = random.Random(seed)
    learning = round(count * LEARNING_SHARE)
    return [_make(rng, i, "learning" if i < learning else "stress", lengths) for i in range(count)]


def _make(rng: random.Random, i: int, phase: str, lengths: Lengths) -> WorkRequest:
    job_type = rng.choices(list(BUDGETS), _MIX[phase])[0]
    tenant = rng.choice(TENANTS)
    task = rng.choice(_PROMPTS[job_type]).format(rng.choice(_SUBJECTS))
    prompt = f"Request {i} of tenant {tenant}. Job type: {job_type}. {task}"
    tokens = BUDGETS[job_type]
    if lengths == "natural":
        tokens = min(tokens, max(1, round(_NATURAL_MEDIAN * rng.lognormvariate(0, _NATURAL_SIGMA))))
    words = max(1, round(tokens * min(1.0, max(0.3, rng.gauss(_WORDS_PER_TOKEN, _WORDS_SIGMA)))))
    facts = RequestFacts(
        key=str(i),
        arrival=0.0,
        prompt_tokens=round(len(prompt.split()) * _PROMPT_TOKENS_PER_WORD),
        prompt=prompt,
        max_tokens=BUDGETS[job_type],
        tenant=tenant,
    )
    return WorkRequest(facts, job_type, phase, rng.uniform(*_GAP_S[phase]), tokens, words)
