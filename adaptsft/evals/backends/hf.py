"""A Hugging Face model in this process, on CPU or GPU, one whole copy per rank.

With `torchrun` the ranks share the items.
"""

import argparse
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from adaptsft.config.load import read_config
from adaptsft.config.schema import ControllerConfig, DataConfig, ObjectiveConfig
from adaptsft.errors import CheckpointError, ConfigError
from adaptsft.evals.backends.decode import decode
from adaptsft.evals.protocol import Likelihood, Message, Output, Request, Sampling
from adaptsft.evals.renderer import Renderer
from adaptsft.model.attention import needs_eager
from adaptsft.model.language import load_whole


def locate(name: str) -> tuple[str, DataConfig, str]:
    """Where the weights of a run folder, a Hugging Face folder or a name of the hub are.

    Also returns the template it was trained with, and a label: the objective of a run, else the
    name. Raises CheckpointError for a run that has not finished.
    """
    folder = Path(name)
    if not (folder / "config.yaml").is_file():
        return name, DataConfig(prompt_template="{prompt}"), folder.name
    config = read_config(folder / "config.yaml")
    if not (folder / "final").is_dir():
        fix = f"let the run finish, or write one with python -m adaptsft.export {folder} OUT"
        raise CheckpointError(f"--model {folder}: the run has no final/ model yet: {fix}")
    return str(folder / "final"), config.data, label_of(config.objective, config.controller)


def trusts_code(name: str) -> bool:
    """Whether the code of a model that comes with its own is run: that of a run which ran it."""
    path = Path(name) / "config.yaml"
    return path.is_file() and read_config(path).model.trust_remote_code


def label_of(objective: ObjectiveConfig, controller: ControllerConfig) -> str:
    """An objective as tables call it.

    `threshold lower 0.2`, `alpha alpha linear 0->1`, `concentration auto`.
    """
    name = objective.name + (" reference base" if objective.reference == "base" else "")
    if controller.name in ("linear", "cosine", "lr"):
        schedule = f"{controller.name} {controller.start:g}->{controller.end:g}"
        return f"{name} {controller.parameter} {schedule}"
    if controller.name == "piecewise":
        points = ", ".join(f"{share:g}: {value:g}" for share, value in controller.points)
        return f"{name} {controller.parameter} {points}"
    if controller.name != "fixed":
        return f"{name} {controller.name}"
    default, parts = ObjectiveConfig(), [name]
    for key in ("alpha", "floor", "lower", "upper", "lower_quantile", "upper_quantile"):
        value = getattr(objective, key)
        if value != getattr(default, key):
            parts.append(f"{key.replace('_', ' ')} {value:g}")
    parts += [f"{key} {value:g}" for key, value in objective.params.items()]
    return " ".join(parts)


def fingerprint(folder: Path) -> str:
    """sha256 over the files that decide the answers: weights, config, tokenizer, template."""
    total = hashlib.sha256()
    kinds = (
        "*.safetensors",
        "*.bin",
        "config.json",
        "generation_config.json",
        "tokenizer*",
        "vocab*",
        "merges.txt",
        "*.jinja",
        "*.model",
        "adapter_config.json",  # names the base
    )
    for path in sorted({path for kind in kinds for path in folder.glob(kind)}):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.name} {digest}\n".encode())
    return total.hexdigest()


SURROGATE = re.compile("[\ud800-\udfff]")
UNREADABLE = "the prompt holds a lone surrogate, which no tokenizer reads: mend the item"


