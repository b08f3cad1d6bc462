"""The shape of the package: who may import whom, and what an import costs."""

import ast
import subprocess
import sys
from pathlib import Path

import cfgdistill

PACKAGE = Path(cfgdistill.__file__).parent
# A room imports only from itself and from rooms above it; the command line stands on top of all.
ROOMS = ["core", "training", "data", "teachers", "judge", "export", "course"]


def imports(path: Path) -> set[str]:
    """Every module a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            found.add(node.module)
            if node.module == "cfgdistill":
                found |= {f"cfgdistill.{alias.name}" for alias in node.names}
    return found


def modules(room: str = "**") -> dict[str, set[str]]:
    found = sorted(PACKAGE.glob(f"{room}/*.py"))
    return {path.relative_to(PACKAGE).as_posix(): imports(path) for path in found}


def test_every_module_has_its_room_and_rooms_have_no_rooms():
    assert {Path(name).parent.as_posix() for name in modules()} == {".", *ROOMS}
    assert {name for name in modules() if "/" not in name} == {
        *("__init__.py", "__main__.py", "cli.py"),
    }


def test_a_room_imports_only_from_rooms_above_it():
    for place, room in enumerate(ROOMS):
        for name, found in modules(room).items():
            own = {m for m in found if m.split(".")[0] == "cfgdistill"}
            rooms = {(m.split(".") + [""])[1] for m in own}
            below = rooms - set(ROOMS[: place + 1])
            assert not below, f"{name} imports from {below}, which stand below it or on top"


def test_the_rule_itself_sees_imports_inside_functions(tmp_path):
    file = tmp_path / "schedules.py"
    file.write_text(
        "def f():\n    from cfgdistill import course\n    import cfgdistill.data.base\n"
    )
    assert {"cfgdistill.course", "cfgdistill.data.base"} <= imports(file)


def test_the_core_imports_torch_and_jaxtyping_alone_and_reads_and_writes_nothing():
    known = {"cfgdistill", "torch", "jaxtyping", *sys.stdlib_module_names}
    files = {"io", "json", "os", "pathlib", "pickle", "shutil", "subprocess", "sys", "tempfile"}
    for name, found in modules("core").items():
        assert {m.split(".")[0] for m in found} <= known - files, name


def test_only_the_plotting_module_imports_matplotlib():
    users = {
        n for n, found in modules().items() if "matplotlib" in {m.split(".")[0] for m in found}
    }
    assert users == {"judge/plotting.py"}


def test_import_cfgdistill_brings_in_nothing_heavy_but_torch():
    heavy = ["diffusers", "accelerate", "datasets", "torchmetrics", "matplotlib", "sklearn"]
    heavy += ["transformers", "torchvision", "IPython", "tqdm.auto"]
    code = (
        "import sys, torch; before = set(sys.modules); import cfgdistill; "
        f"print(*[m for m in {heavy!r} if m in sys.modules and m not in before])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split() == []


def test_every_public_name_can_be_imported():
    assert all(hasattr(cfgdistill, name) for name in cfgdistill.__all__)
