"""Tokens per second, MFU and memory of a whole fine-tuning step: our objectives beside each other,
and TRL, in the same run.

    pip install trl liger-kernel
    # a Qwen2.5-1.5B-shaped model with random weights, packs of 8192 tokens, one GPU
    python benchmarks/train_step.py
    # a mixture of experts: six layers shaped as those of Qwen3-30B-A3B
    python benchmarks/train_step.py --model qwen3-30b-a3b
    # a minute on a CPU: shows that everything runs, measures nothing of interest
    python benchmarks/train_step.py --tiny

Ours and TRL get the same weights, the same tokenised examples (the same 32 in every step, each
packing them by itself), the same attention kernel, fp32 masters and AdamW moments with bf16
compute, the same learning rate, clipping and decay, and no activation checkpointing. Tokens are
counted in the batches, without padding; a run whose steps have other counts than the data is
failed. Differences that remain: ours casts all weights to bf16 once per gathering (FSDP2) and adds
up hidden states in bf16, TRL runs under torch.autocast, which casts weights at every product and
keeps the sum of the hidden states in fp32; the head and loss are each one's own (TRL 1.16 turns
Liger's fused loss off and has a chunked one; Liger gives it norms, rotary embeddings and SwiGLU).
Autocast does not reach torch's grouped product, so that TRL's experts multiply in fp32, for which
torch has no kernel of its own: one product per expert, and a wait for the device for each group of
them. Both add
the routers' load-balancing loss to that of a mixture: ours of the whole step, whose choices a
forward pass of its own counts, TRL's of each pack. `no router loss` is ours without.

Runs of ours follow one another in one process, NLL and the adaptive default as neighbours in
changing order (ORDER), so that a clock that falls hits both; their ratio comes with its standard
error over those pairs. TRL and compiled layers have processes of their own. Timed on the device
from the end of one step to the end of the next, without waiting for it: the median, of the steps
after the first few and then of the runs. Saving and exporting are left out.

MFU: the operations that the step needs, over what the data sheet promises (--peak-tflops). They are
6 per weight of the layers and token that it multiplies (of the experts, those that the token is
sent to), 6 per weight of the head and *target* token, 12 x layers x width of the heads per pair of
tokens of which one sees the other: the count of PaLM (arXiv:2204.02311, appendix B) without prompt
tokens in the head, and with the pairs that there are: causal, within documents. `of gemm`: over
what a product of two random 8192 x 8192 matrices reaches, measured after the runs in the same
processes.
"""

import argparse
import importlib.util
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch
from train_step_settings import (  # pyrefly: ignore[missing-import]  # beside this file
    CANDIDATES,
    EXAMPLES,
    MODELS,
    OF_MIXTURES,
    WARM_UP,
    Setting,
)

from adaptsft.training.environment import environment
from adaptsft.training.flops import describe

RESULT = Path(__file__).parent / "results" / "train_step.json"
# A round: processes, and the runs in each. What would be missed most comes first: time can run out.
# The first run of the second process warms the machine up, hence not one of the pairs.
ORDER = [
    ["adaptive, compiled", "adaptive, compiled, no router loss"],
    ["-p", "NLL", "adaptive", "adaptive", "NLL", "p >= .2", "NLL", "adaptive"],
    ["TRL"],
]


class Progress:
    """Starts processes, prints what they have done, and ends them in time."""

    def __init__(self, setting: Setting, runs: int, limit: float):
        self.setting, self.runs, self.limit = setting, runs, limit
        self.done, self.started = 0, time.perf_counter()

    def left(self) -> float:
        return self.limit - (time.perf_counter() - self.started)

    def run(self, names: list[str], limit: float) -> list[dict[str, Any]]:
        """What each of these runs has given, `failed` where one has not; the process is killed
        after `limit` seconds."""
        folder = self.setting.folder
        results, log, limit, shown = folder / "results.jsonl", folder / "log", max(limit, 0.0), 0
        results.write_text("")
        ends = time.perf_counter() + limit
        given = json.dumps(asdict(replace(self.setting, names=names)), default=str)
        command = [sys.executable, Path(__file__).with_name("train_step_runs.py"), given]
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)
            while process.poll() is None and time.perf_counter() < ends:
                time.sleep(0.2)
                shown = self.show(results, shown)
            late = process.poll() is None
            process.kill()
            process.wait()
        self.show(results, shown)
        found = [json.loads(line) for line in results.read_text().splitlines()]
        reason = f"the process ended with {process.returncode}"
        if late:
            reason = f"no result within {limit:.0f} s"
        missing = names[sum(run["name"] in names for run in found) :]
        found += [{"name": name, "failed": reason} for name in missing]
        if any("failed" in run for run in found):
            last = log.read_text(errors="replace").splitlines()[-25:]
            title = f"end of the output of {', '.join(dict.fromkeys(names))}:"
            print(title, *last, sep="\n  ", file=sys.stderr)
        return found

    def show(self, results: Path, shown: int) -> int:
        """Prints the results after the first `shown`; how many there are."""
        lines = results.read_text().splitlines(keepends=True)
        lines = [line for line in lines if line.endswith("\n")]
        for line in lines[shown:]:
            run = json.loads(line)
            if "failed" in run:
                figure = run["failed"]
            elif "step_seconds" in run:
                figure = f"{1e3 * median(run['step_seconds']):.1f} ms a step"
            else:
                continue
            self.done += 1
            passed = time.perf_counter() - self.started
            left = f"about {passed / self.done * (self.runs - self.done):.0f} s left"
            where = f"{passed:4.0f} s  run {self.done} of {self.runs}, {left}"
            print(f"{where}: {run['name']}: {figure}", file=sys.stderr, flush=True)
        return len(lines)


