"""Cross entropy in the forms of other packages, against F.cross_entropy in fp64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adaptsft_kernels import LinearCrossEntropy, linear_cross_entropy
from adaptsft_kernels.cross_entropy import _reduced
from tests.kernels.reference import D, N, V, logits_of, random_head, relative


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 3e-3)])
def test_equals_torch(reduction: str, dtype: torch.dtype, tolerance: float) -> None:
    """Also with an upstream gradient other than 1."""
    leaves = list(random_head(n=24, dtype=dtype))
    targets = leaves.pop().view(2, 12)
    x, weight, bias = leaves
    options = {"softcap": 5.0, "chunk_size": 5}
    call = x.view(2, 12, D), weight, targets, bias
    loss = linear_cross_entropy(*call, reduction=reduction, **options)
    assert loss.dtype == torch.float32 and loss.shape == ((2, 12) if reduction == "none" else ())
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    z = logits_of(*exact, softcap=5.0)
    true = F.cross_entropy(z, targets.flatten(), reduction=reduction).view(loss.shape)
    factor = torch.rand(loss.shape, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad((loss * factor).sum(), leaves)
    wanted = torch.autograd.grad((true * factor).sum(), exact)
    assert relative(loss.detach(), true.detach()) < 2e-6
    for a, b in zip(found, wanted, strict=True):
        # rounded a second time in bf16, unless the factor is a power of two
        assert a.dtype == dtype and relative(a, b) < 1.5 * tolerance
    module = LinearCrossEntropy(reduction=reduction, **options)
    assert torch.equal(module(weight, call[0], targets, bias), loss)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiled_in_one_graph(reduction: str) -> None:
    hidden, weight, _, targets = random_head()

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return 3 * LinearCrossEntropy(reduction=reduction)(weight, hidden * 1.5, targets).sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results = [torch.autograd.grad(f(hidden, weight), (hidden, weight)) for f in (compiled, loss)]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_nothing_to_learn_and_frozen_inputs() -> None:
    hidden, weight, _, targets = random_head()
    for reduction in ("mean", "sum"):
        nothing = torch.full_like(targets, -100)
        loss = linear_cross_entropy(hidden, weight, nothing, reduction=reduction)
        assert not loss.any() and not torch.autograd.grad(loss, weight)[0].any()
    both = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), (hidden, weight))
    (alone,) = torch.autograd.grad(linear_cross_entropy(hidden, weight.detach(), targets), hidden)
    assert torch.equal(alone, both[0])
    assert not linear_cross_entropy(hidden.detach(), weight.detach(), targets).requires_grad


def test_the_operator_says_what_it_returns() -> None:
    hidden, weight, bias, targets = random_head()
    numbers = -100, None, 1.0, 0, "auto", None, True, [True, True, True]
    torch.library.opcheck(_reduced, (hidden, weight, targets, bias, *numbers))
    turned = (x.detach().t().contiguous().requires_grad_().t() for x in (hidden, weight))
    torch.library.opcheck(_reduced, (*turned, targets, bias, *numbers))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_second_derivative_is_refused(reduction: str) -> None:
    hidden, weight, _, targets = random_head()
    loss = linear_cross_entropy(hidden, weight, targets, reduction=reduction).sum()
    (grad,) = torch.autograd.grad(loss.square(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|no autograd formula"):
        grad.sum().backward()


def test_what_does_not_fit_is_refused() -> None:
    hidden, weight, _, targets = random_head()
    for change, words in (
        ({"reduction": "average"}, "choose mean, sum or none"),
        ({"targets": targets[1:]}, rf"targets must be \({N},\)"),
        ({"targets": torch.full((N,), V)}, rf"targets must be in \[0, {V}\)"),
        ({"implementation": "fast"}, "choose auto, triton or torch"),
    ):
        call = {"hidden": hidden, "weight": weight, "targets": targets} | change
        with pytest.raises(ValueError, match=words):
            linear_cross_entropy(**call)
