"""Classifier-free guidance: numbers by hand, two separate calls, and diffusers."""

import ast
import math
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers import Wave

from cfgdistill import CosineSchedule, Denoiser, DiscreteSchedule, GuidedDenoiser, guide
from cfgdistill.core.guidance import drop_condition, embed_w, sample_w, scale_from_w, w_from_scale


def test_guide_of_2_and_1_at_w_3_is_5():
    assert guide(2, 1, w=3) == 5  # (1 + 3) 2 - 3 1


def test_w_0_is_no_guidance_and_w_minus_1_is_the_unconditional_half():
    assert guide(2.0, 1.0, w=0) == 2.0
    assert guide(2.0, 1.0, w=-1) == 1.0


def test_diffusers_guidance_scale_is_one_plus_w():
    assert scale_from_w(3.0) == 4 and w_from_scale(7.5) == 6.5
    cond, uncond, w = 2.0, 1.0, 3.0
    assert uncond + scale_from_w(w) * (cond - uncond) == guide(cond, uncond, w)


def pair(schedule=None):
    schedule = CosineSchedule() if schedule is None else schedule
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    t = torch.tensor([0.1, 0.4, 0.7, 0.95], dtype=torch.float64)
    return Denoiser(Wave(), schedule), z, t, torch.tensor([0, 1, 2, 1])


@pytest.mark.parametrize("part", ["x", "eps", "v"])
def test_a_guided_call_is_two_separate_calls_combined_in_x_in_eps_and_in_v(part):
    denoiser, z, t, cond = pair()
    w = torch.tensor([0.0, 0.5, 2.0, 4.0], dtype=torch.float64)
    guided = GuidedDenoiser(denoiser, null=3)(z, t, cond, w)
    a = getattr(denoiser(z, t, cond), part)
    b = getattr(denoiser(z, t, torch.full((4,), 3)), part)
    for i, weight in enumerate(w.tolist()):
        torch.testing.assert_close(getattr(guided, part)[i], (1 + weight) * a[i] - weight * b[i])


def test_a_guided_call_at_w_0_is_the_conditional_call():
    denoiser, z, t, cond = pair()
    torch.testing.assert_close(
        GuidedDenoiser(denoiser, null=3)(z, t, cond, 0.0), denoiser(z, t, cond)
    )


def test_a_guided_prediction_still_remakes_z():
    schedule = DiscreteSchedule(torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64))
    denoiser, z, t, cond = pair(schedule)
    pred = GuidedDenoiser(denoiser, null=3)(z, t, cond, 3.0)
    torch.testing.assert_close(schedule.add_noise(pred.x, pred.eps, t), z)


class Mean(torch.nn.Module):
    """z and the mean of an embedding."""

    def forward(self, z, t, cond, w):
        return z + cond.mean(1, keepdim=True)


def test_an_embedding_can_be_the_null_condition():
    z, cond = torch.zeros(2, 3), torch.tensor([[1.0, 3.0], [5.0, 7.0]])
    guided = GuidedDenoiser(Denoiser(Mean(), CosineSchedule()), null=torch.tensor([1.0, 1.0]))
    v = guided(z, 0.5, cond, 2.0).v
    # means 2 and 6 against the null's 1: 3 * 2 - 2 * 1 = 4 and 3 * 6 - 2 * 1 = 16
    torch.testing.assert_close(v, torch.tensor([[4.0], [16.0]]).expand(2, 3))


