"""How many rows of logits, and of their gradients, are held at a time."""

import torch

# of logits; on CUDA 4096 rows of most vocabularies of today, in bf16
CHUNK_BYTES = {"cpu": 48 << 20, "cuda": 1280 << 20}
# of G in Triton, 8192 rows: every further addition to d weight reads and writes all of it
GATHERED_BYTES = 2560 << 20


def rows_held(
    rows: int,
    vocabulary: int,
    factors: torch.dtype,
    logits: torch.dtype,
    device_type: str,
    chunk_size: int = 0,
) -> tuple[int, int]:
    """Of `rows` rows that have a target: how many have their logits held at a time, and how many
    (in Triton) their G gathered for one product.

    On CUDA as few and as equal parts as the two budgets allow: a product on few rows wastes the
    last of its tiles.
    """
    cuda = device_type != "cpu"
    most = max(1, CHUNK_BYTES["cuda" if cuda else "cpu"] // (vocabulary * logits.itemsize))
    gathers = max(1, -(-rows * vocabulary * factors.itemsize // GATHERED_BYTES))
    gathered = max(1, -(-rows // gathers))
    if not chunk_size:
        chunk_size = _whole_tiles(-(-gathered // -(-gathered // most))) if cuda else most
    return chunk_size, min(rows, -(-gathered // chunk_size) * chunk_size)


def _whole_tiles(rows: int) -> int:
    return rows if rows < 128 else -(-rows // 128) * 128
