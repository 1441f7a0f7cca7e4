"""One model type against plain transformers: loss and gradient, export, compilation."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

from adaptsft.config.schema import ModelConfig, TrainConfig
from adaptsft.data.stop import TurnEnd
from adaptsft.distributed.ranks import device_mesh
from adaptsft.errors import ConfigError, UserError
from adaptsft.model.build import build_model
from adaptsft.model.check import batch_of, check_first_batch
from adaptsft.model.export import export
from adaptsft.model.language import causal_lm, multimodal_class
from adaptsft.model.pretrained import load_pretrained
from adaptsft.model.router import FUNCTION
from adaptsft.model.supported import MODES, refuse_unsupported
from adaptsft.model.tiny import SAMPLE_TEXT, bpe_tokenizer
from adaptsft.objectives.build import NLL
from adaptsft.training.flops import flops_per_token
from tests.model_types.variants import VOCABULARY, config_of

EXACT = 3e-5  # relative, fp32: the largest difference of loss and gradient
HALF = 0.5  # the same in bf16: its rounding, which Gemma 4 with random weights amplifies most
LARGEST = 8_000_000  # parameters: a type that cannot be made smaller is not tried
TRACEBACK = "traceback"  # what a user must not see; no entry begins with it
NOT_MADE = "transformers makes no causal language model of it: "
DEVICE = torch.device("cpu")


class Untried(Exception):
    """No tiny model of this type could be made."""


def measure(model_type: str, settings: dict[str, Any], folder: Path, compiled: bool) -> dict:
    """{"model_type", and for each mode, "bf16", "export" and "compile" a relative error or the
    reason why not}; or {"model_type", "refused": why} for a kind of model that is not trained at
    all, and {"model_type", "untried": why} for a type of which no tiny model could be made."""
    row: dict[str, Any] = {"model_type": model_type}
    try:
        config = config_of(model_type, settings)
        if kind := unsupported_kind(config):
            return row | {"refused": kind}
        write_noisy_model(folder, config)
        documents = [draw(length, seed) for seed, length in enumerate((130, 9, 20, 3))]
        reference = class_of(config).from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            experts_implementation="eager",
        )
        expected = plain(reference, documents)
    except Untried as error:
        return row | {"untried": str(error)}
    except Exception as error:
        return row | {"untried": f"{type(error).__name__}: {error}".split("\n")[0][:200]}
    for mode in MODES:
        row[mode] = figure(lambda mode=mode: compare(folder, mode, documents, expected), folder)
    works = next((mode for mode in MODES if isinstance(row[mode], float)), None)
    if works:
        row["bf16"] = figure(
            lambda: compare(folder, works, documents, expected, dtype="bf16"), folder, HALF
        )
        row["export"] = figure(lambda: exported(folder, works, documents, reference), folder)
        if routers_of(folder, works).has_loss:
            row["router"] = figure(lambda: routed(folder, works, documents, reference), folder)
        if compiled:
            row["compile"] = figure(
                lambda: compare(folder, works, documents, expected, compile=True), folder
            )
    return row


def class_of(config: Any) -> Any:
    """transformers' class of the whole model, of which the language part is trained."""
    return AutoModelForMultimodalLM if multimodal_class(config) else AutoModelForCausalLM


def unsupported_kind(config: Any) -> str:
    """Why models of this kind are refused before any is made; "" if they are not."""
    if getattr(config, "is_encoder_decoder", False):
        return "an encoder-decoder"
    try:
        with torch.device("meta"):
            refuse_unsupported(causal_lm(config, "eager", torch.float32))
    except ConfigError as error:
        reason = shortened(str(error))
        if reason.startswith(NOT_MADE):
            raise Untried(reason) from None
        return reason
    return ""


