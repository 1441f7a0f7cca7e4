"""What GPUs can do: for MFU in training, and for the estimates of adaptsft.plan."""

import re
from typing import NamedTuple

from adaptsft.errors import ConfigError

GB = 1e9


class Gpu(NamedTuple):
    memory: float  # GiB that CUDA reports, less than is sold; boards differ by some tenths
    flops: float  # dense bf16 peak, FLOP/s
    bandwidth: float  # of its memory, bytes/s
    link: float  # bytes/s each way to the other GPUs of its node, all of them together
    by: str  # what that link is
    reached: tuple[float, float]  # shares of the peak that training has been found to reach
    found: str  # where


# Shares of the peak in bf16, all communication and selective recomputation included. torchtitan's
# docs/performance.md: Llama 3 8B (58 %) and 70B (52 %) by FSDP2 on 64 A100; Llama 3.1 8B on 8 and
# 128 H100, capped at 500 W (33 to 39 %). Megatron-LM's README: up to 47 % on H100. For others we
# know none: those of Hopper are assumed.
AMPERE = (0.52, 0.58), "published for A100: torchtitan, FSDP2"
HOPPER = (0.33, 0.47), "published for H100: torchtitan, 8B by FSDP2; Megatron-LM"
OTHERS = HOPPER[0], "those published for H100: for this GPU we know none"


def _sold(gigabytes: float) -> float:
    """GiB of so many GB: no more than CUDA reports, where we know no report."""
    return round(gigabytes * GB / 2**30, 1)


_PCIE4, _PCIE5 = (32 * GB, "PCIe 4 x16"), (64 * GB, "PCIe 5 x16")
# Peaks and bandwidths from NVIDIA's data sheets, named at each line: without sparsity, and of both
# ways of a link, of which they give the sum, half. GeForce: accumulated in fp32. Memory: from
# CUDA's out-of-memory messages, or `_sold`. A device is the one here most of whose words it has.
GPUS = {
    # "H200": SXM, and NVL, whose bridges join two or four only
    "H200": Gpu(139.8, 989e12, 4800 * GB, 450 * GB, "NVLink 4", *HOPPER),
    "H200 NVL": Gpu(139.8, 835e12, 4800 * GB, *_PCIE5, *HOPPER),
    # "H100": SXM, PCIe, NVL
    "H100": Gpu(79.1, 989e12, 3350 * GB, 450 * GB, "NVLink 4", *HOPPER),
    "H100 PCIe": Gpu(79.1, 756e12, 2000 * GB, *_PCIE5, *HOPPER),
    "H100 NVL": Gpu(93.0, 835e12, 3900 * GB, *_PCIE5, *HOPPER),
    # "GH200 Grace Hopper Superchip": 96 GB HBM3 or 144 GB HBM3e; NVLink to others in GH200 NVL2 and
    # NVL32 alone: elsewhere a node is one GPU (--gpus-per-node 1)
    "GH200": Gpu(_sold(96), 989e12, 4000 * GB, 450 * GB, "NVLink 4", *HOPPER),
    "GH200 144GB": Gpu(_sold(144), 989e12, 4900 * GB, 450 * GB, "NVLink 4", *HOPPER),
    # "DGX B200", a GPU of eight
    "B200": Gpu(178.3, 2250e12, 7700 * GB, 900 * GB, "NVLink 5", *OTHERS),
    # "GB200 NVL72", a GPU of 72 that NVLink joins (--gpus-per-node 72; in NVL4 4)
    "GB200": Gpu(_sold(186), 2500e12, 8000 * GB, 900 * GB, "NVLink 5", *OTHERS),
    # "A100": SXM and PCIe, 80 and 40 GB
    "A100": Gpu(79.1, 312e12, 2039 * GB, 300 * GB, "NVLink 3", *AMPERE),
    "A100 40GB": Gpu(39.4, 312e12, 1555 * GB, 300 * GB, "NVLink 3", *AMPERE),
    "A100 PCIe": Gpu(79.1, 312e12, 1935 * GB, *_PCIE4, *AMPERE),
    "A100 PCIe 40GB": Gpu(39.4, 312e12, 1555 * GB, *_PCIE4, *AMPERE),
    # "A10", "L4", "L40S", "NVIDIA Ada GPU Architecture" (4090)
    "A10": Gpu(22.0, 125e12, 600 * GB, *_PCIE4, *OTHERS),
    "L4": Gpu(22.0, 121e12, 300 * GB, *_PCIE4, *OTHERS),
    "L40S": Gpu(44.4, 362e12, 864 * GB, *_PCIE4, *OTHERS),
    "4090": Gpu(23.5, 165e12, 1008 * GB, *_PCIE4, *OTHERS),
}


def gpu_of(device_name: str) -> Gpu | None:
    """By the name that CUDA reports; None where it is not known."""
    # NVIDIA A100-SXM4-40GB, NVIDIA GH200 144G HBM3e
    words = set(re.findall(r"\w+", re.sub(r"144G\b", "144GB", device_name).lower()))
    fitting = [name for name in GPUS if words.issuperset(name.lower().split())]
    return GPUS[max(fitting, key=lambda name: len(name.split()))] if fitting else None


def named_gpu(name: str) -> Gpu:
    """By the name of --gpu. Raises ConfigError."""
    by_name = {_plain(known): gpu for known, gpu in GPUS.items()}
    if (gpu := by_name.get(_plain(name))) is None:
        raise ConfigError(
            f"--gpu {name}: not known; one of {', '.join(GPUS)}. For another give the size of its "
            "memory, --gpu-memory GiB, and no --gpu: then no step time is estimated"
        )
    return gpu


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 peak of a device (FLOP/s) by its name; None where it is not known."""
    gpu = gpu_of(device_name)
    return None if gpu is None else gpu.flops
