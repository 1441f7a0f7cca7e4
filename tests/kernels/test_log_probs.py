"""log p of every token, differentiable: against autograd in fp64, and inside compiled functions."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from adaptsft_kernels import linear_logprobs, linear_rows, linear_rows_backward
from tests.distributed.two_ranks import on_two_ranks
from tests.kernels.reference import D, N, V, logits_of, random_head, relative

HEADS: list[dict[str, Any]] = [{}, {"logit_scale": 0.7, "softcap": 5.0}]


def true_logps(hidden: Tensor, weight: Tensor, targets: Tensor, **head: Any) -> tuple[Tensor, ...]:
    full = logits_of(hidden, weight, **head).log_softmax(-1)
    logp = full.gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)
    learned = targets != -100
    return logp * learned, -(full.exp() * full).sum(-1) * learned


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("head", HEADS, ids=str)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 3e-3)]
)
def test_equals_autograd(head: dict, biased: bool, dtype: torch.dtype, tolerance: float) -> None:
    hidden, weight, bias, targets = random_head(n=24, dtype=dtype)
    options = head | ({"bias": bias} if biased else {})
    leaves = [hidden, weight] + ([bias] if biased else [])
    x, y = hidden.view(2, 12, D), targets.view(2, 12)
    factor = torch.rand(2, 12, generator=torch.Generator().manual_seed(1))
    logp, entropy = linear_logprobs(x, weight, y, chunk_size=5, **options)
    assert logp.shape == entropy.shape == (2, 12) and not entropy.requires_grad
    assert logp.dtype == entropy.dtype == (dtype if dtype == torch.float64 else torch.float32)
    grads = torch.autograd.grad((logp * factor).sum(), leaves)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    options |= {"bias": exact[2]} if biased else {}
    true = true_logps(exact[0].view(2, 12, D), exact[1], y, **options)
    expected = torch.autograd.grad((true[0] * factor).sum(), exact)
    for found, wanted in zip((logp, entropy, *grads), (*true, *expected), strict=True):
        assert found.dtype == dtype or found.dtype == torch.float32
        assert relative(found.detach(), wanted.detach()) < tolerance
    assert not grads[0].view(2, 12, D)[y == -100].any()


def test_three_products_and_nothing_is_kept_where_no_gradient_is_wanted() -> None:
    hidden, weight, _, targets = random_head()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        logp, _ = linear_logprobs(hidden, weight, targets)
        logp.sum().backward()
    assert sum(event.name == "aten::mm" for event in profiler.events()) == 3
    with torch.no_grad():
        quiet, _ = linear_logprobs(hidden, weight, targets)
    assert torch.equal(quiet, logp.detach()) and not quiet.requires_grad
    *_, g = linear_rows(hidden.detach(), weight.detach(), targets, keep=False)
    assert len(g) == 0
    with pytest.raises(ValueError, match="keep=False: there is no G"):
        linear_rows_backward(g, torch.ones(N), hidden.detach(), weight.detach(), [True] * 3)


def test_frozen_inputs_and_slices_that_are_computed_again() -> None:
    hidden, weight, _, targets = random_head()
    both = torch.autograd.grad(linear_logprobs(hidden, weight, targets)[0].sum(), (hidden, weight))
    for leaf, call in (
        (hidden, (hidden, weight.detach(), targets)),
        (weight, (hidden.detach(), weight, targets)),
    ):
        (grad,) = torch.autograd.grad(linear_logprobs(*call)[0].sum(), leaf)
        torch.testing.assert_close(grad, both[0 if leaf is hidden else 1])
    parts = [
        checkpoint(linear_logprobs, x, weight, y, use_reentrant=False)[0]
        for x, y in zip(hidden.split(10), targets.split(10), strict=True)
    ]
    again = torch.autograd.grad(torch.cat(parts).sum(), (hidden, weight))
    for a, b in zip(again, both, strict=True):
        torch.testing.assert_close(a, b)


def preference(hidden: Tensor, weight: Tensor, targets: Tensor, reference: Tensor) -> Tensor:
    """A loss of a user, as of DPO: not a function of one token's p."""
    logp, entropy = linear_logprobs(hidden, weight, targets)
    gained = (logp - reference).view(2, -1).sum(1)
    return -nn.functional.logsigmoid(gained[0] - gained[1]) + 0.0 * entropy.mean()


def test_a_loss_compiled_in_one_graph_equals_itself_in_eager_mode() -> None:
    hidden, weight, _, targets = random_head(n=24)
    reference = torch.full((24,), -2.0)
    torch._dynamo.reset()
    compiled = torch.compile(preference, fullgraph=True, backend="aot_eager")
    for n in (24, 16):  # the second time with lengths that are not fixed
        call = hidden[:n], weight, targets[:n], reference[:n]
        results = [torch.autograd.grad(f(*call), (hidden, weight)) for f in (compiled, preference)]
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)


def test_the_operators_say_what_they_return() -> None:
    hidden, weight, bias, targets = random_head()
    torch.library.opcheck(linear_rows, (hidden, weight, targets, bias))
    g, a = torch.rand(N, 128), torch.rand(N)
    call = g, a, hidden.detach(), weight.detach()
    torch.library.opcheck(linear_rows_backward, (*call, [True, False, True]))
    turned = weight.detach().t().contiguous().t()
    torch.library.opcheck(linear_rows_backward, (g, a, hidden.detach(), turned, [True] * 3))


def test_on_meta_tensors_they_say_what_they_would_return() -> None:
    hidden, weight, bias, targets = (x.detach().to("meta") for x in random_head())
    logp, entropy = linear_logprobs(hidden, weight, targets, bias)
    assert logp.shape == entropy.shape == (N,) and logp.is_meta


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"targets": torch.zeros(N - 1, dtype=torch.long)}, rf"targets must be \({N},\)"),
        ({"targets": torch.full((N,), V)}, rf"targets must be in \[0, {V}\)"),
        ({"weight": torch.zeros(V, D + 1)}, r"weight \[V,D\]"),
        ({"bias": torch.zeros(3)}, r"bias must be"),
        ({"logits_dtype": torch.float16}, "logits_dtype=torch.float16"),
        ({"implementation": "triton"}, "implementation=triton needs"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict, words: str) -> None:
    hidden, weight, _, targets = random_head()
    with pytest.raises(ValueError, match=words):
        linear_logprobs(**{"hidden": hidden, "weight": weight, "targets": targets} | change)


class Head(nn.Module):
    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())

    def forward(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return linear_logprobs(hidden, self.weight, targets)[0]


def sharded() -> int:
    """On each of two ranks: a head that FSDP2 gathers for forward and for backward apart."""
    torch.distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    hidden, weight, _, targets = random_head(n=24)
    model = nn.Sequential()
    model.add_module("head", Head(weight))
    fully_shard(model.head, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh)
    rank = torch.distributed.get_rank()
    mine = hidden.detach().view(2, 12, D)[rank].requires_grad_()
    logp = model.head(mine, targets.view(2, 12)[rank])
    (2 * logp.sum()).backward()  # FSDP2 averages
    (true,) = torch.autograd.grad(linear_logprobs(hidden, weight, targets)[0].sum(), weight)
    torch.testing.assert_close(model.head.weight.grad.full_tensor(), true)
    with pytest.raises(ValueError, match="weight is a DTensor"):
        linear_logprobs(mine, model.head.weight, targets.view(2, 12)[rank])
    torch.distributed.destroy_process_group()
    return 0


def test_a_head_under_fsdp(tmp_path: Path) -> None:
    codes, log = on_two_ranks(sharded, log=tmp_path / "log")
    assert codes == [0, 0], log
