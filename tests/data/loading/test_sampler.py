"""Batches as a pure function of (seed, epoch, step, rank)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posekd.data.loading.sampler import BatchPlan


def rows(batches):
    return [row for batch in batches for _, row in batch]


def plan(count=20, batch_size=3, *, shuffle=True, drop_last=True, **options):
    return BatchPlan(count, batch_size, shuffle=shuffle, drop_last=drop_last, **options)


def test_an_epoch_repeats_exactly_and_differs_from_the_next():
    a, b = plan(seed=1), plan(seed=1)
    assert list(a) == list(b)
    b.epoch = 1
    assert rows(a) != rows(b)
    assert rows(a) != rows(plan(seed=2))


def test_keys_carry_their_epoch():
    p = plan()
    p.epoch = 7
    assert {epoch for batch in p for epoch, _ in batch} == {7}


def test_a_resumed_epoch_continues_where_it_stopped():
    p = plan()
    whole = list(p)
    p.start = 4
    assert list(p) == whole[4:]
    assert p.batch(0, 4) == whole[4]


def test_training_drops_the_incomplete_batch():
    assert [len(batch) for batch in plan(20, 3)] == [3] * 6
    assert len(plan(20, 3)) == 6


@given(count=st.integers(1, 60), batch_size=st.integers(1, 9), world=st.integers(1, 4), shuffle=st.booleans())
def test_evaluation_covers_everyone_once_over_all_ranks(count, batch_size, world, shuffle):
    seen = []
    for rank in range(world):
        part = plan(count, batch_size, shuffle=shuffle, drop_last=False, rank=rank, world=world)
        batches = list(part)
        assert len(batches) == len(part)
        assert all(batches)
        seen += rows(batches)
    assert sorted(seen) == list(range(count))


@given(batch_size=st.integers(1, 5), world=st.integers(1, 4))
def test_the_ranks_share_one_global_order(batch_size, world):
    """Two processes of 3 see in a step what one process of 6 sees."""
    one = list(plan(41, batch_size * world))
    parts = [list(plan(41, batch_size, rank=rank, world=world)) for rank in range(world)]
    for step, batch in enumerate(one):
        assert rows(part[step] for part in parts) == rows([batch])
        assert {len(part) for part in parts} == {len(one)}


def test_evaluation_keeps_the_files_order():
    assert rows(plan(7, 3, shuffle=False, drop_last=False)) == list(range(7))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"rank": 2, "world": 2}, r"rank must be in 0..1, got 2"),
        ({"count": 5, "batch_size": 8}, "5 persons do not fill one batch of 8: lower batch_size to 5"),
        ({"count": 5, "batch_size": 4, "world": 2}, "on each of 2 processes: lower batch_size to 2"),
    ],
)
def test_impossible_plans_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan(**arguments)
