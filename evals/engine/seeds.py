"""Every picture's decoder seed, from the run's seed and the picture's content alone."""

from hashlib import sha256


def image_seed(seed: int, repeat: int, content: str) -> int:
    """A 63-bit seed for a picture (by its content's hash) and the repeat-th decoding of it."""
    return int.from_bytes(sha256(f"{seed}/{repeat}/{content}".encode()).digest()[:8], "big") >> 1
