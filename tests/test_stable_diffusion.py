"""Stable Diffusion as a teacher, on a pipeline of the same parts with random weights."""

import copy
import json
import math
import re
import shutil
import socket
import time
from dataclasses import replace

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from elsewhere import elsewhere

import cfgdistill.training.loop as training
from cfgdistill import Denoiser, GuidedDenoiser, cli, ddim, get_recipe, last, use_pretrained
from cfgdistill.core.losses import snr, teacher_loss
from cfgdistill.core.schedules import DiscreteSchedule
from cfgdistill.core.stage_one import guidance_matching_loss, stage_one_loss
from cfgdistill.course import stages
from cfgdistill.data.autoencoder import VAEEncoder
from cfgdistill.data.captioned import load_captioned
from cfgdistill.data.hub import name_and_revision
from cfgdistill.data.latents import Latents
from cfgdistill.data.prompts import SUBJECTS, prompts
from cfgdistill.data.text import TextEncoder
from cfgdistill.export.lora import export_lora
from cfgdistill.export.single_file import FILE, export_single_file
from cfgdistill.export.stock import export, model_card
from cfgdistill.teachers.files import load
from cfgdistill.teachers.stable_diffusion import (
    OWN_W,
    PART,
    Pipeline,
    base_and_start,
    base_denoiser,
    cached_embeddings,
    load_latents,
    open_pipeline,
    own_latents,
    predicts,
    tiny_pipeline,
    v_schedule,
)
from cfgdistill.teachers.unet import add_lora, open_unet
from cfgdistill.teachers.w_input import add_w_conditioning
from cfgdistill.training.checkpoints import fingerprint, read_card, read_tensors, save_weights
from cfgdistill.training.loop import train
from cfgdistill.training.optim import Optim
from cfgdistill.training.randomness import random_at
from cfgdistill.training.state import Run

CAPTIONS = ["a red apple", "two cats"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_pipeline(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def pipe(base):
    pipe = open_pipeline(base)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def text(pipe):
    return TextEncoder(pipe.tokenizer, pipe.text_encoder)


def embed(text, captions):
    with torch.no_grad():
        return text(text.tokens(captions))


def noise(n=2, seed=5):
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def tiny(base, **changes):
    return get_recipe("sd", "smoke", base=base, **changes)


def new_student(base, **changes):
    """What stage one's student is before its first update, and without an input for w."""
    return base_and_start(tiny(base, **changes))[1]


def moved(denoiser, seed=1):
    """The same denoiser with changes of rank r, and a projection of w, that are no longer 0."""
    generator = torch.Generator().manual_seed(seed)
    for key, p in denoiser.net.named_parameters():
        if "lora_B" in key or "cond_proj" in key:
            p.data = torch.randn(p.shape, generator=generator) / 10
    return denoiser.eval()


def bits(denoiser):
    return {key: p.tolist() for key, p in denoiser.net.state_dict().items()}


def refused(kind, *words):
    """One sentence, on one line, that has all of these words in this order."""
    pattern = ".*".join(map(re.escape, words))
    return pytest.raises(kind, match=rf"(?s)^(?!.*\n).*{pattern}.*\.$")


# ---- what the teacher is --------------------------------------------------------------------


@pytest.mark.parametrize("said", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 5, 20])  # they divide 1000, as stock diffusers needs it
def test_the_guided_base_samples_as_the_stock_pipeline_does(tmp_path, said, steps):
    stock = StableDiffusionPipeline.from_pretrained(tiny_pipeline(tmp_path, prediction_type=said))
    how = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False}
    stock.scheduler = DDIMScheduler.from_config(stock.scheduler.config, **how)
    stock.set_progress_bar_config(disable=True)
    found = stock(
        CAPTIONS,
        latents=noise(),
        num_inference_steps=steps,
        guidance_scale=4.0,
        output_type="latent",
    ).images
    pipe = open_pipeline(str(tmp_path))
    text = TextEncoder(pipe.tokenizer, pipe.text_encoder)
    teacher = GuidedDenoiser(base_denoiser(pipe), embed(text, [""])[0])
    assert teacher.denoiser.prediction_type == {"epsilon": "eps", "v_prediction": "v"}[said]
    ours = last(ddim(teacher, noise(), steps, embed(text, CAPTIONS), 3.0))
    torch.testing.assert_close(ours, found, atol=1e-4, rtol=1e-4)


def test_a_base_comes_back_from_a_folder_with_its_1000_steps_and_its_schedule(pipe, text, tmp_path):
    teacher = base_denoiser(pipe)
    save_weights(teacher, tmp_path, {})
    again, cond = load(tmp_path), embed(text, CAPTIONS)
    assert again.net.timesteps == 1000 and again.prediction_type == "eps"
    assert torch.equal(again.schedule.angles, teacher.schedule.angles)
    assert torch.equal(again(noise(), 0.7, cond).eps, teacher(noise(), 0.7, cond).eps)


