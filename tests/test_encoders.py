"""Latents and text: what goes in comes out, scaled as measured, and is kept on disk."""

import math
import string
import warnings
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from helpers import text_unet_of

from cfgdistill import Denoiser, GuidedDenoiser, get_recipe
from cfgdistill.data.autoencoder import (
    Autoencoder,
    VAEEncoder,
    _ThereAndBack,
    autoencoder_loss,
    psnr,
)
from cfgdistill.data.base import Data
from cfgdistill.data.latents import Latents, cached_latents
from cfgdistill.data.text import TextEncoder, build_text_encoder
from cfgdistill.teachers.files import load
from cfgdistill.teachers.w_input import add_w_conditioning
from cfgdistill.training.checkpoints import save_weights
from cfgdistill.training.loop import train
from cfgdistill.training.optim import Optim
from cfgdistill.training.randomness import Draw
from cfgdistill.training.state import Run

CAPTIONS = ["red apple", "green apple", "cat face", "blue heart", "grinning cat with smiling eyes"]


def kl():
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=3,
    )


def tiny():
    torch.manual_seed(0)
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=3,
    )


def images(n=12, seed=0):
    stored = torch.randint(0, 256, (n, 3, 16, 16), generator=torch.Generator().manual_seed(seed))
    return Data("noise", "train", stored.to(torch.uint8), torch.zeros(n).long(), ("a",), 255)


@pytest.fixture(scope="module")
def text():
    return build_text_encoder(CAPTIONS, vocabulary=600, length=10, width=32)


# ---- latents ------------------------------------------------------------------------------------


@pytest.mark.parametrize("vae", [kl, tiny])
def test_measured_latents_have_variance_1_and_where_they_may_be_shifted_mean_0(vae):
    x, _ = images().all()
    encoder = VAEEncoder.measured(vae(), x.split(5))
    z = encoder.encode(x)
    assert list(z.shape) == [12, 3, 8, 8]
    if vae is kl:
        assert z.mean((0, 2, 3)).abs().max() < 1e-5
        assert z.square().mean().item() == pytest.approx(1, abs=1e-4)
    else:  # its decoder squashes around 0
        assert encoder.shift.abs().max() == 0
        assert z.square().mean().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("vae", [kl, tiny])
def test_scale_and_shift_change_no_reconstruction(vae):
    x, _ = images().all()
    vae = vae()
    plain, measured = VAEEncoder(vae, scale=1.0), VAEEncoder.measured(vae, [x])
    assert measured.scale != pytest.approx(1, abs=0.01)
    torch.testing.assert_close(
        measured.decode(measured.encode(x)), plain.decode(plain.encode(x)), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("vae", [kl, tiny])
def test_stock_code_with_the_folded_autoencoder_has_the_same_latents_and_images(vae):
    x, _ = images().all()
    encoder = VAEEncoder.measured(vae(), [x])
    stock, before = encoder.folded(), encoder.vae.state_dict()
    found = stock.encode(x)
    z = found.latents if vae is tiny else found.latent_dist.mode()
    ours = encoder.encode(x)
    torch.testing.assert_close(z * stock.config.scaling_factor, ours, atol=1e-5, rtol=1e-5)
    decoded = stock.decode(ours / stock.config.scaling_factor).sample.clamp(-1, 1)
    torch.testing.assert_close(decoded, encoder.decode(ours), atol=1e-5, rtol=1e-5)
    assert all(torch.equal(before[key], value) for key, value in encoder.vae.state_dict().items())


def shifted(**quant):
    """Like that of Stable Diffusion 3 and FLUX, which name a shift in their configuration."""
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8,),
        norm_num_groups=4,
        latent_channels=3,
        scaling_factor=1.5,
        shift_factor=0.25,
        **quant,
    )


@pytest.mark.parametrize("quant", [{}, {"use_quant_conv": False, "use_post_quant_conv": False}])
def test_an_autoencoder_that_names_its_shift_has_it_and_stock_code_the_same_latents(quant):
    x, _ = images(2).all()
    vae = shifted(**quant)
    encoder, z = VAEEncoder(vae), vae.encode(x).latent_dist.mode()
    torch.testing.assert_close(encoder.encode(x), (z - 0.25) * 1.5)
    torch.testing.assert_close(encoder.decode(encoder.encode(x)), vae.decode(z).sample.clamp(-1, 1))
    for made in (encoder, VAEEncoder(vae, torch.zeros(3))):  # with its own shift, and with none
        stock = made.folded()
        z = stock.encode(x).latent_dist.mode() - (stock.config.shift_factor or 0)
        torch.testing.assert_close(z * stock.config.scaling_factor, made.encode(x))
    other = VAEEncoder(vae, torch.tensor([0.1, 0.2, 0.3]))
    if quant:
        with pytest.raises(ValueError, match="no 1 x 1 convolutions"):
            other.folded()
    else:
        z = other.folded().encode(x).latent_dist.mode()
        torch.testing.assert_close(z * 1.5, other.encode(x))
        assert not other.folded().config.shift_factor


