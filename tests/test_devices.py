"""One rule for devices: Accelerate chooses, and everything else follows the network."""

import pytest
import torch
from helpers import tiny_mlp
from torch import nn

from cfgdistill import (
    CosineSchedule,
    Denoiser,
    GuidedDenoiser,
    guidance_matching_loss,
    progressive_target,
)
from cfgdistill.checkpoints import save_weights
from cfgdistill.denoiser import default_device
from cfgdistill.toy import pinwheel
from cfgdistill.unets import load

META = torch.device("meta")  # holds no numbers, but is a device that is not the CPU


def test_the_default_device_is_that_of_accelerate():
    from accelerate import Accelerator

    assert default_device() == Accelerator().device


def test_a_loaded_network_is_where_a_trained_one_would_be(tmp_path, monkeypatch):
    save_weights(tiny_mlp(), tmp_path, {})
    monkeypatch.setattr("cfgdistill.unets.default_device", lambda: META)
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
