"""The tables of docs/performance.md, "On a GPU", from the files that its three commands write.

    python benchmarks/gpu_tables.py runs/gpu_suite              # prints them
    python benchmarks/gpu_tables.py runs/gpu_suite --publish    # puts them and the files in place

FILES says which table is made of which file. What is not there is left out, and a sentence says so.
--publish copies the files to benchmarks/results/gpu and writes the tables between the two marks in
docs/performance.md; it refuses files that were not measured on a GPU.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from adaptsft.training.flops import describe

REPO = Path(__file__).resolve().parent.parent
DOCUMENT, RESULTS = REPO / "docs" / "performance.md", REPO / "benchmarks" / "results" / "gpu"
NOTHING = "Nothing yet: no figure of a GPU is given here before it has been measured."
BEGIN, END = "<!-- gpu_tables: begin -->", "<!-- gpu_tables: end -->"
Result = dict[str, Any]
PEERS = {"liger": "liger-kernel", "cce": "cut-cross-entropy"}  # beginnings of names -> packages
LOSS_NOTES = """ratio: to the three bare matrix products (without a GPU: to naive), in the same
round. GB: beyond inputs and the two gradients. waits: of the host for the device. dX, dW: relative
error to fp64. \\*: not the gradient of NLL."""
STEP = """{size}, packs of {length} tokens; a step has {packs} packs,
{tokens:,} tokens, {target_tokens:,} of them target tokens.{changes}"""
RATIO = """Time of a step of the adaptive default to that of NLL: {mean:.4f}{error}, over {pairs}
pairs of neighbouring runs."""
STEP_NOTES = """MFU: of {promised:g} TFLOP/s. of a product: of {gemm} TFLOP/s, what a large product
reached in the same run."""
PROFILE = """{shape}, {implementation}, chunks: {chunks}; ceilings here: {product:.3g} TFLOP/s in a
product, {copy:.0f} GB/s in a copy."""


def shown(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)


def table(columns: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    columns = list(columns)
    rule = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (columns, rule, *lines))


def failed(name: str, reason: str, columns: int) -> list[str]:
    return [name, reason.replace("|", "/"), *[""] * (columns - 2)]


def shape_of(result: Result) -> str:
    return "N, D, V = " + ", ".join(map(str, result["N,D,V"]))


def loss_tables(result: Result) -> Iterator[str]:
    """One table for each shape that was measured: the candidates, and what each costs."""
    columns = ["", "ms", "ratio", "GB", "waits", "dX", "dX, p > .99", "dW", "repeats"]
    for case in result["cases"]:
        lines = []
        for name, found in case["candidates"].items():
            if "failed" in found:
                lines.append(failed(name, found["failed"], len(columns)))
                continue
            gigabytes = None if found["bytes"] is None else found["bytes"] / 1e9
            cells = [shown(found["ms"]), shown(found.get("ratio"), ".3f"), shown(gigabytes)]
            cells += [shown(found["syncs"], "d")]
            cells += [shown(found.get(key), ".1e") for key in ("dX", "dX*", "dW")]
            lines.append([name.replace(" *", " \\*"), *cells, "yes" if found["repeat"] else "no"])
        yield f"{shape_of(case)}, {case['mask']:.0%} of the tokens prompt, clocks {case['clocks']}:"
        yield table(columns, lines)
        for peer, package in PEERS.items():
            if not any(name.startswith(peer) for name in case["candidates"]):
                yield f"{package}: not measured here; not installed, or not asked for."
    yield LOSS_NOTES


def step_tables(result: Result) -> Iterator[str]:
    """The candidates' steps, the ratio of the adaptive default to NLL, and where the time goes."""
    facts, gemm, promised = result["step"], result["gemm_tflops"], result["peak_tflops"]
    good: dict[str, list[Result]] = {}
    for name, runs in result["runs"].items():
        good[name] = [run for run in runs if "failed" not in run]
    seconds = {}
    for name, runs in good.items():
        if runs:
            seconds[name] = median(median(run["step_seconds"]) for run in runs)
    columns = ["", "tokens/s", "to TRL", "ms a step", "MFU", "of a product", "GB"]
    lines = []
    for name, runs in result["runs"].items():
        reasons = dict.fromkeys(run["failed"] for run in runs if "failed" in run)
        lines += [failed(name, reason, len(columns)) for reason in reasons]
        if name not in seconds:
            continue
        step, rate = seconds[name], facts["flops"] / seconds[name] / 1e12
        peak = [run["bytes"] for run in good[name] if run["bytes"] is not None]
        cells = [shown(facts["tokens"] / step, ",.0f")]
        cells += [shown(seconds["TRL"] / step if "TRL" in seconds else None)]
        cells += [shown(1e3 * step, ".1f")]
        cells += [shown(rate / promised if peak else None, ".1%")]
        cells += [shown(rate / gemm if gemm else None, ".1%")]
        cells += [shown(max(peak) / 1e9 if peak else None, ".1f")]
        lines.append([name, *cells])
    changes = f" Ours with {', '.join(result['set'])}." if result["set"] else ""
    size = describe(facts["parameters"], facts["active_parameters"])
    yield STEP.format(**facts, size=size, length=result["length"], changes=changes)
    yield table(columns, lines)
    if "TRL" not in result["runs"]:
        yield "TRL was not measured here: it was not installed, or not asked for."
    if pair := result["adaptive / NLL"]:
        error = shown(pair["standard_error"], ".4f")
        error = "" if error == "-" else f" ± {error}"
        yield RATIO.format(mean=pair["mean"], error=error, pairs=len(pair["pairs"]))
    else:
        yield "The adaptive default and NLL were not both measured here: there is no ratio."
    shares: dict[str, dict[str, float]] = {}
    for name, runs in good.items():
        for run in runs:
            if run["breakdown"]:
                shares[name] = run["breakdown"]
    if shares:
        yield "Where the time of a step goes:"
        lines = []
        for name, parts in shares.items():
            lines.append([name, *(shown(share, ".1%") for share in parts.values())])
        yield table(["", *next(iter(shares.values()))], lines)
    else:
        yield "No run was profiled."
    yield STEP_NOTES.format(promised=promised, gemm=shown(gemm, ".3g"))