def test_an_autoencoder_in_half_precision_encodes_and_decodes_and_is_left_as_it_was():
    vae = kl().bfloat16().train()
    x, _ = images(2).all()
    encoder = VAEEncoder(vae)
    z = encoder.encode(x)
    assert z.dtype == encoder.decode(z).dtype == torch.float32
    assert vae.training and all(p.requires_grad for p in vae.parameters())


def test_images_are_decoded_in_parts_that_grow_smaller_as_they_grow_larger(monkeypatch):
    parts = []
    monkeypatch.setattr(VAEEncoder, "decode", lambda self, z: parts.append(len(z)) or z)
    few = {"name": "x", "split": "train", "stored": torch.zeros(1), "labels": torch.zeros(1)}
    few |= {"class_names": ("a",), "levels": None, "pictures": images(), "empty": torch.zeros(1)}
    data = Latents(**few, vae=VAEEncoder(kl()))
    for n, side in ((70, 8), (70, 16), (9, 64), (2, 512)):
        assert len(data.decode(torch.zeros(n, 1, side, side))) == n
    assert parts == [64, 6, 64, 6, 4, 4, 1, 1, 1]


class Words(TextEncoder):
    """Every caption is one token: its first letter."""

    def __init__(self):
        torch.nn.Module.__init__(self)

    def tokens(self, captions):
        return torch.tensor([[ord(caption[0])] for caption in captions])

    null = torch.tensor([0])


def test_training_shows_further_captions_as_often_as_asked_and_each_equally_often(tmp_path):
    pictures = Data(
        "some",
        "train",
        torch.zeros(3, 3, 16, 16, dtype=torch.uint8),
        torch.arange(3),
        ("A", "B", "C"),
        255,
        also=(("u", "v", "w", "x"), ("y", "z"), ()),
    )
    data = Latents.of(pictures, VAEEncoder(kl()), Words(), tmp_path, share=0.4)
    u = (torch.arange(1000) + 0.5) / 1000
    shown = {}
    for row in range(3):
        _, cond = data.batch(torch.full((1000,), row), u)
        letters, counts = cond.flatten().unique(return_counts=True)
        shown[row] = dict(zip(map(chr, letters.tolist()), counts.tolist(), strict=True))
    assert shown[0] == {"A": 600, "u": 100, "v": 100, "w": 100, "x": 100}
    assert shown[1] == {"B": 600, "y": 200, "z": 200} and shown[2] == {"C": 1000}
    _, cond = data.batch(torch.arange(3))
    assert cond.flatten().tolist() == [ord(c) for c in "ABC"]
    assert data.fits("A").tolist() == [True, False, False]
    assert data.fits("z").tolist() == [False, True, False] and not data.fits("q").any()
    plain = Latents.of(pictures, data.vae, Words(), tmp_path)
    assert plain.fits("C").tolist() == [False, False, True] and not plain.fits("z").any()
    assert plain.hash != data.hash and plain.images.hash == data.images.hash
    _, cond = plain.batch(torch.arange(3), torch.zeros(3))
    assert cond.flatten().tolist() == [ord(c) for c in "ABC"]


def test_scale_and_shift_are_where_the_autoencoder_is():
    encoder = VAEEncoder(kl().to("meta"), torch.ones(3), 2.0)  # in the place of a GPU
    assert encoder.shift.device.type == "meta"
    x = torch.zeros(2, 3, 16, 16, device="meta")
    assert encoder.decode(encoder.encode(x)).shape == x.shape


def test_latents_are_computed_once_for_these_images_and_these_weights(tmp_path, monkeypatch):
    data, encoder = images(), VAEEncoder(kl(), scale=2.0)
    first = cached_latents(encoder, data, tmp_path, batch=5)
    assert torch.equal(first[:5], encoder.encode(data.all()[0][:5]))
    calls = []
    encode = VAEEncoder.encode
    monkeypatch.setattr(
        VAEEncoder, "encode", lambda self, x: (calls.append(len(x)), encode(self, x))[1]
    )
    assert torch.equal(cached_latents(encoder, data, tmp_path), first) and calls == []
    cached_latents(encoder, images(seed=1), tmp_path)
    cached_latents(VAEEncoder(kl(), scale=3.0), data, tmp_path)
    with torch.no_grad():
        encoder.vae.quant_conv.bias += 1
    assert not torch.equal(cached_latents(encoder, data, tmp_path), first)
    assert calls == [12, 12, 12] and len(list(tmp_path.glob("*.safetensors"))) == 4


def test_the_autoencoder_learns_images_it_can_hold():
    # Two-coloured images, which 4 numbers per 2 x 2 pixels hold with room to spare.
    generator = torch.Generator().manual_seed(0)
    halves = torch.randint(0, 256, (64, 3, 1, 2), generator=generator).repeat_interleave(8, 3)
    data = Data(
        "halves",
        "train",
        halves.expand(-1, -1, 16, -1).to(torch.uint8).contiguous(),
        torch.zeros(64).long(),
        ("a",),
        255,
    )
    torch.manual_seed(0)
    model = Autoencoder((16, 16))
    x, _ = data.all()
    before = psnr(VAEEncoder(model.net.vae).decode(VAEEncoder(model.net.vae).encode(x)), x)
    run = train(model, autoencoder_loss, data, Optim(250, 16, 5e-3), Run("vae"))
    losses = [u.loss for u in run]
    encoder = VAEEncoder.measured(model.net.vae, [x])
    after = psnr(encoder.decode(encoder.encode(x)), x)
    assert before < 12 and after > 17 and losses[-1] < losses[0] / 2


