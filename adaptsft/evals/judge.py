"""Pairwise judging as AlpacaEval 2 does it: which of two outputs is better, by the probability of
the judge's first token.

The outputs are called m and M, in an order that is drawn from the instruction; with p = p(m) /
(p(m) + p(M)) the preference is 2 - p where the reference was m, and 1 + p where the order was
switched (`weighted_alpaca_eval_gpt4_turbo` of tatsu-lab/alpaca_eval@cd543a149df8). The prompt,
judge_prompt.txt, is that repository's alpaca_eval_clf.txt (Apache-2.0), byte for byte.

Outputs are written by models, and can address the judge (tatsu-lab/alpaca_eval#414: a constant
output "won" 86.5 %). So the chat's turns are split before outputs are put in; triple quotes in an
output are escaped, since they delimit it; outputs that imitate the prompt, or repeat each other,
are counted and reported. None of this makes a judge safe: look at what is flagged.
"""

import argparse
import ast
import hashlib
import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from adaptsft.errors import ConfigError, DataError
from adaptsft.evals import alpaca, samples
from adaptsft.evals.arguments import positive
from adaptsft.evals.backends import Backend, Message
from adaptsft.evals.backends.http import HTTP
from adaptsft.evals.samples import Samples, digest

PROMPT = Path(__file__).with_name("judge_prompt.txt")
SEED = 0  # of the order; the default of that repository
# of the prompts of 802 recorded judgements of alpaca-7b: 4,018 characters and 828 tokens of
# gpt-4-1106-preview each
CHARACTERS_PER_TOKEN = 4.85
IMITATIONS = (
    "<|im_start|>",
    "<|im_end|>",
    "model_identifier",
    "## Model Outputs",
    "## Best Model Identifier",
)  # what an honest answer rarely holds
# share of outputs with the same beginning from which they are reported as near-constant; two
# leaderboard models have 0.001
REPEATED = 0.05

Record = dict[str, Any]


class Judge(Protocol):
    name: str
    batch_size: int

    def judge(self, conversations: Sequence[list[Message]]) -> list[dict[str, float]]:
        """For each conversation log p of first tokens of the answer, among them "m" and "M" where
        the judge gives them.
        """
        ...


class LocalJudge:
    """Any of our backends that renders chats and gives likelihoods.

    Exact, where a server shows only its five likeliest tokens.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend, self.batch_size = backend, backend.batch_size
        self.name = f"{backend.identity['model']}@{backend.identity['revision'][:12]}"

    def judge(self, conversations: Sequence[list[Message]]) -> list[dict[str, float]]:
        texts = [self.backend.render(messages) for messages in conversations]
        found = self.backend.loglikelihood(
            [(text or "", letter) for text in texts for letter in "mM"]
        )
        return [
            {"m": m.logprob, "M": big.logprob}
            for m, big in zip(found[::2], found[1::2], strict=True)
        ]


class ServerJudge(HTTP):
    """An OpenAI-compatible server that gives log-probabilities."""

    def __init__(self, url: str, model: str, parallel: int = 16) -> None:
        super().__init__(url, model, "auto", parallel)
        self.name = model

    def judge(self, conversations: Sequence[list[Message]]) -> list[dict[str, float]]:
        def one(messages: list[Message]) -> dict[str, float]:
            settings = {
                "max_tokens": 1,
                "temperature": 1,
                "logprobs": True,
                "top_logprobs": 5,
            }  # the published configuration's
            choice = self._post("chat/completions", {"messages": messages} | settings)["choices"][0]
            content = (choice.get("logprobs") or {}).get("content")
            if not content:
                raise DataError(
                    f"--url {self.url}: {self.model} answers without logprobs, which the "
                    "judgement is read from; use another server"
                )
            return {token["token"]: token["logprob"] for token in content[0]["top_logprobs"]}

        return self._all(one, conversations)


class RecordedJudge:
    """The judgements of an annotations.json with raw completions: for checking what we make of them
    against what was published.
    """

    batch_size = 4096

    def __init__(self, path: Path, escape: bool) -> None:
        self.path, self.found = path, {}
        self.name = "recorded"
        for record in read_json_list(
            path, ("instruction", "output_1", "output_2", "raw_completion")
        ):
            completion = record["raw_completion"]
            if completion:
                self.name = record.get("annotator", self.name)
                completion = (
                    ast.literal_eval(completion) if isinstance(completion, str) else completion
                )
                tokens = completion["logprobs"]["content"][0]["top_logprobs"]
                asked = messages_of(
                    record["instruction"], record["output_1"], record["output_2"], escape
                )
                self.found[digest(asked)] = {token["token"]: token["logprob"] for token in tokens}

    def judge(self, conversations: Sequence[list[Message]]) -> list[dict[str, float]]:
        keys = [digest(messages) for messages in conversations]
        if missing := sum(key not in self.found for key in keys):
            raise DataError(
                f"{self.path}: {missing} of these {len(keys)} pairs were not judged there: are "
                "outputs and reference the recorded ones?"
            )
        return [self.found[key] for key in keys]


def switched(instruction: str) -> bool:
    """Whether the model's output comes first, as m."""
    return random.Random(f"is_switched_outputs{instruction}{SEED}").choices([False, True])[0]


