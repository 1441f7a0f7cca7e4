"""What a caller may pass to `linear_objective`, what is refused, and the examples of its README."""

import re
import subprocess
import sys
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from adaptsft.config.schema import ObjectiveConfig
from adaptsft.objectives.base import REGISTRY
from adaptsft.objectives.build import build_objective
from adaptsft_kernels import TokenStatistics, linear_cross_entropy, linear_objective
from adaptsft_kernels.row_kernels import factors
from tests.conftest import REPO
from tests.kernels.reference import D, N, V, logits_of, nll, random_head, state_of


def test_target_idx_is_the_same_as_targets_with_gaps() -> None:
    hidden, weight, _, targets = random_head()
    source, alpha = torch.arange(N) % 2, REGISTRY["alpha"]
    state = state_of(2)._replace(alpha=torch.tensor([0.0, 2.0]))
    idx = (targets != -100).nonzero().squeeze(1)
    gaps = linear_objective(hidden, weight, targets, alpha, state, source=source, chunk_size=5)
    options = {"source": source[idx], "target_idx": idx}
    compact = linear_objective(hidden, weight, targets[idx], alpha, state, chunk_size=5, **options)
    assert torch.equal(gaps[0], compact[0])
    assert all(torch.equal(a, b) for a, b in zip(gaps[1], compact[1], strict=True))
    p = gaps[1].logp.exp()
    weights = torch.where(source[idx] == 0, torch.ones_like(p), p**2)
    torch.testing.assert_close(gaps[1].weight, weights)


def test_a_token_weight_multiplies_loss_and_gradient() -> None:
    hidden, weight, _, targets = random_head()
    factor = torch.linspace(0, 2, N)
    for options in ({}, {"chunk_size": 5}):
        loss, tokens = linear_objective(
            hidden, weight, targets, nll, None, token_weight=factor, **options
        )
        kept = targets != -100
        own = torch.nn.functional.cross_entropy(
            hidden @ weight.T, targets.clamp(min=0), reduction="none"
        )
        expected = (own * factor)[kept].sum()
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(tokens.weight, factor[kept])
        got, wanted = (torch.autograd.grad(x, (hidden, weight)) for x in (loss, expected))
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match="token_weight must have one entry per row"):
        linear_objective(hidden, weight, targets, nll, None, token_weight=factor[1:])


def test_alpha_changed_in_place_between_calls() -> None:
    hidden, weight, _, targets = random_head()
    state = state_of(alpha=0.0)
    at_zero, _ = linear_objective(hidden, weight, targets, REGISTRY["alpha"], state)
    state.alpha.fill_(1.0)
    at_one, tokens = linear_objective(hidden, weight, targets, REGISTRY["alpha"], state)
    torch.testing.assert_close(at_one, tokens.one_minus_p.sum())
    for loss, same in ((at_zero, nll), (at_one, REGISTRY["neg_p"])):
        true, _ = linear_objective(hidden, weight, targets, same)
        grad, true_grad = (torch.autograd.grad(x, weight)[0] for x in (loss, true))
        torch.testing.assert_close(grad, true_grad)


