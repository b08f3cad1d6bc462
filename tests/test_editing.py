"""Editing: the ends of the scale, equality with diffusers' own pipelines, and what is refused."""

import pytest
import torch
from helpers import Wave, tiny_text_student

from cfgdistill import CosineSchedule, Denoiser, ddim, last
from cfgdistill.core.editing import image_to_image, inpaint, strengths
from cfgdistill.export.stock import stock_scheduler


def some(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


DENOISER = Denoiser(Wave(), CosineSchedule(), "v")
X, EPS = some(2, 3, 8, 8), some(2, 3, 8, 8, seed=1)
LEFT = torch.zeros(2, 1, 8, 8)
LEFT[..., :4] = 1


def test_at_full_strength_nothing_of_the_image_is_left():
    edited = last(image_to_image(DENOISER, X, EPS, 4, 1.0))
    torch.testing.assert_close(edited, last(ddim(DENOISER, EPS, 4)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_strength_is_a_place_on_the_grid_and_costs_one_call_for_each_step(steps):
    for i, strength in enumerate(strengths(steps), 1):
        DENOISER.nfe = 0
        assert len(list(image_to_image(DENOISER, X, EPS, steps, strength))) == i
        assert DENOISER.nfe == i


def test_two_steps_from_half_way_are_those_of_the_sampler():
    z = DENOISER.schedule.add_noise(X, EPS, torch.full((2,), 0.5))
    for t, s in ((0.5, 0.25), (0.25, 0.0)):
        pred = DENOISER(z, t)
        alpha, sigma = DENOISER.schedule.alpha_sigma(torch.tensor([s]))
        z = alpha * pred.x + sigma * pred.eps
    edited = last(image_to_image(DENOISER, X, EPS, 4, 0.5))
    torch.testing.assert_close(edited, z, atol=1e-5, rtol=0)


def test_what_the_mask_keeps_comes_back_bit_for_bit_and_the_rest_is_new():
    painted = last(inpaint(DENOISER, X, LEFT, EPS, 4))
    assert torch.equal(painted[..., 4:], X[..., 4:])
    assert (painted[..., :4] - X[..., :4]).abs().min() > 0
    everything = last(inpaint(DENOISER, X, torch.ones_like(LEFT), EPS, 4, 0.5))
    assert torch.equal(everything, last(image_to_image(DENOISER, X, EPS, 4, 0.5)))


@pytest.mark.parametrize(
    ("steps", "strength", "sentence"),
    [
        (4, 0.3, "choose i/4, that is 0.25, 0.5, 0.75, 1."),
        (4, 0.2, "strength 0.2 is not among those that 4 steps allow"),
        (4, 0.0, "0.25, 0.5"),
        (4, 1.25, "0.25, 0.5"),
        (50, 0.001, "i/50 with i from 1 to 50"),
    ],
)
def test_a_strength_off_the_grid_is_refused_before_any_work(steps, strength, sentence):
    DENOISER.nfe = 0
    with pytest.raises(ValueError, match=sentence):
        image_to_image(DENOISER, X, EPS, steps, strength)
    with pytest.raises(ValueError, match=sentence):
        inpaint(DENOISER, X, LEFT, EPS, steps, strength)
    assert DENOISER.nfe == 0


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"pass \[2, 1, 8, 8\], scaled to the size"):
        inpaint(DENOISER, X, torch.ones(2, 1, 64, 64), EPS, 4)


# ---- diffusers' pipelines, in this process: their arithmetic, not their packaging ---------------


@pytest.fixture(scope="module")
def stock():
    """A w-conditioned text student with random weights, and what stock pipelines are made of."""
    student, text, vae = tiny_text_student()
    parts = {
        "vae": vae.folded(),
        "text_encoder": student.net.text,
        "tokenizer": text.tokenizer,
        "unet": student.net.unet,
        "scheduler": stock_scheduler(student.schedule),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    return student, text, parts


@pytest.mark.parametrize(("steps", "strength"), [(4, 0.75), (4, 0.5), (2, 0.5), (8, 0.625)])
def test_image_to_image_is_what_stock_diffusers_does(stock, steps, strength):
    from diffusers import StableDiffusionImg2ImgPipeline

    student, text, parts = stock
    pipe = StableDiffusionImg2ImgPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    x = some(1, 4, 8, 8)
    theirs = pipe(
        "cat face",
        image=x,
        strength=strength,
        num_inference_steps=steps,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(7),
        output_type="latent",
    ).images
    eps = some(1, 4, 8, 8, seed=7)
    ours = last(image_to_image(student, x, eps, steps, strength, text.tokens(["cat face"]), 3.0))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_inpainting_is_what_stock_diffusers_does(stock):
    from diffusers import StableDiffusionInpaintPipeline

    student, text, parts = stock
    pipe = StableDiffusionInpaintPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    x = some(1, 4, 8, 8)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    theirs = pipe(
        "cat face",
        image=x,
        mask_image=mask,
        masked_image_latents=x,  # not used, but made of pixels if it is missing
        height=16,
        width=16,
        strength=0.75,
        num_inference_steps=4,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(7),
        output_type="latent",
    ).images
    eps, small = some(1, 4, 8, 8, seed=7), mask[..., ::2, ::2]
    ours = last(inpaint(student, x, small, eps, 4, 0.75, text.tokens(["cat face"]), 3.0))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
