"""The first answer of a command whose arguments are a configuration: its help, and every error that
can be found without torch and datasets, which take seconds to import."""

import os
import sys
from collections.abc import Callable

from adaptsft.config.load import parse_arguments
from adaptsft.config.paths import local_model_folder
from adaptsft.config.reference import help_text
from adaptsft.data.files import check_data_files
from adaptsft.errors import UserError


def first_answer(
    arguments: list[str],
    program: str = "adaptsft.train",
    help_of: Callable[[], str] = help_text,
    settings_of: Callable[[list[str]], list[str]] = list,
) -> int | None:
    """Print the help, or an error in the arguments; returns the exit code, None where neither is
    due.

    `settings_of` takes out what only this command knows, and leaves what `adaptsft.train` takes.
    """
    if not arguments or "--help" in arguments or "-h" in arguments:
        if int(os.environ.get("RANK", 0)) == 0:
            print(help_of())
        return 0 if arguments else 2
    try:
        config = parse_arguments(settings_of(arguments))
        # under torchrun, where others would wait for a node that lacks a file, ranks look together
        if "RANK" not in os.environ:
            if config.model.path:
                local_model_folder(config.model)
            check_data_files(config.data)
    except UserError as error:
        return print_error(program, error)
    return None


def print_error(program: str, error: UserError) -> int:
    """Print the message once per node, and return the exit code: each node has its own command
    line, and may be the only one with an error."""
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        print(f"{program}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    return error.exit_code
