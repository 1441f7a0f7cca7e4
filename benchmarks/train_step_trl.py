"""TRL's SFTTrainer in train_step.py, as a user would set it up for the same run, but for its
attention, which is ours, called with its boundaries."""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from train_step_clock import Clock  # pyrefly: ignore[missing-import]
from train_step_data import packs, tokenised  # pyrefly: ignore[missing-import]
from train_step_settings import Setting  # pyrefly: ignore[missing-import]
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

BOUNDARIES = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")


def register_ours(backend: str) -> None:
    """Our attention as the attn_implementation "as_ours"."""
    ours = AttentionInterface()[attention.HF_ATTENTION_NAMES[backend]]

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        # under autocast the rotary embedding leaves the others in fp32; transformers casts them for
        # flash-attn, too
        dtype = value.dtype
        options.pop("output_router_logits", None)  # a mixture's, which passes it on to all layers
        return ours(module, query.to(dtype), key.to(dtype), value, mask, **options)

    AttentionInterface.register("as_ours", attend)


def give_documents(model: Any, backend: str) -> None:
    """Turns the boundaries that TRL's collator passes into the documents that ours reads."""

    def with_documents(module: Any, call: Any, options: dict[str, Any]) -> Any:
        offsets = options["cu_seq_lens_q"]  # on the device: reading them would wait for it
        if backend == "sdpa":
            documents = Documents.build(offsets, True)
        else:
            longest = offsets.new_empty(padded_length(options["max_length_q"]), 0)
            empty = offsets.new_empty(0, dtype=torch.int64)
            documents = Documents(offsets, longest, (), empty)
        rest = {name: value for name, value in options.items() if name not in BOUNDARIES}
        return call, rest | {"documents": documents}

    model.register_forward_pre_hook(with_documents, with_kwargs=True)


def run_trl(setting: Setting, trace: Path | None) -> dict[str, Any]:
    config, data = tokenised(setting)
    examples = []
    for ids, mask in (data.example(number) for number in range(len(data))):
        labels = [int(i) if learned else -100 for i, learned in zip(ids, mask, strict=True)]
        examples.append({"input_ids": ids.tolist(), "labels": labels})
    gpu, device = setting.device == "cuda", torch.device(setting.device)
    path, dtype = setting.folder / "model", compute_dtype(config.model, device)
    backend = attention.choose("auto", device, dtype, AutoConfig.from_pretrained(path))
    liger = gpu and importlib.util.find_spec("liger_kernel") is not None
    clock = Clock(setting.device, setting.steps, trace)
    batches: list[tuple[int, torch.Tensor, torch.Tensor]] = []  # tokens, target tokens, loss

    class Trainer(SFTTrainer):
        def training_step(self, model: Any, inputs: Any, *rest: Any) -> torch.Tensor:
            # of a pack: TRL's hold no padding
            tokens = inputs["input_ids"].numel()
            target_tokens = (inputs["labels"] != -100).sum()
            loss = super().training_step(model, inputs, *rest)
            batches.append((tokens, target_tokens, loss))
            return loss

    class AtStepEnd(TrainerCallback):
        def on_step_end(self, *call: Any, **options: Any) -> None:
            clock.tick()

    register_ours(backend)
    model: Any = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="as_ours"
    )
    give_documents(model, backend)
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
    tokenizer: Any = AutoTokenizer.from_pretrained(path)
    Trainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list(examples),
        processing_class=tokenizer,
        callbacks=[AtStepEnd()],
    ).train()
    steps = [batches[i : i + count] for i in range(0, len(batches), count)]
    counts = [(sum(b[0] for b in step), int(sum(b[1] for b in step))) for step in steps]
    return {
        "tokens": sorted({tokens for tokens, _ in counts}),
        "target_tokens": sorted({target_tokens for _, target_tokens in counts}),
        "nll": [float(sum(loss for _, _, loss in step)) for step in steps],
        "liger": liger,
        "attention": backend,
        **clock.result(),
    }
