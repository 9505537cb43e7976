"""The similarity and the removal of duplicates take for arrays what `posekd.ops` takes for tensors, in one order."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

from posekd import metrics, ops

SIGMAS = (0.05, 0.1)


def parameters(function) -> list[tuple[str, inspect._ParameterKind]]:
    return [(p.name, p.kind) for p in inspect.signature(function).parameters.values()]


def test_names_and_order_are_those_of_the_ops():
    assert parameters(metrics.oks) == parameters(ops.oks)
    assert parameters(metrics.oks_nms) == parameters(ops.oks_nms)[:-1]  # the op can pad its result


def test_the_numbers_are_those_of_the_ops():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0, 30, (5, 2, 3)), rng.uniform(0, 30, (3, 2, 3))
    areas_a, areas_b, scores = rng.uniform(300, 900, 5), rng.uniform(300, 900, 3), rng.uniform(0, 1, 5)
    tensors = [torch.from_numpy(x) for x in (a, b, areas_a, areas_b)]
    assert np.array_equal(metrics.oks(a, b, areas_a, areas_b, SIGMAS), ops.oks(*tensors, SIGMAS).numpy())
    for threshold in (0.05, 0.3, 1.0):
        kept = ops.oks_nms(tensors[0], torch.from_numpy(scores), tensors[2], threshold, sigmas=SIGMAS)
        assert metrics.oks_nms(a, scores, areas_a, threshold, sigmas=SIGMAS).tolist() == kept.tolist()


def test_sigmas_in_the_place_of_the_threshold_are_refused():
    with pytest.raises(TypeError, match="sigmas"):
        metrics.oks_nms(np.zeros((1, 2, 2)), [1.0], [1.0], SIGMAS)
