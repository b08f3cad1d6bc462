"""The shape of the package: who may import whom, and what an import costs."""

import ast
import subprocess
import sys
from pathlib import Path

import cfgdistill

PACKAGE = Path(cfgdistill.__file__).parent
# A module imports only from modules above it.
ORDER = [
    "config",
    "randomness",
    "schedules",
    "parameterization",
    "denoiser",
    "guidance",
    "sampling",
    "delivered",
    "distillation",
    "toy",
    "checkpoints",
    "pretrained",
    "training",
    "data",
    "encoders",
    "unets",
    "editing",
    "metrics",
    "plotting",
    "widgets",
    "stable_diffusion",
    "stages",
    "class_pipeline",
    "export",
    "cli",
    "__main__",
]
FIGURES = {"plotting", "widgets"}


def imports(path: Path) -> set[str]:
    """Every module a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            found.add(node.module)
            if node.module == "cfgdistill":
                found |= {f"cfgdistill.{alias.name}" for alias in node.names}
    return found


def modules() -> dict[str, set[str]]:
    return {p.stem: imports(p) for p in sorted(PACKAGE.glob("*.py")) if p.stem != "__init__"}


def test_every_module_has_its_place_and_there_are_no_sub_packages():
    assert modules().keys() <= set(ORDER)
    assert not [p for p in PACKAGE.iterdir() if p.is_dir() and list(p.glob("*.py"))]


def test_a_module_imports_only_from_modules_above_it():
    for name, found in modules().items():
        above = {f"cfgdistill.{other}" for other in ORDER[: ORDER.index(name)]}
        own = {module for module in found if module.split(".")[0] == "cfgdistill"}
        assert own <= above, f"{name} imports {own - above}, which stand below it or beside it"


def test_the_rule_itself_sees_imports_inside_functions(tmp_path):
    file = tmp_path / "config.py"
    file.write_text("def f():\n    from cfgdistill import unets\n    import cfgdistill.data\n")
    assert {"cfgdistill.unets", "cfgdistill.data"} <= imports(file)


def test_only_the_plotting_modules_import_matplotlib():
    users = {
        n for n, found in modules().items() if "matplotlib" in {m.split(".")[0] for m in found}
    }
    assert users <= FIGURES and "plotting" in users


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
