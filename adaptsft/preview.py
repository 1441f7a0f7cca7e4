"""What will be learned, before any training: examples with their learned parts marked, and what
became of the records. The arguments are those of adaptsft.train.

    python -m adaptsft.preview CONFIG.yaml key=value … [--examples N | --all] [--json]

Needs the tokenizer only: no weights are loaded. The tokens are those that training reads, from the
same cache.
"""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

from adaptsft.command_line import first_answer, print_error
from adaptsft.errors import UserError

SHOWN_CHARACTERS = 4000  # of an example
LEARNED, CONTEXT, PLAIN = "\033[30;42m", "\033[2m", "\033[0m"  # on a terminal
BARS = 12  # of the histogram of lengths


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m adaptsft.preview",
        description="Show what a run will learn, before any training: examples of each source with "
        "their learned parts marked, what ends a turn, and what was dropped, cut or not read.",
        epilog="Only the tokenizer is loaded. --json writes an object per example: ids, learned "
        "(per token), text, learned_text, stop_ids, source, file, line.",
    )
    parser.add_argument(
        "settings", nargs="+", metavar="CONFIG.yaml | key=value", help="as for adaptsft.train"
    )
    parser.add_argument("--examples", type=int, default=3, help="to show of each source (3)")
    parser.add_argument("--all", action="store_true", help="show every example")
    parser.add_argument("--json", action="store_true", help="JSON lines on standard output")
    options = parser.parse_intermixed_args(arguments)
    if options.examples < 0:
        parser.error(f"--examples {options.examples}: must not be negative")
    return options


def with_run_dir(settings: list[str]) -> list[str]:
    """The settings; a preview needs no run folder."""
    given = any(setting.startswith("run_dir=") for setting in settings)
    return settings if given else [*settings, "run_dir=preview"]


if __name__ == "__main__":  # --help, a misspelt key, a missing file: before torch is imported
    if (code := first_answer(parse(sys.argv[1:]).settings, "adaptsft.preview")) is not None:
        sys.exit(code)

import numpy as np

from adaptsft.config.paths import local_model_folder
from adaptsft.config.resolve import load_config
from adaptsft.config.schema import Config
from adaptsft.data.shards import list_files, make_shard
from adaptsft.data.stop import TurnEnd, turn_end
from adaptsft.data.template import Template
from adaptsft.data.tokenized import TokenizedData, open_data
from adaptsft.model.pretrained import load_tokenizer


