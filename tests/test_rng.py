"""Random numbers per event: reference values, distribution, independence of the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from drapes_hep import rng
from drapes_hep.rng import event_normals, event_uniforms, philox4x32, stage_seed
from drapes_hep.rng_tensors import normal_tensor, philox_tensor

known_answers = pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)


@known_answers
def test_philox_gives_the_published_known_answers(counter, key, expected):
    words = philox4x32(np.array(counter, dtype=np.uint64)[:, None], key)
    assert tuple(int(word) for word in words[:, 0]) == expected


@known_answers
def test_philox_of_a_device_gives_the_published_known_answers(counter, key, expected):
    words = philox_tensor(tuple(torch.tensor([word]) for word in counter), key)
    assert tuple(int(word) for word in words) == expected


@pytest.mark.parametrize("size", [0, 1, 4, 5])
def test_a_device_draws_the_numbers_of_the_cpu(size):
    ids, copies, seed = np.arange(-200, 800) * 79190000003, np.arange(1000) % 7, (1 << 62) + 123456789123
    on_device = normal_tensor(seed, torch.as_tensor(ids), torch.as_tensor(copies), size)
    np.testing.assert_allclose(on_device, event_normals(seed, ids, copies, size), rtol=1e-12, atol=1e-14)


def test_normals_do_not_depend_on_the_blocks_they_are_drawn_in(monkeypatch):
    ids = np.arange(1000) * 7919
    whole = event_normals(3, ids, ids % 5, size=5)
    monkeypatch.setattr(rng, "_BLOCK", 7)
    assert np.array_equal(event_normals(3, ids, ids % 5, size=5), whole)


def test_normals_are_box_and_mullers_of_the_uniform_numbers():
    u = event_uniforms(3, np.arange(100), size=4)
    radius, angle = np.sqrt(-2 * np.log(u[:, ::2])), 2 * np.pi * u[:, 1::2]
    expected = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=2).reshape(100, 4)
    assert np.array_equal(event_normals(3, np.arange(100), size=3), expected[:, :3])


def test_an_event_draws_the_same_in_any_batch_and_order():
    ids = np.arange(1000) * 7919
    whole = event_normals(3, ids, size=5)
    order = np.random.default_rng(0).permutation(1000)
    assert np.array_equal(event_normals(3, ids[order], size=5), whole[order])
    assert np.array_equal(event_normals(3, ids[10:20], size=5), whole[10:20])


def test_a_stream_goes_on_where_first_says():
    whole = event_uniforms(1, np.arange(50), size=7)
    assert np.array_equal(event_uniforms(1, np.arange(50), size=4, first=3), whole[:, 3:])


def test_copies_seeds_and_high_bits_of_the_identity_all_matter():
    ids = np.array([5, 5 + (1 << 40)])
    first = event_uniforms(1, ids)
    assert first[0] != first[1]
    assert not np.any(first == event_uniforms(1, ids, copy=1))
    assert not np.any(first == event_uniforms(2, ids))


def test_normals_are_normal_and_uncorrelated():
    z = event_normals(stage_seed(1, "test"), np.arange(50_000), size=3)
    for column in z.T:
        assert stats.kstest(column, "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(z.T) - np.eye(3)).max() < 0.02


def test_stages_have_seeds_of_their_own():
    seeds = {stage_seed(seed, "a", i) for seed in range(10) for i in range(10)} | {stage_seed(0, "a0")}
    assert len(seeds) == 101
    assert all(0 <= seed < 2**63 for seed in seeds)