def test_whole_batch_objective_sees_all_tokens_at_once() -> None:
    hidden, weight, _, targets = random_head()
    sequence = torch.arange(N) // 6
    talr = build_objective(ObjectiveConfig(name="talr", params={"batch": 1}))
    call, options = (hidden, weight, targets, talr, state_of()), {"sequence": sequence}
    small, large = (linear_objective(*call, **options, chunk_size=size) for size in (3, 1000))
    torch.testing.assert_close(small[0], large[0])
    losses, of_sequence = -large[1].logp, sequence[targets != -100]
    tau = torch.stack([losses[of_sequence == i].mean() for i in of_sequence.unique()]).median()
    torch.testing.assert_close(large[1].weight, (-losses / tau).exp().clamp(min=0.01))
    grads = [torch.autograd.grad(loss, (hidden, weight)) for loss, _ in (small, large)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("whole", [False, True])
def test_what_is_known_of_each_token_reaches_the_objective(whole: bool) -> None:
    """In chunks, and with rows named by the caller; against autograd in fp64."""

    class Known(NamedTuple):
        logp: Tensor
        factor: Tensor

    def ratio(tokens: TokenStatistics, state: Any) -> tuple[Tensor, Tensor]:
        weight = tokens.reference.factor * (tokens.logp - tokens.reference.logp).exp()
        return -weight, weight

    ratio.whole_batch = whole
    hidden, weight, _, targets = random_head(dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    known = Known(*torch.rand(2, N, dtype=torch.float64, generator=generator))
    learned = (targets != -100).nonzero().squeeze(1)
    logp = logits_of(hidden, weight).log_softmax(1)[learned, targets[learned]]
    true = -(known.factor[learned] * (logp - known.logp[learned]).exp()).sum()
    rows = {"target_idx": learned, "reference": Known(*(x[learned] for x in known))}
    for call, options in ((targets, {"reference": known}), (targets[learned], rows)):
        loss, tokens = linear_objective(hidden, weight, call, ratio, **options, chunk_size=3)
        torch.testing.assert_close(loss, true)
        for leaf in (hidden, weight):
            grads = (torch.autograd.grad(x, leaf, retain_graph=True)[0] for x in (loss, true))
            torch.testing.assert_close(*grads)
        torch.testing.assert_close(tokens.weight, -tokens.loss, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"reference\.logp must have one entry per row of hidden"):
        linear_objective(hidden, weight, targets, ratio, reference=Known(*torch.rand(2, N - 1)))


def test_mass_is_of_all_tokens_at_most_as_likely_as_the_target() -> None:
    """Ties included."""

    def weighted(tokens: TokenStatistics, state: Any) -> tuple[Tensor, Tensor]:
        return -tokens.mass * tokens.logp, tokens.mass

    weighted.needs = {"mass"}
    hidden, weight, bias, targets = random_head(dtype=torch.float64)
    with torch.no_grad():
        weight[3], bias[3] = weight[7], bias[7]  # a tie
        targets[:2] = torch.tensor([3, 7])
    head = {"bias": bias, "softcap": 5.0, "logit_scale": 1.3}
    p = logits_of(hidden, weight, **head).softmax(1)[targets != -100]
    of_target = p.gather(1, targets[targets != -100, None])
    true = (p * (p <= of_target)).sum(1)
    _, tokens = linear_objective(hidden, weight, targets, weighted, chunk_size=4, **head)
    torch.testing.assert_close(tokens.weight, true)
    assert (p[:2, 3] == p[:2, 7]).all(), "the tie"


def test_any_function_and_any_state_will_do() -> None:
    """For users outside adaptsft: a function of TokenStatistics, and a NamedTuple of their own."""

    class Mine(NamedTuple):
        temperature: Tensor

    def smooth(tokens: TokenStatistics, state: Mine) -> tuple[Tensor, Tensor]:
        # none was asked for
        assert (tokens.top_entropy, tokens.mass, tokens.sequence) == (None, None, None)
        weight = torch.sigmoid(tokens.logp / state.temperature)
        return -weight * tokens.logp, weight

    hidden, weight, _, targets = random_head(dtype=torch.float64)
    loss, tokens = linear_objective(hidden, weight, targets, smooth, Mine(torch.tensor([2.0])))
    z, learned = logits_of(hidden, weight), targets != -100
    logp = z.log_softmax(1)[learned].gather(1, targets[learned, None]).squeeze(1)
    true = -(torch.sigmoid(logp.detach() / 2.0) * logp).sum()
    torch.testing.assert_close(loss, true)
    grad, true_grad = (torch.autograd.grad(x, weight)[0] for x in (loss, true))
    torch.testing.assert_close(grad, true_grad)
    torch.testing.assert_close(tokens.weight, torch.sigmoid(logp.detach() / 2.0))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden": torch.zeros(N, D + 1)}, r"hidden must be \[N,D\]"),
        ({"hidden": torch.zeros(1, N, D)}, r"hidden must be \[N,D\]"),
        ({"hidden": torch.zeros(N, D, dtype=torch.bfloat16)}, r"both be fp32.*bfloat16"),
        (
            {"targets": torch.zeros(N - 1, dtype=torch.long)},
            rf"targets must have one entry per row of hidden, \[{N}\]",
        ),
        ({"targets": torch.full((N,), V)}, rf"targets must be in \[0, {V}\)"),
        (
            {"source": torch.zeros(N + 2, dtype=torch.long)},
            "source must have one entry per row of hidden",
        ),
        (
            {"target_idx": torch.arange(4)},
            r"targets must have one entry per row of target_idx, \[4\]",
        ),
        ({"bias": torch.zeros(V + 1)}, rf"bias must be \[{V}\]"),
        ({"logits_dtype": torch.bfloat16}, "logits_dtype=torch.bfloat16 must be torch.float32"),
        (
            {"objective": lambda tokens, state: (tokens.logp.sum(), tokens.logp)},
            "objective returned loss of shape",
        ),
        (
            {"objective": lambda tokens, state: (tokens.logp, tokens.logp[:1])},
            "objective returned weight of shape",
        ),
    ],
)
def test_what_does_not_fit_is_refused(change: dict, words: str) -> None:
    hidden, weight, _, targets = random_head()
    call = {"hidden": hidden, "weight": weight, "targets": targets, "objective": nll}
    with pytest.raises(ValueError, match=words):
        linear_objective(**call | change)


