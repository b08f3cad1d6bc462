"""What a machine can do, and what its user has said in the environment."""

import os
import warnings

import torch


def default_device() -> torch.device:
    """Where networks are loaded and trained, which is Accelerate's choice: the GPU if there is one,
    NVIDIA's, Apple's or another, and each process's own of several; else the CPU.
    """
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).device


HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def mixed_precision(device: str | torch.device | None = None) -> str:
    """bf16 where GPU or CPU compute in it, fp16 with a loss scaler on older GPUs, or no."""
    kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")).type
    if kind == "cuda":
        # torch.cuda.is_bf16_supported() also says yes to GPUs that only emulate it, slowly.
        return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
    able = getattr(torch.cpu, "get_capabilities", dict)() if kind == "cpu" else {}  # torch 2.9
    if not (able.get("avx512_bf16") or able.get("amx_bf16")):
        return "no"
    # The processor can; oneDNN may have been told not to (ONEDNN_MAX_CPU_ISA), and then emulates.
    return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "no"


def frozen_dtype(precision: str) -> torch.dtype | None:
    """What frozen weights are kept in and asked in: half precision for "mixed" on a GPU."""
    if precision != "mixed" or not torch.cuda.is_available():
        return None
    return HALF[mixed_precision()]


def flag(name: str, default: bool = False) -> bool:
    """Whether an environment variable says yes; ValueError where it says neither yes nor no.

    1, true, yes, on; or 0, false, no, off, nothing at all; in any case. Not set: the default.
    """
    given = os.environ.get(name)
    if given is None:
        return default
    word = given.strip().lower()
    if word not in ("1", "true", "yes", "on", "0", "false", "no", "off", ""):
        raise ValueError(f"{name}={given} says neither yes nor no: set it to 1 or to 0.")
    return word in ("1", "true", "yes", "on")


# What a launcher may ask for that nothing is done about, as it is where it has not asked.
LAUNCHER = {
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
    "ACCELERATE_DYNAMO_BACKEND": "no",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
}


def refuse_launchers() -> None:
    """ValueError where `accelerate launch` was asked for a kind of sharding that is not supported.

    FSDP2 is: see `training.sharding`.
    """
    kinds = {
        "DeepSpeed": flag("ACCELERATE_USE_DEEPSPEED"),
        "Megatron-LM": flag("ACCELERATE_USE_MEGATRON_LM"),
        "tensor or context parallelism": flag("ACCELERATE_USE_PARALLELISM_CONFIG"),
        "FSDP1": flag("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_VERSION", "1") != "2",
    }
    for kind, asked in kinds.items():
        if asked:
            raise ValueError(
                f"`accelerate launch` was asked for {kind}, which is not supported here: use "
                "--multi_gpu where everything fits one card, --use_fsdp --fsdp_version 2 where it "
                "does not, or answer `accelerate config` again."
            )


def ask_the_launcher(precision: str) -> None:
    """Refuse what `accelerate launch` was asked for and cannot be; say what is not done."""
    refuse_launchers()
    asked = {key: os.environ.get(key, usual) for key, usual in LAUNCHER.items()}
    other = [
        f"{key.removeprefix('ACCELERATE_').lower()} {value}"
        for key, value in asked.items()
        if value.lower() != LAUNCHER[key]
    ]
    if other:
        warnings.warn(
            f"Of {', '.join(other)}, asked of `accelerate launch`, nothing is done: the recipe "
            f"decides, and its precision is {precision!r}.",
            stacklevel=3,
        )
