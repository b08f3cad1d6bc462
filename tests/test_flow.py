"""Flow matching behind our call: the same points as on the straight path, on one with rotations.

And FLUX, with its teacher without an input for guidance, and students with one.
"""

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from helpers import Wave

import cfgdistill as cd
from cfgdistill import FlowSchedule, GuidedDenoiser, ddim, guide, last
from cfgdistill.core.losses import diffusion_loss
from cfgdistill.core.stage_two import progressive_target
from cfgdistill.export.stock import export
from cfgdistill.teachers.flow import Flow, Flux, flow_denoiser, flow_matching
from cfgdistill.training.checkpoints import fingerprint
from cfgdistill.training.randomness import seeded

TIMES = torch.linspace(0, 1, 17, dtype=torch.float64)


class Exact(torch.nn.Module):
    """u = eps - x for one known pair, whatever is asked."""

    def __init__(self, x, eps):
        super().__init__()
        self.x, self.eps = x, eps

    def forward(self, z, tau, cond, w):
        return self.eps - self.x


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_x_and_eps_are_recovered_at_every_time_both_ends_included(shift):
    x, eps = noise(17, 3), noise(17, 3, seed=1)
    denoiser = flow_denoiser(Exact(x, eps), shift)
    tau = shift * TIMES / (1 + (shift - 1) * TIMES)
    straight = (1 - tau)[:, None] * x + tau[:, None] * eps
    z = straight / (tau**2 + (1 - tau) ** 2).sqrt()[:, None]
    torch.testing.assert_close(denoiser.schedule.add_noise(x, eps, TIMES), z)
    pred = denoiser(z, TIMES)
    torch.testing.assert_close(pred.x, x)
    torch.testing.assert_close(pred.eps, eps)


def test_the_network_is_asked_on_the_straight_path_at_its_own_time():
    asked = []
    denoiser = flow_denoiser(lambda *given: asked.append(given) or torch.zeros_like(given[0]), 3.0)
    x, eps, t = noise(17, 3), noise(17, 3, seed=1), TIMES
    denoiser(denoiser.schedule.add_noise(x, eps, t), t, torch.arange(17), 2.0)
    z, tau, cond, w = asked[0]
    torch.testing.assert_close(tau, 3 * t / (1 + 2 * t))
    torch.testing.assert_close(z, (1 - tau)[:, None] * x + tau[:, None] * eps)
    assert cond.tolist() == [*range(17)] and w.tolist() == [2.0] * 17


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 8, 28])
def test_ddim_is_the_euler_sampler_of_diffusers(shift, steps):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=[i / steps for i in range(steps, 0, -1)])
    net, z = Wave(), noise(4, 3).float()
    known, cond = z, torch.arange(4)
    for k in scheduler.timesteps:  # 1000 tau
        known = scheduler.step(net(known, k.expand(4) / 1000, cond, None), k, known).prev_sample
    ours = last(ddim(flow_denoiser(net, shift), z, steps, cond))
    torch.testing.assert_close(ours, known, atol=1e-5, rtol=1e-5)


def test_a_shift_lowers_the_log_snr_by_two_logarithms_of_it_and_shifts_multiply():
    t = TIMES[1:-1]
    plain, shifted = FlowSchedule(), FlowSchedule(3.0)
    torch.testing.assert_close(shifted.logsnr(t), plain.logsnr(t) - 2 * math.log(3))
    torch.testing.assert_close(FlowSchedule(2.0).tau(FlowSchedule(1.5).tau(t)), shifted.tau(t))
    assert plain.alpha_sigma(TIMES[[0, -1]])[0].tolist() == [1.0, 0.0]
    for shift in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="shift must be a positive number"):
            FlowSchedule(shift)


