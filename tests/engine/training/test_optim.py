"""Learning rate as a function of the step; the moving average."""

import math

import pytest
import torch

from posekd.engine.training.ema import Ema
from posekd.engine.training.optim import OptimSettings, ScheduleSettings, make_optimizer, rate_factor, set_rate


def test_the_published_schedule():
    """HRNet, ELPN: x 0.1 at the start of epochs 170 and 200 of 210."""
    at = lambda epoch: rate_factor(ScheduleSettings(), epoch * 10, 10, 2100)  # noqa: E731
    assert at(0) == at(169) == 1
    assert at(170) == at(199) == pytest.approx(0.1)
    assert at(200) == at(209) == pytest.approx(0.01)
    assert rate_factor(ScheduleSettings(), 1699, 10, 2100) == 1, "the last step of epoch 169"


def test_linear_warm_up_reaches_the_peak_at_its_last_step():
    schedule = ScheduleSettings(milestones=(), warmup_steps=4)
    assert [rate_factor(schedule, step, 10, 100) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_cosine_falls_from_one_to_zero():
    schedule = ScheduleSettings(kind="cosine")
    assert rate_factor(schedule, 0, 1, 100) == 1
    assert rate_factor(schedule, 50, 1, 100) == pytest.approx(0.5)
    assert rate_factor(schedule, 99, 1, 100) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.99)))


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", "Adam"), ("adamw", "AdamW"), ("sgd", "SGD"), ("rmsprop", "RMSprop")]
)
def test_optimisers_by_name_skip_frozen_parameters(name, kind):
    layer = torch.nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    optimizer = make_optimizer(layer.parameters(), OptimSettings(name=name, lr=0.5, weight_decay=0.1))
    assert type(optimizer).__name__ == kind
    assert [p.shape for p in optimizer.param_groups[0]["params"]] == [(2, 2)]
    set_rate(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert optimizer.param_groups[0]["weight_decay"] == 0.1


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"optim.lr must be positive, got -1"):
        OptimSettings(lr=-1)
    with pytest.raises(ValueError, match=r"milestones must rise, got \[200, 170\]"):
        ScheduleSettings(milestones=(200, 170))


def test_the_average_follows_its_recurrence_and_copies_counters():
    model = torch.nn.BatchNorm1d(1)
    ema = Ema(model, decay=0.9)
    expected = model.weight.item()
    for n, value in enumerate([2.0, 3.0, 5.0], start=1):
        model.weight.data.fill_(value)
        model.running_mean.fill_(value)
        model.num_batches_tracked.fill_(n)
        ema.update(model)
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    assert ema.model.weight.item() == pytest.approx(expected)
    assert ema.model.running_mean.item() != 5.0
    assert ema.model.num_batches_tracked.item() == 3
    assert not ema.model.weight.requires_grad
