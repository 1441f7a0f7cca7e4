"""Grades words read from Figlet banners: exact match, and two Jaro-Winkler similarities.

`jw_paper` is the similarity of the published figfont scores (GaotangLi/Beyond-Log-Likelihood,
evaluations/figfont). It is not the standard one, which `jw_standard` is: common prefixes always
count (Winkler's threshold of 0.7 is missing), and an odd number of characters that match out of
order counts as a half transposition (it is rounded down elsewhere).
"""

from rapidfuzz.distance import JaroWinkler


def jaro_winkler_paper(a: str, b: str) -> float:
    """Similarity in [0, 1] of two strings, as the paper's script computes it (see above)."""
    if a == b:
        return 1.0
    reach = max(max(len(a), len(b)) // 2 - 1, 0)
    taken = [False] * len(b)
    matched_a = []
    for i, character in enumerate(a):
        for j in range(max(0, i - reach), min(len(b), i + reach + 1)):
            if not taken[j] and b[j] == character:
                taken[j] = True
                matched_a.append(character)
                break
    if not matched_a:
        return 0.0
    matched_b = [character for character, used in zip(b, taken, strict=True) if used]
    transpositions = sum(x != y for x, y in zip(matched_a, matched_b, strict=True)) / 2
    m = len(matched_a)
    jaro = (m / len(a) + m / len(b) + (m - transpositions) / m) / 3
    prefix = 0
    while prefix < min(4, len(a), len(b)) and a[prefix] == b[prefix]:
        prefix += 1
    return jaro + 0.1 * prefix * (1 - jaro)


def grade(record: dict) -> dict:
    """Both kinds of metric as published.

    exact_match is literal (no strip, case-sensitive), the similarities are of stripped lower-case
    strings.
    """
    output, answer = record["output"], record["answer"]
    folded = output.lower().strip(), answer.lower().strip()
    return {
        "exact_match": output == answer,
        "jw_paper": jaro_winkler_paper(*folded),
        "jw_standard": JaroWinkler.similarity(*folded),
    }
