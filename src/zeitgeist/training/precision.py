"""Where to compute and in which precision."""

import torch


def best_device() -> torch.device:
    """The CUDA device if there is one, else the processor.

    Examples
    --------
    >>> best_device().type in {"cpu", "cuda"}
    True
    """
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def best_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies in it, else float32.

    A processor without such instructions emulates bfloat16 and is slower than in float32, so the
    choice goes by what it says it can do, not by its name.

    Examples
    --------
    >>> best_dtype(torch.device("cpu")) in {torch.bfloat16, torch.float32}
    True
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Older versions of torch cannot tell.
        can = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        native = any(can.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if native else torch.float32
