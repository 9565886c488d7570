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

HEAD = 400  # characters
TAIL = 624
BUCKETS = 1 << 14
PREFIXES = (12, 32, 64, 128, 256)  # characters, four to a token
SUFFIXES = (24, 96, 320)

_MAX_WORDS = 160
_MAX_MEMO = 1 << 16
_TOKEN = 4  # characters, roughly
_ODD = 40503  # 2**16 / golden ratio, made odd (Knuth's multiplicative hash)

_MARKS = tuple(mark.encode() for mark in ["\n", "\n- ", "```", *"?.,:\"'`{(=<\\$*#|-/"])
_FLAGS = (
    *("step steps", "json", "code coding", "function", "write", "list", "essay", "story stories", "explain"),
    *(
        "describe description",
        "translate translation",
        "summarize summarise summary",
        "brief briefly",
        "short",
    ),
    *(
        "concise",
        "detail detailed details",
        "only",
        "answer",
        "true false",
        "choice choices",
        "option options",
    ),
    *(
        "example examples",
        "how",
        "what",
        "why",
        "who",
        "your",
        "create",
        "generate",
        "compare",
        "poem",
        "email",
    ),
    *("plan", "rewrite", "correct", "classify", "question", "input", "output", "python", "reason reasoning"),
    *("html", "table", "script", "dialog dialogue", "character", "imagine", "tool tools", "article"),
    *("paragraph paragraphs", "sentence sentences", "word words", "line lines", "page pages", "item items"),
    *("point points", "way ways", "idea ideas"),
)
_FLAG = {word.encode(): place for place, words in enumerate(_FLAGS) for word in words.split()}
_UNITS = {
    **{b"word": 1.3, b"sentence": 25.0, b"paragraph": 110.0, b"line": 15.0, b"page": 600.0},
    **dict.fromkeys((b"item", b"example", b"point", b"step", b"reason", b"way", b"idea"), 40.0),
}
"""Tokens of one of what a prompt may ask a number of, roughly."""
_UNIT_WORDS = {word for unit in _UNITS for word in (unit, unit + b"s")}
_ASKED = re.compile(rb"(\d{1,4})[ -](" + b"|".join(_UNITS) + b")")

# to words of lower case: digits as one, ASCII marks as blanks, UTF-8 beyond ASCII as it is
_TO_WORDS = bytearray(range(256))
for _code in range(128):
    _letter = chr(_code)
    if _letter.isdigit():
        _TO_WORDS[_code] = ord("0")
    else:
        _TO_WORDS[_code] = ord(_letter.lower()) if _letter.isalpha() else ord(" ")

NAMES: tuple[str, ...] = (
    *(
        "is text",
        "characters",
        "words",
        "word length",
        "not ascii",
        "last line",
        "asks at the end",
        "asked tokens",
    ),
    *(f"mark {mark.decode()!r}" for mark in _MARKS),
    *(f"words {words}" for words in _FLAGS),
)
"""Names of the counts, in order."""


@dataclass(slots=True)
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


class _Buckets(dict[bytes, int]):
    """Bucket of a word, computed once. crc32, because Python's own hash differs from run to run."""

    def __missing__(self, word: bytes) -> int:
        if len(self) >= _MAX_MEMO:
            self.clear()
        bucket = self[word] = zlib.crc32(word) % BUCKETS
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
        view = (prompt if length <= HEAD + TAIL else f"{prompt[:HEAD]}\n{prompt[-TAIL:]}").encode(
            "utf-8", "replace"
        )
        words = view.translate(_TO_WORDS).split()
        if len(words) > _MAX_WORDS:
            words = words[: _MAX_WORDS // 2] + words[-_MAX_WORDS // 2 :]
        size = len(view)
        return Reading(
            self._count(view, words, length),
            self._hash(list(map(self._bucket.__getitem__, words))),
            [zlib.crc32(view[:end], end) for end in PREFIXES if end <= size],
            [zlib.crc32(view[-end:], end) for end in SUFFIXES if end <= size],
            zlib.crc32(view, length & 0xFFFFFFFF),
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

    def _count(self, view: bytes, words: list[bytes], length: int) -> list[float]:
        size = len(view)
        flags = [0.0] * len(_FLAGS)
        found = _FLAG.keys() & words
        for word in found:
            flags[_FLAG[word]] = 1.0
        asked = None if found.isdisjoint(_UNIT_WORDS) else _ASKED.search(view)
        return [
            1.0,
            math.log1p(length),
            math.log1p(len(words)),
            size / (len(words) + 1),
            0.0 if view.isascii() else size / min(length, HEAD + TAIL + 1),
            math.log1p(size - view.rfind(b"\n", 0, -1)),
            1.0 if view.rstrip()[-1:] in (b"?", b":") else 0.0,
            math.log1p(int(asked[1]) * _UNITS[asked[2]]) if asked else 0.0,
            *[float(view.count(mark)) for mark in _MARKS],
            *flags,
        ]

    def _hash(self, buckets: list[int]) -> NDArray[np.int64]:
        """Each bucket once, and those of the pairs."""
        array = self._np.array
        sequence = array(buckets, dtype="int64")
        pairs = ((sequence[:-1] * _ODD + sequence[1:]) * 2654435761 >> 18) & (BUCKETS - 1)
        words: NDArray[np.int64] = self._np.concatenate((array(list(dict.fromkeys(buckets)), "int64"), pairs))
        return words
