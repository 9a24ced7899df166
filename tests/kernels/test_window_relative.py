"""Tables of relative positions: which entry a pair reads, and the gradient that comes back."""
import pytest
import torch

from visionattn.kernels.window.relative import lay_out, relative_index


def test_index_is_query_minus_key():
    index = relative_index((2, 3))
    q, k = 5, 1                                         # (1, 2) and (0, 1) of a window of 2 x 3
    assert index[q, k] == (1 - 0 + 1) * 5 + (2 - 1 + 2)
    assert index.shape == (6, 6) and set(index.flatten().tolist()) == set(range(15))


@pytest.mark.parametrize("window", [(1, 1), (2, 3), (4, 4), (5, 2)])
def test_the_tables_gradient_is_that_of_indexing_any_number_of_times(window):
    table = torch.randn(3, *(2 * n - 1 for n in window), dtype=torch.float64, requires_grad=True)
    found, expected = lay_out(table, window), table.flatten(1)[:, relative_index(window)]
    assert torch.equal(found, expected)
    grad = torch.randn_like(found)
    torch.testing.assert_close(*(torch.autograd.grad(x, table, grad)[0] for x in (found, expected)))
    assert torch.autograd.gradgradcheck(lambda t: lay_out(t, window).square(), table)
