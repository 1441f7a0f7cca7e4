r"""python -m adaptsft.evals: the benchmarks of the paper, in three stages with files between them.

All three stages, then the first one on 8 GPUs that share the items, grading again, tables with a
plot, and the list of tasks:

    python -m adaptsft.evals run --model runs/first --tasks gsm8k,math500 --data-dir DATA \
        --out evals/first
    torchrun --standalone --nproc-per-node 8 -m adaptsft.evals generate --model runs/first \
        --tasks math500 --out evals/first
    python -m adaptsft.evals score evals/first
    python -m adaptsft.evals report --compare evals/nll evals/neg_p
    python -m adaptsft.evals compare evals/nll evals/neg_p --disagreements 5
    python -m adaptsft.evals tasks

`generate` resumes: killed and started again it answers what is missing. grade, judge and winrate
take any outputs: see `… grade --help`.
"""

import argparse
import importlib
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

from adaptsft.errors import UserError
from adaptsft.evals.backends.registry import BACKENDS
from adaptsft.evals.command_line import count, positive, temperatures

# Command -> what runs it. Imported when it is run: torch and transformers take seconds to import,
# and `--help` or a misspelt option must be answered without them.
COMMANDS = {
    "run": "run:run_command",
    "generate": "generate:run_command",
    "score": "score:run_command",
    "report": "report:run_command",
    "compare": "side_by_side:run_command",
    "tasks": "tasks:list_tasks",
    "grade": "grade:main",
    "judge": "alpaca.judge:main",
    "winrate": "alpaca.winrate:main",
}
OWN_PARSER = ("grade", "judge", "winrate")  # these parse their arguments themselves


def main(arguments: list[str]) -> int:
    command = arguments[0] if arguments else "--help"
    if isinstance(sys.stdout, io.TextIOWrapper):  # what a terminal cannot show is no reason to end
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        if command in OWN_PARSER:
            return _function_of(command)(arguments[1:])
        options = parser().parse_args(arguments or ["--help"])
        return _function_of(options.command)(options)
    except UserError as error:
        print(f"adaptsft.evals: {type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # `… | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print(
            "\nadaptsft.evals: interrupted; the same command continues with what is missing",
            file=sys.stderr,
        )
        return 130


