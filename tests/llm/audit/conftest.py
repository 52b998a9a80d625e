"""A machine that stays the same, for tests of what is computed from its limits."""

from __future__ import annotations

import pytest

from firsthand.llm.audit.ceilings import Bandwidths, DeviceCeilings, Level, MachineCeilings
from firsthand.llm.audit.processor import GraphicsCard, Processor

KIB, MIB, GIB = 2**10, 2**20, 2**30


def cpu_ceilings() -> DeviceCeilings:
    """Four cores with L1, L2 and L3 of 32 KiB, 512 KiB and 16 MiB."""
    steps = (
        (64 * KIB, 400e9, 200e9, 380e9),
        (MIB, 200e9, 100e9, 180e9),
        (8 * MIB, 100e9, 60e9, 90e9),
        (64 * MIB, 40e9, 20e9, 30e9),
        (256 * MIB, 30e9, 15e9, 24e9),
    )
    return DeviceCeilings(
        device="cpu",
        name="Example CPU",
        bandwidths=tuple(Bandwidths(*step, spread=0.05) for step in steps),
        flop_rates={"float32": 200e9, "bfloat16": 120e9, "int8": 400e9},
        int8_kernel_rate=400e9,
        region_seconds=1e-6,
        launch_seconds=2e-6,
        memory=8 * GIB,
        threads=4,
        int8_by="the project's panels",
    )


def gpu_ceilings() -> DeviceCeilings:
    """A GPU of 16 GiB with an L2 cache of 32 MiB."""
    steps = ((4 * MIB, 1500e9, 1200e9, 1400e9), (GIB, 600e9, 550e9, 580e9))
    return DeviceCeilings(
        device="cuda",
        name="Example GPU",
        bandwidths=tuple(Bandwidths(*step, spread=0.02) for step in steps),
        flop_rates={"float32": 20e12, "bfloat16": 90e12, "int8": 180e12},
        int8_kernel_rate=0.0,
        region_seconds=0.0,
        launch_seconds=4e-6,
        memory=16 * GIB,
        threads=1,
        int8_by="PyTorch",
    )


def machine_ceilings(*, gpu: bool = False) -> MachineCeilings:
    """A whole machine, with or without the GPU."""
    card = GraphicsCard("Example GPU", 16 * GIB, "8.9", 60, (Level("L2", 32 * MIB),))
    return MachineCeilings(
        processor=Processor(
            model="Example CPU",
            cores=4,
            machine_cores=4,
            quota=None,
            simd=("AVX", "FMA", "AVX2"),
            caches=(Level("L1", 32 * KIB, 1), Level("L2", 512 * KIB, 1), Level("L3", 16 * MIB, 4)),
            memory=8 * GIB,
            machine_memory=8 * GIB,
            gpu=card if gpu else None,
            system="Linux",
        ),
        cpu=cpu_ceilings(),
        gpu=gpu_ceilings() if gpu else None,
        measured_at="2026-01-02T03:04:05+00:00",
        seconds=30.0,
    )


@pytest.fixture
def ceilings() -> MachineCeilings:
    """A machine without a GPU."""
    return machine_ceilings()


@pytest.fixture
def ceilings_with_gpu() -> MachineCeilings:
    """The same with a GPU."""
    return machine_ceilings(gpu=True)


@pytest.fixture(scope="session")
def fixed_ceilings() -> MachineCeilings:
    """As `ceilings`, for the properties of hypothesis."""
    return machine_ceilings()
