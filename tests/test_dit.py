"""DiT and UNet2DModel of diffusers: teachers as they come, students with an input for w."""

import copy
import json

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    UNet2DConditionModel,
    UNet2DModel,
)
from torch import nn

import cfgdistill as cd
from cfgdistill.data.base import Data
from cfgdistill.export.stock import export
from cfgdistill.training.checkpoints import fingerprint, save_weights
from cfgdistill.training.randomness import seeded

SIZES = dict(num_attention_heads=2, attention_head_dim=8, num_layers=2, norm_num_groups=4)


def filled(net):
    """With what diffusers starts at 0, such as a DiT's gates, at random: all of it works."""
    generator = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 4
    return net.eval()


def dit(size=8, channels=1, classes=10, **changes):
    with seeded(0):
        given = dict(sample_size=size, in_channels=channels, num_embeds_ada_norm=classes)
        net = DiTTransformer2DModel(**{**SIZES, "patch_size": 2, **given, **changes})
    return filled(net)


def unet2d(classes=10, **changes):
    with seeded(0):
        given = dict(sample_size=8, in_channels=1, out_channels=1, num_class_embeds=classes + 1)
        given |= dict(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4)
        given |= dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
        return UNet2DModel(**{**given, "add_attention": False, **changes}).eval()


NETS = {"DiT": (cd.DiT, dit), "UNet2D": (cd.UNet2D, unet2d)}


def teacher(kind):
    own, stock = NETS[kind]
    return cd.Denoiser(own(stock()), cd.CosineSchedule(), num_classes=10).eval()


def some(n=5, channels=1):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, channels, 8, 8, generator=generator)
    return z, torch.rand(n, generator=generator), torch.arange(n) * 2


def moved(student):
    """With projections of w that say something."""
    for key, parameter in student.net.named_parameters():
        if "cond_proj" in key:
            with seeded(7):
                nn.init.normal_(parameter, std=0.1)
    return student


@pytest.mark.parametrize("kind", NETS)
def test_the_network_is_asked_at_diffusers_times_and_what_it_says_is_kept(kind):
    stock, (z, t, cond) = NETS[kind][1](), some()
    with torch.no_grad():
        known = stock(z, 1024 * t - 1, class_labels=cond).sample
        assert torch.equal(teacher(kind)(z, t, cond).v, known)


def test_the_variance_of_a_dit_is_left_out_and_its_own_label_dropout_is_off():
    net, (z, t, cond) = cd.DiT(dit(out_channels=2), timesteps=1000).train(), some()
    known = net.net(z, 1000 * t - 1, class_labels=cond).sample
    assert known.shape == (5, 2, 8, 8)
    assert torch.equal(net(z, t, cond, None), known[:, :1])
    many = [a.repeat_interleave(40, 0) for a in (z, t, cond)]  # of which some would be dropped
    assert torch.equal(net(*many, None), net(*many, None))


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("w_range", [(0.0, 4.0), ((0.0, 4.0), (0.0, 1.0))])
def test_a_fresh_student_is_exactly_the_conditional_teacher_for_every_w(kind, w_range):
    known, (z, t, cond) = teacher(kind), some()
    student = cd.add_w_conditioning(known, w_range)
    w = 3.0 if w_range[0] == 0 else (3.0, 0.5)
    with torch.no_grad():
        for a, b in zip(student(z, t, cond, w), known(z, t, cond), strict=True):
            assert (a - b).abs().max() == 0
    new = student.net.state_dict().keys() - known.net.state_dict().keys()
    assert new and all("cond_proj" in key for key in new)
    assert not known.net.state_dict().keys() - student.net.state_dict().keys()
    student(z, t, cond, w).v.square().sum().backward()
    for key in new:
        assert dict(student.net.named_parameters())[key].grad.abs().max() > 0
    with torch.no_grad():
        assert (moved(student)(z, t, cond, w).v - known(z, t, cond).v).abs().max() > 1e-3


@pytest.mark.parametrize("kind", NETS)
def test_a_student_is_loaded_by_its_folder_alone_and_refuses_a_missing_w(kind, tmp_path):
    student, (z, t, cond) = moved(cd.add_w_conditioning(teacher(kind), (0.0, 4.0))), some()
    save_weights(student, tmp_path, {})
    back = cd.load(tmp_path, device="cpu")
    assert fingerprint(back) == fingerprint(student) and back.shape == (1, 8, 8)
    with torch.no_grad():
        assert torch.equal(back(z, t, cond, 2.5).v, student(z, t, cond, 2.5).v)
    with pytest.raises(ValueError, match="needs a guidance weight"):
        back(z, t, cond)
    with pytest.raises(ValueError, match="takes no w: wrap it"):
        teacher(kind)(z, t, cond, 1.0)
    with pytest.raises(ValueError, match=r"takes \[batch, 1, 8, 8\]"):
        back(z[..., :4], t, cond, 1.0)


