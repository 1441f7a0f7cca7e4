"""Write what pages print from the code: docs/config.md, the tables of docs/objectives.md,
docs/controllers.md, docs/models.md and docs/graders.md, and the programs of README.md and
docs/api.md, which are those of examples/. `make docs` runs it.

    python tools/docs.py
"""

import re
from pathlib import Path

from adaptsft.config.reference import markdown
from adaptsft.controllers.__main__ import describe_controllers
from adaptsft.evals.graders.__main__ import describe_math_rules
from adaptsft.model.__main__ import describe_models
from adaptsft.objectives.__main__ import describe_objectives

REPO = Path(__file__).parents[1]
DOCS = REPO / "docs"
TABLES = {
    "objectives.md": describe_objectives,
    "controllers.md": describe_controllers,
    "models.md": describe_models,
    "graders.md": describe_math_rules,
}
WITH_PROGRAMS = (REPO / "README.md", DOCS / "api.md")
PROGRAM = re.compile(r"(<!-- (examples/\w+\.py) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    (DOCS / "config.md").write_text(markdown() + "\n")
    for name, describe in TABLES.items():
        page = DOCS / name
        place = re.compile(r"(?<=current -->\n).*?(?=<!-- end -->)", re.DOTALL)
        before, after = place.split(page.read_text(), maxsplit=1)
        page.write_text(f"{before}\n{describe()}\n\n{after}")
    for page in WITH_PROGRAMS:
        page.write_text(PROGRAM.sub(with_program, page.read_text()))


def with_program(match: re.Match) -> str:
    """The place of a program in a page, with the program as it is."""
    begin, name, end = match.groups()
    return f"{begin}```python\n{(REPO / name).read_text()}```\n{end}"


if __name__ == "__main__":
    main()