def profile_tables(result: Result) -> Iterator[str]:
    """Milliseconds by kind of kernel, against what the machine reached in a product and a copy."""
    lines = []
    for kind in result["kinds"]:
        cells = [shown(kind["ms"], ".3f"), shown(kind["share"], ".1%")]
        cells += [shown(kind["tflops"], ".1f"), shown(kind["gb_per_s"], ".0f")]
        cells += [shown(kind["of_ceiling"], ".0%")]
        lines.append([kind["kind"], *cells])
    lines.append(["all", shown(result["ms"], ".3f"), "", "", "", ""])
    facts = {key: result[key] for key in ("implementation", "chunks")}
    facts |= {"product": result["product_tflops"], "copy": result["copy_gb_per_s"]}
    yield PROFILE.format(shape=shape_of(result), **facts)
    yield table(["", "ms", "share", "TFLOP/s", "GB/s", "of ceiling"], lines)


def tuning_tables(result: Result) -> Iterator[str]:
    """Of the two kernels and the two buffers: what is set, and what was fastest."""
    groups: dict[str, list[Result]] = {}
    for found in result.get("row_kernels", ()):
        sizes = f"{found['block']} / {found['warps']} warps"
        groups.setdefault(found["kernel"], []).append(found | {"sizes": sizes})
    for found in result.get("buffers", ()):
        sizes = f"{found['logits_mib']} / {found['gathered_mib']} MiB"
        groups.setdefault("whole loss", []).append(found | {"sizes": sizes})
    lines, without = [], []
    for name, measured in groups.items():
        best = min(measured, key=lambda found: found["ms"])
        now = next((found for found in measured if found["set"]), None)
        if now is None:
            without.append(name)
            set_now = ["-", "-"]
        else:
            set_now = [now["sizes"], shown(now["ms"], ".4f")]
        ratio = shown(best["ms"] / now["ms"] if now else None, ".3f")
        lines.append([name, *set_now, best["sizes"], shown(best["ms"], ".4f"), ratio])
    copy = shown(result["copy_gb_per_s"], ".0f")
    yield f"{shape_of(result)}, {result['logits']} logits; a copy: {copy} GB/s."
    yield table(["", "set", "ms", "fastest", "ms", "fastest / set"], lines)
    for name in without:
        yield f"The sizes that are set for the {name} were not among those measured."
    if "buffers" not in result:
        yield "The buffers were not measured: time ran out."


