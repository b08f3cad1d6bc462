"""Exported students: stock diffusers loads them, asks once per step, and gets our latents."""

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch
from helpers import CAPTIONS, TINY, Wave, text_unet_of, tiny_mlp, tiny_text_student, unet_of, with_w
from safetensors import SafetensorError

from cfgdistill import Denoiser, ddim, last
from cfgdistill.core.schedules import CosineSchedule
from cfgdistill.data.text import build_text_encoder
from cfgdistill.export.stock import _class_pipeline, export, fold_w, stock_scheduler

STEPS = (1, 2, 4, 8)


def stock(folder, code):
    """Run code with stock diffusers in a process of its own; what it prints as JSON."""
    head = f"import json, sys, torch\nfolder = {str(folder)!r}\n"
    tail = "\nassert 'cfgdistill' not in sys.modules\nprint(json.dumps(result))"
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", head + textwrap.dedent(code) + tail],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
    )
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if "config" in line.lower()]
    assert told == [], told  # no warning about configuration
    return json.loads(done.stdout.splitlines()[-1])


# ---- text to image ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text_student(tmp_path_factory):
    """folder, student, text encoder, autoencoder."""
    student, text, vae = tiny_text_student()
    folder = export(
        student,
        tmp_path_factory.mktemp("text"),
        vae=vae,
        text=text,
        about={"data": "three captions", "updates": 0},
    )
    return folder, student, text, vae


# The code in the card, which comes before all else there, draws a picture.
CARD = """
card = open("README.md").read()
assert card.index("```python") < card.index("Made with")
exec(card.split("```python")[1].split("```")[0])
assert image.size[0] >= 8
"""

SAMPLE = (
    """
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(folder)
pipe.set_progress_bar_config(disable=True)
calls = []
pipe.unet.register_forward_hook(lambda *a: calls.append(1))
z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
result = {"kind": type(pipe).__name__}
for steps in (1, 2, 4, 8):
    how = dict(latents=z, num_inference_steps=steps, guidance_scale=4.0)
    calls.clear()
    latents = pipe(["red apple", "cat face"], output_type="latent", **how).images
    pixels = pipe(["red apple", "cat face"], output_type="pt", **how).images
    nothing = pipe(["red apple", "cat face"], negative_prompt=["cat", "dog"],
                   output_type="latent", **how).images
    result[str(steps)] = [latents.tolist(), pixels.tolist(), len(calls), nothing.tolist()]
"""
    + CARD
)


def test_stock_diffusers_makes_the_same_latents_and_images_with_one_call_per_step(text_student):
    folder, student, text, vae = text_student
    found = stock(folder, SAMPLE)
    assert found["kind"] == "StableDiffusionPipeline"
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    for steps in STEPS:
        ours = last(ddim(student, z, steps, text.tokens(["red apple", "cat face"]), 3.0))
        latents, pixels, calls, with_negative = found[str(steps)]
        torch.testing.assert_close(torch.tensor(latents), ours, atol=1e-4, rtol=0)
        images = (vae.decode(ours) + 1) / 2
        torch.testing.assert_close(torch.tensor(pixels), images, atol=1e-4, rtol=0)
        assert calls == 3 * steps  # three samplings, one call per step each
        assert with_negative == latents  # as the card says


FOLDED = (
    """
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(folder)
pipe.set_progress_bar_config(disable=True)
z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
result = pipe(["red apple", "cat face"], output_type="latent", latents=z, num_inference_steps=4,
              guidance_scale=1.0).images.tolist()
assert pipe.unet.config.time_cond_proj_dim is None
"""
    + CARD
)


def test_with_w_folded_in_stock_diffusers_draws_the_same_without_an_input_for_it(
    text_student, tmp_path
):
    _, student, text, vae = text_student
    folder = export(student, tmp_path / "folded", vae=vae, text=text, w=3.0)
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    ours = last(ddim(student, z, 4, text.tokens(["red apple", "cat face"]), 3.0))
    torch.testing.assert_close(torch.tensor(stock(folder, FOLDED)), ours, atol=1e-4, rtol=0)
    assert "w = 3 for good" in (folder / "README.md").read_text()
    assert student.net.unet.time_embedding.cond_proj is not None  # it has its input still
    with pytest.raises(ValueError, match=r"w = 99 is outside"):
        export(student, tmp_path / "x", vae=vae, text=text, w=99.0)


