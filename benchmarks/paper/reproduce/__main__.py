"""The paper's tables and figures, made again: diagnose, train every objective and the adaptive
default, evaluate, and set the paper's numbers (arXiv:2510.00526) beside yours.

    python -m benchmarks.paper.reproduce table2 --model Qwen/Qwen2.5-Math-1.5B --gpus 2 --dry-run
    python -m benchmarks.paper.reproduce table2 --model Qwen/Qwen2.5-Math-1.5B --gpus 2
    python -m benchmarks.paper.reproduce table2 --small
    python -m benchmarks.paper.reproduce table2 --report

Every stage is a command, printed as it is run. What is finished is found again by what it was made
from, so the same command goes on after an interruption; and an interrupted training or evaluation
resumes by itself. --small does all of it here, with a tiny random model, generated data in the
layout of the real sets, a few steps, and made-up answers: it shows that everything runs, and its
numbers mean nothing. Recipes: configs/paper; what each table needs: docs/paper.md.
"""

import argparse
import importlib.util
import os
import re
import shlex
import sys
from pathlib import Path

from tqdm import tqdm

from adaptsft.config.resolve import load_config
from adaptsft.errors import UserError, require
from benchmarks.paper.reproduce import results, table as tables
from benchmarks.paper.reproduce.stages import Choices, Stage, estimate, stages
from benchmarks.paper.reproduce.table import REPO, Job, Table, data_files, hub_name, jobs, model_of


