"""Texts → numbers that tell which of them are alike: exact keys, word 3-grams, MinHash digests; in numpy batches.

Words are runs of letters and digits, without case. The hashes of a word, of a 3-gram and of a whole text are polynomial
hashes modulo 2^64 of their parts, each taken from one running sum. MinHash (Broder 1997) is from `rensa`.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

Hashes = np.ndarray[Any, np.dtype[np.uint64]]
Indices = np.ndarray[Any, np.dtype[np.int64]]

SHINGLE = 3  # words
PERMUTATIONS = 63  # 21 bands of 3
_SEED = 20241
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_INVERSE = pow(_BASE, -1, 2**64)
_WORD_BYTE = np.array([bytes([b]).isalnum() or b >= 0x80 for b in range(256)])
_PUNCTUATION = "“”‘’—–…«»·•¿¡‹›„"  # beyond ASCII; any other stays part of its word


@dataclass(frozen=True)
class Fingerprints:
    """One field of a batch of texts.

    key: (texts,) equal for texts that a reader could not tell apart (case, spaces and punctuation aside)
    words: (texts,) number of words
    grams: (grams of all texts,) hashes of their word 3-grams, in order; a text of one or two words has one
    offsets: (texts + 1,) where each text's 3-grams begin
    """

    key: Hashes
    words: Indices
    grams: Hashes
    offsets: Indices

    def minhash(self) -> np.ndarray[Any, np.dtype[np.uint32]]:
        """(texts, PERMUTATIONS) MinHash digests.

        The share of equal columns estimates the Jaccard similarity of two texts' 3-grams.
        """
        from rensa import RMinHash

        matrix = RMinHash.digest_matrix_from_flat_token_hashes(
            self.grams, self.offsets, num_perm=PERMUTATIONS, seed=_SEED
        )
        return np.array(matrix.to_rows(), dtype=np.uint32).reshape(len(self.key), PERMUTATIONS)

    def first_grams(self, count: int) -> np.ndarray[Any, np.dtype[np.uint32]]:
        """(texts, count) the beginning of each text as 3-gram hashes (upper half), 0 where it is shorter."""
        position = self.offsets[:-1, None] + np.arange(count)
        inside = position < self.offsets[1:, None]
        grams = (self.grams >> np.uint64(32)).astype(np.uint32) | np.uint32(1)  # never the 0 that says "no 3-gram"
        return np.where(inside, grams[np.minimum(position, len(grams) - 1)], np.uint32(0))

    def overlap(self, other: Fingerprints) -> np.ndarray[Any, np.dtype[np.float64]]:
        """(texts,) share of the shorter text's 3-grams that the longer one contains; 0 if the shorter has under 8."""
        here, there = self.grams.tolist(), other.grams.tolist()
        shares = np.zeros(len(self.key))
        for i, (a, b, c, d) in enumerate(
            zip(self.offsets, self.offsets[1:], other.offsets, other.offsets[1:], strict=False)
        ):
            if (shorter := min(b - a, d - c)) >= 8:
                shares[i] = len(set(here[a:b]).intersection(there[c:d])) / shorter
        return shares


def fingerprint(texts: list[str]) -> Fingerprints:
    """Hash a batch of texts (a few thousand at a time: it takes about 60 bytes of memory for a byte of text)."""
    words, counts = _words(texts)
    first = np.concatenate(([0], np.cumsum(counts)))
    per_text = np.maximum(counts - SHINGLE + 1, 1)
    offsets = np.concatenate(([0], np.cumsum(per_text)))
    # The n-th 3-gram of a text begins at its n-th word and never reaches into the next text.
    text = np.repeat(np.arange(len(texts)), per_text)
    start = first[text] + np.arange(offsets[-1]) - offsets[text]
    grams = _hash_segments(words, start, np.minimum(start + SHINGLE, first[text + 1]))
    return Fingerprints(_hash_segments(words, first[:-1], first[1:]), counts, grams, offsets)


def _words(texts: list[str]) -> tuple[Hashes, Indices]:
    """Hashes of all words, and how many each text has."""
    encoded = [_plain(text) for text in texts]
    data = np.frombuffer(b" " + b" ".join(encoded) + b" ", dtype=np.uint8)
    inside = _WORD_BYTE[data]
    starts = np.flatnonzero(inside[1:] & ~inside[:-1]) + 1
    ends = np.flatnonzero(inside[:-1] & ~inside[1:]) + 1
    borders = np.cumsum([1, *(len(e) + 1 for e in encoded)])
    counts = np.diff(np.searchsorted(starts, borders))
    return _hash_segments(data.astype(np.uint64), starts, ends), counts


def _plain(text: str) -> bytes:
    """UTF-8 without case and non-ASCII punctuation; a text without a word becomes a hash of itself."""
    plain = text.casefold()
    if not plain.isascii():
        if not unicodedata.is_normalized("NFKC", plain):
            plain = unicodedata.normalize("NFKC", plain).casefold()
        for character in _PUNCTUATION:
            plain = plain.replace(character, " ")
    data = plain.encode("utf-8", "replace")
    if not any(c.isalnum() for c in plain[:50]) and not any(c.isalnum() for c in plain):
        return blake2b(data, digest_size=8).hexdigest().encode()
    return data


def _hash_segments(values: Hashes, starts: Indices, ends: Indices) -> Hashes:
    """Hash of values[start:end] for every pair, equal for equal contents wherever they stand."""
    length = len(values)
    powers, inverse = _powers(length + 1)
    running = np.zeros(length + 1, dtype=np.uint64)
    np.cumsum((values + np.uint64(1)) * powers[:length], out=running[1:])
    mixed = (running[ends] - running[starts]) * inverse[starts]
    mixed ^= mixed >> np.uint64(32)  # splitmix64's finaliser: neighbouring sums end far apart
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(29)
    return mixed


_cached = (np.ones(1, dtype=np.uint64), np.ones(1, dtype=np.uint64))


def _powers(count: int) -> tuple[Hashes, Hashes]:
    """The first `count` powers of the base and of its inverse, modulo 2^64."""
    global _cached
    if len(_cached[0]) < count:
        bases = np.full((2, count), [[_BASE], [_INVERSE]], dtype=np.uint64)
        bases[:, 0] = 1
        powers = np.cumprod(bases, axis=1, dtype=np.uint64)
        _cached = (powers[0], powers[1])
    return _cached[0][:count], _cached[1][:count]
