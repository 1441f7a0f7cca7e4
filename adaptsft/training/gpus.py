"""What GPUs can do: for MFU in training, and for the estimates of adaptsft.plan."""

from typing import NamedTuple

from adaptsft.errors import ConfigError

GB = 1e9


class Gpu(NamedTuple):
    memory: float  # GiB that CUDA reports, less than is sold; boards differ by some tenths
    flops: float  # dense bf16 peak, FLOP/s
    bandwidth: float  # of its memory, bytes/s
    link: float  # bytes/s each way to the other GPUs of its node, all of them together
    by: str  # what that link is


# Peaks and bandwidths from the vendors' data sheets (NVIDIA's of H100, H200, HGX B200, A100, L40S
# and of the Ada architecture; of both ways of a link they give the sum, here is half), memory from
# CUDA's out-of-memory messages. By the first name that is in the device's.
GPUS = {
    "H200": Gpu(139.8, 989e12, 4800 * GB, 450 * GB, "NVLink 4"),
    "H100 PCIe": Gpu(79.1, 756e12, 2000 * GB, 64 * GB, "PCIe 5 x16"),
    "H100 NVL": Gpu(93.0, 835e12, 3900 * GB, 64 * GB, "PCIe 5 x16"),
    "H100": Gpu(79.1, 989e12, 3350 * GB, 450 * GB, "NVLink 4"),
    "B200": Gpu(178.3, 2250e12, 7700 * GB, 900 * GB, "NVLink 5"),
    "A100 40GB": Gpu(39.4, 312e12, 1555 * GB, 300 * GB, "NVLink 3"),
    "A100": Gpu(79.1, 312e12, 2039 * GB, 300 * GB, "NVLink 3"),
    "L40S": Gpu(44.4, 362e12, 864 * GB, 32 * GB, "PCIe 4 x16"),
    "4090": Gpu(23.5, 165e12, 1008 * GB, 32 * GB, "PCIe 4 x16"),
}


def gpu_of(device_name: str) -> Gpu | None:
    """By the name that CUDA reports; None where it is not known."""
    name = device_name.replace("-", " ")  # NVIDIA A100-SXM4-40GB
    if "A100" in name:
        return GPUS["A100 40GB" if "40GB" in name else "A100"]
    return next((gpu for known, gpu in GPUS.items() if known in name), None)


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
