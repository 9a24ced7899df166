"""Stateless seeds: fixed for ever, different for every use."""

import random

import numpy as np
import torch

from visionattn.training.randomness import Purpose, seed_all, seed_host, seed_of


def test_neighbouring_uses_get_different_seeds() -> None:
    seeds = {seed_of(purpose, a, b) for purpose in Purpose for a in range(40) for b in range(40)}
    assert len(seeds) == len(Purpose) * 40 * 40
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_order_and_number_of_parts_matter() -> None:
    assert len({seed_of(Purpose.STEP, *parts) for parts in ((), (0,), (0, 0), (1, 0), (0, 1), (-1, 0))}) == 6


def test_bits_of_neighbouring_seeds_are_unrelated() -> None:
    seeds = [seed_of(Purpose.SAMPLE, 0, 0, index) for index in range(4000)]
    bits = np.array([[seed >> bit & 1 for bit in range(63)] for seed in seeds])
    # Five standard deviations of the mean of 4000 fair coins.
    assert np.abs(bits.mean(0) - 0.5).max() < 5 * 0.5 / 4000**0.5
    assert np.abs((bits[1:] ^ bits[:-1]).mean(0) - 0.5).max() < 5 * 0.5 / 3999**0.5


def test_seeding_fixes_all_three_generators() -> None:
    def draw() -> tuple:
        return random.random(), np.random.rand(), torch.rand(()).item()

    seed_host(5)
    first = draw()
    second = draw()
    seed_all(5, torch.device("cpu"))
    assert draw() == first != second
