"""Colab and Kaggle: nothing is upgraded, checkpoints outlive the machine, and a budget is kept.

A notebook's first cell installs this package alone and calls `set_up`, which does the rest. So this
module imports nothing but Python before it has looked at what is there.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from importlib import metadata
from pathlib import Path

DRIVE = Path("/content/drive")  # where Colab mounts it
EVERY = 20.0  # seconds between two looks at what was trained
KEPT = 2  # copies of every file
_ending: list = []  # what an earlier call of set_up has started


def set_up(*, drive: bool = False, minutes: float | None = None) -> None:
    """Make a notebook ready; elsewhere than on Colab and Kaggle only `minutes` does anything.

    Packages that are missing are installed, and none that is there is changed. The GPU and the
    profile that goes with it are named; CFGDISTILL_PROFILE, if it is set, decides. With `drive`,
    what is trained is copied to Google Drive, and what an earlier machine left there comes back, so
    that the same notebook goes on. After `minutes` the running cell is interrupted, as by its stop
    button: a training writes its checkpoint first. ValueError where there is no Drive.
    """
    while _ending:
        _ending.pop()()
    here = place()
    if drive and here != "Colab":
        where = "Kaggle keeps what lies in /kaggle/working" if here else "out is kept on this disk"
        raise ValueError(f"Google Drive can be mounted on Colab only; {where}: say drive=False.")
    if here:
        install_missing()
        print(f"{here}: {machine()}")
    if drive or minutes is not None:
        after_cells(let_go)
    if drive:
        from google.colab import drive as google

        google.mount(str(DRIVE))
        out = Path(os.environ.get("CFGDISTILL_OUT", "out"))
        keeper = Keeper(out, DRIVE / "MyDrive" / "cfgdistill" / out.name)
        print(f"{keeper.restore()} files came back from {keeper.safe}; new ones are copied there.")
        keeper.start()
    if minutes is not None:
        timer = threading.Timer(60 * minutes, stop, [minutes])
        timer.daemon = True
        timer.start()
        _ending.append(timer.cancel)


def quiet() -> None:
    """diffusers and transformers report errors only, and draw no progress bars, from now on."""
    for library in ("diffusers", "transformers"):
        logging = importlib.import_module(f"{library}.utils.logging")
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def place() -> str | None:
    """Colab, Kaggle, or None for any other machine."""
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        return "Kaggle"
    google = importlib.util.find_spec("google")
    return "Colab" if google and importlib.util.find_spec("google.colab") else None


def stop(minutes: float) -> None:
    """Interrupt the running cell."""
    import _thread

    print(
        f"The {minutes:g} minutes are over. What was trained is kept; run the notebook again, and "
        "it goes on."
    )
    _thread.interrupt_main()


def after_cells(call) -> None:
    """At the end of every cell, call(result of the cell), until another `set_up`."""
    if shell := getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)():
        shell.events.register("post_run_cell", call)
        _ending.append(lambda: shell.events.unregister("post_run_cell", call))


def let_go(result) -> None:
    """What a cell that was interrupted still holds: a training then writes its checkpoint.

    By itself it does so when it is interrupted in an update; in its caller's lines, only when the
    generator is let go, and IPython keeps the error with all that its frames know.
    """
    if error := getattr(result, "error_in_exec", None):
        traceback.clear_frames(error.__traceback__)


# ---- packages and the GPU -------------------------------------------------------------------


def lacking(package: str = "cfgdistill") -> tuple[list[str], list[str]]:
    """What a package asks for and is not here, and what is here in a version not asked for."""
    from packaging.requirements import Requirement

    absent, other = [], []
    for wanted in map(Requirement, metadata.requires(package) or []):
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            here = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            absent.append(f"{wanted.name}{wanted.specifier}")
        else:
            if not wanted.specifier.contains(here, prereleases=True):
                other.append(f"{wanted.name} {here} ({wanted.specifier})")
    return absent, other


def install_missing() -> None:
    """Install what is absent. RuntimeError where that would change a package that is here."""
    absent, other = lacking()
    if absent:
        with tempfile.TemporaryDirectory() as folder:
            here = Path(folder, "here.txt")
            known = {each.name: each.version for each in metadata.distributions() if each.name}
            pinned = "".join(f"{name}=={version}\n" for name, version in sorted(known.items()))
            here.write_text(pinned, encoding="utf-8")
            command = [sys.executable, "-m", "pip", "install", "-q", "-c", str(here), *absent]
            done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
            raise RuntimeError(
                f"{', '.join(absent)} cannot be installed beside what is here. pip says: {said}"
            )
        importlib.invalidate_caches()
    if other:
        print(
            f"Not the versions that are tested: {', '.join(other)}. Nothing here is changed; if "
            "something fails, look there first."
        )


def machine() -> str:
    """The GPU, and the profile for it, which is chosen where the user has not."""
    import torch

    from cfgdistill.training.environment import mixed_precision

    said, profile = "no GPU (the menu Runtime has one)", "laptop"
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        said, profile = f"{torch.cuda.get_device_name(0)}, {memory:.1f} GiB", "colab"
        said += f", half precision is {mixed_precision()}"
    return f"{said}; profile {os.environ.setdefault('CFGDISTILL_PROFILE', profile)}"


# ---- Drive ----------------------------------------------------------------------------------


class Keeper:
    """Copies of the files below `work` in `safe`, each there as a whole or not at all.

    A file NAME is kept as NAME@NUMBER-DIGEST, the last `KEPT` of them: so a copy that was cut off
    on its way is known by its digest, and the one before is taken.
    """

    def __init__(self, work: Path, safe: Path):
        self.work, self.safe = Path(work), Path(safe)
        self.seen: dict[Path, tuple] = {}  # {path below work: its time and size when copied}
        self.busy = threading.Lock()

    def restore(self) -> int:
        """Bring back what is not in `work`; the number of files."""
        names = {path.relative_to(self.safe) for path in self.safe.rglob("*@*-*")}
        names = {path.with_name(path.name.rpartition("@")[0]) for path in names}
        back = [name for name in names if not (self.work / name).exists() and self._bring(name)]
        for name in [name for name in back if name.name == "card.json"]:
            card = self.work / name
            known = json.loads(card.read_text(encoding="utf-8")).get("sha256")
            weights = card.with_name("model.safetensors")
            if known and not (weights.exists() and _digest(weights) == known):
                card.unlink()  # without its weights a model is not finished
                weights.unlink(missing_ok=True)
        return sum((self.work / name).exists() for name in back)

    def _bring(self, name: Path) -> bool:
        target = self.work / name
        for _, copy in reversed(self._copies(name)):
            target.parent.mkdir(parents=True, exist_ok=True)
            beside = target.with_name(target.name + ".tmp")
            shutil.copyfile(copy, beside)
            if copy.name.endswith(f"-{_digest(beside)[:16]}"):
                beside.replace(target)
                return True
            beside.unlink()
        return False

    def _copies(self, name: Path) -> list[tuple[int, Path]]:
        """(number, file) of the copies of a file, the last one last."""
        found = (self.safe / name).parent.glob("*@*-*")
        own = [path for path in found if path.name.rpartition("@")[0] == name.name]
        return sorted((int(p.name.rpartition("@")[2].partition("-")[0]), p) for p in own)

    def save(self) -> None:
        """Copy what is new, in the order in which it was written; let go what was let go."""
        with self.busy:
            files = {}
            for path in self.work.rglob("*"):
                name = path.relative_to(self.work)
                if path.is_file() and name.name != "lock" and ".tmp" not in str(name):
                    about = path.stat()
                    files[name] = (about.st_mtime_ns, about.st_size)
            for name in sorted(files, key=files.get):
                if self.seen.get(name) != files[name]:
                    self._copy(name)
                    self.seen[name] = files[name]
            for name in self.seen.keys() - files.keys():
                del self.seen[name]
                for _, copy in self._copies(name):
                    copy.unlink(missing_ok=True)

    def _copy(self, name: Path) -> None:
        copies, folder = self._copies(name), (self.safe / name).parent
        folder.mkdir(parents=True, exist_ok=True)
        beside = folder / f"{name.name}.tmp"
        shutil.copyfile(self.work / name, beside)
        digest = _digest(beside)[:16]
        if copies and copies[-1][1].name.endswith(f"-{digest}"):
            beside.unlink()
            return
        number = copies[-1][0] + 1 if copies else 1
        beside.replace(folder / f"{name.name}@{number:06d}-{digest}")
        for _, old in copies[: len(copies) + 1 - KEPT]:
            old.unlink(missing_ok=True)

    def start(self) -> None:
        """Look every few seconds, and after every cell, until another `set_up`."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(EVERY):
                self._try()

        threading.Thread(target=watch, daemon=True).start()
        _ending.append(over.set)
        after_cells(lambda result: self._try())

    def _try(self) -> None:
        try:
            self.save()
        except FileNotFoundError:
            pass  # it was replaced while we looked: next time
        except OSError as error:
            warnings.warn(
                f"Not copied to {self.safe} ({error}): for now it is on this machine alone.",
                stacklevel=2,
            )


def _digest(path: Path) -> str:
    from cfgdistill.training.checkpoints import sha256

    return sha256(path)
