"""Students as ONNX: what a runtime without PyTorch makes of the files alone is what we make."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY, tiny_mlp, tiny_text_student, unet_of, with_w
from torch import nn

from cfgdistill import cli, ddim, last
from cfgdistill.data.meaning import Classes, Prompts
from cfgdistill.export.onnx import export_onnx
from cfgdistill.teachers.drawing import sample
from cfgdistill.teachers.files import load
from cfgdistill.training.randomness import random_at

ort = pytest.importorskip("onnxruntime")


def session(file):
    return ort.InferenceSession(file, providers=["CPUExecutionProvider"])


def sampled(folder, z, cond, w):
    """DDIM as a reader of student.json writes it, with numpy alone."""
    said = json.loads((folder / "student.json").read_text(encoding="utf-8"))
    student, ones = session(folder / "student.onnx"), np.ones(len(z), "float32")
    alpha, sigma = (np.array(said[key], "float32") for key in ("alpha", "sigma"))
    for i, t in enumerate(said["t"][:-1]):
        given = {"z": z, "t": np.float32(t) * ones, "cond": cond, "w": np.float32(w) * ones}
        (v,) = student.run(None, given)
        x, eps = alpha[i] * z - sigma[i] * v, sigma[i] * z + alpha[i] * v
        z = alpha[i + 1] * x + sigma[i + 1] * eps
    if (folder / "decoder.onnx").exists():
        (z,) = session(folder / "decoder.onnx").run(None, {"z": z})
    return z, said


def noise(model, seed, n):
    each = [random_at(seed, "sample", i) for i in range(n)]
    return torch.stack([torch.randn(model.shape, generator=g) for g in each]).numpy()


@pytest.mark.parametrize(
    "name, given",
    [
        ("digits/stage-two/steps-8", [3, 7, 0]),
        ("cifar10/stage-two/steps-4", ["frog", "ship"]),
        ("emoji/stage-two/steps-1", ["red heart", "cat face", "octopus"]),
    ],
)
def test_a_shipped_student_draws_the_same_pictures_from_its_files_alone(name, given, tmp_path):
    model = load(name, device="cpu")
    folder = export_onnx(model, tmp_path / "onnx")
    cond = model.meaning.conditions(given).numpy()
    found, said = sampled(folder, noise(model, 5, len(given)), cond, 1.5)
    theirs = sample(model, given, 1.5, seed=5).numpy()
    assert np.abs(found.clip(-1, 1) - theirs).max() < 1e-4
    assert said["steps"] == model.steps and said["w_range"] == list(model.w_range)
    weights = sum(p.numel() for p in model.parameters())
    assert (folder / "student.onnx").stat().st_size < 2.2 * weights + 300_000  # two bytes each
    names = said.get("class_names", [])
    assert [names.index(str(one)) for one in given if names] == (cond.tolist() if names else [])


def tiny_student():
    """Of ten classes, with squares of pixels as channels, and random weights."""
    teacher = unet_of(replace(TINY, patch=2), channels=1, size=8, num_classes=10)
    student = with_w(teacher, 4.0).for_steps(2)
    student.meaning = Classes(10)
    return student


def test_every_number_of_images_and_every_input_counts(tmp_path):
    student = tiny_student()
    net = session(export_onnx(student, tmp_path / "x") / "student.onnx")
    for n in (1, 5, 70):  # beyond 64, where diffusers takes another branch
        z, t, w = torch.randn(n, *student.shape), torch.rand(n), 4 * torch.rand(n)
        given = {"z": z, "t": t, "cond": torch.arange(n) % 11, "w": w}
        (v,) = net.run(None, {key: part.numpy() for key, part in given.items()})
        with torch.no_grad():
            ours = student.net(*given.values()).numpy()
        assert np.abs(v - ours).max() < 1e-4
        for key in given:  # not one of them was traced as a constant
            other = {**given, key: given[key].flip(0) if n > 1 else given[key] * 0 + 1}
            (changed,) = net.run(None, {key: part.numpy() for key, part in other.items()})
            assert np.abs(changed - v).max() > 1e-4, key


def test_a_student_of_classes_that_draws_latents_takes_its_decoder_along(tmp_path):
    teacher = unet_of(TINY, channels=4, size=8, num_classes=10)
    student, (_, _, vae) = with_w(teacher, 4.0).for_steps(2), tiny_text_student()
    student.meaning = Classes(10, vae=vae)
    folder, z = export_onnx(student, tmp_path / "x"), noise(student, 0, 2)
    found, _ = sampled(folder, z, np.array([3, 7]), 2.0)
    ours = vae.decode(last(ddim(student, torch.from_numpy(z), 2, torch.tensor([3, 7]), 2.0)))
    assert found.shape == (2, 3, 16, 16) and np.abs(found - ours.numpy()).max() < 1e-4


def test_a_text_student_of_any_number_of_steps_takes_its_tokenizer_along(tmp_path):
    student, text, vae = tiny_text_student()
    student.meaning = Prompts(text, vae)
    folder = export_onnx(student, tmp_path / "x")
    tokens = text.tokens(["red apple", "cat face"])
    z = noise(student, 0, 2)
    found, said = sampled(folder, z, tokens.numpy(), 3.0)
    ours = vae.decode(last(ddim(student, torch.from_numpy(z), 64, tokens, 3.0)))
    assert np.abs(found - ours.numpy()).max() < 1e-4
    assert said["steps"] is None and len(said["t"]) == 65 and said["tokenizer"]["length"] == 10
    assert said["tokenizer"]["padding"] == tokens[0, -1] and "class_names" not in said


class Frozen(nn.Module):
    """Somebody's network whose branch depends on the number of images: a trace keeps one."""

    shape, config = (1, 8, 8), {}

    def forward(self, z, t, cond, w):
        return z * (3 if len(z) == 2 else 1) + (w + t + cond)[:, None, None, None]