def check(run: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """The run, failed where it was not trained on the tokens of the data, or did not learn."""
    if "failed" in run:
        return run
    for what in ("tokens", "target_tokens"):
        if run[what] != [facts[what]]:
            return run | {"failed": f"{what} of its steps: {run[what]}, of the data: {facts[what]}"}
    start, end = run["nll"][0], run["nll"][-1]
    if run["name"] in ("NLL", "TRL") and not end < start:
        return run | {"failed": f"its loss has not fallen: {start:.4f} -> {end:.4f}"}
    first = facts.setdefault("nll", start)  # of the first run: same weights, same tokens
    if not math.isclose(start, first, rel_tol=0.01):
        reason = f"its loss begins at {start:.4f}, that of the first run at {first:.4f}"
        return run | {"failed": reason}
    return run


def ratio(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any] | None:
    """Time of a step of the adaptive default to that of NLL, over runs that were neighbours, and
    the standard error of the mean."""
    pairs = zip(runs.get("adaptive", []), runs.get("NLL", []), strict=False)
    found = [
        median(adaptive["step_seconds"]) / median(nll["step_seconds"])
        for adaptive, nll in pairs
        if "failed" not in adaptive | nll
    ]
    if not found:
        return None
    error = stdev(found) / len(found) ** 0.5 if len(found) > 1 else None
    return {"mean": mean(found), "standard_error": error, "pairs": found}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, device = parser.add_argument, "cuda" if torch.cuda.is_available() else "cpu"
    shape = "whose shape the model has (default: qwen2.5-1.5b)"
    add("--model", choices=list(MODELS), default="qwen2.5-1.5b", help=shape)
    add(
        "--tiny",
        action="store_true",
        help="a tiny model of its type and packs of 256 tokens; compiled layers only where --only "
        "names them",
    )
    add("--device", choices=("cpu", "cuda"), default=device)
    add("--length", type=int, help="tokens of a pack (default: 8192; --tiny: 256)")
    steps = f"steps of each run, the first {WARM_UP} warm-up (default: 8)"
    add("--steps", type=int, default=8, help=steps)
    add(
        "--rounds",
        type=int,
        default=1,
        help="times that everything is run (default: 1: three pairs of NLL and adaptive)",
    )
    add("--only", default="", help="semicolon-separated candidates (default: all)")
    changes = "for all of ours, such as train.loss_logits=bf16"
    add("--set", action="append", default=[], metavar="key=value", help=changes)
    limit = "seconds for everything; what is not done by then has failed (default: 3600)"
    add("--limit", type=float, default=3600, help=limit)
    peak = "dense bf16, for MFU (default: 989, data sheet of the H200)"
    add("--peak-tflops", type=float, default=989.0, help=peak)
    trace = "keep the Chrome trace of two steps of the adaptive default"
    add("--trace", type=Path, metavar="FILE.json.gz", help=trace)
    out = "JSON file (default: benchmarks/results/train_step.json)"
    add("--out", type=Path, default=RESULT, help=out)
    return parser


def wanted_candidates(parser: argparse.ArgumentParser, args: argparse.Namespace) -> list[str]:
    mixture = "num_experts" in MODELS[args.model]
    everything = [name for name in CANDIDATES if mixture or name not in OF_MIXTURES] + ["TRL"]
    wanted = [name for name in args.only.split(";") if name]
    if unknown := [name for name in wanted if name not in everything]:
        parser.error(f"--only {unknown[0]}: choose from {'; '.join(everything)}")
    if not wanted:
        wanted = [name for name in everything if not (args.tiny and "compiled" in name)]
    if "TRL" in wanted and importlib.util.find_spec("trl") is None:
        missing = "TRL is left out: it is not installed (pip install trl liger-kernel)"
        print(missing, file=sys.stderr)
        wanted.remove("TRL")
    return wanted


def main() -> int:
    parser = arguments()
    args = parser.parse_args()
    args.length = args.length or (256 if args.tiny else 8192)
    if args.steps <= WARM_UP:
        parser.error(f"--steps {args.steps}: the first {WARM_UP} are not timed; give more")
    wanted = wanted_candidates(parser, args)
    processes = [[name for name in names if name in wanted] for names in ORDER]
    if not {"NLL", "adaptive"} <= set(wanted):  # no pairs: once is enough
        processes = [list(dict.fromkeys(names)) for names in processes]
    processes = [names for names in processes if names] * args.rounds
    runs: dict[str, list[dict[str, Any]]] = {name: [] for names in processes for name in names}
    gemms: list[float] = []
    facts: dict[str, Any] = {}  # of a step, which the first process finds out
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shape = (args.model, args.tiny)
        setting = Setting(folder, [], *shape, args.device, args.length, args.steps, args.set)
        progress = Progress(setting, sum(map(len, processes)), args.limit)
        print("writing the model and the data", file=sys.stderr)
        for number, names in enumerate(processes):
            limit = progress.left() * (1.0 if number + 1 == len(processes) else 0.6)
            for run in progress.run(names if facts else ["prepare", *names], limit):
                if run["name"] == "prepare":
                    facts = run
                    if "failed" in run:
                        failed = f"model and data could not be written: {run['failed']}"
                        print(failed, file=sys.stderr)
                        return 1
                elif run["name"] == "gemm":
                    gemms.append(run["tflops"])
                else:
                    runs[run["name"]].append(check(run, facts))
        trace = folder / "adaptive.json.gz"
        if args.trace and trace.is_file():
            shutil.copy(trace, args.trace)

    machine = environment()
    for name in ("trl", "liger-kernel"):
        if importlib.util.find_spec(name.replace("-", "_")):
            machine["versions"][name] = version(name)
    result = {
        "environment": machine,
        "model": setting.shape,
        "length": args.length,
        "steps": args.steps,
        "set": args.set,
        "step": facts,
        "peak_tflops": args.peak_tflops,
        "gemm_tflops": mean(gemms) if gemms else None,
        "adaptive / NLL": ratio(runs),
        "runs": runs,
    }
    print(table(result))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    partial = args.out.with_suffix(".tmp")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(args.out)
    print(f"{args.out} written")
    return 1 if any("failed" in run for found in runs.values() for run in found) else 0


WIDTHS = {"tokens/s": 10, "to TRL": 8, "ms/step": 9, "MFU": 7, "of gemm": 9, "GB": 7, "kept": 6}


def table(result: dict[str, Any]) -> str:
    facts, gemm, promised = result["step"], result["gemm_tflops"], result["peak_tflops"]
    reached = f"{gemm:.3g}" if gemm else "-"
    size = describe(facts["parameters"], facts["active_parameters"])
    lines = [
        f"\n{size}; every step of every run, TRL's too: {EXAMPLES} examples, {facts['packs']} "
        f"packs, {facts['tokens']:,} tokens, {facts['target_tokens']:,} of them target tokens",
        f"a large product reaches {reached} TFLOP/s here, the data sheet says {promised:g}\n",
        f"{'':36}{''.join(f'{name:>{width}}' for name, width in WIDTHS.items())}"
        "   NLL, first to last step",
    ]
    good, seconds = {}, {}
    for name, found in result["runs"].items():
        good[name] = [run for run in found if "failed" not in run]
        if good[name]:
            seconds[name] = median(median(run["step_seconds"]) for run in good[name])
    for name, found in result["runs"].items():
        lines += dict.fromkeys(f"{name:36}  {run['failed']}" for run in found if "failed" in run)
        if name not in seconds:
            continue
        run, step, rate = good[name][-1], seconds[name], facts["flops"] / seconds[name] / 1e12
        shown = {"tokens/s": f"{facts['tokens'] / step:,.0f}", "ms/step": f"{1e3 * step:.1f}"}
        if "TRL" in seconds:
            shown["to TRL"] = f"{seconds['TRL'] / step:.2f}"
        if gemm:
            shown["of gemm"] = f"{rate / gemm:.1%}"
        if run["bytes"]:  # on a GPU, as the data sheet
            shown["MFU"] = f"{rate / promised:.1%}"
            shown["GB"] = f"{max(run['bytes'] for run in good[name]) / 1e9:.1f}"
        if "kept" in run:
            shown["kept"] = f"{run['kept']:.2f}"
        cells = "".join(f"{shown.get(key, '-'):>{width}}" for key, width in WIDTHS.items())
        lines.append(f"{name:36}{cells}   {run['nll'][0]:.4f} to {run['nll'][-1]:.4f}")
    if pair := result["adaptive / NLL"]:
        error = "" if pair["standard_error"] is None else f" ± {pair['standard_error']:.4f}"
        over = f"over {len(pair['pairs'])} pairs of neighbouring runs"
        lines.append(f"\nadaptive / NLL, time of a step: {pair['mean']:.4f}{error} {over}")
    lines.append("")
    for name, found in good.items():
        for shares in [run["breakdown"] for run in found if run["breakdown"]][-1:]:
            parts = ", ".join(f"{kind} {share:.1%}" for kind, share in shares.items())
            lines.append(f"where the time of {name} goes: {parts}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
