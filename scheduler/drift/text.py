"""What a prompt tells of its answer's length: counts, hashed words, keys of its head and tail.

Only a bounded head and tail of a prompt are read, so that the time is bounded too.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quietcore.scheduler.estimate import RequestFacts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HEAD = 640  # characters
TAIL = 896
BUCKETS = 1 << 14
PREFIXES = (12, 32, 64, 128, 256)  # characters, four to a token
SUFFIXES = (24, 96, 320)

_MAX_WORDS = 256
_MAX_MEMO = 1 << 16
_TOKEN = 4  # characters, roughly
_ODD = 40503  # 2**16 / golden ratio, made odd (Knuth's multiplicative hash)

_MARKS = ("\n", "?", ".", ",", ":", '"', "'", "`", "{", "(", "=", "<", "\\", "$", "*", "#", "|", "-", "/")
_PHRASES = (
    *("step", "json", "code", "function", "write", "list", "essay", "story", "explain", "describe", "translate"),
    *("summar", "brief", "short", "concise", "detail", "only", "answer", "true", "choice", "option", "example"),
    *("how ", "what ", "why ", "who ", "your", "create", "generate", "compare", "poem", "email", "plan"),
    *("rewrite", "correct", "classify", "question", "input", "output", "python", "reason", "html", "table"),
    *("script", "dialog", "character", "imagine", "tool", "article", "paragraph", "sentence", "```", "\n- "),
)
_UNITS = {"word": 1.3, "sentence": 25.0, "paragraph": 110.0, "line": 15.0, "page": 600.0}  # tokens, roughly
_ITEM = 40.0  # tokens of an item, example, step, ...
_ASKED = re.compile(r"(\d{1,4})[ -](word|sentence|paragraph|line|page|item|example|bullet|point|step|reason|way|idea)")
_TO_WORDS = str.maketrans(
    {mark: " " for mark in "\n\t\r.,:;!?\"'`()[]{}<>=*#|-/\\$_~+"} | {digit: "0" for digit in "123456789"}
)

NAMES: tuple[str, ...] = (
    *("is text", "characters", "words", "word length", "not ascii", "last line", "asks at the end", "asked tokens"),
    *(f"mark {mark!r}" for mark in _MARKS),
    *(f"phrase {phrase!r}" for phrase in _PHRASES),
)
"""Names of the counts, in order."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read of a prompt.

    Attributes:
        counts: one number for each of `NAMES`.
        words: buckets of words and of pairs of neighbours, below `BUCKETS`.
        prefixes: keys of ever longer heads; a prompt shorter than one has no key for it.
        suffixes: keys of ever longer tails.
        whole: the same for the same head, tail and length; 0 without a prompt.
    """

    counts: list[float]
    words: NDArray[np.int64]
    prefixes: list[int]
    suffixes: list[int]
    whole: int


class _Buckets(dict[str, int]):
    """Bucket of a word, computed once. crc32, because str's own hash differs from run to run."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _MAX_MEMO:
            self.clear()
        bucket = self[word] = zlib.crc32(word.encode("utf-8", "replace")) % BUCKETS
        return bucket


class Reader:
    """Reads prompts, as text or as token ids."""

    def __init__(self) -> None:
        import numpy as np

        self._np = np
        self._bucket = _Buckets()

    def read(self, facts: RequestFacts) -> Reading:
        if facts.prompt:
            return self._read_text(facts.prompt)
        if len(facts.prompt_ids):
            return self._read_ids(facts.prompt_ids)
        return Reading([0.0] * len(NAMES), self._np.empty(0, self._np.int64), [], [], 0)

    def _read_text(self, prompt: str) -> Reading:
        length = len(prompt)
        view = prompt if length <= HEAD + TAIL else f"{prompt[:HEAD]}\n{prompt[-TAIL:]}"
        lower = view.lower()
        words = lower.translate(_TO_WORDS).split()
        if len(words) > _MAX_WORDS:
            words = words[: _MAX_WORDS // 2] + words[-_MAX_WORDS // 2 :]
        head = prompt[: PREFIXES[-1]].encode("utf-8", "replace")
        tail = prompt[-SUFFIXES[-1] :].encode("utf-8", "replace")
        return Reading(
            self._count(view, lower, len(words), length),
            self._hash(list(map(self._bucket.__getitem__, words))),
            [zlib.crc32(head[:size], size) for size in PREFIXES if size <= length],
            [zlib.crc32(tail[-size:], size) for size in SUFFIXES if size <= length],
            zlib.crc32(tail, zlib.crc32(head, length & 0xFFFFFFFF)),
        )

    def _read_ids(self, ids: Sequence[int]) -> Reading:
        np = self._np
        half = _MAX_WORDS // 2
        bounded = [*ids[:half], *ids[max(half, len(ids) - half) :]]
        tokens = np.asarray(bounded, dtype=np.int64)
        counts = [0.0] * len(NAMES)
        length = len(ids) * _TOKEN
        head, tail = tokens[:half].tobytes(), tokens[-half:].tobytes()
        width = tokens.itemsize
        prefixes = [(size, size // _TOKEN * width) for size in PREFIXES if size <= length]
        suffixes = [(size, size // _TOKEN * width) for size in SUFFIXES if size <= length]
        return Reading(
            counts,
            self._hash(((tokens * _ODD >> 3) % BUCKETS).tolist()),
            [zlib.crc32(head[:end], size) for size, end in prefixes],
            [zlib.crc32(tail[-end:], size) for size, end in suffixes],
            zlib.crc32(tail, zlib.crc32(head, length & 0xFFFFFFFF)),
        )

    def _count(self, view: str, lower: str, words: int, length: int) -> list[float]:
        size = len(view)
        asked = _ASKED.search(lower)
        return [
            1.0,
            math.log1p(length),
            math.log1p(words),
            size / (words + 1),
            0.0 if view.isascii() else len(view.encode("utf-8", "replace")) / size,
            math.log1p(size - view.rfind("\n", 0, -1)),
            float(view.rstrip()[-1:] in ("?", ":")),
            math.log1p(int(asked[1]) * _UNITS.get(asked[2], _ITEM)) if asked else 0.0,
            *[float(view.count(mark)) for mark in _MARKS],
            *[float(phrase in lower) for phrase in _PHRASES],
        ]

    def _hash(self, buckets: list[int]) -> NDArray[np.int64]:
        """Each bucket once, and those of the pairs."""
        np = self._np
        sequence = np.array(buckets, dtype=np.int64)
        pairs = ((sequence[:-1] * _ODD + sequence[1:]) * 2654435761 >> 18) & (BUCKETS - 1)
        return np.concatenate((np.array(list(dict.fromkeys(buckets)), dtype=np.int64), pairs))