def test_the_students_schedule_ends_in_noise_and_follows_the_bases_own(pipe):
    schedule, own = v_schedule(pipe), base_denoiser(pipe).schedule
    assert len(schedule.alphas_cumprod) == 1024
    t = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]).double()
    (alpha, sigma), (known, _) = schedule.alpha_sigma(t), own.alpha_sigma(t)
    assert (alpha[0], sigma[0], alpha[-1], sigma[-1]) == (1, 0, 0, 1)
    # Lin et al.: shift by alpha_1 = 0.0683, scale such that the first entry, 0.99957, stays.
    a0, a1 = own.alphas_cumprod[0].sqrt(), own.alphas_cumprod[-1].sqrt()
    assert a1.item() == pytest.approx(0.06827, abs=1e-4)
    expected = (known[1:-1] - a1) * a0 / (a0 - a1)
    torch.testing.assert_close(alpha[1:-1], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("rank", [0, 4])
def test_the_student_begins_with_the_bases_weights(base, pipe, text, rank):
    student = new_student(base, lora=rank).eval()
    assert student.prediction_type == "v" and student.net.timesteps == 1024
    cond = embed(text, CAPTIONS)
    with torch.no_grad():
        stock = pipe.unet(noise(), 511.0, cond).sample
        torch.testing.assert_close(student(noise(), 0.5, cond).v, stock, atol=1e-6, rtol=0)
        if rank:
            assert (moved(student)(noise(), 0.5, cond).v - stock).abs().max() > 1e-3


@pytest.mark.parametrize("rank", [0, 4])
def test_stage_ones_teacher_is_the_guided_base_at_the_time_of_equal_noise(base, pipe, text, rank):
    teacher, _ = base_and_start(tiny(base, lora=rank))
    cond, empty = embed(text, CAPTIONS), embed(text, [""])[0]
    guided = GuidedDenoiser(teacher, empty)
    own, schedule = base_denoiser(pipe), v_schedule(pipe)
    stock = GuidedDenoiser(own, empty)
    assert guided.schedule.alphas_cumprod[-1] == 0 and stock.schedule.alphas_cumprod[-1] > 0.004
    assert not any(p.requires_grad for p in teacher.parameters())
    with torch.no_grad():
        # Half-way through the base's 1000 entries; the mended schedule is as noisy a bit earlier.
        alpha = pipe.scheduler.alphas_cumprod[499].sqrt().double()
        t = schedule.time(torch.acos(alpha)[None])
        assert t.item() == pytest.approx(0.4746, abs=1e-3)
        for w in (0.0, 3.0):
            found, known = guided(noise(), t.item(), cond, w), stock(noise(), 0.5, cond, w)
            for ours, theirs in zip(found, known, strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
        # Noisier than anything the base knows: the image that it sees at its noisiest.
        x = stock(noise(), 1.0, cond, 3.0).x
        torch.testing.assert_close(guided(noise(), 1.0, cond, 3.0).v, -x, atol=1e-4, rtol=1e-4)


# ---- what is trained, what is kept ----------------------------------------------------------


@pytest.fixture(scope="module")
def data(base, tmp_path_factory):
    return load_latents(tiny(base), tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def out(base, tmp_path_factory):
    """A finished run of all stages with low-rank changes."""
    recipe, folder = tiny(base), tmp_path_factory.mktemp("out")
    list(stages.train_stage_two(recipe, stages.load_recipe_data(recipe, folder), folder))
    return folder / recipe.name


def test_every_stage_keeps_its_changes_alone_and_comes_back_from_its_folder(base, out, data):
    names = ["stage-one", *(f"stage-two/steps-{n}" for n in (4, 2, 1))]
    models = {name: load(out / name) for name in names}
    cond = data.labels[:2]
    for name, model in models.items():
        kept, _ = read_tensors(out / name / "model.safetensors")
        assert all("lora_" in key or "cond_proj" in key for key in kept)
        assert any("cond_proj" in key for key in kept)
        assert any(value.abs().max() > 0 for key, value in kept.items() if "lora_B" in key)
        assert model.prediction_type == "v" and model.schedule.alphas_cumprod[-1] == 0
        assert model.net.unet.config.time_cond_proj_dim == 64
    known = {"stage-one": None, "stage-two/steps-4": 4, "stage-two/steps-1": 1}
    assert {name: models[name].steps for name in known} == known
    # Found again, not trained again: the same network from the stages and from its folder.
    again = next(stages.train_stage_two(tiny(base), data, out.parent))
    ours = again(noise(), 0.5, cond, 3.0).v
    assert torch.equal(ours, models["stage-two/steps-4"](noise(), 0.5, cond, 3.0).v)
    assert not torch.equal(ours, models["stage-one"](noise(), 0.5, cond, 3.0).v)
    about = read_card(out / "stage-one")["about"]
    assert about["teacher"] == load(out / "stage-one").net.sha and about["it says"] == "eps"
    about = read_card(out / "stage-two" / "steps-4")["about"]
    assert about["teacher"] == read_card(out / "stage-one")["sha256"]
    assert not (out / "teacher").exists()  # the base is nobody's student


def test_the_base_stays_bit_for_bit_and_only_changes_and_the_w_projection_move(base, data):
    teacher, start = base_and_start(tiny(base))
    student = add_w_conditioning(start, (0.0, 8.0))
    kept = [(p, p.detach().clone()) for p in teacher.parameters()]
    before = {key: p.detach().clone() for key, p in student.net.named_parameters()}
    guided = GuidedDenoiser(teacher, data.null)
    list(train(student, stage_one_loss(guided, (0.0, 8.0)), data, Optim(2, 2, 1e-3)))
    changed = {k for k, p in student.net.named_parameters() if not torch.equal(p, before[k])}
    assert changed == {k for k in before if "lora_" in k or "cond_proj" in k}
    assert kept and all(torch.equal(p, as_it_was) for p, as_it_was in kept)
    trained = {p.data_ptr() for p in student.parameters() if p.requires_grad}
    every = {p.data_ptr() for p in student.parameters()}
    assert {p.data_ptr() for p in teacher.parameters()} == every - trained  # one base for both


def test_teacher_and_students_stand_on_one_base_and_have_changes_of_their_own(base):
    teacher = moved(new_student(base))
    student = add_w_conditioning(teacher, (0.0, 8.0))
    models = [teacher, student, student.for_steps(4), copy.deepcopy(student)]
    for trains in (False, True):
        places = [
            {p.data_ptr() for p in model.parameters() if p.requires_grad == trains}
            for model in models
        ]
        assert len(set.union(*places)) == (sum(map(len, places)) if trains else len(places[0]))
    before = bits(teacher), bits(student)
    next(p for key, p in models[2].named_parameters() if "lora_B" in key).data += 1
    assert before == (bits(teacher), bits(student)) and bits(models[2]) != bits(student)


def test_low_rank_changes_learn_to_say_in_v_what_the_base_says_in_eps(base, data):
    teacher, start = base_and_start(tiny(base))
    guided = GuidedDenoiser(teacher, data.null)
    student = add_w_conditioning(start, (0.0, 2.0))
    x, cond = data.batch(torch.arange(8))
    w, t = torch.linspace(0, 2, 8), torch.linspace(0.1, 0.8, 8)

    @torch.no_grad()
    def distance():
        return (
            guidance_matching_loss(student, guided, x, cond, w, t, eps=noise(8), weighting=snr)
            .mean()
            .item()
        )

    before = distance()
    loss = stage_one_loss(guided, (0.0, 2.0), weighting=snr)  # errors of eps: the base is random
    list(train(student, loss, data, Optim(60, 8, 1e-2)))
    assert distance() < 0.9 * before


def run(base, data, folder, stop=None):
    teacher = new_student(base)
    how = Optim(5, 2, 1e-2, ema=0.9), Run("teacher", folder=folder)
    updates = train(teacher, teacher_loss(data.null, 0.1), data, *how)
    for update in updates:
        if update.number == stop:
            updates.close()
            break
    return teacher


def test_stopped_and_resumed_is_bit_for_bit_the_uninterrupted_run(base, data, tmp_path):
    run(base, data, tmp_path / "a", stop=2)
    state, _ = read_tensors(tmp_path / "a" / "training.safetensors")
    trained = {k for k in state if k.startswith("net.")}
    assert trained and all("lora_" in key for key in trained)
    numbers = sum(state[key].numel() for key in trained)
    every = sum(value.numel() for value in state.values())
    assert every < 4.1 * numbers  # themselves, two moments of Adam, the average; and no base
    one, other = run(base, data, tmp_path / "a"), run(base, data, tmp_path / "b")
    assert one.net.state_dict().keys() == {key[4:] for key in trained}
    for key, value in one.net.state_dict().items():
        assert torch.equal(value, other.net.state_dict()[key])


def test_without_a_rank_all_weights_are_trained_and_kept(base, data, tmp_path):
    recipe = tiny(base, lora=0, stage_one=1)
    student = stages.train_stage_one(recipe, data, tmp_path)
    folder = tmp_path / "sd-smoke" / "stage-one-lora=0"
    start, again = new_student(base, lora=0).net.state_dict(), load(folder)
    ours = student.net.state_dict()
    kept = read_tensors(folder / "model.safetensors")[0].keys()
    assert {*start, "unet.time_embedding.cond_proj.weight"} == ours.keys() == kept
    assert sum(not torch.equal(ours[key], start[key]) for key in start) > len(start) / 2
    given = noise(), 0.5, data.labels[:2], 3.0
    assert torch.equal(again(*given).v, student(*given).v)


@pytest.mark.parametrize("rank", [0, 4])
def test_another_base_is_another_run(base, data, tmp_path, rank):
    def train_on(name):
        recipe = tiny(str(name), lora=rank, stage_one=1)
        stages.train_stage_one(recipe, data, tmp_path / "out")

    train_on(base)
    with refused(ValueError, "holds another run"):
        train_on(tiny_pipeline(tmp_path / "other", seed=1))
    with refused(ValueError, "holds another run", "'eps' there and 'v' here"):
        train_on(tiny_pipeline(tmp_path / "says v", prediction_type="v_prediction"))
    # The same weights under another name are no other run.
    train_on(tiny_pipeline(tmp_path / "again"))


def test_changes_are_not_added_to_a_base_that_is_another_one_now(tmp_path):
    name = tiny_pipeline(tmp_path / "base")
    save_weights(new_student(name), tmp_path / "student", {})
    load(tmp_path / "student")
    tiny_pipeline(tmp_path / "base", seed=1)
    with refused(ValueError, "is not the one that this model was trained on"):
        load(tmp_path / "student")
    (tmp_path / "base").rename(tmp_path / "gone")
    with refused(OSError, "The U-Net of", "could not be had"):
        load(tmp_path / "student")


@pytest.fixture
def requests(monkeypatch):
    """The hosts that were asked for; none is found."""
    asked = []

    def find(host, *given, **more):
        asked.append(host)
        raise socket.gaierror("no network")

    monkeypatch.setattr(socket, "getaddrinfo", find)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between attempts
    return asked


def test_what_a_card_names_is_never_fetched(out, tmp_path, requests, capsys):
    with pytest.raises(OSError):
        open_unet("owner/of-my-own")
    assert "huggingface.co" in requests  # what I name myself may be fetched
    requests.clear()
    name, folder = "owner/of-the-card", tmp_path / "x" / "sd-smoke" / "stage-two" / "steps-1"
    shutil.copytree(out / "stage-two" / "steps-1", folder)
    text = (folder / "card.json").read_text()
    card = json.loads(text)

    def verb(*words):
        assert cli.main([*words]) == 1
        assert requests == []
        return capsys.readouterr().err.splitlines()[-1]

    sample = ("sample", str(folder), "--prompt", "a cat", "--to", str(tmp_path / "x.png"))
    export = ("export", str(folder), "--to", str(tmp_path / "new"))
    evaluate = ("evaluate", str(folder), "--w", "3", "--n", "4")
    for part, entry, asked in (
        ("meaning", "pipeline", (sample, export)),
        ("recipe", "base", (evaluate,)),
        ("recipe", "source", (evaluate,)),
    ):
        card[part][entry] = name
        (folder / "card.json").write_text(json.dumps(card))
        for words in asked:
            said = verb(*words)
            assert "fetch it first (" in said and name in said
        card = json.loads(text)
    del card["model_sha256"]
    card["model"]["net"]["base"] = name
    (folder / "card.json").write_text(json.dumps(card))
    with refused(OSError, name, "fetch it first (`hf download owner/of-the-card`)"):
        load(folder)
    assert requests == []


# ---- what makes it fit ----------------------------------------------------------------------


def test_a_base_in_half_precision_is_asked_in_it_and_trained_beside_it_in_float32(base, pipe, text):
    net = add_lora(open_pipeline(base).unet, base, 4, half=torch.bfloat16)
    denoiser = moved(add_w_conditioning(Denoiser(net, v_schedule(pipe)), (0.0, 8.0)))
    trained = {p.dtype for p in denoiser.parameters() if p.requires_grad}
    frozen = {p.dtype for p in denoiser.parameters() if not p.requires_grad}
    assert (trained, frozen) == ({torch.float32}, {torch.bfloat16})
    exact = moved(add_w_conditioning(new_student(base), (0.0, 8.0)))
    cond = embed(text, CAPTIONS)
    with torch.no_grad():
        a, b = denoiser(noise(), 0.5, cond, 3.0).v, exact(noise(), 0.5, cond, 3.0).v
    assert a.dtype == torch.float32
    assert 0 < (a - b).abs().max() < 0.05 * b.abs().max()
    denoiser(noise(), 0.5, cond, 3.0).v.square().sum().backward()
    assert all(p.grad is not None for p in denoiser.parameters() if p.requires_grad)


def test_half_precision_checkpointing_and_changes_train_and_resume_together(
    base, data, tmp_path, monkeypatch
):
    monkeypatch.setattr(training, "mixed_precision", lambda device: "bf16")

    def run(folder, stop=None):
        unet = open_pipeline(base).unet
        unet.enable_gradient_checkpointing()
        net = add_lora(unet, base, 4, half=torch.bfloat16)
        before = {k: p.detach().clone() for k, p in net.named_parameters() if not p.requires_grad}
        teacher = Denoiser(net, v_schedule(open_pipeline(base)))
        how = Run("teacher", folder=folder, precision="mixed", device="cpu")
        updates = train(teacher, teacher_loss(data.null, 0.1), data, Optim(4, 2, 1e-2), how)
        for update in updates:
            if update.number == stop:
                updates.close()
                break
        after = dict(teacher.net.named_parameters())
        assert before and all(torch.equal(after[key], value) for key, value in before.items())
        return teacher.net.state_dict()

    run(tmp_path / "a", stop=2)
    one, other = run(tmp_path / "a"), run(tmp_path / "b")
    assert {value.dtype for value in one.values()} == {torch.float32}
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert any(value.abs().max() > 0 for key, value in one.items() if "lora_B" in key)


def test_both_stages_train_in_bfloat16_on_embeddings_that_are_kept_in_float16(
    base, data, tmp_path, monkeypatch
):
    monkeypatch.setattr(training, "mixed_precision", lambda device: "bf16")
    recipe = tiny(base, precision="mixed")
    assert data.labels.dtype == torch.float16
    students = list(stages.train_stage_two(recipe, data, tmp_path))
    assert [student.steps for student in students] == [4, 2, 1]
    assert all(torch.isfinite(p).all() for student in students for p in student.parameters())


def test_checkpointing_keeps_less_and_gives_the_same_gradients(base, text):
    found = {}
    for on in (False, True):
        teacher, kept = moved(new_student(base, checkpointing=on)), []

        def keep(x, kept=kept):
            kept.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            v = teacher(noise(), 0.5, embed(text, CAPTIONS)).v
        v.square().sum().backward()
        grads = {k: p.grad for k, p in teacher.named_parameters() if p.requires_grad}
        found[on] = sum(kept), grads
    assert found[True][0] < found[False][0] / 2
    for key, grad in found[False][1].items():
        torch.testing.assert_close(found[True][1][key], grad)


class CountsInPython(torch.optim.Optimizer):
    """Momentum that, as 8-bit Adam does, counts its steps in Python and shares a table."""

    def __init__(self, groups, rate):
        super().__init__(groups, {"lr": rate, "factor": 1.0})
        self.qmap = torch.linspace(-1, 1, 256)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state["step"] = state.get("step", 0) + 1
                assert type(state["step"]) is int
                moment = 0.9 * state.get("moment", torch.zeros_like(p)) + p.grad
                state["moment"] = moment
                state.setdefault("qmap1", self.qmap)
                p -= group["lr"] * moment / state["step"]


def test_an_optimizer_that_counts_in_python_resumes_too_and_fits_no_other(
    base, data, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(
            Optim, "adam", lambda how, by_name: CountsInPython(by_name.values(), how.rate)
        )
        run(base, data, tmp_path / "a", stop=2)
        one, other = run(base, data, tmp_path / "a"), run(base, data, tmp_path / "b")
        for key, value in one.net.state_dict().items():
            assert torch.equal(value, other.net.state_dict()[key])
        run(base, data, tmp_path / "c", stop=2)
    with refused(ValueError, "optimizer is 'CountsInPython' there and 'AdamW' here"):
        run(base, data, tmp_path / "c")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there 8 bits are possible")
def test_without_a_gpu_eight_bits_are_ordinary_adam():
    trained = {"a": torch.nn.Parameter(torch.zeros(3))}
    assert type(Optim(1, 1, 0.1, eight_bit=True).adam(trained)) is torch.optim.AdamW


# ---- to stock diffusers ---------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 4])
def test_an_exported_student_is_a_plain_pipeline_that_makes_the_same_latents(
    base, pipe, text, tmp_path, rank
):
    student = moved(add_w_conditioning(new_student(base, lora=rank), (0.0, 8.0)))
    student.meaning = Pipeline(base, "full")  # as both stages leave it
    before = {key: value.clone() for key, value in student.net.state_dict().items()}
    export(student, tmp_path, vae=VAEEncoder(pipe.vae), text=text)
    head = (tmp_path / "README.md").read_text().split("---")[1]
    assert "license_name: same-as-base-model" in head
    assert base not in head  # which is a folder on this machine
    after = student.net.state_dict()  # nothing was merged in place
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    stock = StableDiffusionPipeline.from_pretrained(tmp_path)
    stock.set_progress_bar_config(disable=True)
    assert stock.unet.state_dict().keys() - {"time_embedding.cond_proj.weight"} == set(
        pipe.unet.state_dict()
    )
    calls = []
    stock.unet.register_forward_hook(lambda *given: calls.append(1))
    for steps in (1, 2, 4, 8):
        calls.clear()
        how = {"num_inference_steps": steps, "guidance_scale": 4.0}
        found = stock(CAPTIONS, latents=noise(), output_type="latent", **how).images
        ours = last(ddim(student, noise(), steps, embed(text, CAPTIONS), 3.0))
        torch.testing.assert_close(found, ours, atol=1e-4, rtol=1e-4)
        assert len(calls) == steps
    one = stock(CAPTIONS, latents=noise(), output_type="pt", **how).images
    pixels = (VAEEncoder(pipe.vae).decode(ours) + 1) / 2
    torch.testing.assert_close(one, pixels, atol=1e-4, rtol=0)


@pytest.mark.parametrize("w", [0.0, 3.0])
def test_a_lora_file_makes_the_student_of_the_stock_base(base, pipe, text, tmp_path, w):
    student = moved(add_w_conditioning(new_student(base), (0.0, 8.0)))
    export_lora(student, tmp_path, w=w)
    stock = StableDiffusionPipeline.from_pretrained(base)
    stock.set_progress_bar_config(disable=True)
    stock.load_lora_weights(tmp_path)
    stock.scheduler = DDIMScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    calls = []
    stock.unet.register_forward_hook(lambda *given: calls.append(1))
    for steps in (1, 2, 4):
        calls.clear()
        how = {"num_inference_steps": steps, "guidance_scale": 1.0, "output_type": "latent"}
        found = stock(CAPTIONS, latents=noise(), **how).images
        ours = last(ddim(student, noise(), steps, embed(text, CAPTIONS), w))
        other = last(ddim(student, noise(), steps, embed(text, CAPTIONS), 3.0 - w))
        assert len(calls) == steps
        error = (found - ours).abs().max()
        assert error < 4e-3 * ours.abs().max()  # in half precision
        assert error < 0.1 * (other - ours).abs().max()  # so w arrives
    card = (tmp_path / "README.md").read_text()
    for words in ("load_lora_weights", "guidance_scale=1)", "w = 3 for good" if w else "w = 0 for"):
        assert words in card
    assert "the base's own, if" in card and "zero terminal SNR" in card


def test_a_card_names_the_base_on_the_hub_and_its_licence_whatever_was_trained(base):
    for rank in (0, 4):
        student = add_w_conditioning(new_student(base, lora=rank), (0.0, 8.0))
        student.meaning, student.net.base = Pipeline("owner/name@a1b2", "full"), None
        head, rest = model_card(student, {}).split("---\n")[1:]
        assert 'base_model: "owner/name"\n' in head and "same-as-base-model" in head
        assert "its licence holds for them" in rest
        student.meaning = Pipeline("emoji/eps-base", "full")  # which is nowhere on the hub
        assert "base_model:" not in model_card(student, {})


def test_what_is_no_low_rank_change_is_not_written_as_one(base, tmp_path):
    student = add_w_conditioning(new_student(base, lora=0), (0.0, 8.0))
    with refused(ValueError, "all weights of its own", "lora=64"):
        export_lora(student, tmp_path / "x", w=3.0)
    with refused(ValueError, "w = 9 is outside [0, 8]"):
        export_lora(add_w_conditioning(new_student(base), (0.0, 8.0)), tmp_path / "x", w=9.0)
    assert not (tmp_path / "x").exists()


def test_a_pipeline_in_half_precision_is_half_as_large_and_the_student_stays(
    base, pipe, text, tmp_path
):
    student = moved(add_w_conditioning(new_student(base), (0.0, 8.0)))
    how = {"vae": VAEEncoder(pipe.vae), "text": TextEncoder(pipe.tokenizer, pipe.text_encoder)}
    whole, half = (export(student, tmp_path / n, half=n == "half", **how) for n in ("full", "half"))
    for part in ("unet", "vae"):
        file = f"{part}/diffusion_pytorch_model.safetensors"
        assert {t.dtype for t in read_tensors(half / file)[0].values()} == {torch.float16}
        assert (half / file).stat().st_size < 0.6 * (whole / file).stat().st_size
    assert next(pipe.vae.parameters()).dtype == torch.float32
    card = (half / "README.md").read_text()
    assert "import torch\nfrom diffusers" in card and "(folder, torch_dtype=torch.float16)" in card
    stock = StableDiffusionPipeline.from_pretrained(half, torch_dtype=torch.float32)
    stock.set_progress_bar_config(disable=True)
    how = {"num_inference_steps": 2, "guidance_scale": 4.0, "output_type": "latent"}
    found = stock(CAPTIONS, latents=noise(), **how).images
    ours = last(ddim(student, noise(), 2, embed(text, CAPTIONS), 3.0))
    assert (found - ours).abs().max() < 1e-2 * ours.abs().max()


def counting_1000(base, **changes):
    """A student, no longer 0, that counts time as Stable Diffusion and its tools do."""
    start = new_student(base, entries=1000, **changes)
    student = moved(add_w_conditioning(start, (0.0, 8.0)))
    student.meaning = Pipeline(base, "full")
    return student


def test_a_student_may_count_1000_times_and_is_exported_for_8_4_2_and_1_steps(
    base, pipe, text, tmp_path
):
    student, how = counting_1000(base), {"vae": VAEEncoder(pipe.vae), "text": text}
    assert student.net.timesteps == len(student.schedule.alphas_cumprod) == 1000
    stock = StableDiffusionPipeline.from_pretrained(export(student, tmp_path / "stock", **how))
    stock.set_progress_bar_config(disable=True)
    assert stock.scheduler.config.num_train_timesteps == 1000
    for steps in (1, 2, 4, 8):
        asked = {"num_inference_steps": steps, "guidance_scale": 4.0, "output_type": "latent"}
        found = stock(CAPTIONS, latents=noise(), **asked).images
        ours = last(ddim(student, noise(), steps, embed(text, CAPTIONS), 3.0))
        torch.testing.assert_close(found, ours, atol=1e-4, rtol=1e-4)
    with refused(ValueError, "counts in 1000 whole steps", "16 steps lie between"):
        export(student.for_steps(16), tmp_path / "x", **how)
    with refused(ValueError, "entries=1000 and start=16", "start=8"):
        tiny(base, entries=1000, start=16)
    assert not (tmp_path / "x").exists()


def test_a_student_on_the_bases_own_1000_steps_is_not_exported(pipe, text, tmp_path):
    own = base_denoiser(pipe)
    student = add_w_conditioning(Denoiser(own.net, own.schedule, "v"), (0.0, 8.0))
    how = {"vae": VAEEncoder(pipe.vae), "text": text}
    with refused(ValueError, "does not end in noise", "v_schedule"):
        export(student, tmp_path / "x", **how)
    with refused(ValueError, "does not end in noise", "v_schedule"):
        export_single_file(student, tmp_path / "x", w=3.0, **how)
    assert not (tmp_path / "x").exists()


@pytest.fixture(scope="module")
def in_one_file(base, pipe, text, tmp_path_factory):
    """A student, and at w = 3 its single file and the folder for stock diffusers."""
    student, folder = counting_1000(base), tmp_path_factory.mktemp("file")
    how = {"vae": VAEEncoder(pipe.vae), "text": text, "w": 3.0}
    export_single_file(student, folder / "one", half=False, **how)
    return student, folder / "one", export(student, folder / "stock", **how)


def read_back(one, folder):
    """Diffusers finds in the single file what is in the folder for stock diffusers."""
    known = StableDiffusionPipeline.from_pretrained(folder)
    found = StableDiffusionPipeline.from_single_file(str(one / FILE), config=str(folder))
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(known, part).state_dict(), getattr(found, part).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_diffusers_reads_the_single_file_by_the_originals_names(in_one_file):
    read_back(*in_one_file[1:])


def test_names_of_the_single_file_are_those_of_stable_diffusion(in_one_file):
    named = read_tensors(in_one_file[1] / FILE)[0]
    # Of two levels with one layer each: in, a block, halved, a block; two blocks, doubled, two.
    blocks = {k.split(".")[3] for k in named if k.startswith("model.diffusion_model.output_blocks")}
    assert blocks == {"0", "1", "2", "3"}
    for name, shape in {
        "model.diffusion_model.time_embed.0.weight": (128, 32),
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (32, 32),
        "model.diffusion_model.input_blocks.2.0.op.weight": (32, 32, 3, 3),
        "model.diffusion_model.middle_block.1.norm.weight": (64,),
        "model.diffusion_model.output_blocks.1.1.conv.weight": (64, 64, 3, 3),
        "model.diffusion_model.out.2.bias": (4,),
        "first_stage_model.decoder.mid.attn_1.q.weight": (16, 16, 1, 1),
        "first_stage_model.encoder.down.0.downsample.conv.bias": (16,),
        "first_stage_model.quant_conv.weight": (8, 8, 1, 1),
        "cond_stage_model.transformer.text_model.final_layer_norm.weight": (32,),
    }.items():
        assert named[name].shape == shape, name


def test_diffusers_reads_the_single_file_of_a_student_of_2_x(pipe, tmp_path):
    # Linear projections in the U-Net, and OpenCLIP for a text encoder.
    torch.manual_seed(0)
    parts = pipe.components | {
        "unet": type(pipe.unet).from_config({**pipe.unet.config, "use_linear_projection": True}),
        "text_encoder": type(pipe.text_encoder)(
            type(pipe.text_encoder.config)(
                **{**pipe.text_encoder.config.to_dict(), "hidden_act": "gelu"}
            )
        ),
    }
    second = str(tmp_path / "base")
    StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(second)
    opened, student = open_pipeline(second), counting_1000(second)
    text = TextEncoder(opened.tokenizer, opened.text_encoder)
    how = {"vae": VAEEncoder(opened.vae), "text": text, "w": 3.0}
    one = export_single_file(student, tmp_path / "one", half=False, **how)
    read_back(one, export(student, tmp_path / "stock", **how))
    named, width = read_tensors(one / FILE)[0], opened.text_encoder.config.hidden_size
    layer = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"
    assert named[layer].shape == (3 * width, width)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_as_comfyui_samples_it_the_single_file_makes_the_students_latents(in_one_file, text, steps):
    """Its arithmetic, written from its code: ModelSamplingDiscrete with v_prediction and zsnr, the
    scheduler `simple`, Euler in z / alpha at cfg 1."""
    student, one, folder = in_one_file
    found = StableDiffusionPipeline.from_single_file(str(one / FILE), config=str(folder))
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha = (1 - betas).cumprod(0).sqrt()
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    kept = alpha.square()
    kept[-1] = 4.8973451890853435e-08
    sigmas = ((1 - kept) / kept).sqrt()
    entries = [1000 - 1 - int(k * 1000 / steps) for k in range(steps)]
    cond, x = embed(text, CAPTIONS), noise().double() * sigmas[-1]
    for place, k in enumerate(entries):
        sigma = sigmas[k]
        scale = (sigma**2 + 1).sqrt()
        with torch.no_grad():
            v = found.unet((x / scale).float(), k, cond).sample.double()
        denoised = x / scale**2 - v * sigma / scale
        following = sigmas[entries[place + 1]] if place + 1 < steps else 0.0
        x = x + (x - denoised) / sigma * (following - sigma)
    ours = last(ddim(student, noise(), steps, cond, 3.0))
    torch.testing.assert_close(x.float(), ours, atol=1e-3, rtol=1e-3)


def test_a_single_file_says_how_it_is_sampled_and_is_refused_where_it_would_not_work(
    base, pipe, text, in_one_file, tmp_path
):
    card = (in_one_file[1] / "README.md").read_text()
    for words in ("cfg 1", "`simple`", "`v_prediction` and `zsnr`", "w = 3 for good", "1000 train"):
        assert words in card
    assert "```python" not in card
    how = {"vae": VAEEncoder(pipe.vae), "text": text, "w": 3.0}
    with refused(ValueError, "count 1000 times", "entries=1000 and start=8"):
        export_single_file(add_w_conditioning(new_student(base), (0.0, 8.0)), tmp_path / "x", **how)
    emoji = load("emoji/stage-two/steps-4")
    emoji.net.timesteps = 1000
    with refused(ValueError, "Only students of Stable Diffusion 1.x"):
        how |= {"vae": emoji.meaning.vae, "text": emoji.meaning.text, "w": 1.0}
        export_single_file(emoji, tmp_path / "x", **how)
    assert not (tmp_path / "x").exists()
    export_single_file(
        counting_1000(base, lora=0), tmp_path / "half", vae=VAEEncoder(pipe.vae), text=text, w=3.0
    )
    kept = read_tensors(tmp_path / "half" / FILE)[0].values()
    assert {v.dtype for v in kept if v.is_floating_point()} == {torch.float16}


def test_from_the_command_line_a_base_becomes_a_student_a_picture_and_a_stock_folder(
    base, text, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("CI", "1")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    out = tmp_path / "out"
    settings = ["--set", f"base={base}", "--dataset", "sd", "--profile", "smoke", "--out", str(out)]

    def verb(*words):
        assert cli.main([*map(str, words)]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    verb("distill", *settings)
    folder = out / "sd-smoke" / "stage-two" / "steps-2"
    file = tmp_path / "two.safetensors"
    sampled = verb("sample", folder, "--prompt", CAPTIONS[1], "--n", 1, "--w", 3, "--to", file)
    assert sampled["nfe"] == 2
    verb("export", folder, "--to", tmp_path / "stock")
    verb("export", folder, "--to", tmp_path / "lora", "--lora", "--w", 3)
    words = ["export", folder, "--to", tmp_path / "one", "--single-file", "--w", 3]
    assert cli.main([*map(str, words)]) != 0 and "entries=1000" in capsys.readouterr().err
    assert cli.main([*map(str, words[:-2])]) != 0 and "--w" in capsys.readouterr().err
    words[1] = "digits/stage-two/steps-4"
    assert cli.main([*map(str, words)]) == 1 and "count 1000 times" in capsys.readouterr().err
    assert (tmp_path / "lora" / "pytorch_lora_weights.safetensors").exists()
    stock = StableDiffusionPipeline.from_pretrained(tmp_path / "stock")
    stock.set_progress_bar_config(disable=True)
    how = {"num_inference_steps": 2, "guidance_scale": 4.0, "output_type": "pt"}
    z = torch.randn(1, 4, 8, 8, generator=random_at(0, "sample", 0))
    theirs = stock(CAPTIONS[1:], latents=z, **how).images
    ours = (read_tensors(file)[0]["images"] + 1) / 2  # --seed is 0 unless told
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=0)
    assert ours.shape == (1, 3, 16, 16) and ours.std() > 0.01


@pytest.fixture
def paint(out, tmp_path, monkeypatch):
    """`sample` for five images of the one-step student: they, and what was asked on the way."""

    def run():
        seen = {}

        def watched(kind, method):
            def call(part, z, *given, **more):
                said = method(part, z, *given, **more)
                dtype = said.sample.dtype
                seen.setdefault(kind, []).append((len(z), z.device.type, dtype))
                return said

            return call

        with monkeypatch.context() as patch:
            for kind, method in ((UNet2DConditionModel, "forward"), (AutoencoderKL, "decode")):
                patch.setattr(kind, method, watched(method, getattr(kind, method)))
            file = tmp_path / "five.safetensors"
            given = ["--prompt", *CAPTIONS, "--n", "5", "--w", "3", "--to", str(file)]
            assert cli.main(["sample", str(out / "stage-two" / "steps-1"), *given]) == 0
        return read_tensors(file)[0]["images"], seen

    return run


def test_the_command_line_paints_a_few_images_at_once_where_the_model_is(paint, base, monkeypatch):
    known, seen = paint()
    assert [n for n, *_ in seen["forward"]] == [5]
    monkeypatch.setattr("cfgdistill.teachers.stable_diffusion.Pipeline.at_once", 2)
    # diffusers opens files by way of the device that `elsewhere` takes for its own.
    unet, pipe = open_unet(base), open_pipeline(base)
    monkeypatch.setattr("cfgdistill.teachers.unet.open_unet", lambda base: unet)
    monkeypatch.setattr("cfgdistill.teachers.stable_diffusion.open_pipeline", lambda base: pipe)
    with elsewhere():
        few, seen = paint()
    for kind in ("forward", "decode"):
        assert seen[kind] == [(n, "meta", torch.float32) for n in (2, 2, 1)]
    torch.testing.assert_close(few, known, atol=1e-4, rtol=1e-4)


def test_the_command_line_paints_in_half_precision_where_that_is_a_gain(paint, monkeypatch):
    exact, seen = paint()
    half = torch.bfloat16
    for module in ("stable_diffusion", "files"):
        monkeypatch.setattr(f"cfgdistill.teachers.{module}.frozen_dtype", lambda precision: half)
    coarse, seen = paint()
    assert seen == {"forward": [(5, "cpu", half)], "decode": [(5, "cpu", half)]}
    assert 0 < (coarse - exact).abs().max() < 0.1 * exact.abs().max()


# ---- data -----------------------------------------------------------------------------------


def test_latents_and_embeddings_are_those_of_the_stock_pipeline(base, pipe, data):
    images = load_captioned("emoji", size=16, images=8)
    x, _ = images.all()
    with torch.no_grad():
        z = pipe.vae.encode(x).latent_dist.mode() * pipe.vae.config.scaling_factor
        prompts, empty = pipe.encode_prompt(list(images.class_names), "cpu", 1, True)
    assert isinstance(data, Latents) and data.text is None
    torch.testing.assert_close(data.stored, z, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(data.labels, prompts.half(), atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(data.null, empty[0].half(), atol=2e-3, rtol=1e-3)
    assert data.class_names == images.class_names
    decoded = pipe.vae.decode(z[:2] / pipe.vae.config.scaling_factor).sample.clamp(-1, 1)
    torch.testing.assert_close(data.decode(z[:2]), decoded, atol=1e-5, rtol=1e-5)


def test_encoders_are_asked_once_for_the_same_captions_and_images(
    base, text, tmp_path, monkeypatch
):
    first, calls = load_latents(tiny(base), tmp_path), []
    forward, encode = TextEncoder.forward, VAEEncoder.encode
    monkeypatch.setattr(
        TextEncoder, "forward", lambda self, a: (calls.append("text"), forward(self, a))[1]
    )
    monkeypatch.setattr(
        VAEEncoder, "encode", lambda self, a: (calls.append("image"), encode(self, a))[1]
    )
    again = load_latents(tiny(base), tmp_path)
    assert calls == [] and again.hash == first.hash
    load_latents(tiny(base, images=5), tmp_path)
    assert set(calls) == {"text", "image"} and len(list(tmp_path.glob("*.safetensors"))) == 4
    calls.clear()
    captions = [*first.class_names, ""]
    assert len(cached_embeddings(text, captions, tmp_path)) == 9 and calls == []
    with torch.no_grad():
        other = TextEncoder(text.tokenizer, open_pipeline(base).text_encoder)
        next(other.parameters()).add_(1)
    cached_embeddings(other, captions, tmp_path)
    assert calls == ["text"]


@pytest.mark.parametrize("changes", [{}, {"lora": 0}, {"data_free": 1}])
def test_another_cpus_last_bits_make_neither_other_data_nor_another_student(
    base, tmp_path, monkeypatch, changes
):
    recipe = tiny(base, stage_one=1, images=3, **changes)
    data = load_latents(recipe, tmp_path / "data")
    stages.train_stage_one(recipe, data, tmp_path)

    def shaken(method):
        return lambda *given: method(*given) + 1e-4

    monkeypatch.setattr(VAEEncoder, "encode", shaken(VAEEncoder.encode))
    monkeypatch.setattr(TextEncoder, "forward", shaken(TextEncoder.forward))
    monkeypatch.setattr(DiscreteSchedule, "angle", shaken(DiscreteSchedule.angle))
    monkeypatch.setattr("cfgdistill.teachers.stable_diffusion.last", shaken(last))
    add = add_lora

    def add_shaken(*given, **how):  # LoRA's changes start with random numbers
        net = add(*given, **how)
        torch._foreach_add_([p.data for p in net.parameters() if p.requires_grad], 1e-4)
        return net

    monkeypatch.setattr("cfgdistill.teachers.stable_diffusion.add_lora", add_shaken)
    shaken_data = load_latents(recipe, tmp_path / "shaken")
    assert not torch.equal(shaken_data.stored, data.stored)
    assert not torch.equal(shaken_data.labels, data.labels)
    assert shaken_data.hash == data.hash
    monkeypatch.setattr("cfgdistill.training.loop.State", None)  # nothing is trained
    stages.train_stage_one(recipe, shaken_data, tmp_path)


def test_without_images_the_base_paints_its_own_as_the_stock_pipeline_would(base, pipe, tmp_path):
    data = load_latents(tiny(base, data_free=5, images=3, seed=7), tmp_path)
    shape = (4, 8, 8)
    z = torch.stack([torch.randn(shape, generator=random_at(7, "own", i)) for i in range(3)])
    how = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False}
    stock = StableDiffusionPipeline(
        **pipe.components | {"scheduler": DDIMScheduler.from_config(pipe.scheduler.config, **how)},
        requires_safety_checker=False,
    )
    stock.set_progress_bar_config(disable=True)
    found = stock(
        list(data.class_names),
        latents=z,
        num_inference_steps=5,
        guidance_scale=7.5,
        output_type="latent",
    ).images
    torch.testing.assert_close(data.stored, found, atol=1e-2, rtol=1e-2)  # embeddings in half


def test_own_samples_are_kept_in_parts_under_all_that_they_depend_on(pipe, text, tmp_path):
    captions = [f"{i} apples" for i in range(PART + 2)]
    conds = embed(text, captions)
    teacher = GuidedDenoiser(base_denoiser(pipe), embed(text, [""])[0])

    def paint(rows=slice(None), **more):
        teacher.nfe = 0
        how = {"steps": 1, "made_of": [*captions[rows], ""]} | more
        # The last bits of embeddings, another CPU's own, make no other samples.
        near = torch.nextafter(conds[rows], torch.full([], 9.0)) if more else conds[rows]
        return own_latents(teacher, near, tmp_path, **how), teacher.nfe

    some, nfe = paint(slice(PART))  # stopped after the first part
    assert nfe == 2 and list(some.shape) == [PART, 4, 8, 8]
    every, nfe = paint()
    assert nfe == 2 and torch.equal(every[:PART], some)  # only the second part was missing
    assert torch.equal(paint()[0], every) and paint()[1] == 0
    for other in ({"seed": 1}, {"w": 2.0}, {"steps": 2}):
        painted, nfe = paint(**other)
        assert nfe == 4 * other.get("steps", 1) and not torch.equal(painted, every)
    assert paint(w=OWN_W, seed=0)[1] == 0
    said, teacher.denoiser.prediction_type = teacher.denoiser.prediction_type, "v"
    assert paint()[1] == 4  # the same weights, which now mean something else
    teacher.denoiser.prediction_type = said
    same, made_of = conds[:1].repeat(2 * PART, 1, 1), [captions[0]] * 2 * PART
    alike = own_latents(teacher, same, tmp_path, steps=1, made_of=[*made_of, ""])
    assert len(alike.flatten(1).unique(dim=0)) == 2 * PART  # one caption, but no noise twice


def test_captions_in_a_file_are_enough_where_the_base_paints(base, text, tmp_path):
    lines = [f"{i} apples" for i in range(12)]
    (tmp_path / "captions.txt").write_text("\n".join([*lines, "", " "]))
    recipe = tiny(base, source=str(tmp_path / "captions.txt"), data_free=1, images=None)
    data = load_latents(recipe, tmp_path)
    assert data.class_names == (*lines[:9], *lines[10:]) and len(data) == 11
    torch.testing.assert_close(data.labels, embed(text, data.class_names).half())
    assert load_latents(recipe, tmp_path, "test").class_names == ("9 apples",)
    assert load_latents(replace(recipe, images=2), tmp_path).class_names == ("0 apples", "1 apples")
    x, cond = data.batch(torch.tensor([3, 10]))
    assert list(x.shape) == [2, 4, 8, 8] and torch.equal(cond[1], data.labels[10])
    with refused(ValueError, "has captions and no images: set data_free=20"):
        load_latents(replace(recipe, data_free=0), tmp_path)
    with refused(OSError, "could not be read"):
        load_latents(replace(recipe, source="none.txt"), tmp_path)
    (tmp_path / "captions.txt").write_text("one")
    with refused(ValueError, "has no caption for the split 'test'"):
        load_latents(recipe, tmp_path, "test")


def test_prompts_are_many_distinct_and_those_held_out_name_other_things(base, tmp_path):
    train, test = prompts(), prompts("test")
    assert len(set(train)) == 4000 and len(set(test)) == 400
    assert train == prompts() and set(prompts(seed=1)) != set(train)
    subjects = {
        split: {s for s in SUBJECTS if any(s in p for p in of)}
        for split, of in (("train", train), ("test", test))
    }
    assert len(subjects["train"]) == 54 and len(subjects["test"]) == 6
    assert not subjects["train"] & subjects["test"]
    assert not any("  " in p or "{" in p or len(p.split()) > 25 for p in train + test)
    recipe = tiny(base, source="prompts", data_free=1, images=3)
    assert load_latents(recipe, tmp_path).class_names == train[:3]
    assert load_latents(recipe, tmp_path, "test").class_names == test[:3]
    with refused(ValueError, "has captions and no images: set data_free=20"):
        load_latents(replace(recipe, data_free=0), tmp_path)


def test_a_real_base_is_never_shown_emoji():
    assert get_recipe("sd", "colab").source == "prompts" and get_recipe("sd", "colab").data_free


# ---- one sentence ---------------------------------------------------------------------------


def test_a_name_that_leads_nowhere_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with refused(OSError, "'nobody/nothing' could not be had", "`hf download nobody/nothing`"):
        open_pipeline("nobody/nothing")
    with refused(OSError, "could not be had"):
        open_pipeline(str(tmp_path))


def edited(base, folder, file, **changes):
    """A copy of the tiny pipeline with other entries in one of its json files."""
    open_pipeline(base).save_pretrained(folder)
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return str(folder)


@pytest.mark.parametrize("kind", ["StableDiffusionXLPipeline", "StableDiffusionInpaintPipeline"])
def test_other_pipelines_are_not_stable_diffusion_1_or_2(base, tmp_path, kind):
    name = edited(base, tmp_path, "model_index.json", _class_name=kind)
    with refused(ValueError, kind, "two text encoders"):
        open_pipeline(name)


def test_a_unet_with_other_inputs_is_told(base, pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    for changes, words in (
        ({"in_channels": 9}, ("takes 9 channels and gives 4", "inpainting")),
        ({"time_cond_proj_dim": 64}, ("has an input for w", "student already")),
    ):
        unet = UNet2DConditionModel.from_config(dict(pipe.unet.config) | changes)
        unet.save_pretrained(tmp_path / "unet")
        with refused(ValueError, *words):
            open_pipeline(str(tmp_path))


def test_a_schedule_that_is_not_one_of_noise_levels_is_told(base, tmp_path):
    name = edited(base, tmp_path, "scheduler/scheduler_config.json", prediction_type="flow")
    with refused(ValueError, "no prediction type 'flow'", "epsilon, v_prediction, sample"):
        open_pipeline(name)
    FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path / "scheduler")
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with refused(ValueError, "FlowMatchEulerDiscreteScheduler", "no alphas_cumprod"):
        open_pipeline(name)


def test_eps_on_a_schedule_that_ends_in_pure_noise_is_refused(base, tmp_path):
    """Of z = eps and eps nothing can be said about x: at alpha_1 = 0 it is 0 / 0."""
    file = "scheduler/scheduler_config.json"
    name = edited(base, tmp_path, file, rescale_betas_zero_snr=True, _class_name="DDIMScheduler")
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "DDIMScheduler"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with refused(ValueError, "pure noise", "prediction_type or rescale_betas_zero_snr"):
        open_pipeline(name)
    scheduler = json.loads((tmp_path / file).read_text()) | {"prediction_type": "v_prediction"}
    (tmp_path / file).write_text(json.dumps(scheduler))
    open_pipeline(name)


def test_latents_of_a_base_that_paints_nonsense_are_not_kept(pipe, text, tmp_path, monkeypatch):
    teacher = GuidedDenoiser(base_denoiser(pipe), embed(text, [""])[0])
    how = {"steps": 1, "made_of": ["a"] * (len(CAPTIONS) + 1)}
    for value in (21_915.0, float("inf"), float("nan")):
        painted = torch.full((len(CAPTIONS), 4, 8, 8), value)
        monkeypatch.setattr(
            "cfgdistill.teachers.stable_diffusion.last", lambda states, x=painted: x
        )
        with refused(ValueError, "paints latents of size", "check the prediction_type"):
            own_latents(teacher, embed(text, CAPTIONS), tmp_path, **how)
    assert not list(tmp_path.glob("*.safetensors"))


def test_files_in_half_precision_alone_are_opened_in_float32(base, pipe, tmp_path):
    half = StableDiffusionPipeline.from_pretrained(base).to(dtype=torch.float16)
    half.save_pretrained(tmp_path, variant="fp16")
    found = open_pipeline(str(tmp_path))
    for part in ("unet", "vae", "text_encoder"):
        mine, theirs = getattr(found, part).state_dict(), getattr(pipe, part).state_dict()
        for key, value in theirs.items():
            assert mine[key].dtype == value.dtype
            if value.is_floating_point():
                assert torch.equal(mine[key], value.half().float())
    assert not list(tmp_path.rglob("*model.safetensors"))
    assert torch.equal(open_unet(str(tmp_path)).conv_in.weight, found.unet.conv_in.weight)


def test_a_revision_stands_behind_the_name(monkeypatch, tmp_path):
    asked = []

    def ask(name, **how):
        asked.append((name, how["revision"]))
        raise OSError("not here\nsay this")

    monkeypatch.setattr("diffusers.StableDiffusionPipeline.load_config", ask)
    monkeypatch.setattr("diffusers.UNet2DConditionModel.from_pretrained", ask)
    for base in ("owner/name@0a1b", "owner/name"):
        with refused(OSError, "could not be had", "say this"):
            open_pipeline(base)
        with refused(OSError, "could not be had"):
            open_unet(base)
    (tmp_path / "a@b").mkdir()
    assert name_and_revision(str(tmp_path / "a@b")) == (str(tmp_path / "a@b"), None)
    assert asked[0] == asked[1] == ("owner/name", "0a1b") and asked[-1] == ("owner/name", None)


def test_a_recipe_that_cannot_be_run_is_told_before_any_work(base, data, tmp_path, capsys):
    for recipe, words in (
        (get_recipe("sd", "smoke"), ("needs a pipeline: pass base=",)),
        (tiny(base, size=64), ("makes images of 16 x 16", "says 64: pass size=16")),
    ):
        with refused(ValueError, *words):
            stages.load_recipe_data(recipe, tmp_path)
    for changes in ({"prediction_type": "eps"}, {"pretrained": False}):
        with refused(ValueError, "say v and start with its weights"):
            stages.train_stage_one(tiny(base, **changes), data, tmp_path)
    with refused(ValueError, "the base itself", "go on with `distill`"):
        stages.train_teacher(tiny(base), data, tmp_path)
    words = ["--set", f"base={base}", "--dataset", "sd", "--profile", "smoke"]
    assert cli.main(["train", *words, "--out", str(tmp_path)]) == 1
    assert "nothing of it is trained" in capsys.readouterr().err
    with refused(ValueError, "no judge for sd: use metrics.clip_score"):
        stages.train_classifier(tiny(base), data, tmp_path)
    assert not list(tmp_path.iterdir())


# ---- a base with real pictures ----------------------------------------------------------------

SMALL = "emoji/eps-base"
NAMES = ["red heart", "green apple", "cat face", "castle", "octopus", "angry face", "rainbow"]


def test_the_shipped_base_poses_as_stable_diffusion(tmp_path):
    pipe = open_pipeline(SMALL)
    kept = pipe.scheduler.alphas_cumprod
    assert predicts(pipe) == "eps" and len(kept) == 1000
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    torch.testing.assert_close(kept.double(), (1 - betas).cumprod(0), atol=1e-6, rtol=1e-5)
    # A folder that it writes is opened as any other, and is the same base.
    pipe.save_pretrained(tmp_path)
    again = open_pipeline(str(tmp_path))
    for part in ("unet", "vae", "text_encoder"):
        assert fingerprint(getattr(again, part)) == fingerprint(getattr(pipe, part))
    assert fingerprint(open_unet(SMALL)) == fingerprint(pipe.unet)
    assert base_denoiser(again).schedule.made_of == base_denoiser(pipe).schedule.made_of


def test_the_shipped_base_says_in_eps_what_the_teacher_says_in_v():
    base, teacher = base_denoiser(open_pipeline(SMALL)), load("emoji/teacher", "cpu")
    tokens = teacher.meaning.conditions(NAMES)
    text = teacher.net.text
    z = torch.randn(len(NAMES), *base.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        embedded = text(tokens).last_hidden_state
        for t in (0.2, 0.5, 0.8):
            phi = base.schedule.angle(torch.tensor([t]))
            own, said = base(z, t, embedded), teacher(z, 2 / math.pi * phi.item(), tokens)
            assert (own.eps - said.eps).square().mean() < 0.05 * said.eps.square().mean()
            shuffled = base(z, t, embedded.flip(0)).x
            assert (own.x - said.x).square().mean() < 0.2 * (shuffled - own.x).square().mean()


@pytest.mark.parametrize("name", ["digits/teacher", "emoji/stage-two/steps-4", "emoji/teacher"])
def test_another_shipped_model_is_no_base(name):
    with refused(ValueError, name, "is no pipeline", "emoji/eps-base"):
        open_pipeline(name)


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """The recipe of the shipped base, its data, and a place with copies of its students."""
    folder = tmp_path_factory.mktemp("walked")
    recipe = use_pretrained(get_recipe("sd", "laptop"), folder)
    return recipe, stages.load_recipe_data(recipe, folder), folder


def test_shipped_students_of_a_base_are_found_and_not_trained_on_any_processor(walked, monkeypatch):
    recipe, data, folder = walked
    monkeypatch.setattr(Optim, "adam", None)
    assert stages.train_stage_one(recipe, data, folder).w_range == (0.0, 2.0)
    found = list(stages.train_stage_two(recipe, data, folder))
    assert [student.steps for student in found] == [8, 4, 2, 1]


def test_students_of_the_shipped_base_draw_what_it_draws_and_obey(walked):
    _, data, _ = walked
    base = GuidedDenoiser(base_denoiser(open_pipeline(SMALL)), data.null)
    rows = torch.tensor([data.class_names.index(name) for name in NAMES])
    z = torch.randn(len(NAMES), *data.shape, generator=torch.Generator().manual_seed(2))

    def drawn(model, steps, w):
        return data.decode(last(ddim(model, z, steps, data.labels[rows], w)))

    def far(a, b):
        return (a - b).square().mean().sqrt().item()

    truth = {w: drawn(base, 25, w) for w in (0.0, 2.0)}
    for steps in (8, 4, 2, 1):
        student = load(f"sd/stage-two/steps-{steps}", "cpu")
        for w, other in ((0.0, 2.0), (2.0, 0.0)):
            mine = drawn(student, steps, w)
            assert far(mine, truth[w]) < min(far(mine, truth[other]), far(mine, truth[w].flip(0)))
    # What the teacher cannot do at all.
    assert far(drawn(student, 1, 0.0), truth[0.0]) < 0.7 * far(drawn(base, 1, 0.0), truth[0.0])
