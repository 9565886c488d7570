"""The text of a prompt, of which the engine knows the token ids only: a bounded head and tail, decoded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

Decode = Callable[[Sequence[int]], str]
_LONGEST_REASON = 200  # letters; transformers explains itself at length


class PromptDecoder:
    """Decodes with the model's own tokenizer, once it is loaded; until then, and without one, there is no
    text.

    Loading takes a second or more, so it happens in a thread. Only what vLLM's front end has already put on
    this machine is looked at: nothing is downloaded, and no code that came with a model is run.
    """

    def __init__(self, head: int, tail: int) -> None:
        self._head = head
        self._tail = tail
        self._decode: Decode | None = None
        self.error = ""

    def load_from(self, name: str, revision: str | None, warn: Callable[[str], None]) -> None:
        """Loads the tokenizer of that name or folder, in a thread; ``warn`` is told a line if that fails."""
        if name and self._head + self._tail:
            arguments = (name, revision, warn)
            threading.Thread(target=self._load, args=arguments, name="quietcore-text", daemon=True).start()

    def _load(self, name: str, revision: str | None, warn: Callable[[str], None]) -> None:
        try:
            self.use(_load_tokenizer(name, revision))
        except Exception as error:  # whatever a tokenizer's loading may raise, ids do without it
            self.error = f"{type(error).__name__}: {error}"
            reason = " ".join(self.error.split())[:_LONGEST_REASON]
            warn(f"quietcore: no tokenizer ({reason}); estimates go by token ids instead of text")

    def use(self, decode: Decode) -> None:
        self._decode = decode

    def text(self, ids: Sequence[int] | None) -> str:
        """The head and the tail of a prompt, on two lines if something was left out; empty if unknown."""
        decode = self._decode
        if decode is None or not ids:
            return ""
        try:
            if len(ids) <= self._head + self._tail:
                return decode(list(ids))
            tail = decode(list(ids[-self._tail :])) if self._tail else ""
            return f"{decode(list(ids[: self._head]))}\n{tail}"
        except Exception as error:  # ids may be any; a prompt without text is still a prompt
            self.error = f"{type(error).__name__}: {error}"
            return ""


def _load_tokenizer(name: str, revision: str | None) -> Decode:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(name, revision=revision, local_files_only=True)
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is not None:
        # Past transformers' wrapper, which takes longer than the decoding.
        return lambda ids: str(fast.decode(ids, skip_special_tokens=True))
    return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True))