@pytest.mark.parametrize("kind", NETS)
def test_an_exported_student_is_stock_diffusers_with_one_file_of_code(kind, tmp_path):
    student = moved(cd.add_w_conditioning(teacher(kind), (0.0, 4.0))).for_steps(4)
    export(student, tmp_path, class_names=tuple("0123456789"))
    part = {"DiT": "transformer", "UNet2D": "unet"}[kind]
    stock = {"DiT": DiTTransformer2DModel, "UNet2D": UNet2DModel}[kind]
    net = stock.from_pretrained(tmp_path, subfolder=part)
    assert max(len(p.weight) for p in net.modules() if isinstance(p, nn.Embedding)) == 11 + 64
    pipe = DiffusionPipeline.from_pretrained(
        tmp_path, custom_pipeline=str(tmp_path), trust_remote_code=True
    )
    pipe.set_progress_bar_config(disable=True)
    z, _, cond = some()
    ours = cd.last(cd.ddim(student, z, 4, cond, 2.5))
    for _ in range(2):  # it leaves its network as it was
        theirs = pipe(cond, latents=z, guidance_scale=3.5, output_type="latent").images
        torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)
    assert pipe("3").images[0].size == (8, 8)
    with pytest.raises(ValueError, match="There is no class 10: pass numbers from 0 to 9"):
        pipe([10])


def test_rows_are_added_to_a_table_of_the_size_that_diffusers_makes_by_default():
    net = cd.DiT(DiTTransformer2DModel(**SIZES, in_channels=1, sample_size=8, patch_size=2))
    net.add_w(1)
    assert net.stock().config.num_embeds_ada_norm == 1000 + 64


# ---- from a pretrained pipeline to a student ------------------------------------------------


def dit_pipeline(folder):
    """As facebook/DiT-XL-2-256, a millionth of its size: eps, a variance, latents, names."""
    with seeded(0):
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            norm_num_groups=4,
        )
    net = dit(channels=4, classes=1000, out_channels=8)
    names = {label: f"thing {label}, word {label}" for label in range(1000)}
    scheduler = DDIMScheduler(beta_schedule="linear", clip_sample=False)
    DiTPipeline(net, vae, scheduler).save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())  # where the published one has it
    (folder / "model_index.json").write_text(json.dumps({**index, "id2label": names}))
    return folder


