"""Memory of a process on a CPU: freed memory is kept for the next tensor."""

import ctypes

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
PAGE = 2**12  # bytes; with THP_MEM_ALLOC_ENABLE, PyTorch aligns tensors of 2 MB and more to it, else to 64


def keep_freed_memory() -> None:
    """glibc keeps freed memory. By default each large tensor goes back to the kernel, which clears its pages again.

    With huge pages only (THP_MEM_ALLOC_ENABLE=1): at PyTorch's other alignment, glibc before 2.38 would not reuse the
    memory. Other C libraries have no such setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    in_huge_pages = torch.empty(2**22, dtype=torch.uint8).data_ptr() % PAGE == 0
    if mallopt and in_huge_pages:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