def test_a_folded_network_is_the_network_at_that_w():
    student, text, _ = tiny_text_student()
    student.double()
    z = torch.randn(3, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t, words = torch.tensor([0.2, 0.6, 1.0]).double(), text.tokens(["red apple"] * 3)
    said = student(z, t, words, torch.full((3,), 2.5)).v
    student.net.unet = fold_w(student.net.unet, 2.5)
    student.w_range = None
    torch.testing.assert_close(student(z, t, words, None).v, said, atol=1e-6, rtol=0)


EDIT = """
from PIL import Image
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
image = Image.new("RGB", (16, 16), "red")
mask = Image.new("L", (16, 16), 0)
mask.paste(255, (0, 0, 8, 16))
result = {}
inpaint = {"mask_image": mask, "height": 16, "width": 16}
for kind, more in ((StableDiffusionImg2ImgPipeline, {}), (StableDiffusionInpaintPipeline, inpaint)):
    pipe = kind.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    calls = []
    pipe.unet.register_forward_hook(lambda *a: calls.append(1))
    out = pipe("cat face", image=image, strength=0.5, num_inference_steps=4, guidance_scale=4.0,
               generator=torch.Generator().manual_seed(0), output_type="pt", **more).images
    result[kind.__name__] = [list(out.shape), len(calls), bool(out.isfinite().all())]
"""


def test_the_same_folder_serves_image_to_image_and_inpainting(text_student):
    found = stock(text_student[0], EDIT)
    assert found == dict.fromkeys(
        ("StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"),
        [[1, 3, 16, 16], 2, True],  # half of four steps
    )


def test_the_card_says_what_a_user_must_know(text_student):
    card = (text_student[0] / "README.md").read_text()
    for fact in (
        "any number of",
        "`guidance_scale` = 1 + w in [1, 9]",
        "Negative prompts have no effect",
        "v-prediction",
        '- data: "three captions"',
        "text-to-image",
        "No safety checker",
        "license: unknown",
    ):
        assert fact in card


# ---- class labels -------------------------------------------------------------------------------


CLASSES = (
    """
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
calls = []
pipe.unet.register_forward_hook(lambda *a: calls.append(1))
z = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(5))
latents = pipe([3, 5, 7], latents=z, guidance_scale=3.0, output_type="latent").images
image = pipe("3", generator=torch.Generator().manual_seed(0)).images[0]
result = [latents.tolist(), len(calls), list(image.size), image.mode]
refused = []
for given in ({"num_inference_steps": 8}, {"guidance_scale": 0}, {"guidance_scale": 5.5},
              {"class_labels": [10]}, {"class_labels": [-1]}, {"class_labels": ["cat"]}):
    try:
        pipe(**{"class_labels": [0], **given})
    except ValueError as error:
        refused.append(str(error))
result.append(refused)
again = folder + "/again"
pipe.save_pretrained(again)
same = DiffusionPipeline.from_pretrained(again, custom_pipeline=again, trust_remote_code=True)
same.set_progress_bar_config(disable=True)
kept = same([3, 5, 7], latents=z, guidance_scale=3.0, output_type="latent").images
result.append(torch.equal(kept, latents))
"""
    + CARD
)


@pytest.mark.parametrize("patch", [1, 2])
def test_class_students_carry_their_pipeline_and_what_it_may_be_asked_with_them(tmp_path, patch):
    recipe = replace(TINY, patch=patch)
    student = with_w(unet_of(recipe, channels=1, size=8, num_classes=10), 4.0).for_steps(4)
    folder = export(student, tmp_path, class_names=tuple("0123456789"))
    latents, calls, size, mode, refused, same = stock(folder, CLASSES)
    z = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    ours = last(ddim(student, z, 4, torch.tensor([3, 5, 7]), 2.0))
    torch.testing.assert_close(torch.tensor(latents), ours, atol=1e-4, rtol=0)
    assert (calls, size, mode, same) == (8, [8, 8], "L", True)
    assert refused == [
        "This network was distilled for num_inference_steps=4, not 8: leave it out.",
        *(f"This network has learnt guidance_scale from 1 to 5, not {w}." for w in ("0", "5.5")),
        *(
            f"There is no class {label}: pass numbers from 0 to 9, or of {', '.join('0123456789')}."
            for label in ("10", "-1", "'cat'")
        ),
    ]
    assert "exactly 4" in (folder / "README.md").read_text()


def test_the_default_guidance_is_one_that_was_learnt():
    student = with_w(unet_of(TINY, channels=1, size=8, num_classes=10), 4.0)
    student.w_range = (2.0, 4.0)
    pipe = _class_pipeline(student, None, ())
    pipe.set_progress_bar_config(disable=True)
    how = dict(latents=torch.randn(2, 1, 8, 8), num_inference_steps=2, output_type="latent")
    assert torch.equal(pipe([1, 2], **how).images, pipe([1, 2], guidance_scale=3.0, **how).images)


# ---- what is written, and where ------------------------------------------------------------------


def test_the_text_encoder_is_written_as_in_every_public_stable_diffusion(text_student):
    from safetensors import safe_open

    with safe_open(text_student[0] / "text_encoder" / "model.safetensors", "pt") as file:
        assert all(key.startswith("text_model.") for key in file.keys())  # noqa: SIM118
    names = {path.name for path in (text_student[0] / "tokenizer").iterdir()}
    assert {"tokenizer.json", "vocab.json", "merges.txt"} <= names
    vocab = json.loads((text_student[0] / "tokenizer" / "vocab.json").read_text())
    assert vocab == text_student[2].tokenizer.get_vocab()


def test_an_export_replaces_an_earlier_one_and_nothing_else(tmp_path):
    student = with_w(unet_of(TINY, channels=1, size=8, num_classes=10), 4.0)
    folder = export(student, tmp_path / "x", about={"take": 1})
    export(student, folder, about={"take": 2})
    assert "take: 2" in (folder / "README.md").read_text()
    assert {path.stat().st_mode & 0o044 for path in folder.rglob("*") if path.is_file()} == {0o044}
    (folder / "mine.txt").write_text("keep")
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "README.md").write_text("somebody's")
    for other, name in ((folder, "mine.txt"), (tmp_path / "y", "README.md")):
        before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
        with pytest.raises(FileExistsError, match=f"it holds {name}. Choose another folder"):
            export(student, other)
        assert before == {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    student = with_w(unet_of(TINY, channels=1, size=8, num_classes=10), 4.0)
    folder = export(student, tmp_path / "x", about={"take": 1})
    before = sorted(tmp_path.rglob("*"))

    def full(*given, **named):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("diffusers.models.modeling_utils.safetensors.torch.save_file", full)
    for place in (folder, tmp_path / "new"):
        with pytest.raises(OSError, match="could not be written .*No space left.*untouched"):
            export(student, place, about={"take": 2})
    assert sorted(tmp_path.rglob("*")) == before
    assert "take: 1" in (folder / "README.md").read_text()


# ---- the schedule, and what is refused ----------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 16])
def test_the_stock_scheduler_walks_our_grid_to_the_same_end(steps):
    schedule = CosineSchedule()
    denoiser, scheduler = Denoiser(Wave(), schedule), stock_scheduler(schedule)
    z = x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scheduler.set_timesteps(steps)
    for k in scheduler.timesteps:
        v = denoiser(x, (k + 1) / 1024).v
        x = scheduler.step(v, k, x).prev_sample
    torch.testing.assert_close(x, last(ddim(denoiser, z, steps)), atol=2e-5, rtol=0)


def test_what_stock_diffusers_could_not_sample_is_not_exported(tmp_path):
    teacher = unet_of(TINY, channels=1, size=8, num_classes=10)
    student = with_w(teacher, 4.0)
    text = build_text_encoder(CAPTIONS, vocabulary=600, length=10, width=32)
    for model, sentence in (
        (teacher, "Only a network with an input for w"),
        (student.for_steps(4, "stochastic"), "Only a network with an input for w"),
        (student.for_steps(4, "ddim_encode"), "samples by DDIM"),
        (tiny_mlp(w_range=(0.0, 4.0)), "Only image models"),
        (with_w(text_unet_of(TINY, channels=4, size=8, text=text.model), 4.0), "pass vae"),
    ):
        with pytest.raises(ValueError, match=sentence):
            export(model, tmp_path / "x")
    with pytest.raises(ValueError, match="takes w itself: leave w out"):
        export(student, tmp_path / "x", w=1.0)
    student.prediction_type = "eps"
    with pytest.raises(ValueError, match="predicts eps"):
        export(student, tmp_path / "x")
    assert not (tmp_path / "x").exists()