def figure(work: Any, folder: Path, limit: float = EXACT) -> float | str:
    """A relative error, or why there is none: the refusal without its place and its advice."""
    try:
        error = work()
    except UserError as refused:
        return shortened(str(refused).replace(str(folder), ""))
    except Exception as error:
        return f"{TRACEBACK}: {type(error).__name__}: {error}".split("\n")[0][:200]
    if not error <= limit:
        return f"loss or gradient differ by {error:.1e}"
    return float(f"{error:.1e}")


def shortened(message: str) -> str:
    """A refusal without its place, its advice, and the figures of this model and machine."""
    reason = message.split(". ")[0].split("; ")[0]
    place = r"^(model\.path=)?(: )?( ?\(\w+\): )?(model_type=\S+ )?(\w+ has )?(\w+: )?"
    reason = re.sub(place, "", reason)
    reason = re.sub(r"^\d+ of its \d+ (?=decoder layers)", "", reason)
    reason = re.sub(r": log p moves .*|(?<=each document alone) by .*", "", reason)
    reason = re.sub(r"(?<=causal language model of )model_type=\w+", "it", reason)
    reason = re.sub(r"^transformers makes .*: (?=its attention)", "", reason)
    reason = re.sub(r"^\w+ (?=does not (name|pass) |ties )", "it ", reason)
    reason = re.sub(r"^the language part .* (?=is not a )", "its language part ", reason)
    files = r".*the files do not fit .*|transformers would compute tensors of .*"
    reason = re.sub(files, "transformers converts the tensors of its files", reason)
    return reason.strip()


def write_noisy_model(folder: Path, config: Any) -> None:
    """A random model in which biases, norms and scales differ from nothing as well."""
    with torch.device("meta"):
        size = sum(p.numel() for p in class_of(config).from_config(config).parameters())
    if size > LARGEST:
        raise Untried(f"the smallest that was made has {size:,} parameters")
    torch.manual_seed(0)
    model = class_of(config).from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
        for name, buffer in model.named_buffers():
            if name.endswith("correction_bias"):  # of a router: in the files, though not trained
                buffer += 0.02 * torch.randn_like(buffer)
    model.save_pretrained(folder)
    bpe_tokenizer(SAMPLE_TEXT).save_pretrained(folder)


def draw(length: int, seed: int) -> Tensor:
    return torch.randint(3, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed))


def plain(model: Any, documents: list[Tensor]) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients by transformers alone, one document at a time, without dropout."""
    model.eval()
    count = sum(len(document) - 1 for document in documents)
    total = 0.0
    for document in documents:
        logits = model(input_ids=document[None], use_cache=False).logits[0, :-1]
        logp = logits.float().log_softmax(-1).gather(1, document[1:, None])
        loss = -logp.sum() / count
        loss.backward()
        total += float(loss)
    return total, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def built(folder: Path, mode: str, compile: bool = False, dtype: str = "fp32") -> tuple[Any, Any]:
    attention = "eager" if mode == "eager" else "auto"
    config = ModelConfig(path=str(folder), attention=attention, compute_dtype=dtype)
    pretrained = load_pretrained(config)
    mesh = device_mesh(DEVICE, 1)
    # compiled, shapes are constant
    train, packing = TrainConfig(compile=compile), compile or mode == "packed"
    model = build_model(config, train, pretrained, mesh, DEVICE, packing=packing)
    return model, pretrained


def compare(
    folder: Path,
    mode: str,
    documents: list[Tensor],
    expected: tuple[float, dict[str, Tensor]],
    compile: bool = False,
    dtype: str = "fp32",
) -> float:
    """The larger of the relative errors of loss and of gradient."""
    model, _ = built(folder, mode, compile, dtype)
    packed = mode == "packed"
    rows = [documents[:2], documents[2:]] if packed else [[document] for document in documents]
    batch = batch_of(rows, with_buckets=mode != "eager")
    check_first_batch(model, batch, packed)
    lengths = np.array([len(document) for document in documents])
    assert flops_per_token(model, SimpleNamespace(lengths=lengths, target_tokens=lengths)) > 0
    model.eval()
    loss, _, _ = model.token_loss(batch, NLL, None, 1.0 / len(batch.targets))
    loss.backward()
    return largest_error(model, float(loss), expected)


def largest_error(model: Any, loss: float, expected: tuple[float, dict[str, Tensor]]) -> float:
    """The larger of the relative errors of a loss and of the gradient that `model` holds."""
    gradients = dict(expected[1])
    norm = sum(float(g.square().sum()) for g in gradients.values()) ** 0.5
    off = 0.0
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            theirs = gradients.pop(named(name, gradients), torch.zeros(()))
            off += float((whole(parameter.grad) - theirs).square().sum())
    off += sum(float(g.square().sum()) for g in gradients.values())  # what we do not have
    return max(abs(loss - expected[0]) / expected[0], off**0.5 / norm)


def routers_of(folder: Path, mode: str) -> Any:
    return built(folder, mode)[0].routers


def routed(folder: Path, mode: str, documents: list[Tensor], reference: Any) -> float:
    """As `compare`, with the routers' load-balancing loss (weight 1) of all documents at once, in
    two micro-batches; transformers' own function makes it of the router logits of each document."""
    model, _ = built(folder, mode)
    routers = model.routers
    routers.coefficient, tokens = 1.0, sum(map(len, documents))
    model.eval()
    model.training = True  # routers are recorded, and nothing is dropped
    packed, targets = mode == "packed", tokens - len(documents)
    halves = [[part] if packed else [[one] for one in part] for part in halved(documents)]
    batches = [batch_of(rows, with_buckets=mode != "eager") for rows in halves]
    routers.start_step(model, batches, tokens, 0, 1.0)
    total = 0.0
    for batch in batches:
        loss, _, _ = model.token_loss(batch, NLL, None, 1.0 / targets)
        loss = routers.add_loss(loss)
        loss.backward()
        total += float(loss)
    return largest_error(model, total, with_router_loss(reference, documents, routers))


