"""python -m adaptsft.evals: the benchmarks of the paper, in three stages with files between them.

All three stages, then the first one on 8 GPUs that share the items, grading again, tables with a
plot, and what there is:

python -m adaptsft.evals run --model runs/first --tasks gsm8k,math500 --data-dir DATA --out
evals/first
    torchrun --standalone --nproc-per-node 8 -m adaptsft.evals generate --model runs/first --tasks math500 --out evals/first
    python -m adaptsft.evals score evals/first
    python -m adaptsft.evals report --compare evals/nll evals/neg_p
    python -m adaptsft.evals tasks

Killed and started again, `generate` goes on where it was. grade, judge and winrate take anybody's
outputs: `… grade --help` and so on.
"""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

from adaptsft.errors import ConfigError, UserError
from adaptsft.evals.arguments import positive

COMMANDS = ("run", "generate", "score", "report", "tasks", "grade", "judge", "winrate")


def main(arguments: list[str]) -> int:
    command = arguments[0] if arguments else "--help"
    elsewhere: dict[str, Callable[[list[str]], int]] = {
        "grade": _grade,
        "judge": _judge,
        "winrate": _winrate,
    }
    try:
        if command in elsewhere:
            return elsewhere[command](arguments[1:])
        options = parser().parse_args(arguments or ["--help"])
        return options.work(options)
    except UserError as error:
        print(f"adaptsft.evals: {type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(
            "\nadaptsft.evals: interrupted; the same command goes on with what is missing",
            file=sys.stderr,
        )
        return 130


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(
        prog="python -m adaptsft.evals",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = whole.add_subparsers(metavar=f"{{{','.join(COMMANDS)}}}", required=True)

    run = commands.add_parser("run", help="generate, score and report")
    generate = commands.add_parser("generate", help="answer the prompts of tasks; resumable")
    for one, work in ((run, _run), (generate, _generate)):
        one.set_defaults(work=work)
        one.add_argument(
            "--tasks",
            required=True,
            help="names, comma-separated (see `tasks`), or paths of YAML files of your own",
        )
        one.add_argument(
            "--out", required=True, type=Path, help="folder of this evaluation: OUT/TASK/MODE/…"
        )
        _generation_options(one)
    score = commands.add_parser("score", help="grade recorded answers")
    score.set_defaults(work=_score)
    score.add_argument("out", type=Path, help="folder of an evaluation, or of one of its tasks")
    report = commands.add_parser("report", help="tables (Markdown, CSV, LaTeX) and a bar plot")
    report.set_defaults(work=_report)
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
    commands.add_parser("tasks", help="list the tasks").set_defaults(work=_tasks)
    commands.add_parser("grade", help="grade anybody's outputs: GRADER < in.jsonl > out.jsonl")
    commands.add_parser("judge", help="AlpacaEval: have answers compared with a reference's")
    commands.add_parser("winrate", help="AlpacaEval win rates from recorded judge annotations")
    for one in (run, score):
        one.add_argument(
            "--workers", type=int, default=0, help="processes that grade (default: all cores)"
        )
        one.add_argument(
            "--allow-code-exec",
            action="store_true",
            help="run the programs that a model wrote, isolated: docs/code_execution.md",
        )
    score.add_argument(
        "--data-dir",
        type=Path,
        help="folder of the data files: the code grader reads its tests there",
    )
    return whole


def _generation_options(one: argparse.ArgumentParser) -> None:
    from adaptsft.evals.backends import BACKENDS

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
        type=_temperatures,
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
        "--url", help="http: such as http://localhost:8000/v1; the key is read from OPENAI_API_KEY"
    )
    one.add_argument("--replay", help="replay: a JSON-lines file of recorded outputs")
    one.add_argument(
        "--replay-fields", help="replay: how the file names them, id=task_id,output=completion"
    )


def _temperatures(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text}: write a temperature, or several with commas, such as 0,1"
        ) from None
    if not all(0 <= value < math.inf for value in values):
        raise argparse.ArgumentTypeError("temperatures are 0 (greedy) or above")
    return values


def _generate(options: argparse.Namespace) -> int:
    _answer(options)
    return 0


def _answer(options: argparse.Namespace) -> int:
    """Generate on all ranks; returns this one's number."""
    from adaptsft.distributed.ranks import process_group, raise_on_all_ranks, rank
    from adaptsft.evals.backends import open_backend
    from adaptsft.evals.generate import Plan, generate
    from adaptsft.evals.tasks import load_task

    tasks = [load_task(name) for name in options.tasks.split(",") if name]
    code = [task.name for task in tasks if "code" in task.graders]
    if code and getattr(options, "allow_code_exec", None) is False:
        raise ConfigError(
            f"--tasks {', '.join(code)}: their answers are programs, and grading runs them: add "
            "--allow-code-exec if you mean to"
        )
    plan = Plan(
        options.out,
        options.data_dir,
        options.temperature,
        options.n,
        options.limit,
        options.max_tokens,
        options.seed,
    )
    with process_group("cpu"):
        backend = raise_on_all_ranks(lambda: open_backend(options.backend, options))
        generate(tasks, backend, plan)
        return rank()


def _run(options: argparse.Namespace) -> int:
    if _answer(options) != 0:
        return 0  # the other ranks have done their share
    _score(options)
    options.runs, options.compare, options.to = [options.out], [], None
    return _report(options)


def _score(options: argparse.Namespace) -> int:
    from adaptsft.errors import DataError
    from adaptsft.evals import samples
    from adaptsft.evals.score import Grading, score

    found = samples.folders(options.out)
    if not found:
        raise DataError(f"{options.out}: no run.json below it: run generate first")
    errors = []
    for folder in found:
        try:
            result = score(
                folder, Grading(options.workers, options.data_dir, options.allow_code_exec)
            )
        except UserError as error:  # the other tasks' results are worth having
            errors.append(error)
            continue
        shown = [
            f"{name} {100 * value['value']:.2f}"
            for name, value in result["metrics"].items()
            if "/" not in name
        ]
        print(f"{folder}: {'  '.join(shown)}  ({result['task']['n_items']} items)")
    for error in errors[1:]:
        print(f"adaptsft.evals: {type(error).__name__}: {error}", file=sys.stderr)
    if errors:
        raise errors[0]
    return 0


def _report(options: argparse.Namespace) -> int:
    from adaptsft.evals import report

    runs = options.compare or options.runs
    if not runs:
        raise ConfigError("report: name the folders of evaluations")
    tables = report.build(runs, compare=bool(options.compare))
    folder = options.to or runs[0]
    report.write(tables, folder)
    print(f"\n{report.markdown(tables)}\n{folder}/report.md, .csv, .tex, .png")
    return 0


def _tasks(options: argparse.Namespace) -> int:
    from adaptsft.evals.tasks import describe

    print(describe())
    return 0


def _grade(arguments: list[str]) -> int:
    from adaptsft.evals.grade import main as grade

    return grade(arguments)


def _judge(arguments: list[str]) -> int:
    from adaptsft.evals.judge import main as judge

    return judge(arguments)


def _winrate(arguments: list[str]) -> int:
    from adaptsft.evals.alpaca import main as winrate

    return winrate(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