def preference(logprobs: dict[str, float], is_switched: bool) -> float:
    """From 1 (the reference) to 2 (the model); NaN where the judge gave neither m nor M."""
    m, big = (logprobs.get(letter, -math.inf) for letter in "mM")
    if max(m, big) == -math.inf:
        return math.nan
    p = float(np.exp(m - np.logaddexp(m, big)))
    return 1 + p if is_switched else 2 - p


def messages_of(
    instruction: str, reference: str, output: str, escape: bool = True
) -> list[Message]:
    """What the judge is sent.

    `escape`: triple quotes, which delimit the texts, are written \\\"\\\"\\\" inside them.
    """
    first, second = (output, reference) if switched(instruction) else (reference, output)
    texts = {"instruction": instruction, "output_1": first, "output_2": second}
    if escape:
        texts = {name: text.replace('"""', '\\"\\"\\"') for name, text in texts.items()}
    turns = re.findall(
        r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>",
        PROMPT.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    # in one pass: what looks like a placeholder in an output is not one
    return [
        {
            "role": role,
            "content": re.sub(
                r"\{(instruction|output_1|output_2)\}",
                lambda found: texts[found[1]],
                content.strip(),
            ),
        }
        for role, content in turns
    ]


@dataclass(frozen=True)
class Outputs:
    """The answers of one model: rows of instruction and output, in the official order of the
    instructions.
    """

    generator: str
    rows: list[Record]


def read_outputs(path: Path) -> Outputs:
    """A model_outputs.json of the leaderboard's layout, or a folder that `generate --tasks
    alpaca_eval` wrote. Raises DataError.
    """
    if path.is_dir():
        folders = samples.folders(path)
        if len(folders) != 1:
            raise DataError(
                f"{path}: holds {len(folders)} evaluations; name the folder of one, such as "
                "OUT/alpaca_eval/T0.7"
            )
        asked = samples.read_json(folders[0] / "run.json")
        answers = {
            row["item_id"]: row["output"]
            for row in Samples(folders[0], -1).rows.values()
            if row["sample"] == 0
        }
        items = samples.read_lines(folders[0] / "items.jsonl")[0]
        if missing := [item["id"] for item in items if item["id"] not in answers]:
            raise DataError(
                f"{folders[0]}: {len(missing)} answers are missing, item {missing[0]} first: run "
                "generate again"
            )
        wanted = ("instruction", "dataset")
        rows = [
            {key: item["fields"][key] for key in wanted} | {"output": answers[item["id"]]}
            for item in items
        ]
        return Outputs(str(asked["backend"]["objective"]), rows)
    rows = read_json_list(path, ("instruction", "output"))
    return Outputs(str(rows[0].get("generator", path.stem)), rows)


def read_json_list(path: Path, keys: tuple[str, ...]) -> list[Record]:
    content = samples.read_json(path)
    if not isinstance(content, list) or not content:
        raise DataError(f"{path}: must hold a JSON list of objects, and not be empty")
    for number, record in enumerate(content):
        if missing := [key for key in keys if not isinstance(record, dict) or key not in record]:
            raise DataError(f"{path}, item {number}: {', '.join(missing)} missing")
    return content


def pairs_of(outputs: Outputs, reference: Outputs, limit: int | None = None) -> list[Record]:
    """One record per instruction, in the leaderboard's layout but for the judgement.

    Raises DataError where the instructions differ.
    """
    if len(outputs.rows) != len(reference.rows):
        raise DataError(
            f"{outputs.generator} answers {len(outputs.rows)} instructions, {reference.generator} "
            f"{len(reference.rows)}"
        )
    pairs = []
    for number, (own, other) in enumerate(zip(outputs.rows, reference.rows, strict=True)):
        if own["instruction"] != other["instruction"]:
            theirs = f"{outputs.generator} answers {own['instruction'][:60]!r}, {reference.generator} {other['instruction'][:60]!r}"
            raise DataError(
                f"item {number}: {theirs}; both must hold the instructions in the official order"
            )
        pair = {
            "instruction": own["instruction"],
            "output_1": other["output"],
            "generator_1": reference.generator,
        }
        pairs.append(
            pair
            | {
                "dataset": own.get("dataset"),
                "output_2": own["output"],
                "generator_2": outputs.generator,
            }
        )
    return pairs[:limit]


def annotate(pairs: list[Record], judge: Judge, folder: Path, escape: bool = True) -> list[Record]:
    """The pairs with annotator, preference, is_switched and logprobs.

    Equal outputs are a draw, and not sent.

    Judgements are appended to `folder` as they come; those that are there are not asked for again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    have = Samples(
        folder, name="judgements"
    )  # not among the samples of a task, whose folder this may be
    asked = {}
    for number, pair in enumerate(pairs):
        if pair["output_1"] != pair["output_2"]:
            messages = messages_of(pair["instruction"], pair["output_1"], pair["output_2"], escape)
            asked[number] = (digest(judge.name, messages), messages)
    missing = [(key, messages) for key, messages in asked.values() if key not in have.rows]
    with tqdm(
        total=len(asked),
        initial=len(asked) - len(missing),
        desc=f"judge {judge.name}",
        unit="pair",
        mininterval=1.0,
    ) as bar:
        for start in range(0, len(missing), judge.batch_size):
            batch = missing[start : start + judge.batch_size]
            found = judge.judge([messages for _, messages in batch])
            have.add(
                [
                    {"key": key, "logprobs": logprobs}
                    for (key, _), logprobs in zip(batch, found, strict=True)
                ]
            )
            bar.update(len(batch))
    records = []
    for number, pair in enumerate(pairs):
        value, logprobs, order = 1.5, None, switched(pair["instruction"])
        if number in asked:
            logprobs = have.rows[asked[number][0]]["logprobs"]
            value = preference(logprobs, order)
        value = None if math.isnan(value) else value
        records.append(
            pair
            | {
                "annotator": judge.name,
                "preference": value,
                "is_switched": order,
                "logprobs": logprobs,
            }
        )
    return records


def warnings(pairs: list[Record]) -> list[str]:
    """What to look at before believing a judgement of these outputs."""
    found = []
    imitating = [
        number
        for number, pair in enumerate(pairs)
        if any(text in pair["output_2"] for text in IMITATIONS)
    ]
    if imitating:
        found.append(
            f"{len(imitating)} outputs imitate the judge's prompt, item {imitating[0]} first: "
            "read them"
        )
    beginnings = Counter(" ".join(pair["output_2"].split())[:100] for pair in pairs)
    beginning, count = beginnings.most_common(1)[0]
    if count > max(1, REPEATED * len(pairs)):
        found.append(
            f"{count} of {len(pairs)} outputs begin alike, {beginning[:40]!r}: a near-constant "
            "model, whose win rate means nothing"
        )
    return found


def estimate(pairs: list[Record], price: float | None) -> tuple[str, float | None]:
    """What judging will take: in words, and in the currency of `price`, which is per million tokens
    of prompt.
    """
    sent = [pair for pair in pairs if pair["output_1"] != pair["output_2"]]
    characters = sum(
        len(m["content"])
        for pair in sent
        for m in messages_of(pair["instruction"], pair["output_1"], pair["output_2"])
    )
    tokens = characters / CHARACTERS_PER_TOKEN
    text = f"{len(sent)} judgements, about {tokens / 1e6:.2f} million tokens of prompt ({CHARACTERS_PER_TOKEN} characters per token)"
    return (
        (text, None)
        if price is None
        else (
            f"{text}, about {price * tokens / 1e6:.2f} at {price:g} per million",
            price * tokens / 1e6,
        )
    )


def main(arguments: list[str]) -> int:
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
    options = parse.parse_args(arguments)

    pairs = pairs_of(read_outputs(options.outputs), read_outputs(options.reference), options.limit)
    text, cost = estimate(pairs, options.price)
    print(text)
    if options.estimate:
        return 0
    if options.max_cost is not None and (cost is None or cost > options.max_cost):
        raise ConfigError(
            f"--max-cost {options.max_cost:g}: "
            + ("needs --price" if cost is None else f"the estimate is {cost:.2f}")
        )
    records = annotate(pairs, _open(options), options.out, escape=not options.unescaped)
    samples.write_json(options.out / "annotations.json", records)
    prompt = hashlib.sha256(PROMPT.read_bytes()).hexdigest()
    found = warnings(pairs)
    facts = {
        "judge": records[0]["annotator"],
        "prompt_sha256": prompt,
        "escaped": not options.unescaped,
        "warnings": found,
    }
    samples.write_json(options.out / "judge.json", facts)
    for warning in found:
        print(f"warning: {warning}")
    return alpaca.main([str(options.out / "annotations.json")])


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
    from adaptsft.evals.backends.hf import HuggingFace

    return LocalJudge(HuggingFace(options.judge, template="chat", batch_size=options.batch_size))
