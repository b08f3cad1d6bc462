"""Is this machine ready for the course? `python notebooks/tools/machine.py`, a minute, no network.

One line for each thing that is checked, and one sentence for each that is wrong. Nothing but
Python itself is asked for before it is known to be there.
"""

from __future__ import annotations  # an old Python is to be told so

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ((3, 11), (3, 13))  # the first and the last one that the course is meant for
DISK, MEMORY = 2.0, 2.0  # GiB that should be free: what the notebooks keep, and what they need
INSTALL = "python -m pip install --no-index --find-links wheelhouse -c constraints.txt"
KERNEL = "import sys, cfgdistill; print('runs', sys.executable)"


def python(version: tuple[int, int] = sys.version_info[:2]) -> Iterator[str]:
    first, last = (".".join(map(str, each)) for each in PYTHONS)
    if not PYTHONS[0] <= version <= PYTHONS[1]:
        yield (
            f"This is Python {version[0]}.{version[1]}: install one from {first} to {last}, and "
            "make the environment with it."
        )


def packages(tested: Path = ROOT / "constraints.txt") -> Iterator[str]:
    """What cfgdistill and its notebooks need, against the versions that are tested."""
    try:
        needed = [*wanted("cfgdistill", "notebooks")]
    except metadata.PackageNotFoundError:
        yield f"cfgdistill is not installed for {sys.executable}: {INSTALL} 'cfgdistill[notebooks]'."
        return
    lines = re.findall(r"^([\w.-]+)==(\S+)", tested.read_text(encoding="utf-8"), re.MULTILINE)
    versions = {name.lower().replace("_", "-"): version for name, version in lines}
    for name in needed:
        right = versions.get(name.lower().replace("_", "-"))
        try:
            here = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield f"{name} is missing: {INSTALL} {name}."
            continue
        if right and here.partition("+")[0] != right:  # 2.13.0+cpu is 2.13.0
            yield f"{name} {here} is not the version that is tested: {INSTALL} {name}=={right}."


def wanted(package: str, extra: str) -> Iterator[str]:
    """The names that a package asks for, with one of its extras."""
    for line in metadata.requires(package) or []:
        name, marker = re.match(r"([\w.-]+)[^;]*;?(.*)", line).groups()
        if "extra" not in marker or re.search(rf"extra == .{extra}.", marker):
            yield name


def models(folder: Path = ROOT / "data" / "pretrained") -> Iterator[str]:
    """The models that come with the course, by their hashes."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        yield f"{folder / 'manifest.json'} cannot be read: copy the folder data again."
        return
    for name, known in manifest.items():
        try:
            right = hashlib.sha256((folder / name).read_bytes()).hexdigest() == known
        except OSError:
            right = False
        if not right:
            yield f"data/pretrained/{name} is missing or damaged: copy it again."


def student() -> Iterator[str]:
    """A student draws ten digits, no two of them alike."""
    from cfgdistill import load, sample

    images = sample(load("digits/stage-two/steps-4", device="cpu"), [*range(10)], w=2.0)
    apart = (images[:, None] - images[None]).flatten(2).square().mean(-1).sqrt()
    apart += 9 * apart.new_ones(10).diag()
    if not (images.abs().max() <= 1 and apart.min() > 0.1):
        yield "The student of digits draws no ten digits: install torch again, for this processor."


def kernel() -> Iterator[str]:
    """Jupyter's kernel starts, and it is this Python with this package."""
    from jupyter_client.manager import start_new_kernel

    ran = ""

    def hear(message: dict) -> None:
        nonlocal ran
        ran += message["content"].get("text", "")

    quiet = {"extra_arguments": ["--log-level=50"]}
    manager, client = start_new_kernel(kernel_name="python3", startup_timeout=60, **quiet)
    try:
        client.execute_interactive(KERNEL, timeout=60, output_hook=hear)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    where = ran.strip().removeprefix("runs ")
    if not (where and os.path.exists(where) and os.path.samefile(where, sys.executable)):
        yield (
            f"Jupyter's kernel is {where or 'silent'}, not this Python: run "
            f"{sys.executable} -m ipykernel install --sys-prefix."
        )


def room(disk: float | None = None, memory: float | None = None) -> Iterator[str]:
    """Free disk here and free memory, in GiB."""
    import psutil

    disk = shutil.disk_usage(ROOT).free / 2**30 if disk is None else disk
    memory = psutil.virtual_memory().available / 2**30 if memory is None else memory
    if disk < DISK:
        yield f"Only {disk:.1f} GiB of the disk are free: {DISK:g} are needed, so delete something."
    if memory < MEMORY:
        yield f"Only {memory:.1f} GiB of memory are free: {MEMORY:g} are needed, so close programs."


CHECKS = {
    "Python": python,
    "packages": packages,
    "models": models,
    "a student that draws": student,
    "a kernel that runs": kernel,
    "disk and memory": room,
}


def problems(check) -> list[str]:
    """What a check finds; where it cannot be made, the reason is what it finds."""
    try:
        return [*check()]
    except Exception as error:
        said = str(error).strip().splitlines() or [""]
        return [f"It cannot be checked, because of {type(error).__name__}: {said[-1]}"]


def main() -> None:
    os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1")  # a room has no network
    found = {}
    for name, check in CHECKS.items():
        found[name] = problems(check)
        print(f"{name:22s}" + ("".join(f"\n  {each}" for each in found[name]) or "ok"), flush=True)
    wrong = sum(map(len, found.values()))
    print(f"{wrong} things are wrong." if wrong else "This machine is ready.")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