def _function_of(command: str) -> Callable[..., int]:
    module, function = COMMANDS[command].split(":")
    return getattr(importlib.import_module(f"adaptsft.evals.{module}"), function)


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(
        prog="python -m adaptsft.evals",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = whole.add_subparsers(
        dest="command", metavar=f"{{{','.join(COMMANDS)}}}", required=True
    )
    run = commands.add_parser("run", help="generate, score and report")
    generate = commands.add_parser("generate", help="answer the prompts of tasks; resumable")
    score = commands.add_parser("score", help="grade recorded answers")
    report = commands.add_parser("report", help="tables (Markdown, CSV, LaTeX) and a bar plot")
    compare = commands.add_parser(
        "compare",
        help="two runs item by item: the difference, and answers on which they or graders disagree",
        description=COMPARE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands.add_parser("tasks", help="list the tasks")
    commands.add_parser("grade", help="grade any outputs: GRADER < in.jsonl > out.jsonl")
    commands.add_parser("judge", help="AlpacaEval: have answers compared with a reference's")
    commands.add_parser("winrate", help="AlpacaEval win rates from recorded judge annotations")
    for one in (run, generate):
        _add_generation_options(one)
    for one in (run, score):
        _add_grading_options(one)

    score.add_argument("out", type=Path, help="folder of an evaluation, or of one of its tasks")
    score.add_argument(
        "--data-dir",
        type=Path,
        help="folder of the data files: the code grader reads its tests there, and lm-eval's "
        "tasks their items (default of these: the one that they were answered with)",
    )
    report.add_argument("runs", nargs="*", type=Path, help="folders of evaluations: one row each")
    report.add_argument(
        "--compare",
        nargs="+",
        type=Path,
        default=[],
        metavar="RUN",
        help="the same, marking the best and what is within noise of it",
    )
    report.add_argument("--to", type=Path, help="folder to write to (default: the first RUN)")
    report.add_argument(
        "--disagreements",
        type=count,
        default=0,
        metavar="N",
        help="also disagreements.md: N answers per task on which graders, or the first RUN and "
        "each other one, disagree (see `compare --help`)",
    )
    _add_compare_options(compare)
    return whole


def _add_generation_options(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--tasks",
        required=True,
        help="names, comma-separated (see `tasks`), or paths of YAML files of your own",
    )
    one.add_argument(
        "--out", required=True, type=Path, help="folder of this evaluation: OUT/TASK/MODE/…"
    )
    one.add_argument(
        "--model",
        help="run folder of adaptsft.train, Hugging Face folder, or name (on the hub, or as a "
        "server calls it)",
    )
    one.add_argument(
        "--backend", default="hf", choices=list(BACKENDS), help="what answers (default: hf)"
    )
    one.add_argument("--data-dir", type=Path, help="folder of data files; default: the hub")
    one.add_argument(
        "--temperature",
        type=temperatures,
        help="such as 1, or 0,1 for greedy and sampled side by side; default: the task's",
    )
    # torchrun's own parser takes --n for --nnodes or --nproc-per-node, even behind the module's
    # name: hence the second spelling
    one.add_argument(
        "--n",
        "--samples",
        type=positive,
        help="samples per item where the temperature is above 0; default: the task's",
    )
    one.add_argument("--limit", type=positive, help="only the first LIMIT items")
    one.add_argument("--max-tokens", type=positive, help="longest answer; default: the task's")
    one.add_argument(
        "--seed",
        type=int,
        default=42,
        help="each sample has its own seed, derived from this one (default: 42)",
    )
    one.add_argument(
        "--retry-errors",
        action="store_true",
        help="ask again for answers that were recorded with an error (a refused request, …)",
    )
    one.add_argument(
        "--batch-size",
        type=positive,
        help="prompts at a time: hf (default 16), or requests in flight: http (16)",
    )
    one.add_argument(
        "--template",
        default="auto",
        help="auto (the run's own, else the tokenizer's), chat, plain, chatml, llama3 or deepseek",
    )
    one.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="of hf")
    one.add_argument(
        "--dtype",
        default="auto",
        choices=["auto", "bf16", "fp32"],
        help="auto: bf16 on GPU, fp32 on CPU",
    )
    one.add_argument("--tensor-parallel", type=positive, default=1, help="GPUs per model: vllm")
    one.add_argument(
        "--max-model-len",
        type=positive,
        help="vllm: most tokens of a prompt with its answer, fewer than the model takes, where "
        "those do not fit the GPU",
    )
    one.add_argument(
        "--url", help="http: such as http://localhost:8000/v1; the key is read from OPENAI_API_KEY"
    )
    one.add_argument("--replay", help="replay: a JSON-lines file of recorded outputs")
    one.add_argument(
        "--replay-fields", help="replay: how the file names them, id=task_id,output=completion"
    )


COMPARE = """\
Two runs, A and B, item by item: the difference in every metric with its 95 % interval (a paired
bootstrap over the items that both have), and for a person to look at, answers on which the runs
disagree, or the graders of a run: question, gold, every verdict, what each grader extracted, the
end of each answer. One run alone: its graders against each other.

    compare evals/nll evals/auto                          # the table, and 3 disagreements a task
    compare evals/nll evals/auto --tasks math500 --kind runs --disagreements 10
    compare evals/nll --disagreements 20 --full | less    # where the graders of one run disagree
    compare evals/nll/gsm8k/greedy evals/nll/gsm8k/T1     # one task, decoded in two ways
    compare evals/nll evals/auto --full --to looked_at    # also looked_at/disagreements.md

Shown is one item of each kind in turn (A right, B wrong; A wrong, B right; graders differ in A; in
B): those first that differ most, and among equals in an order drawn by --seed."""


def _add_compare_options(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="A and B, or one alone: the --out of an evaluation, or the folder of one of its tasks",
    )
    one.add_argument(
        "--disagreements",
        type=count,
        default=3,
        metavar="N",
        help="how many are shown of each task (default: 3); 0: the table and the counts alone",
    )
    one.add_argument("--tasks", help="only these: gsm8k,math500/T1; default: all that both have")
    one.add_argument(
        "--metric",
        help="by which runs differ, such as math-paper or math-paper/pass@4 (default: that of a "
        "grader meant to be right, …-robust, else of the first column in the tables of `report`)",
    )
    one.add_argument(
        "--kind",
        default="all",
        choices=["all", "runs", "graders"],
        help="only items on which the runs disagree, or only those on which graders do",
    )
    one.add_argument("--seed", type=int, default=0, help="another one shows other items")
    one.add_argument(
        "--full", action="store_true", help="nothing is shortened: whole questions and answers"
    )
    one.add_argument("--to", type=Path, help="folder: writes the same to disagreements.md there")


def _add_grading_options(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--workers", type=int, default=0, help="processes that grade (default: all cores)"
    )
    one.add_argument(
        "--allow-code-exec",
        action="store_true",
        help="run the programs that a model wrote, isolated: docs/code_execution.md",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
