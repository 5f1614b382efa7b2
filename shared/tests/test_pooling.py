"""Average pooling by sums of strided views is torch's."""

import pytest
import torch
import torch.nn.functional as F
from resless.models import create, pooling
from resless.models.pooling import average
from torch import nn


@pytest.mark.parametrize("side", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(2, 3, 12, 24), (1, 1, 13, 12), (3, 2, 12, 11)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_means_are_torchs(side: int, shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).contiguous(memory_format=layout)
    before, wanted = x.clone(), F.avg_pool2d(x, side, ceil_mode=True)
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            means = average(x, side)
        assert means.dtype == dtype
        assert torch.allclose(means, wanted, rtol=0, atol=1e-6 if dtype == torch.float32 else 0)
        if layout == torch.channels_last and 1 not in (means.shape[1], side):
            assert means.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, before)


def test_a_network_is_traced_and_exported_with_torchs_pooling(monkeypatch: pytest.MonkeyPatch) -> None:
    net, images = create("resnet8", shortcut="avgpool").eval(), torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        wanted = net(images)
        graphs: list[nn.Module] = [torch.fx.symbolic_trace(net), torch.export.export(net, (images,)).module()]
    monkeypatch.setattr(pooling, "average", lambda *_: pytest.fail("not what was traced"))
    for graph in graphs:
        assert "avg_pool2d" in str(getattr(graph, "code", ""))
        with torch.no_grad():
            assert torch.allclose(graph(images), wanted, atol=1e-6)
