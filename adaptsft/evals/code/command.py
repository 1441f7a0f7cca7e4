"""python -m adaptsft.evals grade code --data-dir DIR --allow-code-exec < in.jsonl > out.jsonl"""

import argparse
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from adaptsft.evals.code import sandbox
from adaptsft.evals.code.evalplus import grade, pass_at_1
from adaptsft.evals.command_line import count_errors, read_stdin, write_stdout


def main(arguments: list[str]) -> int:
    """Verdicts go to stdout, pass@1 to stderr. Returns 0, or 3 where lines could not be graded.

    Raises UserError.
    """
    options = _parser().parse_args(arguments)
    records = read_stdin()
    bar = tqdm(total=len(records), desc="programs", unit="program", mininterval=1.0, delay=1.0)
    with bar:
        verdicts = grade(
            records,
            data_dir=options.data_dir,
            allow_code_exec=options.allow_code_exec,
            version=options.version,
            workers=options.workers,
            cache_dir=options.cache_dir,
            progress=bar.update,
        )
    write_stdout(verdicts)
    graded = [verdict for verdict in verdicts if "error" not in verdict]
    for name in sorted({verdict["data"] for verdict in graded}):
        found = [verdict for verdict in graded if verdict["data"] == name]
        print(f"{name}: {_summary(found)}", file=sys.stderr)
    return count_errors(verdicts, ("base", "plus"))


def _summary(verdicts: list[dict[str, Any]]) -> str:
    share = pass_at_1(verdicts)
    problems = len({verdict["task_id"] for verdict in verdicts})
    timeouts = sum(verdict["timeout"] for verdict in verdicts)
    return (
        f"base {100 * share['base']:.1f}  plus {100 * share['plus']:.1f}  pass@1, {len(verdicts)} "
        f"programs for {problems} problems, {timeouts} out of time; isolated by "
        f"{sandbox.isolation()}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m adaptsft.evals grade code",
        description="Runs programs against the tests of HumanEval+ and MBPP+. Reads JSON lines "
        "with task_id (HumanEval/… or Mbpp/…) and solution (a whole program: prompt and "
        "completion); writes one line for each, in order: task_id, base and plus (pass or fail), "
        "reason, test, timeout, untested, data; of a line that cannot be graded base and plus are "
        "null, and `error` says why.",
        epilog="A solution is run as it is; adaptsft.evals.code.sanitize extracts one from an "
        "answer. How programs are isolated: docs/code_execution.md",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        required=True,
        help="folder with HumanEvalPlus-….jsonl.gz and MbppPlus-….jsonl.gz",
    )
    parser.add_argument(
        "--allow-code-exec", action="store_true", help="run the programs; without it nothing is run"
    )
    parser.add_argument(
        "--version",
        nargs="+",
        default=[],
        metavar="V",
        help="v0.1.9, or a file's name without .jsonl.gz; default: the newest",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        help="programs at a time, up to 4 GiB each (default: one per core)",
    )
    parser.add_argument(
        "--cache-dir",
        type=Path,
        help="folder of expected outputs (default: ~/.cache/adaptsft/code)",
    )
    return parser
