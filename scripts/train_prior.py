"""Fits the prior of the drift model: what a prompt's text says of its answer's length, whatever the model.

Lengths of many models are split into what the model adds and what the prompt adds; the prompts' part is
fitted from their text. The same data give the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quietcore.scheduler.drift import boost, prior, ridge, sealed
from quietcore.scheduler.drift.text import Reader
from quietcore.scheduler.estimate import RequestFacts

SETTINGS = boost.Settings(trees=100, depth=4, rate=0.1, features=0.35, rows=0.7, least=12.0)
MOST_PROMPTS = 1500  # of one source: what it has more weighs less
MODEL_SHRINK = 20.0  # lengths; a model that answered few prompts is taken as an average one
PROMPT_SHRINK = 0.3


@dataclass
class Corpus:
    """Prompts and log lengths; ``prompt`` and ``model`` are indices, one for each length."""

    prompts: list[dict[str, Any]]
    prompt: NDArray[np.int64]
    model: NDArray[np.int64]
    log_length: NDArray[np.float64]


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a gzipped file, one a line."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def read_corpus(folder: Path, without: str | None) -> Corpus:
    """Reads the corpus; without the prompts and the models of a stream, if one is named."""
    import pyarrow.parquet  # type: ignore[import-untyped,unused-ignore]

    table = pyarrow.parquet.read_table(folder / "corpus_lengths.parquet").to_pydict()
    prompts = {line["prompt_id"]: line for line in read_lines(folder / "corpus_prompts.jsonl.gz")}
    models = set(table["model"])
    if without is not None:
        for line in read_lines(folder / "streams" / f"{without}.jsonl.gz"):
            prompts.pop(line["id"], None)
            models.discard(line["model"])
    place = {name: index for index, name in enumerate(prompts)}
    model_place = {name: index for index, name in enumerate(sorted(models))}
    kept = [
        (place[name], model_place[model], tokens)
        for name, model, tokens in zip(
            table["prompt_id"], table["model"], table["output_tokens"], strict=True
        )
        if name in place and model in model_place
    ]
    rows = np.array(kept, np.int64)
    return Corpus(list(prompts.values()), rows[:, 0], rows[:, 1], np.log(np.maximum(rows[:, 2], 1.0)))


def split_effects(corpus: Corpus) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Level of the log lengths, what each prompt adds to it, and how many models answered it."""
    models = int(corpus.model.max()) + 1
    prompts = len(corpus.prompts)
    by_model = np.bincount(corpus.model, minlength=models)
    by_prompt = np.bincount(corpus.prompt, minlength=prompts).astype(np.float64)
    level = float(corpus.log_length.mean())
    of_model, of_prompt = np.zeros(models), np.zeros(prompts)
    for _ in range(50):  # backfitting
        rest = corpus.log_length - level - of_prompt[corpus.prompt]
        of_model = np.bincount(corpus.model, rest, models) / (by_model + MODEL_SHRINK)
        rest = corpus.log_length - level - of_model[corpus.model]
        of_prompt = np.bincount(corpus.prompt, rest, prompts) / (by_prompt + PROMPT_SHRINK)
    return level, of_prompt, by_prompt


def fit(corpus: Corpus) -> tuple[float, dict[str, NDArray[Any]]]:
    """The level, and the arrays that `prior.unpack` reads."""
    level, target, answers = split_effects(corpus)
    reader = Reader()
    kept = np.flatnonzero(answers)
    prompts = [corpus.prompts[index] for index in kept]
    readings = [
        reader.read(RequestFacts(each["prompt_id"], 0.0, each["prompt_tokens"], each["prompt"]))
        for each in prompts
    ]
    sources = np.array([each["source"] for each in prompts])
    share = {name: min(1.0, MOST_PROMPTS / (sources == name).sum()) for name in set(sources)}
    weight = np.array([share[name] for name in sources]) * np.minimum(1.0, 0.4 + 0.1 * answers[kept])
    target = target[kept]
    mean = float(np.average(target, weights=weight))
    fold = np.random.default_rng(0).integers(0, ridge.FOLDS, len(kept))
    words = [reading.words for reading in readings]
    fitted, unseen = ridge.fit(words, target - mean, weight, fold)
    rows = np.array(
        [
            prior.start_row(reading, each["prompt_tokens"])
            for reading, each in zip(readings, prompts, strict=True)
        ]
    )[:, : len(prior.FEATURES) + 1]
    rows[:, -1] = unseen
    forest = boost.fit(rows, target - mean, weight, settings=SETTINGS)
    idf = np.sqrt(fitted.table[:, 1])
    weights = np.divide(fitted.table[:, 0], idf, out=np.zeros_like(idf), where=idf > 0)
    scale = np.array([idf.max() / 255, np.abs(weights).max() / 127], np.float32)
    return level + mean, {
        "idf": np.round(idf / scale[0]).astype(np.uint8),
        "weight": np.round(weights / scale[1]).astype(np.int8),
        "scale": scale,
        "base": forest.base,
        "feature": forest.feature.astype(np.uint8),
        "threshold": forest.threshold.astype(np.float32),
        "value": forest.value.astype(np.float16),
    }


def main(arguments: list[str] | None = None) -> int:
    """Reads, fits, writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with corpus_prompts.jsonl.gz")
    parser.add_argument("--leave-out-stream", metavar="STREAM", help="leave out its prompts and models")
    parser.add_argument("--out", type=Path, default=prior.SHIPPED)
    options = parser.parse_args(arguments)
    try:
        corpus = read_corpus(options.data, options.leave_out_stream)
        level, arrays = fit(corpus)
        sealed.write(options.out, {"schema": prior.schema(), "level": level}, arrays)
    except OSError as error:
        print(f"train_prior: {error}", file=sys.stderr)
        return 1
    print(
        f"{options.out}: {len(set(corpus.prompt))} prompts, {len(corpus.prompt)} lengths, "
        f"{options.out.stat().st_size} bytes"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
