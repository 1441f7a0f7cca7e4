"""MFU is measured against the peak of the very card."""

import pytest

from adaptsft.training.flops import peak_flops


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA Something New", None),
    ],
)
def test_the_peak_of_a_card_is_found_by_its_name(name, tera):
    assert peak_flops(name) == (None if tera is None else tera * 1e12)