def test_what_cannot_be_written_as_onnx_is_told_and_nothing_is_left(tmp_path):
    student = tiny_student()
    text_student, text, vae = tiny_text_student()
    text_student.meaning = Prompts(text, vae, embedded=True)
    own, broken = (student.copy(net) for net in (Frozen(), nn.Identity()))
    broken.net.shape = own.shape
    eps, teacher = student.for_steps(2), student.for_steps(2)
    eps.prediction_type, teacher.w_range = "eps", None
    for model, sentence in (
        (teacher, "Only a network with an input for w"),
        (student.for_steps(4, "stochastic"), "that samples by DDIM"),
        (eps, "Only a network that predicts v"),
        (text_student, "with a text model of their own"),
        (tiny_mlp(w_range=(0.0, 4.0)), "Only students of classes"),
        (own, "As ONNX this Frozen answers differently by"),
        (broken, "A Identity cannot be written as ONNX"),
    ):
        with pytest.raises(ValueError, match=sentence):
            export_onnx(model, tmp_path / "x")
        assert list(tmp_path.iterdir()) == []


def test_an_export_replaces_an_earlier_one_and_nothing_else(tmp_path):
    student = tiny_student()
    folder = export_onnx(student, tmp_path / "x")
    student.w_range = (0.0, 2.0)
    export_onnx(student, folder)
    assert json.loads((folder / "student.json").read_text())["w_range"] == [0.0, 2.0]
    (folder / "mine.txt").write_text("")
    with pytest.raises(FileExistsError, match="holds mine.txt"):
        export_onnx(student, folder)


def test_the_command_line_writes_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", "digits/stage-two/steps-1", "--to", "page", "--onnx"]) == 0
    assert json.loads(capsys.readouterr().out) == {"folder": "page"}
    assert {file.name for file in Path("page").iterdir()} == {"student.onnx", "student.json"}
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert cli.main(["export", "digits/stage-two/steps-1", "--to", "other", "--onnx"]) == 1
    assert "ONNX needs onnxruntime, which is not installed" in capsys.readouterr().err
