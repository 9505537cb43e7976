"""Large outputs are written past the cache: another way to store, never another result."""

import pytest
import torch
from helpers.backends import use

from posekd import ops
from posekd.ops import library


@pytest.fixture(params=["cpu-baseline", "cpu-avx2", "cpu-avx512"])
def core(request):
    with use(request.param):
        yield library._core
    library._core.set_stream_from(-1)


def distilled(x):
    student = x.clone().requires_grad_()
    ops.distill_loss(student, x.flip(0), x.flip(1)).backward()
    return [student.grad]


def rendered(x):
    return list(ops.render_heatmaps(x[..., :3, 0] * 20 + 5, (16, 32), 2.0, "msra"))


def cornered(x):
    x = x.clone().requires_grad_()
    outputs = [ops.corner_pool(x, direction) for direction in ("top", "bottom", "left", "right")]
    sum((o * (i + 1)).square().sum() for i, o in enumerate(outputs)).backward()
    return [*(o.detach() for o in outputs), x.grad]


def centred(x):
    x, y = x.clone().requires_grad_(), x.flip(2).clone().requires_grad_()
    output = ops.center_pool(x, y)
    output.square().sum().backward()
    return [output.detach(), x.grad, y.grad]


@pytest.mark.parametrize("operation", [distilled, rendered, cornered, centred])
@pytest.mark.parametrize("width", [32, 37], ids=["whole vectors", "odd rows"])
def test_streamed_results_are_the_same_bits(core, operation, width):
    x = torch.rand(3, 4, 16, width, generator=torch.Generator().manual_seed(0))
    core.set_stream_from(1 << 40)
    plain = operation(x)
    core.set_stream_from(0)
    streamed = operation(x)
    assert all(torch.equal(a, b) for a, b in zip(plain, streamed, strict=True))
