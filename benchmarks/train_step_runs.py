"""One process of train_step.py: trains candidates one after another, and appends what it measured to results.jsonl in their folder.

Its one argument is a Setting in JSON.
"""

import gc
import gzip
import importlib.util
import json
import math
import re
import shutil
import sys
import time
import traceback
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import mean
from typing import Any

import torch

AUTO = "controller.name=auto"
CANDIDATES: dict[str, list[str]] = {
    "NLL": ["objective.name=nll"],
    "-p": ["objective.name=neg_p"],
    "p >= .2": ["objective.name=threshold", "objective.lower=0.2"],
    "adaptive": [AUTO],
    "adaptive, compiled": [AUTO, "train.compile=true"],
}
PROFILED = (
    "adaptive",
    "TRL",
    "adaptive, compiled",
)  # the last run of each in a process also tells where its time goes
SHAPES: dict[bool, dict[str, int]] = {  # of the model, keyed by --tiny; Qwen2.5-1.5B: config.json of Qwen/Qwen2.5-1.5B
    False: {
        "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
        "intermediate_size": 8960, "vocab_size": 151936,
    },
    True: {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 256, "vocab_size": 1024,
    },
}  # fmt: skip
EXAMPLES = 32  # of the data, and of a step
WARM_UP = 2  # steps of a run that are not timed
WORDS = (
    "all",
    "and",
    "as",
    "brown",
    "capital",
    "clips",
    "dog",
    "fox",
    "half",
    "in",
    "is",
    "lazy",
    "many",
    "of",
    "quick",
    "sold",
    "the",
)
KINDS = {  # of kernels (GPU) and operators (CPU), by name; where two run at once, the time goes to the kind that comes first here
    "attention": r"flash|fmha|attention",  # before products: flash's template arguments name cutlass
    "products": r"gemm|nvjet|cutlass|xmma|splitk|gemv|aten::(addmm|mm|bmm)\b",
    "loss rows": r"^row_|^_(forward|backward)_kernel",  # adaptsft_kernels; trl/kernels/logprob_entropy.py
    "optimizer": r"adam|lpnorm|binaryopscalartensor|foreach_norm",
    "communication": r"nccl|c10d::|gloo",
    "copies and elementwise": r"",
}


@dataclass
class Setting:
    """What a process is to do. `names`: ["prepare"], or candidates."""

    folder: Path
    names: list[str]
    tiny: bool
    device: str
    length: int  # tokens of a pack
    steps: int  # of a run
    changes: list[str] = field(default_factory=list)  # key=value, for all of ours


