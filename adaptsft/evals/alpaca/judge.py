"""python -m adaptsft.evals judge: pairwise judging as AlpacaEval 2 does it.

Which of two outputs is better, by the probability of the judge's first token (judge_prompt.py).
Outputs that imitate the prompt, or repeat each other, are counted and reported. None of this makes
a judge safe: read the outputs that are reported.
"""

import argparse
import hashlib
import math
from collections import Counter
from pathlib import Path

from adaptsft.errors import ConfigError
from adaptsft.evals import samples
from adaptsft.evals.alpaca import winrate
from adaptsft.evals.alpaca.judge_prompt import PROMPT, messages_of, preference, switched
from adaptsft.evals.alpaca.judges import Judge, LocalJudge, RecordedJudge, ServerJudge
from adaptsft.evals.alpaca.outputs import Record, pairs_of, read_outputs
from adaptsft.evals.asking import ask_for_missing
from adaptsft.evals.backends.registry import open_backend
from adaptsft.evals.command_line import positive
from adaptsft.evals.samples import Samples, digest

# Of the prompts of 802 recorded judgements of alpaca-7b: 4,018 characters and 828 tokens of
# gpt-4-1106-preview each.
CHARACTERS_PER_TOKEN = 4.85
# what an honest answer rarely holds
IMITATIONS = (
    "<|im_start|>",
    "<|im_end|>",
    "model_identifier",
    "## Model Outputs",
    "## Best Model Identifier",
)
# Share of outputs with the same beginning from which they are reported as near-constant; two
# leaderboard models have 0.001.
REPEATED = 0.05


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    pairs = pairs_of(read_outputs(options.outputs), read_outputs(options.reference), options.limit)
    text, cost = estimate(pairs, options.price)
    print(text)
    if options.estimate:
        return 0
    if options.max_cost is not None and (cost is None or cost > options.max_cost):
        reason = "needs --price" if cost is None else f"the estimate is {cost:.2f}"
        raise ConfigError(f"--max-cost {options.max_cost:g}: {reason}")
    records = annotate(
        pairs,
        _open(options),
        options.out,
        escape=not options.unescaped,
        retry_errors=options.retry_errors,
    )
    samples.write_json(options.out / "annotations.json", records)
    found = warnings(pairs)
    facts = {
        "judge": records[0]["annotator"],
        "prompt_sha256": hashlib.sha256(PROMPT.read_bytes()).hexdigest(),
        "escaped": not options.unescaped,
        "warnings": found,
    }
    samples.write_json(options.out / "judge.json", facts)
    for warning in found:
        print(f"warning: {warning}")
    return winrate.main([str(options.out / "annotations.json")])


def _open(options: argparse.Namespace) -> Judge:
    if options.backend == "replay":
        if not options.replay:
            raise ConfigError("--backend replay needs --replay ANNOTATIONS.json")
        return RecordedJudge(options.replay, escape=not options.unescaped)
    if not options.judge:
        raise ConfigError("--judge: name the judge")
    if options.backend == "http":
        if not options.url:
            raise ConfigError("--backend http needs --url, such as http://localhost:8000/v1")
        return ServerJudge(options.url, options.judge, options.batch_size)
    wanted = argparse.Namespace(
        model=options.judge,
        template="chat",
        device="auto",
        dtype="auto",
        batch_size=options.batch_size,
    )
    return LocalJudge(open_backend("hf", wanted))