@pytest.mark.parametrize("computed", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kept", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_conditions_of_any_precision_are_guided_under_autocast(computed, kept):
    cond, null = torch.tensor([[1.0, 3.0], [5.0, 7.0]], dtype=kept), torch.ones(2, dtype=kept)
    guided = GuidedDenoiser(Denoiser(Mean(), CosineSchedule()), null=null)
    with torch.autocast("cpu", computed):
        v = guided(torch.zeros(2, 3), 0.5, cond, 2.0).v
    assert torch.equal(v, torch.tensor([[4.0], [16.0]]).expand(2, 3))  # as above


def test_a_guided_pair_that_is_all_in_half_precision_stays_in_it():
    class Same(torch.nn.Module):
        def forward(self, z, t, cond, w):
            assert z.dtype == cond.dtype
            return z + cond

    z = torch.zeros(2, 3, dtype=torch.float16)
    guided = GuidedDenoiser(Denoiser(Same(), CosineSchedule()), null=torch.ones(3).half())
    assert guided(z, 0.5, z, 2.0).v.dtype == torch.float16


def test_dropping_replaces_exactly_the_conditions_whose_number_is_below_p():
    u = torch.tensor([0.05, 0.1, 0.5, 0.0])
    assert drop_condition(torch.tensor([0, 1, 2, 1]), 3, 0.1, u).tolist() == [3, 1, 2, 3]
    embeddings = torch.ones(4, 2, 5)
    dropped = drop_condition(embeddings, torch.zeros(2, 5), 0.1, u)
    assert dropped.mean((1, 2)).tolist() == [0.0, 1.0, 1.0, 0.0]


def test_nothing_is_dropped_at_p_0_and_everything_at_p_1():
    cond, u = torch.arange(100) % 3, torch.rand(100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drop_condition(cond, 3, 0.0, u), cond)
    assert (drop_condition(cond, 3, 1.0, u) == 3).all()


def test_w_is_uniform_on_its_range():
    assert sample_w(torch.tensor([0.0, 0.25, 1.0]), (2.0, 14.0)).tolist() == [2.0, 5.0, 14.0]


def test_a_power_draws_small_w_more_often_and_keeps_the_range():
    u = torch.tensor([0.0, 0.5, 1.0])
    assert sample_w(u, (2.0, 14.0), 2.0).tolist() == [2.0, 5.0, 14.0]  # 2 + 12 / 4


def diffusers_embedding():
    """`StableDiffusionPipeline.get_guidance_scale_embedding`, cut out of diffusers' own file.

    Importing that pipeline would need transformers, which this package does not.
    """
    folder = Path(find_spec("diffusers").origin).parent / "pipelines" / "stable_diffusion"
    tree = ast.parse((folder / "pipeline_stable_diffusion.py").read_text())
    name = "get_guidance_scale_embedding"
    [function] = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == name]
    scope = {"torch": torch}
    exec(compile(ast.Module([function], []), name, "exec"), scope)
    return scope[name]


@pytest.mark.parametrize("dim", [32, 64, 256])
def test_embed_w_is_what_diffusers_pipelines_feed_to_a_student(dim):
    w = torch.tensor([0.0, 0.3, 1.0, 3.0, 6.0, 14.0])
    guidance_scale = 1 + w
    # As in the pipeline's __call__: guidance_scale_tensor = torch.tensor(guidance_scale - 1)
    theirs = diffusers_embedding()(None, w=guidance_scale - 1, embedding_dim=dim)
    # float32 phases up to 14000 carry an error of about 1e-3
    torch.testing.assert_close(embed_w(w, dim), theirs, rtol=0, atol=4e-3)
    torch.testing.assert_close(embed_w(w[:3], dim), theirs[:3], rtol=0, atol=2e-4)


def test_embed_w_by_hand():
    # 4 numbers: frequencies 1 and 1/10000, so sin and cos of 1000 w and of w / 10.
    w = 0.002
    known = [math.sin(2), math.sin(0.0002), math.cos(2), math.cos(0.0002)]
    torch.testing.assert_close(embed_w(torch.tensor([w]), 4), torch.tensor([known]))


def test_embed_w_stays_in_float32():
    assert embed_w(torch.tensor([6.0], dtype=torch.float64), 8).dtype == torch.float32
    exact = embed_w(torch.tensor([6.0]), 8)
    torch.testing.assert_close(embed_w(torch.tensor([6.0]).bfloat16(), 8), exact, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("steps", "sampler", "sentence"),
    [
        (8, "ddim", "distilled for 4 steps, not 8"),
        (4, "stochastic", "for the sampler 'ddim', not 'stochastic'"),
        (4, "ddim_encode", "for the sampler 'ddim', not 'ddim_encode'"),
    ],
)
def test_a_guided_pair_of_students_refuses_what_the_student_inside_refuses(
    steps, sampler, sentence
):
    student = Denoiser(Wave(), CosineSchedule(), steps=4, sampler="ddim", num_classes=3)
    guided, cond = GuidedDenoiser(student, null=3), torch.arange(3)
    guided.check(4, cond, 7.5)
    with pytest.raises(ValueError, match=sentence):
        guided.check(steps, cond, 1.0, sampler)
    with pytest.raises(ValueError, match="Labels must be whole numbers in 0 .. 2"):
        guided.check(4, cond + 2, 1.0)