class Preview:
    """The data of a run, as its examples and as lines about them."""

    def __init__(self, config: Config, log: Callable[[str], None]) -> None:
        """Tokenises what is not in the cache; what becomes of the records goes to `log`. Raises
        ConfigError and DataError."""
        self.config = config
        source = local_model_folder(config.model) or config.model.path
        self.tokenizer: Any = load_tokenizer(config.model, source)
        self.tokenizer.add_tokens(config.model.add_tokens)
        shard = make_shard(config, list_files(config.data), 0, 0) if config.data.stream else None
        self.data, _ = open_data(config.data, self.tokenizer, config.seed, log, shard=shard)
        self.template = Template(self.tokenizer, config.data)
        self.end: TurnEnd = turn_end(self.template)

    def examples(self, most: int | None) -> Iterator[int]:
        """The first ones of each source, None: all."""
        for source in range(len(self.data.names)):
            yield from np.flatnonzero(self.data.source == source)[:most].tolist()

    def record(self, i: int) -> dict[str, Any]:
        """An example as --json writes it; with `weights`, where they are not all 1."""
        ids, mask = self.data.example(i)
        file, line = self.data.place(i)
        weights = self.data.weights_of(i)
        return {
            "source": self.data.names[self.data.source[i]],
            "file": file,
            "line": line,
            "text": self._decode(ids),
            "learned_text": [self._decode(ids[run]) for run, learned in runs(mask) if learned],
            "stop_ids": list(self.end.ids),
            "ids": ids.tolist(),
            "learned": mask.tolist(),
        } | ({} if weights is None else {"weights": weights.tolist()})

    def marked(self, i: int, colour: bool) -> str:
        """The text of an example with its learned parts in colour, or in brackets."""
        ids, mask = self.data.example(i)
        weights, parts = self.data.weights_of(i), []
        for run, learned in runs(mask):
            text = self._decode(ids[run])
            weight = 1.0 if weights is None else float(weights[run.start])
            note = f" (weight {weight:g})" if learned and weight != 1 else ""
            before, after = ("⟦", "⟧") if learned else ("", "")
            if colour:
                before, after = (LEARNED if learned else CONTEXT), PLAIN
            parts.append(f"{before}{text}{after}{note}")
        text = "".join(parts)
        rest = len(text) - SHOWN_CHARACTERS
        return text if rest <= 0 else f"{text[:SHOWN_CHARACTERS]}{PLAIN if colour else ''} … {rest}"

    def _decode(self, ids: np.ndarray) -> str:
        return self.tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False)

    def facts(self) -> Iterator[str]:
        """Lines about what is learned, and how long the examples are."""
        kind = {"chat": "the tokenizer's chat template", "plain": "data.prompt_template"}
        yield f"template: {kind[self.template.kind]}; learned: data.loss_on={self.template.loss_on}"
        ends = self.tokenizer.convert_ids_to_tokens(list(self.end.ids))
        shown = ", ".join(f"{token} ({i})" for token, i in zip(ends, self.end.ids, strict=True))
        yield f"a turn ends with: {shown or 'nothing that generation stops at'}"
        if self.end.warning:
            yield f"warning: {self.end.warning}"
        if self.template.kind == "chat" and self.template.chat.prints_date:
            yield f"the chat template prints the day, which is {self.config.data.date} (data.date)"
        yield f"lengths in tokens, of at most data.max_length={self.config.data.max_length}:"
        yield from histogram(self.data.lengths)


def runs(mask: np.ndarray) -> Iterator[tuple[slice, bool]]:
    """The stretches of equal values of a mask: (where, value)."""
    edges = [0, *(np.flatnonzero(np.diff(mask)) + 1).tolist(), len(mask)]
    for begin, end in pairwise(edges):
        yield slice(begin, end), bool(mask[begin])


def histogram(lengths: np.ndarray) -> list[str]:
    """Lines with the number of examples in equal steps of length."""
    step = -(-(int(np.ptp(lengths)) + 1) // BARS)
    edges = np.arange(lengths.min(), lengths.max() + step + 1, step)
    counts, _ = np.histogram(lengths, edges)
    width = len(f"{edges[-1]:,}")
    return [
        f"  {low:>{width},} to {low + step - 1:>{width},}  "
        f"{'#' * round(40 * count / counts.max()):40}  {count:,}"
        for count, low in zip(counts, edges[:-1].tolist(), strict=True)
    ]


def show(preview: Preview, most: int | None, colour: bool) -> Iterator[str]:
    """The report, line by line."""
    yield from preview.facts()
    for i in preview.examples(most):
        data: TokenizedData = preview.data
        yield ""
        yield (
            f"{data.names[data.source[i]]}, {data.where(i)}: {data.lengths[i]:,} tokens, "
            f"{data.target_tokens[i]:,} of them learned{'' if colour else ' (in ⟦ ⟧)'}"
        )
        yield preview.marked(i, colour)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    most = None if options.all else options.examples
    try:
        config = load_config(with_run_dir(options.settings))
        # standard output is for the objects
        preview = Preview(config, partial(print, file=sys.stderr if options.json else sys.stdout))
    except UserError as error:
        return print_error("adaptsft.preview", error)
    if options.json:
        for i in preview.examples(most):
            print(json.dumps(preview.record(i), ensure_ascii=False))
        return 0
    for line in show(preview, most, sys.stdout.isatty()):
        print(line)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a word
    sys.exit(main(sys.argv[1:]))
