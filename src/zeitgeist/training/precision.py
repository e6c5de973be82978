"""Where to compute and in which precision."""

import time
from functools import cache

import torch


def best_device() -> torch.device:
    """The CUDA device if there is one, else the processor.

    Examples
    --------
    >>> best_device().type in {"cpu", "cuda"}
    True
    """
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@cache
def best_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies faster in it, else float32.

    What a processor says it can do does not tell: with AMX bfloat16 is several times faster, with
    AVX-512 alone it was 1.7 times slower on one Xeon and 2.5 times faster on one EPYC. So where
    there are such instructions both are timed once, for some milliseconds.

    Examples
    --------
    >>> best_dtype(torch.device("cpu")) in {torch.bfloat16, torch.float32}
    True
    """
    if device.type == "cuda":
        faster = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Older versions of torch cannot tell.
        can = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        native = any(can.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
        faster = native and _seconds(torch.bfloat16) < 0.8 * _seconds(torch.float32)
    return torch.bfloat16 if faster else torch.float32


def _seconds(dtype: torch.dtype) -> float:
    """Processor time of one thread for a product as a small language model has them."""
    rows, weight = torch.ones(256, 576, dtype=dtype), torch.ones(1536, 576, dtype=dtype)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on one core other programs cannot disturb the measure
    try:
        found = []
        for _ in range(6):
            started = time.thread_time()
            torch.nn.functional.linear(rows, weight)
            found.append(time.thread_time() - started)
    finally:
        torch.set_num_threads(threads)
    return min(found)