@pytest.mark.parametrize(
    "call",
    [
        linear_cross_entropy,
        lambda *head: linear_cross_entropy(*head, reduction="none").sum(),
        lambda x, weight, y, bias: linear_objective(x, weight, y, nll, bias=bias)[0],
    ],
    ids=["mean", "none", "objective"],
)
def test_under_autocast_a_head_is_cast_as_a_linear_layer_is(call: Any) -> None:
    hidden, weight, bias, targets = random_head()
    lower = [x.detach().bfloat16().requires_grad_() for x in (hidden, weight, bias)]
    true = call(*lower[:2], targets, lower[2])
    wanted = torch.autograd.grad(true, lower)
    with torch.autocast("cpu", torch.bfloat16):
        loss = call(hidden.bfloat16(), weight, targets, bias)
        exact = call(hidden.double(), weight.double(), targets, bias.double())
    assert torch.equal(loss, true) and exact.dtype == torch.float64
    for a, b in zip(torch.autograd.grad(loss, (hidden, weight, bias)), wanted, strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b.float())


def test_only_on_cuda_do_bf16_products_take_bf16() -> None:
    """No other device multiplies bf16 into fp32."""
    for device, dtype in (("cpu", torch.float32), ("meta", torch.float32)):
        assert factors(torch.empty(2, dtype=torch.bfloat16, device=device)).dtype == dtype
    with FakeTensorMode():
        x = torch.empty(2, dtype=torch.bfloat16, device="cuda")
        assert factors(x).dtype == torch.bfloat16


def test_the_readmes_first_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """tests/integrations/test_fused_loss.py runs the other."""
    text = (REPO / "kernels" / "adaptsft_kernels" / "README.md").read_text()
    first = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert first
    scope: dict[str, Any] = {}
    exec(first[1], scope)
    assert capsys.readouterr().out.startswith("NLL ")
    assert scope["hidden"].grad[16:].any() and not scope["hidden"].grad[:16].any()
    assert scope["head"].weight.grad.any()


def test_kernels_import_without_adaptsft() -> None:
    code = """
import sys, adaptsft_kernels
sys.exit(any(name.split('.')[0] in ('adaptsft', 'transformers') for name in sys.modules))
"""
    subprocess.run([sys.executable, "-c", code], cwd=REPO / "kernels", check=True)
