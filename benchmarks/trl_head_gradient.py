"""Whether the head's gradient is whole under TRL's fused head and FSDP2: two gloo ranks on a CPU,
against one process with both ranks' batches.

    pip install "trl==1.16.0" peft
    python benchmarks/trl_head_gradient.py     # writes benchmarks/results/trl_head_gradient.json

TRL's `add_fused_lm_head` reads `lm_head.weight` without calling the head. Where the head is an
FSDP unit of its own, its weight is sharded then, and TRL gathers it by `full_tensor()` without
`grad_placements`: the backward pass keeps from each rank's gradient the rows of its own shard, and
sums nothing. accelerate makes such a unit for a PEFT model with modules_to_save=["lm_head"], in
which it does not find the last norm. The loss is that of SFTTrainer.compute_loss: over the tokens
of all ranks, times their number, since FSDP2 averages.

"own": the head's gradient on rank 0 against that of its own tokens alone, times the ranks' number.
"full_tensor told": with grad_placements=[Partial("sum")], and the sum divided by the ranks.

accelerate shards on no CPU, so its `fsdp2_prepare_model` is called with a stand-in for what it
reads of an Accelerator.
"""

import argparse
import functools
import json
import tempfile
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from peft import LoraConfig, get_peft_model
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer.utils import add_fused_lm_head

from adaptsft.training.environment import environment

RESULT = Path(__file__).parent / "results" / "trl_head_gradient.json"
RANKS, VOCABULARY = 2, 97
Gradients = dict[str, torch.Tensor]


def tiny(tied: bool, lora: bool = False) -> Any:
    """A Llama of two layers in fp32 with TRL's fused head, the same on every rank."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config)
    add_fused_lm_head(model)
    if not lora:
        return model
    adapters = LoraConfig(
        r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False
    )
    return get_peft_model(model, adapters)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels [4, 12] of both ranks; the rows differ in how many tokens are learned."""
    ids = torch.randint(0, VOCABULARY, (4, 12), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, :3] = -100
    labels[0, :7] = -100
    return ids, labels


def backward(model: Any, rows: slice, scale: float) -> Gradients:
    """Gradients of the rows' summed NLL over the number of all rows' tokens, times scale."""
    ids, labels = batch()
    tokens = (labels[:, 1:] != -100).sum()
    outputs = model(input_ids=ids[rows], labels=labels[rows], fused_lm_head=True)
    (-outputs.log_probs.sum() / tokens * scale).backward()
    return {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def by_hand(*groups: str) -> Callable[[Any], Any]:
    """Every layer a unit, each of the groups (names of modules, with + between them), the rest."""

    def shard(model: Any) -> Any:
        for layer in model.model.layers:
            fully_shard(layer)
        for group in groups:
            fully_shard([model.get_submodule(name) for name in group.split("+")])
        return fully_shard(model)

    return shard


def by_accelerate(model: Any) -> Any:
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        cpu_ram_efficient_loading=False,
    )
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        torch_device_mesh=None,
        parallelism_config=None,
        mixed_precision="no",
        is_main_process=dist.get_rank() == 0,
        device=torch.device("cpu"),
    )
    return fsdp2_prepare_model(accelerator, model)  # pyrefly: ignore[bad-argument-type]


TAIL, TIED_TAIL = "model.norm+lm_head", "model.norm+model.embed_tokens+lm_head"
CASES: dict[str, tuple[dict[str, bool], Callable[[Any], Any]]] = {
    "head in the root's unit": ({"tied": False}, by_hand()),
    "head in the root's unit, tied": ({"tied": True}, by_hand()),
    "head in one unit with the last norm": ({"tied": False}, by_hand(TAIL)),
    "head in one unit with the last norm, tied": ({"tied": True}, by_hand(TIED_TAIL)),
    "head a unit of its own": ({"tied": False}, by_hand("lm_head")),
    "accelerate": ({"tied": False}, by_accelerate),
    "accelerate, tied": ({"tied": True}, by_accelerate),
    "accelerate, LoRA with the head saved": ({"tied": False, "lora": True}, by_accelerate),
}


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def measure(shape: dict[str, bool], shard: Callable[[Any], Any], told: bool) -> dict[str, Any]:
    """Relative errors of the gradients, and whether the fused head saw a sharded weight; `told`:
    with a full_tensor that is told of the parts, and the sum over ranks divided as FSDP2 does."""
    rows, sharded = slice(dist.get_rank(), None, RANKS), []
    whole = backward(tiny(**shape), slice(None), 1.0)
    own = backward(tiny(**shape), rows, RANKS)
    model = tiny(**shape)
    base = model.get_base_model() if shape.get("lora") else model
    model = shard(model)
    base.model.register_forward_hook(
        lambda *_: sharded.append(isinstance(base.get_output_embeddings().weight, DTensor))
    )
    original: Any = DTensor.full_tensor
    if told:
        gather = functools.partialmethod(original, grad_placements=[Partial("sum")])
        DTensor.full_tensor = gather  # pyrefly: ignore[bad-assignment]
    try:
        found: Any = backward(model, rows, RANKS)
    finally:
        DTensor.full_tensor = original
    head = next((name for name in found if "lm_head" in name), "model.embed_tokens.weight")
    if told:
        found[head] /= RANKS
    errors = {name: error(found[name].full_tensor(), whole[name]) for name in found}
    result = {
        "sharded_in_the_forward_pass": sharded[0],
        "head": errors.pop(head),
        "others": max(errors.values()),
    }
    if sharded[0] and not told:
        rows_of_shard = torch.chunk(own[head], RANKS)[dist.get_rank()]
        result["own"] = error(found[head].to_local(), rows_of_shard)
    return result


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    store = dist.FileStore(f"{folder}/store", RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    errors = {name: measure(*case, told=False) for name, case in CASES.items()}
    for name in [name for name, found in errors.items() if found["sharded_in_the_forward_pass"]]:
        errors[f"{name}, full_tensor told"] = measure(*CASES[name], told=True)
    result: dict[str, Any] = {"environment": environment(), "errors": errors}
    packages = ("trl", "accelerate", "peft")
    result["environment"]["versions"] |= {package: version(package) for package in packages}
    dist.destroy_process_group()
    if rank == 0:
        Path(folder, "result.json").write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULT, help="file of the result")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (folder,), nprocs=RANKS)
        text = Path(folder, "result.json").read_text()
    result = json.loads(text)
    result["environment"]["command"] = environment()["command"]
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{'relative error of the gradient':56} {'head':>8} {'others':>8} {'own':>8}")
    for name, found in result["errors"].items():
        cells = [f"{found[key]:8.1e}" if key in found else "" for key in ("head", "others", "own")]
        print(f"{name:56} " + " ".join(cells))


if __name__ == "__main__":
    main()
