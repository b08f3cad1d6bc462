"""The page "Bring your own network": run as it stands, from outside the package."""

import re
from pathlib import Path

import pytest
import torch

import cfgdistill as cd
from cfgdistill.training.checkpoints import fingerprint

PAGE = Path(__file__).parents[1] / "notebooks" / "bring_your_own_network.md"
NETWORK, USE = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """What the names on the page stand for, after it has been run."""
    names, folder = {}, tmp_path_factory.mktemp("page")
    exec(NETWORK, names)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(USE.replace("updates=200", "updates=30"), names)
    return {**names, "folder": folder / "mine"}


def test_a_network_of_ones_own_goes_through_both_stages_and_is_loaded(page):
    assert page["images"].shape == (2, 1, 8, 8)
    assert (page["again"].steps, page["again"].w_range) == (1, (0.0, 4.0))
    assert fingerprint(page["again"]) == fingerprint(page["few"])


def test_its_student_starts_as_its_teacher_for_every_w(page):
    student = cd.add_w_conditioning(page["teacher"], (0.0, 4.0))
    z, cond = torch.randn(3, 1, 8, 8), torch.tensor([1, 5, 9])
    with torch.no_grad():
        assert torch.equal(student(z, 0.4, cond, 3.0).v, page["teacher"](z, 0.4, cond).v)
    assert not torch.equal(page["student"](z, 0.4, cond, 3.0).v, page["teacher"](z, 0.4, cond).v)


def test_its_interrupted_runs_end_with_the_same_bits(page, tmp_path):
    guided = cd.GuidedDenoiser(page["teacher"], 10)

    def updates(folder):
        student = cd.add_w_conditioning(page["teacher"], (0.0, 4.0))
        loss, optim = cd.stage_one_loss(guided, student.w_range), cd.Optim(4, 8, 1e-3, ema=0.9)
        yield from cd.train(student, loss, page["data"], optim, cd.Run(folder=folder))
        yield fingerprint(student)

    *_, known = updates(tmp_path / "a")
    run = updates(tmp_path / "b")
    next(run), next(run), run.close()
    *rest, resumed = updates(tmp_path / "b")
    assert len(rest) == 2 and resumed == known


def test_it_is_exported_for_runtimes_without_python(page, tmp_path):
    pytest.importorskip("onnxruntime")
    from cfgdistill.export.onnx import export_onnx

    assert (export_onnx(page["again"], tmp_path / "onnx") / "student.onnx").exists()