class HuggingFace:
    def __init__(
        self,
        name: str,
        template: str = "auto",
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int = 16,
    ) -> None:
        """Raises ConfigError or CheckpointError for a model that cannot be loaded."""
        disable_progress_bar()
        path, data, label = locate(name)
        cuda = torch.cuda.is_available() if device == "auto" else device == "cuda"
        local = torch.device("cpu")
        if cuda:
            local = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch_dtype = {
            "bf16": torch.bfloat16,
            "fp32": torch.float32,
            "auto": torch.bfloat16 if cuda else torch.float32,
        }[dtype]
        try:
            own_code = trusts_code(name)
            self.tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=own_code)
            model = load_whole(path, torch_dtype, own_code)
        except (OSError, ValueError) as error:
            raise ConfigError(f"--model {name}: {str(error).strip().splitlines()[0]}") from None
        self.model: Any = model.to(local).eval()
        if needs_eager(self.model):
            self.model.set_attn_implementation("eager")
        self.renderer = Renderer(self.tokenizer, data, template)
        self.batch_size = batch_size
        own = end_tokens(self.model, self.tokenizer)
        self.ends = own | set(self.renderer.end.ids)
        self.context = context_window(self.model)
        commit = getattr(self.model.config, "_commit_hash", None)
        self.identity = {
            "backend": "hf",
            "model": name,
            "objective": label,
            "revision": commit or fingerprint(Path(path)),
            "template": self.renderer.name,
            "dtype": str(torch_dtype).removeprefix("torch."),
            "device": torch.cuda.get_device_name(local) if cuda else "cpu",
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        } | self.renderer.stops(own)

    def render(self, messages: list[Message]) -> str:
        return self.renderer.text(messages)

    def generate(self, requests: Sequence[Request], params: Sampling) -> list[Output]:
        """In batches of prompts of similar length."""
        params = replace(params, stop=params.stop + self.renderer.end.strings)
        outputs: list[Output] = [Output("", "error", 0, None, 0, UNREADABLE)] * len(requests)
        prompts = {
            i: self.renderer.ids(request.text or "")
            for i, request in enumerate(requests)
            if not SURROGATE.search(request.text or "")
        }
        order = sorted(prompts, key=lambda i: len(prompts[i]))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            seeds = [requests[i].seed for i in batch]
            try:
                done = decode(
                    self.model,
                    self.tokenizer,
                    [prompts[i] for i in batch],
                    seeds,
                    params,
                    self.ends,
                    context=self.context,
                )
            except torch.OutOfMemoryError:
                raise ConfigError(
                    f"--batch-size {self.batch_size}: {len(batch)} prompts do not fit the GPU: "
                    "lower it; recorded answers are kept"
                ) from None
            for i, output in zip(batch, done, strict=True):
                outputs[i] = output
        return outputs

    @torch.no_grad()
    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """A context that does not fit the window loses its beginning."""
        encoded = []
        for pair in pairs:
            ids, count = encode_pair(self.tokenizer, *pair)
            encoded.append((ids[-self.context :], min(count, self.context - 1)))
        results = [Likelihood(0.0, True, 0)] * len(pairs)
        order = sorted(range(len(pairs)), key=lambda i: -len(encoded[i][0]))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            width = len(encoded[batch[0]][0])
            ids = torch.zeros(len(batch), width, dtype=torch.long)
            for row, i in enumerate(batch):
                ids[row, : len(encoded[i][0])] = torch.tensor(encoded[i][0])
            padding = width - min(len(encoded[i][0]) for i in batch)
            keep = max(encoded[i][1] for i in batch) + 1 + padding
            # right-padded and causal: padding cannot change what comes before it
            logits = self.model(
                input_ids=ids.to(self.model.device),
                use_cache=False,
                logits_to_keep=min(keep, width),
            ).logits
            offset = width - logits.shape[1]
            for row, i in enumerate(batch):
                tokens, count = encoded[i]
                last = len(tokens) - 1 - offset
                logp = logits[row, last - count : last].float().log_softmax(-1)
                target = torch.tensor(tokens[len(tokens) - count :], device=logp.device)
                summed = float(logp.gather(1, target[:, None]).double().sum())
                results[i] = Likelihood(summed, bool((logp.argmax(-1) == target).all()), count)
        return results


def encode_pair(tokenizer: Any, context: str, continuation: str) -> tuple[list[int], int]:
    """Token ids of both, and how many of them are the continuation's.

    Spaces that end a context are moved to the continuation, whose first token holds them. An empty
    context becomes the begin- or end-of-text token.
    """
    stripped = context.rstrip()
    context, continuation = stripped, context[len(stripped) :] + continuation
    if not context:
        start = tokenizer.bos_token_id
        if start is None:
            start = tokenizer.eos_token_id
        ids = tokenizer(continuation, add_special_tokens=False)["input_ids"]
        return [start, *ids], len(ids)
    whole = tokenizer(context + continuation)["input_ids"]
    return whole, max(len(whole) - len(tokenizer(context)["input_ids"]), 1)


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Token ids after which nothing is generated: the model's own, and the tokenizer's."""
    settings = getattr(model, "generation_config", None)  # a sharded language part has none
    own = settings.eos_token_id if settings is not None else None
    listed = own if isinstance(own, list) else [own]
    return {int(token) for token in [*listed, tokenizer.eos_token_id] if token is not None}


def context_window(model: Any) -> int:
    """The most tokens that the model takes; practically unlimited where its config has no limit."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(limit or 1 << 30)


def open_backend(options: argparse.Namespace) -> HuggingFace:
    if not options.model:
        raise ConfigError("--model: a run folder, a Hugging Face folder or a name on the hub")
    return HuggingFace(
        options.model, options.template, options.device, options.dtype, options.batch_size or 16
    )
