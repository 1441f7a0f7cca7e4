"""Recorded outputs in place of a model.

--replay is a JSON-lines file (or a JSON list) of objects with an id and an output; `--replay-fields
id=task_id,output=completion` names them as the file does. Several objects with the same id are its
samples, in order. Of our own samples.rank*.jsonl those count that `score` would take.
"""

import argparse
import codecs
import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adaptsft.errors import ConfigError, DataError
from adaptsft.evals.protocol import Likelihood, Message, Output, Request, Sampling
from adaptsft.evals.samples import keep

OWN = {"key", "item_id", "sample", "prompt_sha"}  # keys of our own samples


class Replay:
    batch_size = 4096

    def __init__(self, path: Path, fields: dict[str, str], label: str) -> None:
        """Raises ConfigError for an unknown field, DataError for a file that cannot be read."""
        unknown = set(fields) - {"id", "output", "finish_reason"}
        if unknown:
            raise ConfigError(
                f"--replay-fields {', '.join(sorted(unknown))}: the fields are id, output and "
                "finish_reason"
            )
        names = {"id": "item_id", "output": "output", "finish_reason": "finish_reason"} | fields
        try:
            content = path.read_bytes()
            text = content.removeprefix(codecs.BOM_UTF8).decode(errors="surrogatepass")
            records = (
                json.loads(text)
                if text.lstrip().startswith("[")
                else _lines(path, text.split("\n"))
            )
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"--replay {path}: cannot be read: {error}") from None
        if isinstance(records, list):
            records = _kept(records)
        self.path, self.answers = path, defaultdict(list)
        for number, record in enumerate(records, 1):
            if (
                not isinstance(record, dict)
                or names["id"] not in record
                or names["output"] not in record
            ):
                have = ", ".join(record) if isinstance(record, dict) else type(record).__name__
                wanted = f"{names['id']!r} and {names['output']!r}"
                raise DataError(
                    f"--replay {path}, record {number}: {wanted} are wanted, it has {have}; name "
                    "them by --replay-fields"
                )
            text, reason = record[names["output"]], record.get(names["finish_reason"]) or "stop"
            error = record.get("error")  # of our own samples
            if not isinstance(text, str):
                text, error = "", f"the recorded {names['output']!r} is {text!r:.80}, not text"
            error = None if error is None else str(error)
            self.answers[str(record[names["id"]])].append(Output(text, str(reason), 0, error=error))
        self.identity = {
            "backend": "replay",
            "model": label,
            "objective": label,
            "revision": hashlib.sha256(content).hexdigest(),
            "template": None,
            "dtype": None,
            "device": None,
            "versions": {},
        }

    def render(self, messages: list[Message]) -> str | None:
        return None

    def generate(self, requests: Sequence[Request], params: Sampling) -> list[Output]:
        absent = [
            request for request in requests if len(self.answers[request.item_id]) <= request.sample
        ]
        if absent:
            first = absent[0]
            raise DataError(
                f"--replay {self.path}: no output {first.sample + 1} for item {first.item_id!r}, "
                f"nor for {len(absent) - 1} others; "
                "lower --n or --limit, or name the fields by --replay-fields"
            )
        return [self.answers[request.item_id][request.sample] for request in requests]

    def unused(self, asked: dict[str, float]) -> str | None:
        """How many outputs are more than were asked for, {item: samples}, or None."""
        have = [(item_id, i) for item_id, of in self.answers.items() for i in range(len(of))]
        left = [item_id for item_id, i in have if i >= asked.get(item_id, 0)]
        if not left:
            return None
        return (
            f"--replay {self.path}: {len(left)} of {len(have)} outputs were not used (first id "
            f"{left[0]!r}): no item has this id, or fewer samples of it were asked for"
        )

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        raise ConfigError("--backend replay has no likelihoods: use hf, vllm or http for this task")


def _kept(records: list[Any]) -> list[Any]:
    """Without those of our own samples that were asked again, in whose place is what came."""
    own: dict[str, dict[str, Any]] = {}
    for record in records:
        if not (isinstance(record, dict) and record.keys() >= OWN):
            return records
        keep(own, record)
    return list(own.values())


def _lines(path: Path, lines: list[str]) -> list[Any]:
    records = []
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                records.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise DataError(f"--replay {path}:{number}: not JSON: {error}") from None
    return records


def open_backend(options: argparse.Namespace) -> Replay:
    if not options.replay:
        raise ConfigError(
            "--backend replay needs --replay FILE, a JSON-lines file of recorded outputs"
        )
    pairs = [part.partition("=") for part in (options.replay_fields or "").split(",") if part]
    return Replay(
        Path(options.replay),
        {ours: theirs for ours, _, theirs in pairs},
        options.model or Path(options.replay).stem,
    )
