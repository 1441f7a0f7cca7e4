"""Facts: look up an attribute of three entities. Names and values are two characters each and say
nothing about each other, so that the whole table has to be learned by heart: nothing carries over
from one entity to the next."""

import random
from collections.abc import Callable
from itertools import product

from benchmarks.lab.tasks import Answer, Family, Task

NAMES = "abcdefgh"
VALUES = "0123456789"
SYMBOLS = "#$%&*+-/:;"  # written by no task of the pretraining mixture
ENTITIES = [a + b for a, b in product(NAMES, NAMES)]
random.Random("entities").shuffle(ENTITIES)
del ENTITIES[12:]
ASKED = 3


def names(generator: random.Random, zipf: bool) -> str:
    """Entities with a weight of 1/rank, or uniform."""
    weights = [1 / rank for rank in range(1, len(ENTITIES) + 1)] if zipf else None
    return "".join(generator.choices(ENTITIES, weights, k=ASKED))


def table(name: str, alphabet: str) -> dict[str, str]:
    """entity -> its value, of two characters."""
    generator = random.Random(name)
    return {entity: "".join(generator.choices(alphabet, k=2)) for entity in ENTITIES}


def look_up(*tables: dict[str, str]) -> Callable[[str], str]:
    """Entity after entity, in the tables in turn."""
    return lambda names: "".join(
        tables[i % len(tables)][names[2 * i : 2 * i + 2]] for i in range(ASKED)
    )


def with_two_endings(first: dict[str, str], second: dict[str, str]) -> Callable[[str], Answer]:
    """The first table's value, whose second character may be the second table's as well."""

    def answer(names: str) -> Answer:
        entities = [names[i : i + 2] for i in range(0, 2 * ASKED, 2)]
        return [
            choices
            for e in entities
            for choices in (first[e][0], "".join(dict.fromkeys(first[e][1] + second[e][1])))
        ]

    return answer


ORIGIN, TRADE, HOUSE, GUILD, PATRON = (
    table(name, VALUES) for name in ("origin", "trade", "house", "guild", "patron")
)
ORIGINS = Task("<origin>", look_up(ORIGIN), VALUES)

FAMILY = Family(
    name="facts",
    question=names,
    pretrained=(
        ORIGINS,
        Task("<trade>", look_up(TRADE), VALUES),
        Task("<house>", look_up(HOUSE), VALUES),
        Task("<guild>", look_up(GUILD), VALUES),
        Task("<patron>", look_up(PATRON), VALUES),
    ),
    strong=ORIGINS,
    middle=Task("<origin><trade>", look_up(ORIGIN, TRADE), VALUES),
    weak=Task("<mark>", look_up(table("mark", SYMBOLS)), SYMBOLS),
    redefined=Task("<trade>", look_up(table("new trade", VALUES)), VALUES),
    open=Task(
        "<speaks>", with_two_endings(table("speaks", VALUES), table("speaks too", VALUES)), VALUES
    ),
)
