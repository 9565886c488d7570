"""Trees by LightGBM, turned into flat arrays: its own prediction of one row takes too long."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quietcore.scheduler.drift.forest import BitmaskForest, join

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_TREES = 100
_PARAMETERS = {
    "num_leaves": 15,
    "learning_rate": 0.07,
    "min_data_in_leaf": 15,
    "feature_fraction": 0.4,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 3.0,
    "max_bin": 63,
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbose": -1,
}


def fit(
    table: NDArray[np.float64], length: NDArray[np.float64], weight: NDArray[np.float64], seed: int
) -> BitmaskForest:
    """Outputs the square root of the length by squared error, and its log by Huber's."""
    import lightgbm
    import numpy as np

    length = np.maximum(length, 1.0)
    targets = (
        ({"objective": "l2"}, np.sqrt(length)),
        ({"objective": "huber", "alpha": 0.5}, np.log(length)),
    )
    forests = []
    for parameters, target in targets:
        wanted = {**_PARAMETERS, **parameters, "seed": seed}
        data = lightgbm.Dataset(table, target, weight=weight, params={"verbose": -1, "max_bin": 63})
        booster = lightgbm.train(wanted, data, _TREES)
        forests.append(flatten(booster.dump_model()["tree_info"]))
    return join(forests)


def flatten(trees: list[dict[str, Any]]) -> BitmaskForest:
    """The arrays of `BitmaskForest` from LightGBM's description of numeric trees."""
    import numpy as np

    leaves = BitmaskForest.LEAVES
    shape = (_TREES, leaves - 1)
    feature = np.zeros(shape, np.int64)
    threshold = np.full(shape, np.inf)
    mask = np.full(shape, 0xFFFF, np.uint16)
    value = np.zeros((_TREES, leaves))
    for tree, description in enumerate(trees):
        nodes = 0

        def walk(node: dict[str, Any], first: int, tree: int = tree) -> int:
            """Numbers the leaves from ``first`` on; returns the number after the last."""
            nonlocal nodes
            if "split_feature" not in node:
                value[tree, first] = node["leaf_value"]
                return first + 1
            place = nodes
            nodes += 1
            feature[tree, place] = node["split_feature"]
            threshold[tree, place] = node["threshold"]
            right = walk(node["left_child"], first)
            ruled_out = (1 << right) - (1 << first)
            mask[tree, place] = 0xFFFF & ~ruled_out
            return walk(node["right_child"], right)

        walk(description["tree_structure"], 0)
    return BitmaskForest(np.zeros(1), feature, threshold, mask, value)