def halved(documents: list[Tensor]) -> list[list[Tensor]]:
    return [documents[: len(documents) // 2], documents[len(documents) // 2 :]]


def with_router_loss(
    reference: Any, documents: list[Tensor], routers: Any
) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients as `plain`, with the load-balancing loss of all documents."""
    reference.eval()
    reference.zero_grad()
    count = sum(len(document) - 1 for document in documents)
    logits, loss = [], torch.zeros(())
    for document in documents:
        out = reference(input_ids=document[None], use_cache=False, output_router_logits=True)
        logp = out.logits[0, :-1].float().log_softmax(-1)
        loss = loss - logp.gather(1, document[1:, None]).sum() / count
        logits.append([layer.flatten(0, -2) for layer in out.router_logits])
    together = tuple(torch.cat(layer) for layer in zip(*logits, strict=True))
    function = vars(sys.modules[type(reference).__module__])[FUNCTION]
    loss = loss + function(together, routers.experts, routers.top_k)
    loss.backward()
    gradients = {n: p.grad for n, p in reference.named_parameters() if p.grad is not None}
    return float(loss), gradients


def named(name: str, gradients: dict[str, Tensor]) -> str:
    """The name of a parameter of ours in transformers' model, which may hold it further inside."""
    inside = "." + name.removeprefix("model.")
    return min((n for n in gradients if n == name or n.endswith(inside)), key=len, default="")


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def exported(folder: Path, mode: str, documents: list[Tensor], reference: Any) -> float:
    """Relative difference of the logits of the exported model, loaded by transformers."""
    model, pretrained = built(folder, mode)
    export(model, pretrained, folder / "final", "fp32", TurnEnd())
    again, loading = type(reference).from_pretrained(
        folder / "final",
        dtype=torch.float32,
        attn_implementation="eager",
        output_loading_info=True,
    )
    assert not loading["missing_keys"] and not loading["unexpected_keys"], loading
    ids = documents[0][None]
    expected = reference(input_ids=ids, use_cache=False).logits
    off = (again.eval()(input_ids=ids, use_cache=False).logits - expected).norm()
    return float(off / expected.norm())
