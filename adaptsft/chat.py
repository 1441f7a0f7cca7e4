"""python -m adaptsft.chat RUN_OR_MODEL: a conversation with a finished run, a Hugging Face folder
or a model of the hub."""

import argparse
import sys
from pathlib import Path
from typing import Any

HELP = "Ctrl-D or an empty line ends the conversation, /new starts another."


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m adaptsft.chat",
        description="Talk to a finished run or to any Hugging Face model.",
        epilog=HELP,
    )
    parser.add_argument("model", help="run folder, Hugging Face folder, or name on the hub")
    parser.add_argument("--prompt", help="answer this one prompt and end")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 is greedy (default: 0.7)")
    parser.add_argument(
        "--max-new-tokens", type=int, default=256, help="longest answer, in tokens (default: 256)"
    )
    parser.add_argument("--seed", type=int, help="seed of the sampling; default: another each time")
    options = parser.parse_args(arguments)
    if options.max_new_tokens < 1 or options.temperature < 0:
        parser.error("--max-new-tokens must be at least 1 and --temperature at least 0")
    return options


if __name__ == "__main__":
    parse(sys.argv[1:])  # ends here for --help and for a misspelt option: before torch is imported

import torch
from transformers import AutoTokenizer, TextStreamer
from transformers.utils.logging import disable_progress_bar

from adaptsft.command_line import print_error
from adaptsft.config.load import read_config
from adaptsft.config.schema import DataConfig
from adaptsft.data.stop import turn_end
from adaptsft.data.template import Template
from adaptsft.errors import CheckpointError, UserError
from adaptsft.model.attention import needs_eager
from adaptsft.model.language import load_whole


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    disable_progress_bar()
    try:
        model, tokenizer, template = load(options.model)
    except UserError as error:
        return print_error("adaptsft.chat", error)
    if options.seed is not None:
        torch.manual_seed(options.seed)
    if options.prompt is not None:
        answer(model, tokenizer, template, [{"role": "user", "content": options.prompt}], options)
        return 0
    converse(options, model, tokenizer, template)
    return 0


def converse(options: argparse.Namespace, model: Any, tokenizer: Any, template: Template) -> None:
    alone = template.kind == "plain"
    memory = (
        "each message stands alone, as in its training"
        if alone
        else "it remembers the conversation"
    )
    print(f"{options.model} on {model.device.type}; {memory}. {HELP}", file=sys.stderr)
    messages: list[dict[str, str]] = []
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            return
        if not text:
            return
        if text == "/new":
            messages = []
            continue
        messages = ([] if alone else messages) + [{"role": "user", "content": text}]
        reply = answer(model, tokenizer, template, messages, options)
        messages.append({"role": "assistant", "content": reply})


def load(name: str) -> tuple[Any, Any, Template]:
    """Model, tokenizer and template: the run's own; for any other model its chat template or, where
    it has none, the bare prompt."""
    folder, data = Path(name), DataConfig(prompt_template="{prompt}")
    is_run, own_code = (folder / "config.yaml").is_file(), False
    if is_run:
        config = read_config(folder / "config.yaml")
        data, own_code = config.data, config.model.trust_remote_code
        if not (folder / "final").is_dir():
            fix = f"let the run finish, or write one with python -m adaptsft.export {folder} OUT"
            raise CheckpointError(f"{folder} has no final/ model yet: {fix}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        source = folder / "final" if is_run else name
        tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=own_code)
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        model = load_whole(source, dtype, own_code).to(device).eval()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name}: {error}") from None
    if needs_eager(model):
        model.set_attn_implementation("eager")
    return model, tokenizer, Template(tokenizer, data)


@torch.no_grad()
def answer(
    model: Any,
    tokenizer: Any,
    template: Template,
    messages: list[dict[str, str]],
    options: argparse.Namespace,
) -> str:
    """Print the model's answer as it is generated, and return it."""
    prompt = torch.tensor([template.prompt_ids(messages)], device=model.device)
    sampling: dict[str, Any] = {"do_sample": options.temperature > 0}
    if options.temperature > 0:
        sampling |= {"temperature": options.temperature, "top_p": 1.0, "top_k": 0}
    end = turn_end(template)
    stops = end.stop_ids(model.generation_config.eos_token_id, tokenizer.eos_token_id)
    if end.strings:
        sampling |= {"stop_strings": list(end.strings)}
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        **sampling,
        max_new_tokens=options.max_new_tokens,
        # an end that is text is on the screen before it is known to be one
        streamer=None if end.strings else Printer(tokenizer, stops),
        eos_token_id=stops or None,
        pad_token_id=pad,
        tokenizer=tokenizer,  # for stop strings, which a model's own settings may have too
    )
    ids = output[0, prompt.shape[1] :].tolist()
    reply = tokenizer.decode([i for i in ids if i not in stops], skip_special_tokens=True)
    for text in end.strings:
        reply = reply.partition(text)[0]
    if end.strings:
        print(reply)
    return reply


class Printer(TextStreamer):
    """Prints an answer as it is generated, without the token that ends it, which need not be one
    that the tokenizer calls special."""

    def __init__(self, tokenizer: Any, stops: list[int]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.stops = stops

    def put(self, value: torch.Tensor) -> None:
        if value.ndim > 1 or int(value) not in self.stops:
            super().put(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
