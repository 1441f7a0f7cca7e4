"""adaptsft COMMAND …: what `python -m adaptsft.COMMAND …` does, with the same exit code."""

import runpy
import sys

from adaptsft import __version__
from adaptsft.errors import ConfigError, require_known

COMMANDS = {
    "train": "fine-tune a model; on several GPUs: torchrun … -m adaptsft.train",
    "plan": "memory per GPU, steps, whether it fits, before any training",
    "preview": "what will be learned, marked in the text",
    "diagnose": "where the model stands on the data, and which objective that speaks for",
    "chat": "talk to a run or a model",
    "evals": "the benchmarks: generate, score and report",
    "report": "a page about a run, or several overlaid",
    "export": "another checkpoint of a run as a Hugging Face folder",
    "objectives": "the table of objective.name",
    "controllers": "the table of controller.name",
    "models": "the model types that are trained, and those that are not",
}
MODULES = {"models": "model"}  # where the module is called otherwise


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "usage: adaptsft COMMAND …",
            "",
            *lines,
            "",
            "adaptsft COMMAND --help says more; python -m adaptsft.COMMAND is the same.",
        ]
    )


def main() -> int:
    command, *arguments = sys.argv[1:] or [""]
    if command in ("", "--help", "-h"):
        print(usage())
        return 0 if command else 2
    if command == "--version":
        print(f"adaptsft {__version__}")
        return 0
    try:
        require_known(f"{command}: no such command", command, COMMANDS)
    except ConfigError as error:
        print(f"adaptsft: {error}", file=sys.stderr)
        return error.exit_code
    sys.argv = [f"adaptsft {command}", *arguments]
    # as `python -m`: each module answers --help and mistakes before it imports torch
    runpy.run_module(f"adaptsft.{MODULES.get(command, command)}", None, "__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