def parser() -> argparse.ArgumentParser:
    summary, _, description = (__doc__ or "").partition("\n\n")
    parse = argparse.ArgumentParser(
        prog="python -m benchmarks.paper.reproduce",
        description=summary,
        epilog=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parse.add_argument("table", metavar="TABLE", help=", ".join(tables.names()))
    parse.add_argument(
        "--model",
        help="one of the table's, by its name on the hub or as in configs/paper (default: its "
        "first Qwen)",
    )
    parse.add_argument(
        "--objectives", nargs="+", default=[], help="only these, and auto (default: the table's)"
    )
    parse.add_argument(
        "--strict",
        action="store_true",
        help="train and round as the authors' code did: docs/strict_reproduction.md",
    )
    parse.add_argument(
        "--gpus",
        type=int,
        default=1,
        metavar="N",
        help="of this machine (1). The paper's runs had 2",
    )
    parse.add_argument(
        "--backend",
        choices=["vllm", "hf"],
        help="what answers (default: vllm where it is installed, else hf)",
    )
    parse.add_argument(
        "--data-dir",
        type=Path,
        help="folder of the evaluations' data files (default: from the hub)",
    )
    parse.add_argument(
        "--out",
        type=Path,
        help="folder of results (default: runs/paper/TABLE; …_strict with --strict)",
    )
    parse.add_argument(
        "--dry-run",
        action="store_true",
        help="print every command and what they would cost, and stop",
    )
    parse.add_argument(
        "--report", action="store_true", help="only make the tables again from what is finished"
    )
    parse.add_argument(
        "--small", action="store_true", help="everything in small, here: minutes, no GPU, no data"
    )
    asked = parse.add_argument_group("what is not decided for you, asked for before anything runs")
    asked.add_argument(
        "--allow-code-exec",
        action="store_true",
        help="table9: run the programs that the model wrote, isolated",
    )
    asked.add_argument(
        "--judge",
        metavar="NAME",
        help="table8: the judge, a name that --judge-url knows; else a local model",
    )
    asked.add_argument(
        "--judge-url",
        metavar="URL",
        help="table8: such as https://api.openai.com/v1; its API may cost you money",
    )
    asked.add_argument(
        "--accept-gated",
        action="store_true",
        help="you have been given access to the gated models and data that it names",
    )
    parse.add_argument(
        "key=value",
        nargs="*",
        help="a key of the trainer, for every training, such as train.micro_batch_size=1",
    )
    return parse


def main(arguments: list[str]) -> int:
    parse = parser()
    # taken out first: --objectives would take them for objectives
    overrides = [argument for argument in arguments if re.match(r"[\w.]+=", argument)]
    options = parse.parse_args([argument for argument in arguments if argument not in overrides])
    if stray := getattr(options, "key=value"):
        parse.error(f"{stray[0]}: not key=value")
    try:
        return reproduce(options, overrides)
    except UserError as error:
        print(f"reproduce: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(
            "\nreproduce: interrupted; the same command goes on with what is missing",
            file=sys.stderr,
        )
        return 130


def reproduce(options: argparse.Namespace, overrides: list[str]) -> int:
    name, table = options.table, tables.read(options.table)
    default = Path("runs/paper") / (
        name + ("_strict" if options.strict else "") + ("_small" if options.small else "")
    )
    out = options.out or default
    if options.report:
        return report(name, table, out, options)
    qwen = next(model for model in table.models if model.startswith("qwen"))
    model = model_of(name, table, options.model or qwen)
    asked = jobs(name, table, model, options.objectives)
    if options.small:
        out = out.resolve()  # the working directory will be another
        from benchmarks.paper.reproduce import small

        asked, choices = small.prepare(name, table, model, asked, out, options, overrides)
    else:
        choices = decided(options, overrides)
    found = stages(name, table, model, asked, out, choices)
    missing = [stage for stage in found if not stage.done()]
    print(
        f"{table.title}: {hub_name(name, model)}\nresults in {out}, {len(found) - len(missing)} of "
        f"{len(found)} stages finished"
    )
    if not options.small:
        print("\n".join(estimate(table, hub_name(name, model), asked, missing)))
    open_questions = [] if options.small else questions(name, table, model, asked, options)
    if options.dry_run:
        print("".join(f"\n# {stage.name}\n{shlex.join(stage.words)}\n" for stage in found))
        print("".join(f"before it can run: {question}\n" for question in open_questions), end="")
        return 0
    require(not open_questions, "before anything runs:\n  " + "\n  ".join(open_questions))
    run(missing)
    return report(name, table, out, options)


def decided(options: argparse.Namespace, overrides: list[str]) -> Choices:
    backend = options.backend or ("vllm" if importlib.util.find_spec("vllm") else "hf")
    judge = (
        "--judge",
        str(options.judge),
        *(("--url", options.judge_url) if options.judge_url else ("--backend", "hf")),
    )
    data_dir = options.data_dir and options.data_dir.resolve()
    return Choices(
        options.gpus,
        backend,
        options.strict,
        data_dir,
        options.allow_code_exec,
        judge,
        tuple(overrides),
    )


def questions(
    name: str, table: Table, model: str, asked: list[Job], options: argparse.Namespace
) -> list[str]:
    """What only the user can decide or provide, and has not."""
    found, hub = [], hub_name(name, model)
    absent = {
        path
        for job in asked
        for path in data_files(load_config(job.arguments))
        if not path.exists()
    }
    if absent:
        commands = "; ".join(
            f"python -m benchmarks.paper.prepare {arguments}" for arguments in table.prepare
        )
        found.append(
            f"training data is missing here ({', '.join(map(str, sorted(absent)))}): {commands}"
        )
    gated = (
        [f"https://huggingface.co/{hub}"] if hub.startswith("meta-llama/") else []
    ) + table.gated
    if gated and not options.accept_gated:
        found.append(
            f"gated: {', '.join(gated)}: ask for access, `hf auth login`, and add --accept-gated"
        )
    tasks = {column.task for column in table.columns.values()}
    if any(task.startswith(("humaneval", "mbpp")) for task in tasks):
        if not options.allow_code_exec:
            found.append(
                "grading runs programs that a model wrote, isolated (docs/code_execution.md): add "
                "--allow-code-exec if you mean to"
            )
        if options.data_dir is None:
            found.append(
                "the tests of HumanEval+ and MBPP+ are read from files: name their folder by "
                "--data-dir (docs/evaluation.md)"
            )
    if table.against and not options.judge:
        found.append(
            "a judge compares the answers: --judge NAME --judge-url URL (an API, which may cost), "
            "or --judge FOLDER (a local model)"
        )
    return found


def run(missing: list[Stage]) -> None:
    """One after the other, each command printed before it starts; its output is in its log."""
    with tqdm(total=len(missing), unit="stage", dynamic_ncols=True) as bar:
        for stage in missing:
            bar.set_postfix_str(stage.name)
            bar.write(
                f"\n# {stage.name}; log: "
                f"{stage.mark.with_suffix('.log')}\n{shlex.join(stage.words)}"
            )
            stage.run()
            bar.update()


def report(name: str, table: Table, out: Path, options: argparse.Namespace) -> int:
    deviations = (
        ["--small: a tiny random model and made-up answers; these numbers mean nothing"]
        if options.small
        else []
    )
    for path in results.write(name, table, out, options.strict, deviations):
        print(os.path.relpath(path))
    print("\n" + (out / "table.md").read_text())
    return 0


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(REPO), str(REPO / "kernels"), os.environ.get("PYTHONPATH", "")]
    ).rstrip(os.pathsep)
    sys.exit(main(sys.argv[1:]))