def prepare(setting: Setting) -> dict[str, Any]:
    """Write model (bf16, as most checkpoints) and data; returns what is known of a step."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from adaptsft.model.tiny import SAMPLE_TEXT, bpe_tokenizer

    tokenizer, shape = bpe_tokenizer(SAMPLE_TEXT), SHAPES[setting.tiny]
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.for_model(
        "qwen2", **shape, **special, max_position_embeddings=32768, tie_word_embeddings=True
    )
    torch.manual_seed(0)
    with torch.device(setting.device), torch.no_grad():
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        # as if pretrained: it expects the token before to come again, with p about .8; the text below does so every other time
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight *= 0.03
            layer.mlp.down_proj.weight *= 0.03
        model.model.embed_tokens.weight.normal_()
        model.model.norm.weight.fill_((math.log(config.vocab_size) + 1.5) / config.hidden_size)
    model.save_pretrained(setting.folder / "model")
    tokenizer.save_pretrained(setting.folder / "model")
    random = Random(0)

    def text() -> str:
        words = [random.choice(WORDS)]
        for _ in range(random.randint(setting.length // 32, setting.length // 7)):
            words.append(words[-1] if random.random() < 0.5 else random.choice(WORDS))
        return " ".join(words)

    with (setting.folder / "train.jsonl").open("w") as file:
        file.writelines(
            json.dumps({"prompt": text(), "completion": text()}) + "\n" for _ in range(EXAMPLES)
        )
    config, data = tokenised(setting)
    head = shape["vocab_size"] * shape["hidden_size"]
    body = sum(parameter.numel() for parameter in model.parameters()) - head
    pairs = float((data.lengths.astype(float) ** 2).sum() / 2)
    tokens, target_tokens = int(data.lengths.sum()), int(data.target_tokens.sum())
    needed = (
        6.0 * (body * tokens + head * target_tokens)
        + 12.0 * shape["num_hidden_layers"] * shape["hidden_size"] * pairs
    )
    return {
        "tokens": tokens,
        "target_tokens": target_tokens,
        "packs": packs(data, setting.length),
        "flops": needed,
        "parameters": head + body,
    }


def overrides(setting: Setting, changes: list[str]) -> list[str]:
    folder = setting.folder
    return [
        *(
            f"run_dir={folder / 'run'}",
            f"model.path={folder / 'model'}",
            f"data.path={folder / 'train.jsonl'}",
        ),
        *(
            f"data.cache_dir={folder / 'cache'}",
            f"data.max_length={setting.length}",
            "log.tensorboard=false",
        ),
        *(
            f"train.global_batch_size={EXAMPLES}",
            "train.micro_batch_size=1",
            f"train.device={setting.device}",
            "checkpoint.every=0",
        ),
        *("train.lr_schedule=constant", "train.warmup_ratio=0", *changes, *setting.changes),
    ]


def tokenised(setting: Setting) -> tuple[Any, Any]:
    """(our configuration, the examples as token ids and masks)."""
    from transformers import AutoTokenizer

    from adaptsft.config.resolve import load_config
    from adaptsft.data.tokenized import open_data

    config = load_config(overrides(setting, []))
    tokenizer: Any = AutoTokenizer.from_pretrained(setting.folder / "model")
    return config, open_data(config.data, tokenizer, config.seed, log=lambda line: None)[0]


def packs(data: Any, length: int) -> int:
    from adaptsft.data.packing import best_fit_decreasing

    return len(best_fit_decreasing(data.lengths.tolist(), length))


class Clock:
    """Told of the end of every step. Notes the time on the device without waiting for it, and profiles the two steps after `steps`."""

    def __init__(self, device: str, steps: int, trace: Path | None = None):
        self.device, self.steps, self.trace = device, steps, trace
        self.ticks: list[Any] = []
        self.profiler: Any = None
        if trace is not None:
            from torch.profiler import ProfilerActivity, profile

            self.profiler = profile(
                activities=[ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU]
            )
        if device == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()

    def tick(self) -> None:
        if self.device == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.ticks.append(event)
        else:
            self.ticks.append(time.perf_counter())
        if self.profiler is not None and len(self.ticks) in (self.steps, self.steps + 2):
            if self.device == "cuda":
                torch.cuda.synchronize()
            if len(self.ticks) == self.steps:
                self.profiler.start()
                self.started = time.perf_counter()
            else:
                self.wall = time.perf_counter() - self.started
                self.profiler.stop()

    def seconds(self, first: int, last: int) -> list[float]:
        """Of the steps between the ticks `first` and `last`."""
        if self.device != "cuda":
            return [after - before for before, after in pairwise(self.ticks[first : last + 1])]
        torch.cuda.synchronize()
        return [
            before.elapsed_time(after) / 1e3
            for before, after in pairwise(self.ticks[first : last + 1])
        ]

    def result(self) -> dict[str, Any]:
        """Seconds of each timed step, bytes at the highest, and the share of the time that each kind of kernel takes."""
        found: dict[str, Any] = {
            "step_seconds": self.seconds(WARM_UP - 1, self.steps - 1),
            "bytes": None,
            "breakdown": None,
        }
        if self.device == "cuda":
            found |= {
                "bytes": torch.cuda.max_memory_allocated() - self.before,
                "bytes_before": self.before,
            }
        if self.trace is not None:
            self.profiler.export_chrome_trace(str(self.trace))
            with gzip.open(self.trace, "rt") as file:
                found["breakdown"] = breakdown(json.load(file)["traceEvents"], self.wall)
        return found


def breakdown(events: list[dict[str, Any]], wall: float) -> dict[str, float]:
    """Share of `wall` seconds by kind of kernel, from a Chrome trace; `idle` is what is left. Times in it are microseconds."""
    done = [e for e in events if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")] or [
        e for e in events if e.get("cat") == "cpu_op"
    ]
    shares, spans, covered = {}, [], 0.0
    left = [(event["name"].lower(), event["ts"], event["ts"] + event["dur"]) for event in done]
    for kind, pattern in KINDS.items():
        spans += [(begin, end) for name, begin, end in left if re.search(pattern, name)]
        left = [event for event in left if not re.search(pattern, event[0])]
        before, covered = covered, union(spans)
        shares[kind] = (covered - before) / 1e6 / wall
    return shares | {"idle": 1.0 - covered / 1e6 / wall}


def union(spans: list[tuple[float, float]]) -> float:
    """Length covered by intervals that may overlap."""
    total, reached = 0.0, -math.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def run_ours(name: str, setting: Setting, trace: Path | None) -> dict[str, Any]:
    """`adaptsft.train` itself; its hook into the loop is where a step's row is recorded."""
    import adaptsft.train as module
    from adaptsft.config.resolve import load_config

    clock = Clock(setting.device, setting.steps, trace)
    record = module.Metrics.record

    def record_and_tick(*call: Any, **host: Any) -> None:
        record(*call, **host)
        clock.tick()

    module.export = lambda *call: None  # type: ignore[assignment]  # files are no part of a step
    module.Checkpointer.save = lambda *call: None  # type: ignore[method-assign]
    module.Metrics.record = record_and_tick  # type: ignore[method-assign]
    shutil.rmtree(setting.folder / "run", ignore_errors=True)
    changes = [*CANDIDATES[name], f"train.max_steps={setting.steps + 2 * (trace is not None)}"]
    try:
        module.train(load_config(overrides(setting, changes)))
    finally:
        module.Metrics.record = record  # type: ignore[method-assign]
    rows = [
        json.loads(line)
        for line in (setting.folder / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    counts = {
        key: sorted({int(row[column]) for row in rows})
        for key, column in {"tokens": "all_tokens", "target_tokens": "tokens"}.items()
    }
    kept = mean(row["kept"] / row["tokens"] for row in rows[WARM_UP:])
    return counts | {"nll": [row["nll"] for row in rows], "kept": kept} | clock.result()


def run_trl(setting: Setting, trace: Path | None) -> dict[str, Any]:
    """TRL's SFTTrainer as a user would set it up for the same run, but for its attention, which is ours, called with its boundaries."""
    from datasets import Dataset
    from transformers import (
        AttentionInterface,
        AutoConfig,
        AutoModelForCausalLM,
        AutoTokenizer,
        TrainerCallback,
    )
    from trl import SFTConfig, SFTTrainer

    from adaptsft.data.documents import Documents, padded_length
    from adaptsft.model import attention
    from adaptsft.model.build import compute_dtype

    config, data = tokenised(setting)
    examples = [data.example(number) for number in range(len(data))]
    rows = [
        {
            "input_ids": ids.tolist(),
            "labels": [int(i) if m else -100 for i, m in zip(ids, mask, strict=True)],
        }
        for ids, mask in examples
    ]
    gpu, device = setting.device == "cuda", torch.device(setting.device)
    dtype = compute_dtype(config.model, device)
    liger = gpu and importlib.util.find_spec("liger_kernel") is not None
    backend = attention.choose(
        "auto", device, dtype, AutoConfig.from_pretrained(setting.folder / "model")
    )
    ours = AttentionInterface()[attention.SEAM[backend]]
    clock = Clock(setting.device, setting.steps, trace)
    batches: list[tuple[int, torch.Tensor, torch.Tensor]] = []  # tokens, target tokens, loss

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        dtype = value.dtype  # under autocast the rotary embedding leaves the others in fp32; transformers casts them for flash-attn, too
        return ours(module, query.to(dtype), key.to(dtype), value, mask, **options)

    def with_documents(module: Any, call: Any, options: dict[str, Any]) -> Any:
        offsets = options["cu_seq_lens_q"]  # on the device: reading them would wait for it
        if backend == "sdpa":
            documents = Documents.build(offsets, True)
        else:
            empty = offsets.new_empty(0, dtype=torch.int64)
            documents = Documents(offsets, padded_length(options["max_length_q"]), (), empty)
        theirs = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
        return call, {name: value for name, value in options.items() if name not in theirs} | {
            "documents": documents
        }

    class Trainer(SFTTrainer):
        def training_step(self, model: Any, inputs: Any, *rest: Any) -> torch.Tensor:
            tokens, target_tokens = (
                inputs["input_ids"].numel(),
                (inputs["labels"] != -100).sum(),
            )  # of a pack: TRL's hold no padding
            loss = super().training_step(model, inputs, *rest)
            batches.append((tokens, target_tokens, loss))
            return loss

    class AtStepEnd(TrainerCallback):
        def on_step_end(self, *call: Any, **options: Any) -> None:
            clock.tick()

    AttentionInterface.register("as_ours", attend)
    model: Any = AutoModelForCausalLM.from_pretrained(
        setting.folder / "model", dtype=torch.float32, attn_implementation="as_ours"
    )
    model.register_forward_pre_hook(with_documents, with_kwargs=True)
    optimizer, count = config.train, packs(data, setting.length)
    settings = SFTConfig(
        output_dir=str(setting.folder / "trl"),
        max_steps=setting.steps + 2 * (trace is not None),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=count,
        max_length=setting.length,
        packing=True,  # best-fit decreasing, as ours
        use_liger_kernel=liger,
        bf16=dtype == torch.bfloat16,
        use_cpu=not gpu,
        gradient_checkpointing=False,
        optim="adamw_torch_fused",
        learning_rate=optimizer.lr,
        lr_scheduler_type="constant",
        warmup_steps=0,
        adam_beta1=optimizer.betas[0],
        adam_beta2=optimizer.betas[1],
        adam_epsilon=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        max_grad_norm=optimizer.clip_norm,
        logging_steps=10,  # its default, and ours
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    tokenizer: Any = AutoTokenizer.from_pretrained(setting.folder / "model")
    Trainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[AtStepEnd()],
    ).train()
    steps = [batches[i : i + count] for i in range(0, len(batches), count)]
    return {
        "tokens": sorted({sum(tokens for tokens, _, _ in step) for step in steps}),
        "target_tokens": sorted(
            {int(sum(target_tokens for _, target_tokens, _ in step)) for step in steps}
        ),
        "nll": [float(sum(loss for _, _, loss in step)) for step in steps],
        "liger": liger,
        "attention": backend,
        **clock.result(),
    }


def gemm_tflops(device: str) -> float:
    """What a square product of random bf16 (CPU: fp32) matrices reaches now, right after the runs."""
    size, dtype = (8192, torch.bfloat16) if device == "cuda" else (512, torch.float32)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    clock = Clock(device, 2)
    for repeats in (3, 10):  # the first are not timed
        clock.tick()
        for _ in range(repeats):
            a @ b
    clock.tick()
    return 10 * 2 * size**3 / clock.seconds(1, 2)[0] / 1e12


def main(setting: Setting) -> None:
    def say(result: dict[str, Any]) -> None:
        with (setting.folder / "results.jsonl").open("a") as file:
            file.write(json.dumps(result) + "\n")

    if setting.names == ["prepare"]:
        return say({"name": "prepare"} | prepare(setting))
    for number, name in enumerate(setting.names):
        last = name not in setting.names[number + 1 :]
        trace = setting.folder / f"{name}.json.gz" if name in PROFILED and last else None
        try:
            found = run_trl(setting, trace) if name == "TRL" else run_ours(name, setting, trace)
        except Exception as error:  # the others go on
            traceback.print_exc()
            found = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        say({"name": name} | found)
    say({"name": "gemm", "tflops": gemm_tflops(setting.device)})


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    main(Setting(**given | {"folder": Path(given["folder"])}))