def test_the_autoencoder_loss_is_both_errors_and_the_known_divergence():
    class Net:
        """Says mean 2 and variance e^-1; decodes to 0.5 everywhere."""

        class Posterior:
            mean, logvar = torch.full((3, 4, 2, 2), 2.0), torch.full((3, 4, 2, 2), -1.0)
            var, std = logvar.exp(), (logvar / 2).exp()

        def encode(self, x):
            return SimpleNamespace(latent_dist=self.Posterior)

        def decode(self, z):
            return SimpleNamespace(sample=torch.full((3, 3, 4, 4), 0.5))

    draw = Draw((0,), 3, slice(None), torch.device("cpu"))
    model = SimpleNamespace(net=_ThereAndBack(Net()), factor=2)
    loss = autoencoder_loss(model, torch.zeros(3, 3, 4, 4), None, draw)
    known = 0.5 + 2 * 0.5**2 + 1e-3 * (4 + math.exp(-1) - 1 + 1) / 2
    assert loss.tolist() == pytest.approx([known] * 3)


# ---- text ---------------------------------------------------------------------------------------


def test_every_caption_can_be_read_back_also_with_words_that_none_had(text):
    long = build_text_encoder(CAPTIONS, vocabulary=600, length=40, width=32)
    for caption in (*CAPTIONS, "blue apple", "quiz of a zebra 7 & 'x'", string.ascii_lowercase):
        ids = long.tokens([caption])[0]
        read = long.tokenizer.decode(ids, skip_special_tokens=True)
        assert read.replace(" ", "") == caption.replace(" ", "")


def test_the_empty_caption_is_the_begin_and_end_marks_alone(text):
    begin, end = text.tokenizer.bos_token_id, text.tokenizer.eos_token_id
    assert text.null.tolist() == [begin] + [end] * 9


def test_a_caption_that_is_too_long_is_cut_and_told(text):
    with pytest.warns(UserWarning, match="'a cat face and .*' has .* shorten"):
        ids = text.tokens(["a cat face and a blue heart and a red apple and"])[0]
    assert len(ids) == 10 and ids[-1] == text.tokenizer.eos_token_id
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text.tokens(["red apple"])


def test_the_order_of_the_captions_does_not_change_the_vocabulary_or_the_weights(text):
    other = build_text_encoder(CAPTIONS[::-1], vocabulary=600, length=10, width=32)
    assert other.tokenizer.get_vocab() == text.tokenizer.get_vocab()
    tokens = text.tokens(CAPTIONS)
    assert torch.equal(text(tokens), other(tokens))


# ---- the network that takes text -----------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher(text):
    recipe = get_recipe("digits", "smoke", channels=(8, 16))
    return text_unet_of(recipe, channels=3, size=8, text=text.model).eval()


def test_tokens_and_their_embeddings_are_the_same_condition(text, teacher):
    z, tokens = torch.randn(3, 3, 8, 8), text.tokens(CAPTIONS[:3])
    v = teacher(z, 0.3, tokens).v
    torch.testing.assert_close(v, teacher(z, 0.3, text(tokens)).v)
    assert (v - teacher(z, 0.3, text.tokens(CAPTIONS[2:5])).v).abs().max() > 1e-4


def test_the_guided_pair_takes_the_empty_caption_as_tokens_or_as_an_embedding(text, teacher):
    z, tokens = torch.randn(3, 3, 8, 8), text.tokens(CAPTIONS[:3])
    by_tokens = GuidedDenoiser(teacher, text.null)(z, 0.3, tokens, 2.0)
    by_vectors = GuidedDenoiser(teacher, text(text.null[None])[0])(z, 0.3, text(tokens), 2.0)
    torch.testing.assert_close(by_tokens.v, by_vectors.v)
    parts = teacher(z, 0.3, tokens).v, teacher(z, 0.3, text.null.expand(3, -1)).v
    torch.testing.assert_close(by_tokens.v, 3 * parts[0] - 2 * parts[1], atol=1e-5, rtol=1e-4)


def test_a_text_student_starts_as_its_teacher_and_comes_back_from_its_folder(
    text, teacher, tmp_path
):
    student = add_w_conditioning(teacher, (0.0, 8.0))
    z, tokens = torch.randn(3, 3, 8, 8), text.tokens(CAPTIONS[:3])
    torch.testing.assert_close(student(z, 0.3, tokens, 5.0).v, teacher(z, 0.3, tokens).v)
    assert student.net.text is not teacher.net.text  # it may be trained on without the teacher
    save_weights(student, tmp_path, {})
    again = load(tmp_path)
    assert isinstance(again, Denoiser) and again.w_range == (0.0, 8.0)
    assert torch.equal(again(z, 0.3, tokens, 5.0).v, student(z, 0.3, tokens, 5.0).v)
