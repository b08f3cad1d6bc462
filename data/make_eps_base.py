"""A small base that poses as Stable Diffusion: eps, on a schedule that does not end in noise.

    python data/make_eps_base.py [out]

Begins with the shipped teacher of the emoji, and is trained to say in eps, on Stable Diffusion's
schedule, what that says in v on its own: less noise in the target than data have, so minutes are
enough. Only what is near the pixels, and what time goes through, is changed: so most of its weights
are the teacher's, and are not shipped twice. Ends as out/emoji-laptop/eps-base, beside copies of
the other shipped models, for `make_pretrained.py out/emoji-laptop`. The recipe `sd/laptop` distils
it; notebook 11 shows the result.
"""

import math
import sys
from dataclasses import asdict

import torch
from diffusers import DDIMScheduler

import cfgdistill as cd
from cfgdistill.core.guidance import drop_condition
from cfgdistill.core.losses import snr, snr_plus_one, weighted_error
from cfgdistill.core.schedules import DiscreteSchedule
from cfgdistill.course import stages
from cfgdistill.course.pretrained import use_pretrained
from cfgdistill.teachers.stable_diffusion import BETAS
from cfgdistill.teachers.unet import TextUNet
from cfgdistill.training.checkpoints import fingerprint, read_card

CHANGED = ("conv_in", "conv_norm_out", "conv_out", "time_emb", "down_blocks.0", "up_blocks.2")
DROP = 0.2  # how often the empty caption is asked about
SHARE = 0.1  # of the error of v; the rest is that of eps, which says little about x near t = 1
MOST = 10.0  # no example counts more in v: at t = 1 that error is 1 / 0.068^2 times eps's


def sd_schedule() -> DiscreteSchedule:
    """That of Stable Diffusion 1.x, which ends at alpha = 0.068."""
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    made_of = {key: scheduler.config[key] for key in BETAS.split()}
    return DiscreteSchedule(scheduler.alphas_cumprod, made_of)


def eps_base(teacher: cd.Denoiser) -> cd.Denoiser:
    """The base before its training: the teacher's weights, of which few are to change."""
    net = TextUNet(teacher.net.unet, teacher.net.text, timesteps=1000)
    net.requires_grad_(False)
    for name, parameter in net.unet.named_parameters():
        parameter.requires_grad_(name.startswith(CHANGED) or "time_emb" in name)
    return cd.Denoiser(net, sd_schedule(), "eps")


def loss_of(teacher: cd.Denoiser, null: torch.Tensor):
    """The squared error of eps, and a share of that of v, against the teacher at equal noise."""

    def loss(base, x, cond, draw):
        t, eps = draw.uniform(), draw.normal(x.shape[1:])
        cond = drop_condition(cond, null, DROP, draw.uniform())
        z, phi = base.schedule.add_noise(x, eps, t), base.schedule.angle(t)
        with torch.no_grad():
            target = teacher(z, 2 / math.pi * phi, cond)  # of the cosine schedule: phi = pi t / 2
        said, logsnr = base(z, t, cond), base.schedule.logsnr(t)
        error, v = (weighted_error(said, target.v, logsnr, how) for how in (snr, snr_plus_one))
        return (1 - SHARE) * error + SHARE * v.clamp_max(MOST)

    return loss


def main(out: str = "out") -> None:
    recipe = use_pretrained(cd.get_recipe("emoji", "laptop"), out)
    data, home = stages.load_recipe_data(recipe, out), stages.home(recipe, out)
    base, teacher = eps_base(cd.load("emoji/teacher")), cd.load("emoji/teacher")
    about = {
        "teacher": read_card(home / "teacher")["sha256"],
        "autoencoder": fingerprint(data.vae),
        "changed": list(CHANGED),
        "drop": DROP,
        "share_of_v": SHARE,
    }
    notes = {"recipe": asdict(recipe)}
    run = cd.Run("eps-base", folder=home / "eps-base", about=about, notes=notes)
    optim = cd.Optim(800, 64, 1.5e-3, ema=0.99)
    for update in cd.train(base, loss_of(teacher, data.null), data, optim, run):
        if update.number % 100 == 0:
            print(f"{update.number} updates, loss {update.loss:.4f}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
