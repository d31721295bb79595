"""Random splits by a hash of seed and path: adding files moves no other file to another split."""

import hashlib


def path_hash(seed: int, path: str) -> bytes:
    """A pseudo-random hash (32 bytes) of a path, relative to the data set's folder."""
    return hashlib.sha256(f"{seed}/{path}".encode(errors="surrogateescape")).digest()


def is_held_out(path: str, seed: int, share: float) -> bool:
    """Whether a file belongs to the `share` of files that is held out for validation."""
    return int.from_bytes(path_hash(seed, path)[:8], "big") < share * 2**64
