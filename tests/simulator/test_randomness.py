import hashlib

import torch

from wardround.simulator.randomness import generator, streams


def test_a_stream_is_named_by_all_its_words() -> None:
    def draw(*words: str | int) -> float:
        return torch.rand(1, generator=generator(*words)).item()

    assert draw(0, "batches", "a", 1) == draw(0, "batches", "a", 1)
    others = [(1, "batches", "a", 1), (0, "augment", "a", 1), (0, "batches", "b", 1), (0, "batches", "a", 2)]
    assert draw(0, "batches", "a", 1) not in {draw(*words) for words in others}


def test_words_cannot_run_into_each_other() -> None:
    """('ab', 'c') and ('a', 'bc'), and 1 and '1', are different streams."""
    seeds = [generator(0, *keys).initial_seed() for keys in (("ab", "c"), ("a", "bc"), ("x", 1), ("x", "1"))]
    assert len(set(seeds)) == 4


def test_the_seed_is_the_documented_hash() -> None:
    """SHA-256 over length-prefixed typed words; golden value built from the docstring, not from the function."""
    digest = hashlib.sha256()
    for word in (b"int:7", b"str:init", b"str:layer.0.A"):
        digest.update(len(word).to_bytes(4, "big") + word)
    expected = int.from_bytes(digest.digest()[:8], "big") >> 1
    assert generator(7, "init", "layer.0.A").initial_seed() == expected


def test_streams_are_generators_below_a_purpose() -> None:
    rng = streams(3, "local", 5, "hospital-1")
    assert rng("batches", 0).initial_seed() == generator(3, "local", 5, "hospital-1", "batches", 0).initial_seed()
