"""Stateless randomness: every seed is a pure function of what it is for.

A run that is stopped and resumed has to draw the numbers that it would have drawn undisturbed. Saving the states of
all generators of all worker processes is fragile; instead nothing is saved, and whoever needs random numbers seeds
its generators from ``seed_of(purpose, ...)`` just before.
"""

from __future__ import annotations

import random
from enum import IntEnum

import numpy as np
import torch

_MASK = (1 << 64) - 1


class Purpose(IntEnum):
    """What a seed is for, so that equal numbers for different purposes give unrelated seeds."""

    WEIGHTS = 1  # (seed): the initial weights
    ORDER = 2  # (seed, epoch): the order of the samples in an epoch
    SAMPLE = 3  # (seed, epoch, index): the augmentation of one sample
    STEP = 4  # (seed, step, micro step, rank): mixup, cutmix, erasing, stochastic depth
    SCENE = 5  # (seed, split, index): a generated image


def seed_of(purpose: Purpose, *parts: int) -> int:
    """A 63-bit seed from a purpose and any number of integers.

    Each part goes through the finaliser of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number
    generators"), so that neighbouring numbers give unrelated seeds.

    Args:
        purpose: what the seed is for.
        parts: what identifies the use, such as epoch and index; any integers, order matters.

    Returns:
        An integer in ``[0, 2**63)``, the same on every machine.
    """
    state = int(purpose)
    for part in parts:
        state = (state * 0x2545F4914F6CDD1D + (int(part) & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


def seed_host(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's CPU generators, which is what transforms on the CPU draw from.

    Cheap enough to be called for every sample (some 10 microseconds), in worker processes too: unlike
    ``torch.manual_seed`` it does not touch CUDA.
    """
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)


def seed_all(seed: int, device: torch.device) -> None:
    """Seed the host's generators and the generator of ``device``."""
    seed_host(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
