"""One rule for devices: Accelerate chooses, and everything else follows the network."""

import pytest
import torch
from elsewhere import ELSEWHERE, elsewhere
from helpers import schedules, tiny_mlp
from torch import nn

from cfgdistill import (
    CosineSchedule,
    Denoiser,
    GuidedDenoiser,
    ancestral,
    ddim,
    ddim_encode,
    get_recipe,
    guidance_matching_loss,
    last,
    progressive_loss,
    progressive_target,
    stochastic,
    translate,
)
from cfgdistill.core.editing import image_to_image, inpaint
from cfgdistill.course import stages
from cfgdistill.data.named import load_data
from cfgdistill.data.toy import pinwheel
from cfgdistill.judge.metrics import evaluate, generate
from cfgdistill.judge.plotting import save_images
from cfgdistill.teachers.files import load
from cfgdistill.training.checkpoints import save_weights
from cfgdistill.training.environment import default_device

META = torch.device("meta")  # holds no numbers, but is a device that is not the CPU


def test_the_default_device_is_that_of_accelerate():
    from accelerate import Accelerator

    assert default_device() == Accelerator().device


def test_a_loaded_network_is_where_a_trained_one_would_be(tmp_path, monkeypatch):
    save_weights(tiny_mlp(), tmp_path, {})
    monkeypatch.setattr("cfgdistill.teachers.files.default_device", lambda: META)
    assert load(tmp_path).device == META


def test_a_denoiser_is_where_its_network_is_and_a_guided_pair_where_its_denoiser_is():
    for denoiser in (tiny_mlp(), pinwheel().denoiser(CosineSchedule())):
        guided = GuidedDenoiser(denoiser, 3)
        assert denoiser.device == guided.device == torch.device("cpu")
        guided.to(META)
        assert denoiser.device == guided.device == META


@pytest.mark.parametrize("parts", [nn.Identity, lambda: lambda z, t, cond, w: z])
def test_a_network_without_tensors_is_on_the_cpu(parts):

    assert Denoiser(parts(), CosineSchedule()).device == torch.device("cpu")


def test_a_teacher_follows_its_student_to_another_device():
    student, x, labels = tiny_mlp().to(META), torch.zeros(4, 2, device=META), torch.arange(4) % 3
    labels = labels.to(META)
    for teacher in (tiny_mlp(), pinwheel().denoiser(CosineSchedule())):
        guided = GuidedDenoiser(teacher, 3)
        guidance_matching_loss(student, guided, x, labels, 1.0, 0.5)
        assert teacher.device == META
    teacher = tiny_mlp()
    progressive_target(teacher, x, 1.0, 0.5, labels, 1.0)
    assert teacher.device == META


def test_elsewhere_refuses_what_a_gpu_refuses_and_computes_the_same():
    with elsewhere():
        a, b = torch.arange(3.0).to(ELSEWHERE), torch.tensor([1.0, 2.0, 3.0], device=ELSEWHERE)
        assert (a + b).device == ELSEWHERE and (2 * a + b).tolist() == [1, 4, 7]
        for mixed in (lambda: a + torch.ones(3), lambda: nn.Linear(3, 1)(a)):
            with pytest.raises(RuntimeError, match="two devices"):
                mixed()
        with pytest.raises(TypeError, match="float64"):
            a.double()
        assert default_device() == ELSEWHERE
    assert default_device() != ELSEWHERE


TINY = get_recipe(
    *("digits", "smoke"),
    **dict(channels=(8, 8), batch=4, images=20, classifier=1, teacher=1, stage_one=1, ema=0.5),
)


@pytest.mark.filterwarnings("ignore:.*samples are too few")
def test_training_judging_and_loading_give_the_same_numbers_on_another_device(tmp_path):
    def run(out):
        data = load_data("digits", images=TINY.images)
        judge = stages.make_judge(TINY, data, out)
        student = stages.train_stage_one(TINY, data, out)
        how = dict(steps=2, w=1.0, sampler=stochastic)
        row = evaluate(student, judge, data, model="student", n=4, teacher=student, **how)
        del row["ms_per_image"]
        loaded = load(stages.home(TINY, out) / "stage-one")
        x = generate(loaded, data.shape, torch.arange(3), **how)
        save_images(x, 3, out / "images.png")
        return row, x, {student.device, loaded.device}

    with elsewhere():
        row, x, devices = run(tmp_path / "there")
    assert devices == {ELSEWHERE}
    known_row, known, _ = run(tmp_path / "here")
    torch.testing.assert_close(x, known)
    assert row == pytest.approx(known_row, abs=1e-3)


def both(schedule):
    """A student, an exact one, and pairs of both: every kind of model, by name."""
    exact = pinwheel().denoiser(schedule)
    mlp = Denoiser(tiny_mlp().net, schedule, num_classes=3)
    return {
        "network": mlp,
        "guided": GuidedDenoiser(mlp, 3),
        "guided exact": GuidedDenoiser(exact, torch.tensor(3)),
    }


@pytest.mark.parametrize("schedule", schedules().values(), ids=schedules())
def test_samplers_and_losses_give_the_same_numbers_on_another_device(schedule):
    z, labels = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), torch.arange(4) % 3
    random = {"generator": [torch.Generator().manual_seed(i) for i in range(4)]}

    def run(model, device):
        model, x, cond = model.to(device), z.to(device), labels.to(device)
        for sampler in (ddim, ddim_encode, stochastic, ancestral):
            added = random if sampler in (stochastic, ancestral) else {}
            for generator in random["generator"]:
                generator.manual_seed(0)
            yield last(sampler(model, x, 2, cond, 1.0, **added))
        yield translate(model, model, x, cond, cond, 2)
        yield last(image_to_image(model, x, x, 2, 0.5, cond, 1.0))
        yield last(inpaint(model, x, torch.ones(4, 1), x, 2, 1.0, cond, torch.tensor(1.0)))
        yield progressive_loss(model, model, x, cond, 1.0, 1.0, 0.5, eps=x)
        yield guidance_matching_loss(model, model, x, cond, 1.0, 0.5, eps=x)

    for name, model in both(schedule).items():
        known = list(run(model, "cpu"))
        with elsewhere():
            found = list(run(model, ELSEWHERE))
            assert {a.device for a in found} == {ELSEWHERE}
            for a, b in zip(found, known, strict=True):
                torch.testing.assert_close(a.cpu(), b, msg=name)
            model.to("cpu")
