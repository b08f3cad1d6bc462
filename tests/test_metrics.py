"""Metrics against closed forms, and the row of a results table."""

from functools import partial

import pytest
import torch
from helpers import Wave

from cfgdistill import CosineSchedule, Denoiser, GuidedDenoiser, ancestral, ddim, last, stochastic
from cfgdistill.data.base import Data
from cfgdistill.data.named import load_data
from cfgdistill.data.toy import pinwheel
from cfgdistill.judge import metrics
from cfgdistill.judge.metrics import (
    Classifier,
    Judge,
    PrecisionRecall,
    classification_loss,
    evaluate,
    generate,
    published_fid,
    sampler_name,
    samples,
)
from cfgdistill.training.loop import train
from cfgdistill.training.optim import Optim
from cfgdistill.training.state import Run


class Identity(Classifier):
    """Features are the points themselves; the class is whether the first number is positive."""

    num_features = 2

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.p = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x

    def head(self, x):
        return torch.stack([-x[:, 0], x[:, 0]], 1)


def white(n=400, seed=0):
    """n points whose mean is exactly 0 and whose covariance is exactly I."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    z = z - z.mean(0)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(z.T.cov()), z.T, upper=False).T


def reference(x):
    labels = torch.zeros(len(x), dtype=torch.long)
    return Data("points", "test", x.float(), labels, ("left", "right"), None)


FACTORS = torch.tensor([[[1.0, 0.0], [0.5, 2.0]], [[1.5, 0.0], [-1.0, 0.7]]], dtype=torch.float64)
CENTRES = torch.tensor([[0.0, 1.0], [2.0, -1.0]], dtype=torch.float64)


def test_frechet_distance_of_two_gaussians_is_the_closed_form():
    real, fake = (white(seed=i) @ FACTORS[i].T + CENTRES[i] for i in (0, 1))
    a, b = (factor @ factor.T for factor in FACTORS)
    # tr sqrt(ab) of two 2 x 2 matrices: the square root of tr(ab) + 2 sqrt(det(ab)).
    cross = ((a @ b).trace() + 2 * (a.det() * b.det()).sqrt()).sqrt()
    known = (CENTRES[0] - CENTRES[1]).square().sum() + a.trace() + b.trace() - 2 * cross
    row = Judge(Identity(), reference(real))(fake.float(), torch.zeros(400).long())
    assert row["frechet_distance"] == pytest.approx(known.item(), rel=1e-4)


def test_frechet_distance_of_a_shift_by_3_and_4_is_25():
    x = white()
    judge = Judge(Identity(), reference(x))
    shifted = (x + torch.tensor([3.0, 4.0])).float()
    for fake, known in ((shifted, 25), (x.float(), 0)):
        row = judge(fake, torch.zeros(400).long())
        assert row["frechet_distance"] == pytest.approx(known, rel=1e-5, abs=1e-4)


def test_a_judge_forgets_the_samples_and_keeps_the_reference():
    x, labels = white(), torch.zeros(400).long()
    judge = Judge(Identity(), reference(x))
    near, far = (x + 0.1).float(), (x * 5).float()
    first = judge(near, labels)
    judge(far, labels)
    assert judge(near, labels) == first


def test_the_batch_of_a_judge_changes_nothing():
    x, labels = white(), torch.arange(400) % 2
    judges = [Judge(Identity(), reference(x), batch=batch) for batch in (7, 1000)]
    a, b = (judge((x + 1).float(), labels) for judge in judges)
    assert a == pytest.approx(b, rel=1e-5)


def test_accuracy_is_the_share_of_samples_that_are_of_their_class():
    x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0], [-3.0, 0.0], [4.0, 1.0]])
    judge = Judge(Identity(), reference(white()))
    for labels, known in (([1, 1, 0, 0, 1], 1.0), ([1, 0, 0, 1, 1], 3 / 5)):
        assert judge(x, torch.tensor(labels))["class_accuracy"] == pytest.approx(known)


def test_a_sample_is_in_a_group_where_its_most_likely_class_is():
    judge = Judge(Identity(), reference(white()), batch=2)
    x = torch.tensor([[3.0, 0.0], [0.1, 9.0], [2.0, -1.0], [-4.0, 2.0]])  # three are on the right
    assert judge.share_in(x, torch.tensor([False, True])) == 0.75
    assert judge.share_in(x, torch.tensor([True, False])) == 0.25
    assert judge.share_in(x, torch.tensor([True, True])) == 1


def test_diversity_is_one_minus_the_mean_cosine_of_two_samples():
    judge = Judge(Identity(), reference(white()), batch=3)
    # Right, up, left, down, of any length: of six pairs two have a cosine of -1, the others of 0.
    cross = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [0.0, -0.5]])
    assert judge.diversity(cross) == pytest.approx(4 / 3)
    assert judge.diversity(torch.tensor([[1.0, 2.0], [2.0, 4.0]])) == pytest.approx(0, abs=1e-7)


def test_a_judge_says_what_it_measures_with():
    judge = Judge(Identity(), reference(white()))
    assert judge.name == "points classifier, 2 features"
    assert judge.reference == "points test, 400 images"


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32)])
def test_a_classifier_gives_64_features_and_one_logit_per_class(channels, size):
    classifier, x = Classifier(channels, size, 10), torch.zeros(2, channels, size, size)
    assert classifier(x).shape == (2, 64) and classifier.logits(x).shape == (2, 10)
    assert torch.equal(classifier.head(classifier(x)), classifier.logits(x))


def test_a_classifier_learns_to_read_digits():
    data = load_data("digits", images=200)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = Classifier(1, 8, 10)
    updates = train(classifier, classification_loss, data, Optim(40, 32, 5e-3), Run("c"))
    assert len(list(updates)) == 40
    x, labels = data.all()
    with torch.no_grad():
        assert (classifier.logits(x).argmax(1) == labels).float().mean() > 0.7


# ---- samples -----------------------------------------------------------------------------------


class Scaled(Wave):
    """A pseudo-network with a parameter, from which the device is read."""

    def __init__(self):
        super().__init__()
        self.p = torch.nn.Parameter(torch.zeros(1))


LABELS = torch.arange(10) % 3
POINTS = reference(white())


def student():
    return Denoiser(Scaled(), CosineSchedule())


def test_samples_start_from_the_noise_of_their_seed_alone():
    torch.manual_seed(3)
    noise = torch.randn(10, 1, 2, 2, generator=torch.Generator().manual_seed(7))
    known = last(ddim(student(), noise, 3, LABELS, 1.0)).clamp(-1, 1)
    x = generate(student(), (1, 2, 2), LABELS, steps=3, w=1.0, seed=7)
    assert torch.equal(x, known)
    other = generate(student(), (1, 2, 2), LABELS, steps=3, w=1.0, seed=8)
    assert not torch.equal(x, other)


def test_the_batch_of_a_sampler_changes_no_sample():
    whole, parts = (
        generate(student(), (1, 4, 4), LABELS, steps=3, w=1.0, batch=batch) for batch in (10, 3)
    )
    torch.testing.assert_close(whole, parts)


def test_an_exact_denoiser_which_has_no_parameters_can_be_sampled_too():
    exact = pinwheel().denoiser(CosineSchedule())
    x = generate(exact, (2,), LABELS, steps=4, w=None)
    assert x.shape == (10, 2) and x.isfinite().all()


def test_samples_lie_between_minus_1_and_1():
    x = generate(student(), (1, 4, 4), torch.zeros(50).long(), steps=1, w=0.0)
    assert x.min() >= -1 and x.max() <= 1


class Class(torch.nn.Module):
    """Knows the x of each label: class 1 to the right, class 0 and null to the left."""

    def __init__(self):
        super().__init__()
        self.p = torch.nn.Parameter(torch.zeros(1))

    def forward(self, z, t, cond, w):
        return torch.where(cond == 1, 0.5, -0.5)[:, None].expand_as(z)


def test_a_row_of_the_table_holds_quality_and_cost():
    denoiser = Denoiser(Class(), CosineSchedule(), "x")
    guided = GuidedDenoiser(denoiser, null=2)
    judge = Judge(Identity(), reference(white()))
    for model, name, nfe in ((denoiser, "student", 4), (guided, "teacher", 8)):
        model.nfe = 99  # what was spent before is not charged
        row = evaluate(model, judge, POINTS, model=name, steps=4, w=0.0, n=20, batch=8)
        assert (row["model"], row["sampler"], row["steps"]) == (name, "ddim", 4)
        assert row["nfe"] == nfe and row["w"] == 0.0 and row["class_accuracy"] == 1.0
        assert row["ms_per_image"] > 0
        # 20 points at +-(1/2, 1/2), half of each: mean 0, every covariance entry 20/19 / 4.
        # Against N(0, I): 2 + 2 q - 2 sqrt(2 q) with q = 5/19.
        q = 5 / 19
        assert row["frechet_distance"] == pytest.approx(2 + 2 * q - 2 * (2 * q) ** 0.5, abs=2e-3)


def test_the_classes_of_a_row_come_in_equal_parts(monkeypatch):
    seen = []
    judge = Judge(Identity(), reference(white()))
    update = Judge.update
    monkeypatch.setattr(
        Judge, "update", lambda self, x, own: (seen.append(own), update(self, x, own))
    )
    evaluate(student(), judge, POINTS, model="s", steps=1, w=0.0, n=30, batch=8)
    assert torch.bincount(torch.cat(seen)).tolist() == [15, 15]


# ---- the other measures ------------------------------------------------------------------------


def test_the_kernel_distance_is_the_unbiased_squared_mmd():
    real = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    fake = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0], [1.0, -1.0]])

    def kernel(a, b):
        return ((a[0] * b[0] + a[1] * b[1]) / 2 + 1) ** 3

    def mean(xs, ys, same):
        pairs = [(i, j) for i in range(4) for j in range(4) if not (same and i == j)]
        return sum(kernel(xs[i].tolist(), ys[j].tolist()) for i, j in pairs) / len(pairs)

    known = mean(real, real, True) + mean(fake, fake, True) - 2 * mean(real, fake, False)
    row = Judge(Identity(), reference(real))(fake, torch.zeros(4).long())
    assert row["kernel_distance"] == pytest.approx(known, rel=1e-5)


class Logits(Identity):
    """The points are the class logits."""

    def head(self, x):
        return x


def test_the_inception_score_is_1_for_no_opinion_and_the_number_of_classes_at_best():
    certain = torch.eye(2).repeat(10, 1) * 100
    for x, known in ((torch.zeros(20, 2), 1.0), (certain, 2.0), (certain[:1].repeat(20, 1), 1.0)):
        row = Judge(Logits(), reference(white()))(x, torch.zeros(20).long())
        assert row["inception_score"] == pytest.approx(known, abs=1e-4)


def square(x, y):
    """Four points, each with its third neighbour at the diagonal sqrt(2)."""
    return torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]) + torch.tensor([x, y])


BOTH = torch.cat([square(0, 0), square(50, 0)])


@pytest.mark.parametrize(
    ("real", "fake", "precision", "recall"),
    [
        (BOTH, BOTH, 1, 1),
        (BOTH, square(0, 0), 1, 0.5),  # a mode is missing
        (square(0, 0), BOTH, 0.5, 1),  # a mode was invented
        (square(0, 0), square(50, 0), 0, 0),
        # Balls of radius sqrt(2) around the unit square: (1 + 1.42, 1) is just outside all of them.
        (square(0, 0), torch.cat([square(0, 0), torch.tensor([[2.42, 1.0]])]), 0.8, 1),
        (square(0, 0), torch.cat([square(0, 0), torch.tensor([[2.41, 1.0]])]), 1, 1),
    ],
)
def test_precision_and_recall_count_the_points_inside_the_others_manifold(
    real, fake, precision, recall
):
    metric = PrecisionRecall()
    metric.update(real, real=True)
    metric.update(fake, real=False)
    assert metric.compute().tolist() == pytest.approx([precision, recall])


def test_precision_and_recall_need_more_points_than_neighbours():
    metric = PrecisionRecall()
    metric.update(square(0, 0), real=True)
    metric.update(square(0, 0)[:3], real=False)
    with pytest.raises(ValueError, match="more than 3 points"):
        metric.compute()


def test_what_needs_single_features_keeps_a_bounded_number_of_them():
    x = white(60).float()
    judge = Judge(Identity(), reference(x), batch=10, most=20)
    judge.reset()
    for part in x.split(10):
        judge.update(part, torch.zeros(10).long())
    for kept in (judge.manifold.real, judge.manifold.fake, judge.kernel.fake_features):
        assert sum(map(len, kept)) == 20
    # The Frechet distance and the accuracy saw them all.
    assert judge.frechet.fake_features_num_samples == 60
    row = judge.compute()
    assert row["frechet_distance"] == pytest.approx(0, abs=1e-5)
    assert row["precision"] == row["recall"] == 1


def test_samples_are_made_batch_by_batch():
    model, labels = student(), torch.zeros(50).long()
    made = samples(model, (1, 4, 4), labels, steps=2, w=0.0, batch=20)
    assert model.nfe == 0
    assert len(next(made)) == 20 and model.nfe == 2
    assert [len(x) for x in made] == [20, 10]


@pytest.mark.parametrize("sampler", [stochastic, ancestral])
def test_the_noise_that_a_sampler_adds_comes_from_the_seed_and_not_from_the_initial_noise(sampler):
    how = dict(shape=(1, 4, 4), labels=LABELS, w=0.0, sampler=sampler)
    torch.manual_seed(1)
    a = generate(student(), steps=3, seed=4, **how)
    torch.manual_seed(2)
    assert torch.equal(a, generate(student(), steps=3, seed=4, **how))
    assert not torch.equal(a, generate(student(), steps=3, seed=5, **how))
    # With one step no noise is added: what is left is the initial noise, that of every sampler.
    one = generate(student(), (1, 4, 4), LABELS, steps=1, w=0.0, seed=4)
    torch.testing.assert_close(generate(student(), steps=1, seed=4, **how), one)


SAMPLERS = [ddim, stochastic, ancestral]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_neither_the_batch_nor_the_number_of_processes_changes_a_sample(sampler):
    how = dict(shape=(1, 4, 4), labels=torch.arange(17) % 3, steps=3, w=0.0, sampler=sampler)
    whole = generate(student(), batch=17, **how)
    torch.testing.assert_close(generate(student(), batch=5, **how), whole)
    for k in (2, 3):
        for rank in range(k):
            own = generate(student(), batch=7, share=slice(rank, None, k), **how)
            torch.testing.assert_close(own, whole[rank::k])


def test_the_first_samples_are_the_same_however_many_are_asked_for():
    how = dict(shape=(1, 4, 4), steps=2, w=0.0, sampler=stochastic)
    few, many = (generate(student(), labels=torch.arange(n) % 3, **how) for n in (4, 9))
    torch.testing.assert_close(many[:4], few)


def own_sampler(denoiser, z, steps, cond, w):
    yield from ddim(denoiser, z, steps, cond, w)


def test_a_sampler_may_be_a_function_of_ones_own_or_a_partial_one():
    how = dict(shape=(1, 4, 4), labels=LABELS, steps=2, w=0.0)
    known = generate(student(), **how)
    for sampler in (own_sampler, partial(own_sampler), partial(ddim)):
        assert torch.equal(generate(student(), sampler=sampler, **how), known)
    judge = Judge(Identity(), reference(white()))
    how = dict(model="s", steps=1, w=0.0, n=20, sampler=own_sampler)
    assert evaluate(student(), judge, POINTS, **how)["sampler"] == "own_sampler"
    assert sampler_name(partial(stochastic, w=1.0)) == "stochastic(w=1.0)"


def test_samples_that_are_not_finite_are_refused_and_name_w():
    class Broken(Scaled):
        def forward(self, z, t, cond, w):
            return z / 0

    broken = Denoiser(Broken(), CosineSchedule())
    with pytest.raises(ValueError, match="samples at w = 2.5 hold numbers that are not finite"):
        generate(broken, (1, 4, 4), LABELS, steps=1, w=2.5)


def test_a_row_of_too_few_samples_says_so():
    judge = Judge(Identity(), reference(white()))
    judge.num_features = 20  # for the sentence only
    with pytest.warns(UserWarning, match="20 samples are too few for a distance of 20 features"):
        row = evaluate(student(), judge, POINTS, model="s", steps=1, w=0.0, n=20)
    assert row["warning"].startswith("20 samples are too few")
    row = evaluate(student(), judge, POINTS, model="s", steps=1, w=0.0, n=21)
    assert "warning" not in row


def test_several_processes_keep_the_first_samples_and_no_more(monkeypatch):
    x, labels = white(60).float(), torch.zeros(60).long()
    for k, most in ((1, 25), (2, 25), (3, 20), (3, 100)):
        kept = {"real": [], "fake": []}
        for rank in range(k):
            share = slice(rank, None, k)
            monkeypatch.setattr(metrics, "share_of_this_process", lambda share=share: share)
            judge = Judge(Identity(), reference(x), batch=7, most=most)
            judge.reset()
            for first in range(0, 60, 9):  # as `evaluate` hands them out
                own = slice((rank - first) % k, None, k)
                judge.update(x[first : first + 9][own], labels[first : first + 9][own])
            kept["real"] += [torch.cat(judge.kernel.real_features)]
            kept["fake"] += [torch.cat(judge.kernel.fake_features)]
            assert torch.equal(torch.cat(judge.manifold.fake), kept["fake"][-1])
        for parts in kept.values():
            # What k processes gathered, in the order in which one has it.
            assert torch.equal(metrics._in_order(torch.cat(parts)), x[:most])


def test_the_distance_to_the_teacher_is_the_root_mean_square_of_the_difference():
    # The models know their x: 1/2 or -1/2 by class, and 0. One is always 1/2 from the other.
    class Zero(Class):
        def forward(self, z, t, cond, w):
            return torch.zeros_like(z)

    model, teacher = (Denoiser(net, CosineSchedule(), "x") for net in (Class(), Zero()))
    judge = Judge(Identity(), reference(white()))
    row = evaluate(model, judge, POINTS, model="s", steps=2, w=0.0, n=20, batch=8, teacher=teacher)
    assert row["distance_to_teacher"] == pytest.approx(0.5)
    assert row["nfe"] == 2  # the teacher's evaluations are not charged
    assert "distance_to_teacher" not in evaluate(
        model, judge, POINTS, model="s", steps=2, w=0.0, n=20
    )


# ---- the published FID ---------------------------------------------------------------------------


def train_split(n=50_000):
    stored = torch.zeros(n, 3, 1, 1, dtype=torch.uint8)
    return Data("cifar10", "train", stored, torch.zeros(n).long(), ("a",), 255)


def refused(message, batches=(), data=None):
    with pytest.raises((OSError, ValueError), match=message) as caught:
        published_fid(batches, data or train_split())
    assert "\n" not in str(caught.value)


def never():
    raise AssertionError("sampled before the refusal")
    yield


def test_the_published_fid_is_refused_for_another_reference():
    refused("all 50,000 training images of cifar10", never(), train_split(49_999))
    refused("not with 1438 of digits train", never(), load_data("digits"))


def test_the_published_fid_is_refused_without_torch_fidelity(monkeypatch):
    def missing(feature, **more):
        raise ModuleNotFoundError("no torch-fidelity")

    monkeypatch.setattr(metrics, "FrechetInceptionDistance", missing)
    refused("needs torch-fidelity, which is not installed: pip install", never())


def test_the_published_fid_is_refused_without_its_weights(monkeypatch):
    def offline(feature, **more):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(metrics, "FrechetInceptionDistance", offline)
    refused("Inception weights .* could not be had", never())


def test_the_published_fid_asks_for_inception_with_50_000_samples_as_whole_numbers(monkeypatch):
    asked, seen = [], {True: [], False: []}

    class Fake:
        device = torch.device("cpu")

        def __init__(self, feature, reset_real_features):
            asked.append((feature, reset_real_features))

        def reset(self):
            seen[False].clear()

        def to(self, device):
            return self

        def update(self, x, real):
            seen[real].append(x)

        def compute(self):
            return torch.tensor(2.5)

    monkeypatch.setattr(metrics, "FrechetInceptionDistance", Fake)
    levels = torch.tensor([-1.0, 0.0, 1.0])[:, None, None].expand(25_000, 3, 1, 1)
    data = train_split()
    for _ in range(2):  # the real images go through Inception once
        assert published_fid(iter([levels, levels]), data) == 2.5
    assert asked == [(2048, False)] and seen[False][0].dtype == torch.uint8
    assert seen[False][0][0].flatten().tolist() == [0, 128, 255]
    assert sum(map(len, seen[True])) == 50_000
    refused("defined on 50,000 samples, not 25,000", iter([levels]))


# ---- CLIP score ---------------------------------------------------------------------------------

APPLES = ["a red apple", "two green apples", "apple", "red", "green apple"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The folder of a tiny CLIP with random weights."""
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from cfgdistill.data.text import build_tokenizer

    tokenizer = build_tokenizer(APPLES, 600, 12)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2, "projection_dim": 8}
    marks = {f"{k}_token_id": getattr(tokenizer, f"{k}_token_id") for k in ("bos", "eos", "pad")}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 12, **marks}
    config = CLIPConfig(
        text_config=small | text,
        vision_config=small | {"image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    sizes = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    CLIPProcessor(CLIPImageProcessorPil(**sizes), tokenizer).save_pretrained(folder)
    return str(folder)


def test_the_clip_score_is_100_times_the_mean_cosine_of_the_models_own_features(clip):
    from transformers import CLIPModel, CLIPProcessor

    images = 2 * torch.rand(5, 3, 20, 20, generator=torch.Generator().manual_seed(0)) - 1
    model, processor = CLIPModel.from_pretrained(clip), CLIPProcessor.from_pretrained(clip)
    pixels = [((image + 1) * 127.5).round().to(torch.uint8) for image in images]
    given = processor(text=APPLES, images=pixels, return_tensors="pt", padding=True)
    with torch.no_grad():
        found = model(**given)
    cosines = (found.image_embeds * found.text_embeds).sum(1)
    assert metrics.clip_score(images, APPLES, clip, batch=2) == pytest.approx(
        100 * cosines.mean().item(), rel=1e-3
    )
    assert cosines.mean() > 0.01  # below 0 it would be called 0


def test_a_clip_that_cannot_be_had_is_told_and_nothing_takes_its_place(clip, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    images = torch.zeros(2, 3, 16, 16)
    for name in ("openai/clip-vit-no-such-one", str(tmp_path)):
        with pytest.raises(OSError, match=r"(?s)^(?!.*\n)The CLIP model .* could not be had .*\.$"):
            metrics.clip_score(images, ["a", "b"], name)
    with pytest.raises(ValueError, match="1 captions for 2 images: pass one for each"):
        metrics.clip_score(images, ["a"], clip)