def annotate(
    pairs: list[Record],
    judge: Judge,
    folder: Path,
    escape: bool = True,
    retry_errors: bool = False,
) -> list[Record]:
    """The pairs with annotator, preference, is_switched and logprobs, or also an error.

    Equal outputs are a draw, and not sent. Judgements are appended to `folder` as they come; those
    that are there are not asked for again, but with `retry_errors` those that have an error.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # a name of their own: the folder may be that of a task, with its samples
    have = Samples(folder, name="judgements")
    asked = {}
    for number, pair in enumerate(pairs):
        if pair["output_1"] != pair["output_2"]:
            messages = _messages(pair, escape)
            asked[number] = (digest(judge.name, messages), messages)
    ask_for_missing(
        have,
        dict(asked.values()),
        judge.judge,
        lambda _, judgement: judgement._asdict(),
        batch_size=judge.batch_size,
        label=f"judge {judge.name}",
        unit="pair",
        retry_errors=retry_errors,
    )
    records = []
    for number, pair in enumerate(pairs):
        value, logprobs, error, order = 1.5, None, None, switched(pair["instruction"])
        if number in asked:
            judged = have.records[asked[number][0]]
            logprobs, error = judged["logprobs"], judged.get("error")
            value = preference(logprobs, order)
        judgement = {
            "annotator": judge.name,
            "preference": None if math.isnan(value) else value,
            "is_switched": order,
            "logprobs": logprobs,
        } | ({"error": error} if error else {})
        records.append(pair | judgement)
    return records


def _messages(pair: Record, escape: bool = True) -> list[dict[str, str]]:
    return messages_of(pair["instruction"], pair["output_1"], pair["output_2"], escape)


def warnings(pairs: list[Record]) -> list[str]:
    """What to look at before believing a judgement of these outputs."""
    found = []
    outputs = [pair["output_2"] for pair in pairs]
    imitating = [
        number
        for number, output in enumerate(outputs)
        if any(text in output for text in IMITATIONS)
    ]
    if imitating:
        found.append(
            f"{len(imitating)} outputs imitate the judge's prompt, item {imitating[0]} first: read "
            "them"
        )
    beginnings = Counter(" ".join(output.split())[:100] for output in outputs)
    beginning, count = beginnings.most_common(1)[0]
    if count > max(1, REPEATED * len(outputs)):
        found.append(
            f"{count} of {len(outputs)} outputs begin alike, {beginning[:40]!r}: a near-constant "
            "model, whose win rate means nothing"
        )
    return found


def estimate(pairs: list[Record], price: float | None) -> tuple[str, float | None]:
    """The number of judgements and their cost, in words, and the cost.

    `price` is per million tokens of prompt, in any currency.
    """
    sent = [_messages(pair) for pair in pairs if pair["output_1"] != pair["output_2"]]
    characters = sum(len(message["content"]) for messages in sent for message in messages)
    tokens = characters / CHARACTERS_PER_TOKEN
    text = (
        f"{len(sent)} judgements, about {tokens / 1e6:.2f} million tokens of prompt "
        f"({CHARACTERS_PER_TOKEN} characters per token)"
    )
    if price is None:
        return text, None
    cost = price * tokens / 1e6
    return f"{text}, about {cost:.2f} at {price:g} per million", cost


def _parser() -> argparse.ArgumentParser:
    parse = argparse.ArgumentParser(
        prog="python -m adaptsft.evals judge",
        description="Compare a model's AlpacaEval outputs with a reference's; writes "
        "OUT/annotations.json and prints the win rate.",
        epilog="Resumable: the same command asks only for what is missing. See "
        "docs/alpaca_eval.md.",
    )
    parse.add_argument(
        "outputs",
        type=Path,
        help="model_outputs.json, or a folder that `generate --tasks alpaca_eval` wrote",
    )
    parse.add_argument(
        "reference",
        type=Path,
        help="the same of the reference: the leaderboard's gpt4_1106_preview, or any other model",
    )
    parse.add_argument("--out", type=Path, required=True, help="folder to write to")
    parse.add_argument(
        "--judge",
        metavar="NAME",
        help="the judge: a name that the server knows, or with --backend hf a folder or hub name",
    )
    parse.add_argument(
        "--backend",
        default="http",
        choices=["http", "hf", "replay"],
        help="replay: --replay holds recorded judgements",
    )
    parse.add_argument(
        "--url", help="http: such as https://api.openai.com/v1; the key is read from OPENAI_API_KEY"
    )
    parse.add_argument(
        "--replay",
        type=Path,
        metavar="ANNOTATIONS.json",
        help="replay: annotations with raw completions",
    )
    parse.add_argument(
        "--price", type=float, help="price of a million prompt tokens, for the estimate"
    )
    parse.add_argument(
        "--max-cost", type=float, help="with --price: refuse to start where the estimate is higher"
    )
    parse.add_argument("--estimate", action="store_true", help="print the estimate, and stop")
    parse.add_argument(
        "--retry-errors",
        action="store_true",
        help="ask again for judgements that were recorded with an error",
    )
    parse.add_argument("--limit", type=positive, help="only the first pairs")
    parse.add_argument(
        "--unescaped",
        action="store_true",
        help='send """ in outputs as it is: the leaderboard\'s prompt to the byte',
    )
    parse.add_argument(
        "--batch-size",
        type=positive,
        default=16,
        help="requests in flight (http), or prompts at a time (hf)",
    )
    return parse