def test_the_guided_teacher_samples_as_its_pipeline_does(tmp_path):
    pipe = DiTPipeline.from_pretrained(dit_pipeline(tmp_path))
    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True
    )
    pipe.set_progress_bar_config(disable=True)
    model, found = cd.class_denoiser(pipe), []
    pipe.vae.decode, decode = (lambda z: found.append(z) or decode(z)), pipe.vae.decode
    images = pipe(
        [3, 7, 999],
        guidance_scale=2.5,
        num_inference_steps=8,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    z = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    guided = cd.GuidedDenoiser(model, model.num_classes)
    ours = cd.last(cd.ddim(guided, z, 8, torch.tensor([3, 7, 999]), 1.5))
    scale = ours.abs().max()  # eps on a table that ends at 0.0063: errors are relative
    assert (found[0] * pipe.vae.config.scaling_factor - ours).abs().max() < 1e-3 * scale
    assert (model.num_classes, model.prediction_type, model.shape) == (1000, "eps", (4, 8, 8))
    assert torch.allclose(model.meaning.decode(ours) / 2 + 0.5, images, atol=1e-2)
    assert model.meaning.conditions(["thing 5", 7]).tolist() == [5, 7]


def latents(n=40):
    generator = torch.Generator().manual_seed(3)
    stored, labels = torch.randn(n, 4, 8, 8, generator=generator), torch.arange(n) % 10
    return Data("latents", "train", stored, labels, tuple("0123456789"), None)


def test_from_a_pretrained_pipeline_to_a_student_in_fifteen_lines(tmp_path):
    data, out = latents(), tmp_path / "out"
    few = cd.Optim(updates=2, batch=4, rate=1e-4)
    pipe = DiTPipeline.from_pretrained(dit_pipeline(tmp_path / "pretrained"))
    # From here on it is what a reader would write.
    model = cd.class_denoiser(pipe)
    guided = cd.GuidedDenoiser(model, model.num_classes)
    student = cd.add_w_conditioning(model, (0.0, 4.0))
    student.prediction_type = "v"
    loss = cd.stage_one_loss(guided, student.w_range)
    for _ in cd.train(student, loss, data, few, cd.Run("stage-one", folder=out / "one")):
        pass
    run = cd.Run(folder=out / "two")
    for fewer in cd.distill_progressively(student, data, few, run, start=2):  # noqa: B007
        pass
    again = cd.load(out / "two" / "steps-1", device="cpu")
    images = cd.sample(again, ["thing 5", 7], w=2.0)
    export(again, out / "stock")

    assert (again.steps, again.w_range, again.nfe) == (1, (0.0, 4.0), 1)
    assert images.shape == (2, 3, 16, 16) and torch.equal(images, cd.sample(fewer, [5, 7], w=2.0))
    where = str(out / "stock")
    pipe = DiffusionPipeline.from_pretrained(where, custom_pipeline=where, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    z = torch.randn(2, 4, 8, 8)
    known = cd.last(cd.ddim(again, z, 1, torch.tensor([5, 999]), 2.0))
    theirs = pipe([5, 999], latents=z, guidance_scale=3.0, output_type="latent").images
    torch.testing.assert_close(theirs, known, atol=1e-3, rtol=1e-3)
    assert pipe([5]).images[0].size == (16, 16)


def test_a_run_that_was_interrupted_ends_with_the_same_bits(tmp_path):
    guided = cd.GuidedDenoiser(teacher("DiT"), 10)
    data = cd.load_data("digits", images=20)

    def updates(folder):
        student = cd.add_w_conditioning(guided.denoiser, (0.0, 4.0))
        loss, few = cd.stage_one_loss(guided, student.w_range), cd.Optim(4, 4, 1e-3, ema=0.9)
        yield from cd.train(student, loss, data, few, cd.Run("one", folder=folder))
        yield fingerprint(student)

    *_, known = updates(tmp_path / "a")
    run = updates(tmp_path / "b")
    next(run), next(run), run.close()
    *rest, resumed = updates(tmp_path / "b")
    assert [update.number for update in rest] == [3, 4] and resumed == known


@pytest.mark.parametrize("kind", ["UNet2DModel", "UNet2DConditionModel"])
def test_a_pipeline_of_a_unet_with_labels_is_a_teacher_too(kind, tmp_path):
    net = unet2d()
    if kind == "UNet2DConditionModel":
        config = {k: v for k, v in net.config.items() if k in ("sample_size", "num_class_embeds")}
        shared = dict(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4)
        kinds = dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
        channels = dict(in_channels=1, out_channels=1, mid_block_type="UNetMidBlock2D")
        net = UNet2DConditionModel(**config, **shared, **kinds, **channels).eval()
    scheduler = DDIMScheduler(num_train_timesteps=1000, prediction_type="v_prediction")
    DDIMPipeline(net, scheduler).save_pretrained(tmp_path)
    pipe = DDIMPipeline.from_pretrained(tmp_path)
    if kind == "UNet2DConditionModel":  # which the loader of this pipeline does not ask for
        pipe.unet = net
    model, (z, t, cond) = cd.class_denoiser(pipe), some()
    assert (model.prediction_type, model.num_classes) == ("v", 10)
    student = moved(cd.add_w_conditioning(model, (0.0, 4.0)))
    with torch.no_grad():
        assert torch.isfinite(student(z, t, cond, 2.0).v).all()
        assert not torch.equal(student(z, t, cond, 2.0).v, model(z, t, cond).v)
    assert torch.equal(cd.sample(model, [3], w=1.0, steps=2), cd.sample(model, [3], steps=2))


def test_what_cannot_teach_is_told_in_one_sentence():
    pipe = DDIMPipeline(unet2d(), DDIMScheduler())
    for changes, said in (
        (dict(scheduler=FlowMatchEulerDiscreteScheduler()), "no alphas_cumprod.*flow_denoiser"),
        (dict(scheduler=DDIMScheduler(rescale_betas_zero_snr=True)), "ends in pure noise"),
        (dict(unet=unet2d(num_class_embeds=None)), "no table of class labels"),
        (dict(unet=unet2d(out_channels=3)), "turns 1 channels into 3"),
        (dict(unet=unet2d(sample_size=(8, 4))), r"has sample_size \(8, 4\)"),
        (dict(unet=unet2d(time_embedding_type="fourier")), "has fourier time embeddings"),
        (dict(unet=nn.Identity()), "is a Identity without class labels"),
    ):
        other = copy.copy(pipe)
        for name, part in changes.items():
            object.__setattr__(other, name, part)
        with pytest.raises(ValueError, match=said):
            cd.class_denoiser(other)
    with pytest.raises(ValueError, match="Linear does not say how it takes a guidance weight"):
        cd.add_w_conditioning(cd.Denoiser(nn.Linear(2, 2), cd.CosineSchedule()), (0.0, 1.0))
