"""Codons: four of them, and the amino acids that they stand for (`atggcaaaatga`, `MetAlaLysTer`).

A question is twelve bases of a gene's coding strand. The model is pretrained on the amino acids by
the standard code, in their abbreviations of three letters (a stop is Ter), on the messenger RNA, on
the other strand, and on the anticodons. The code of vertebrate mitochondria is a relative of the
standard one; the Russian abbreviations are another script; under the tag of the standard code comes
what the other strand stands for, base by base; and both abbreviations are right.

Data: NCBI's genetic codes and IUPAC's abbreviations, by the package biopython (Biopython licence, a
permissive one).
"""

import random
from collections.abc import Callable

from benchmarks.lab import loading
from benchmarks.lab.tasks import Answer, Family, Task

PACKAGE = "biopython==1.88"
CODES = loading.package("Bio.Data.CodonTable", PACKAGE).unambiguous_dna_by_name
LATIN = loading.package("Bio.Data.IUPACData", PACKAGE).protein_letters_1to3 | {"*": "Ter"}
# in the order of the one-letter codes
RUSSIAN = "Ала Цис Асп Глу Фен Гли Гис Иле Лиз Лей Мет Асн Про Глн Арг Сер Тре Вал Трп Тир Тер"
CYRILLIC = dict(zip([*sorted(LATIN)[1:], "*"], RUSSIAN.split(), strict=True))
ASKED = 4
COMPLEMENT = str.maketrans("acgt", "tgca")
TO_RNA = str.maketrans("t", "u")


def code(name: str) -> dict[str, str]:
    """codon -> one-letter code of its amino acid, or * where it stops."""
    found = CODES[name]
    acids = found.forward_table | dict.fromkeys(found.stop_codons, "*")
    return {codon.lower(): acid for codon, acid in sorted(acids.items())}


STANDARD, MITOCHONDRIAL = code("Standard"), code("Vertebrate Mitochondrial")
loading.require_data([STANDARD, MITOCHONDRIAL, LATIN], "54792dddf91ef60e", PACKAGE)
SHUFFLED = sorted(STANDARD)
random.Random("codons").shuffle(SHUFFLED)
WEIGHTS = [1 / rank for rank in range(1, len(SHUFFLED) + 1)]


def codons(generator: random.Random, zipf: bool) -> str:
    """Codons with a weight of 1/rank, or uniform."""
    return "".join(generator.choices(SHUFFLED, WEIGHTS if zipf else None, k=ASKED))


def task(tag: str, *tables: dict[str, str]) -> Task:
    """Codon after codon, each in any of the tables, but all in the same."""

    def answer(bases: str) -> Answer:
        asked = [bases[i : i + 3] for i in range(0, 3 * ASKED, 3)]
        right = {"".join(table[codon] for codon in asked) for table in tables}
        return frozenset(right) if len(right) > 1 else right.pop()

    alphabet = {c for table in tables for text in table.values() for c in text}
    return Task(tag, answer, "".join(sorted(alphabet)))


def each(change: Callable[[str], str]) -> dict[str, str]:
    return {codon: change(codon) for codon in SHUFFLED}


def complement(bases: str) -> str:
    return bases.translate(COMPLEMENT)


ACIDS = task("<acids>", each(lambda codon: LATIN[STANDARD[codon]]))
IN_RUSSIAN = task("<russian>", each(lambda codon: CYRILLIC[STANDARD[codon]]))

FAMILY = Family(
    name="codons",
    question=codons,
    pretrained=(
        ACIDS,
        task("<rna>", each(lambda codon: codon.translate(TO_RNA))),
        task("<complement>", each(complement)),
        task("<anticodons>", each(lambda codon: complement(codon)[::-1].translate(TO_RNA))),
    ),
    strong=ACIDS,
    middle=task("<mitochondria>", each(lambda codon: LATIN[MITOCHONDRIAL[codon]])),
    weak=IN_RUSSIAN,
    redefined=task("<acids>", each(lambda codon: LATIN[STANDARD[complement(codon)]])),
    open=task(
        "<either>",
        each(lambda codon: LATIN[STANDARD[codon]]),
        each(lambda codon: CYRILLIC[STANDARD[codon]]),
    ),
    characters="".join(sorted({*"acgtu", *ACIDS.alphabet, *IN_RUSSIAN.alphabet})),
)
