"How often does an interval hold the truth? One function for every interval that the library prints."
from collections.abc import Callable
from zlib import crc32

import numpy as np

RESULTS: list[tuple[str, int, int, float]] = []  # name, intervals that held the truth, tapes, level; conftest prints them


def measure(name: str, one: Callable, *, n: int = 400, level: float = 0.95, names: list[str] | None = None, within: float = 0.03) -> None:
    """`one(rng)` gives (lo, hi, truth) of a fresh tape, or a list of them under `names`; n >= 300 tapes, seeded by the name alone.

    Fails when the share of intervals that hold the truth is further than `within` from `level`, or when an interval is not a number."""
    assert n >= 300, "coverage is measured on at least 300 tapes"
    seeds = np.random.SeedSequence(crc32(name.encode())).spawn(n)
    rows = np.array([np.atleast_2d(np.asarray(one(np.random.default_rng(s)), dtype=float)) for s in seeds])
    assert np.isfinite(rows[..., 2]).all(), f"{name}: a truth is not a number"
    held = (rows[..., 0] <= rows[..., 2]) & (rows[..., 2] <= rows[..., 1])  # a NaN end holds nothing
    labels = [name] if names is None else [f"{name}, {each}" for each in names]
    assert len(labels) == held.shape[1], f"{name}: {held.shape[1]} intervals under {len(labels)} names"
    shares = held.mean(axis=0)
    for label, share, count in zip(labels, shares, held.sum(axis=0), strict=True):
        RESULTS.append((label, int(count), n, level))
        print(f"coverage of {label}: {share:.3f} (nominal {level}, {n} tapes, s.e. {np.sqrt(level * (1 - level) / n):.3f})")
    wrong = [f"{label} {share:.3f}" for label, share in zip(labels, shares, strict=True) if abs(share - level) > within]
    assert not wrong, f"nominal {level}, measured on {n} tapes: {', '.join(wrong)}"
