"""Memory that a process keeps for its next large tensors."""

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # options of mallopt, as glibc's malloc.h numbers them
_LARGEST = 1 << 30  # bytes


def keep_large_blocks() -> None:
    """Makes malloc keep freed blocks of up to 1 GiB for later tensors of this process.

    By default, glibc returns each freed block of more than 32 MiB to the system and gets a new one
    for the next tensor, page by page, which takes longer than to compute a batch of views.
    Processes that are forked later inherit the setting. It changes no results. Without glibc,
    nothing happens.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST)
        libc.mallopt(_TRIM_THRESHOLD, _LARGEST)