FILES: dict[str, tuple[str, Callable[[Result], Iterator[str]]]] = {
    "loss_dense.json": ("The loss, every token a target", loss_tables),
    "profile_fp32.json": ("Where the time of the loss goes, fp32 logits", profile_tables),
    "profile_bf16.json": ("Where the time of the loss goes, bf16 logits", profile_tables),
    "train_step.json": ("A training step", step_tables),
    "train_step_moe.json": ("A training step of a mixture of experts", step_tables),
    "tune_fp32.json": ("Sizes of blocks and buffers, fp32 logits", tuning_tables),
    "tune_bf16.json": ("Sizes of blocks and buffers, bf16 logits", tuning_tables),
    "loss_masks.json": ("The loss, half of the tokens prompt", loss_tables),
    "train_step_bf16.json": ("A training step with bf16 logits", step_tables),
}


def read(file: Path) -> Result:
    """A result, its command with $OUT for the folder that it wrote to."""
    result = json.loads(file.read_text())
    environment = result["environment"]
    words = shlex.split(environment["command"])
    folder = str(Path(words[words.index("--out") + 1]).parent) if "--out" in words else None
    if folder is not None and folder != ".":
        words = [word.replace(f"{folder}/", "$OUT/") for word in words]
    quoted = [f'"{word}"' if set(word) & set(" ;") else word for word in words]
    environment["command"] = " ".join(quoted)
    return result


def document(results: dict[str, Result]) -> str:
    """The text: machine, then a section of each file of FILES, or a sentence that it is missing."""
    parts = []
    machines = {name: result["environment"]["machine"] for name, result in results.items()}
    if not results:
        parts.append(NOTHING)
    elif any(machine["gpu"] is None for machine in machines.values()):
        parts.append("Not measured on a GPU: a rehearsal, whose figures mean nothing.")
    else:
        cards = {f"{machine['gpu']} (CUDA {machine['cuda']})" for machine in machines.values()}
        parts.append(f"Measured on {' and '.join(sorted(cards))}.")
    for name, (title, tables) in FILES.items():
        if name not in results:
            if results:
                parts.append(f"{title}: not measured ({name} is not there).")
            continue
        environment = results[name]["environment"]
        installed = {name: number for name, number in environment["versions"].items() if number}
        versions = ", ".join(f"{package} {number}" for package, number in installed.items())
        parts.append(f"#### {title}")
        parts += tables(results[name])
        parts.append(f"{name}, by `{environment['command']}`; {versions}.")
    return "\n\n".join(parts) + "\n"


def publish(text: str, results: dict[str, Result]) -> None:
    for name, result in results.items():
        if result["environment"]["machine"]["gpu"] is None:
            raise SystemExit(f"{name} was not measured on a GPU: it is not published")
    before, rest = DOCUMENT.read_text().split(BEGIN)
    after = rest.split(END)[1]
    DOCUMENT.write_text(f"{before}{BEGIN}\n{text}{END}{after}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name, result in results.items():
        (RESULTS / name).write_text(json.dumps(result, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the files were written")
    parser.add_argument("--publish", action="store_true", help="into docs/performance.md")
    args = parser.parse_args(arguments)
    results = {name: read(args.folder / name) for name in FILES if (args.folder / name).is_file()}
    if not results:
        parser.error(f"{args.folder}: none of {', '.join(FILES)} is there")
    text = document(results)
    print(text, end="")
    if args.publish:
        publish(text, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