def test_guidance_is_linear_in_u():
    net, z, cond = Wave(), noise(5, 3), torch.arange(5)
    guided = GuidedDenoiser(flow_denoiser(net, 3.0), 7)

    def combined(z, tau, cond, w):
        return guide(net(z, tau, cond, None), net(z, tau, torch.full_like(cond, 7), None), 2.5)

    known = flow_denoiser(combined, 3.0)
    for mine, theirs in zip(guided(z, 0.4, cond, 2.5), known(z, 0.4, cond), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_two_steps_in_one_are_the_mean_of_two_velocities():
    # On an even grid of tau: u of the long step is the average of the two short ones.
    net, z, N = Wave(), noise(6, 3), 2
    denoiser = flow_denoiser(net)
    straight = z  # at t = 1 both paths are pure noise
    first = net(straight, torch.full((6,), 1.0).double(), None, None)
    second = net(straight - first / (2 * N), torch.full((6,), 0.75).double(), None, None)
    v = progressive_target(denoiser, z, 1.0, 0.5)
    x, eps = -v, z  # at alpha = 0
    torch.testing.assert_close(eps - x, (first + second) / 2)


def test_the_weighting_of_flow_matching_is_the_error_of_u():
    net, x, eps, t = Wave(), noise(17, 3), noise(17, 3, seed=1), TIMES
    denoiser = flow_denoiser(net, 3.0)
    ours = diffusion_loss(denoiser, x, None, t, eps=eps, weighting=flow_matching)
    tau = denoiser.schedule.tau(t)
    u = net((1 - tau)[:, None] * x + tau[:, None] * eps, tau, None, None)
    inner = slice(1, -1)  # at the ends the log-SNR is clipped
    torch.testing.assert_close(ours[inner], (u - (eps - x)).square().mean(1)[inner])
    torch.testing.assert_close(ours, (u - (eps - x)).square().mean(1), atol=0, rtol=1e-3)


def test_a_flow_says_the_shape_of_its_network():
    net = Wave()
    net.shape = (2, 3)
    assert Flow(net, FlowSchedule()).shape == (2, 3)


# ---- FLUX ---------------------------------------------------------------------------------------


def flux(size=8, channels=1, **changes) -> Flux:
    """A millionth of FLUX.1, random weights; a prompt of 12 numbers for each word."""
    sizes = dict(num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2)
    given = dict(joint_attention_dim=12, pooled_projection_dim=12, axes_dims_rope=(2, 2, 4))
    with seeded(0):
        net = FluxTransformer2DModel(in_channels=4 * channels, **sizes, **given, **changes)
    return Flux(net.eval(), size)


def some(n=4, channels=1):
    generator = torch.Generator().manual_seed(0)
    z, t = torch.randn(n, channels, 8, 8, generator=generator), torch.rand(n, generator=generator)
    return z, t, torch.arange(n)


def moved(student):
    """With a last layer of the guidance input that says something."""
    with seeded(3):
        for layer in student.net.velocity.transformer.time_text_embed.guidance_embedder.children():
            if isinstance(layer, torch.nn.Linear):
                layer.reset_parameters()
    return student


def euler(net, z, steps, shift, pooled, prompt, guidance):
    """FluxPipeline's loop: its packing, its ids, its scheduler."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=[i / steps for i in range(steps, 0, -1)])
    b, c, h, w = z.shape
    tokens = FluxPipeline._pack_latents(z, b, c, h, w)
    ids = FluxPipeline._prepare_latent_image_ids(b, h // 2, w // 2, z.device, z.dtype)
    for k in scheduler.timesteps:
        u = net(
            tokens,
            timestep=k.expand(b) / 1000,
            pooled_projections=pooled,
            encoder_hidden_states=prompt,
            img_ids=ids,
            txt_ids=torch.zeros(prompt.shape[1], 3),
            guidance=guidance,
        ).sample
        tokens = scheduler.step(u, k, tokens).prev_sample
    return FluxPipeline._unpack_latents(tokens, 8 * h, 8 * w, 8)


def test_a_flux_student_starts_as_its_teacher_and_its_guidance_is_an_input():
    teacher, (z, t, cond) = flow_denoiser(flux(), 3.0, num_classes=10), some()
    student = cd.add_w_conditioning(teacher, (0.0, 4.0))
    with torch.no_grad():
        for w in (0.0, 3.0):
            for mine, theirs in zip(student(z, t, cond, w), teacher(z, t, cond), strict=True):
                torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=0)
    student(z, t, cond, 2.0).v.square().sum().backward()
    new = student.net.velocity.transformer.time_text_embed.guidance_embedder.linear_2.weight
    assert new.abs().max() == 0 and new.grad.abs().max() > 0
    with pytest.raises(ValueError, match="one guidance weight, not 2"):
        cd.add_w_conditioning(teacher, ((0.0, 4.0), (0.0, 1.0)))
    with pytest.raises(ValueError, match="needs a guidance weight"):
        student(z, t, cond)
    with pytest.raises(ValueError, match="takes no w"):
        teacher(z, t, cond, 1.0)
    with pytest.raises(ValueError, match=r"takes \[batch, 1, 8, 8\]"):
        teacher(z[..., :4], t, cond)
    with pytest.raises(ValueError, match="7 is odd"):
        flux(7)


@torch.no_grad()
def test_a_student_of_a_flux_is_loaded_by_the_stock_class_and_sampled_by_the_stock_loop(tmp_path):
    teacher = flow_denoiser(flux(channels=2), 3.0)
    student = moved(cd.add_w_conditioning(teacher, (0.0, 4.0))).for_steps(4)
    student.net.velocity.transformer.save_pretrained(tmp_path)
    stock = FluxTransformer2DModel.from_pretrained(tmp_path)
    assert stock.config.guidance_embeds
    with pytest.raises(ValueError, match=r"save it alone.*EulerDiscreteScheduler\(shift=3\)"):
        export(student, tmp_path / "pipeline")
    generator = torch.Generator().manual_seed(1)
    z, _, _ = some(channels=2)
    prompt, pooled = torch.randn(4, 5, 12, generator=generator), torch.rand(4, 12)
    ours = last(ddim(student, z, 4, {"prompt": prompt, "pooled": pooled}, 2.5))
    known = euler(stock, z, 4, 3.0, pooled, prompt, torch.full((4,), 3.5))
    torch.testing.assert_close(ours, known, atol=1e-5, rtol=1e-5)


def test_labels_are_words_of_their_own():
    teacher, (z, t, cond) = flow_denoiser(flux(), num_classes=10), some()
    one = torch.eye(12)[cond]
    with torch.no_grad():
        known = teacher.net.velocity(z, t, {"prompt": one[:, None], "pooled": one}, None)
        assert torch.equal(teacher.net.velocity(z, t, cond, None), known)


def test_flow_matching_is_learnt_distilled_interrupted_and_loaded(tmp_path):
    data = cd.load_data("digits", images=40)
    teacher = flow_denoiser(flux(), num_classes=10)
    loss = cd.teacher_loss(10, 0.1, flow_matching)
    errors = [u.loss for u in cd.train(teacher, loss, data, cd.Optim(60, 16, 5e-3, warm_up=5))]
    assert sum(errors[-10:]) < 0.8 * sum(errors[:10])
    guided, few = GuidedDenoiser(teacher, 10), cd.Optim(6, 8, 1e-3)

    def updates(folder):
        student = cd.add_w_conditioning(teacher, (0.0, 4.0))
        matching = cd.stage_one_loss(guided, student.w_range, weighting=flow_matching)
        yield from cd.train(student, matching, data, few, cd.Run("one", folder=folder))
        yield fingerprint(student)

    *_, known = updates(tmp_path / "a")
    run = updates(tmp_path / "b")
    next(run), next(run), run.close()
    *rest, resumed = updates(tmp_path / "b")
    assert len(rest) == 4 and resumed == known
    back = cd.load(tmp_path / "b", device="cpu")
    assert fingerprint(back) == known and back.shape == (1, 8, 8)
    assert back.schedule.describe() == teacher.schedule.describe()
    assert cd.sample(back, [3, 7], w=2.0, steps=2).shape == (2, 1, 8, 8)
