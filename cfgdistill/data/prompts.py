"""Captions as a person writes them, where there are no images: what a base is asked to paint."""

import random

SUBJECTS = (
    "an old fisherman, a young woman with red hair, a child with a balloon, a knight in armour, "
    "a street musician, a robot, an astronaut, a ballet dancer, a grandmother knitting, a chef, "
    "two friends laughing, a wizard, a black cat, a golden retriever, a white horse, an owl, "
    "a red fox, a bear fishing, a whale, a hummingbird, a parrot, an elephant, two swans, a tiger, "
    "a snail on a leaf, a koi fish, a lighthouse, a wooden cabin, a castle, a small church, "
    "a glass skyscraper, a stone bridge, a windmill, a ruined temple, a treehouse, a red bicycle, "
    "a vintage car, a steam train, a sailing boat, a hot air balloon, a spaceship, a motorcycle, "
    "a bowl of ramen, a chocolate cake, a cup of coffee, a basket of apples, a slice of pizza, "
    "a bottle of perfume, a pair of old boots, an antique clock, a stack of books, a violin, "
    "a teapot, a bouquet of sunflowers, a single rose, a bonsai tree, a field of tulips, "
    "a waterfall, a mountain range, a desert dune"
).split(", ")
PLACES = (
    "in a forest, by the sea, on a rainy street in Tokyo, in a meadow full of flowers, "
    "in the snow, on a wooden table, in front of a brick wall, under a starry sky, in a library, "
    "on a hill, in a small village, at the market, in an empty room, in the desert, in a garden, "
    "beside a quiet lake"
).split(", ")
LIGHT = (
    "at sunset, in the morning mist, by candlelight, in soft light, at night, in bright sunshine, "
    "after the rain, with long shadows, in neon light"
).split(", ")
STYLES = (
    "{}; {}; a photo of {}; a close-up photo of {}; a portrait of {}, 35mm film; an oil painting "
    "of {}; a watercolor of {}; a pencil sketch of {}; {}, digital art; {}, studio ghibli style; "
    "{}, in the style of Van Gogh; a black and white photograph of {}; {}, isometric 3d render; a "
    "linocut of {}; {}, highly detailed, 4k; a children's book illustration of {}; a poster of "
    "{}, flat colors; {}, pixel art"
).split("; ")
DISTINCT = 4000


def prompts(split: str = "train", seed: int = 0) -> tuple[str, ...]:
    """4,000 distinct captions for training, or 400 with subjects that those never name, for tests.

    A subject in a style; every other one has a place, and every other one a light. The same ones
    for the same seed.
    """
    held_out = split == "test"
    subjects = [one for i, one in enumerate(SUBJECTS) if (i % 10 == 9) == held_out]
    draw = random.Random(f"{split} {seed}")
    found: dict[str, None] = {}  # in the order in which they were drawn
    while len(found) < (DISTINCT // 10 if held_out else DISTINCT):
        parts = [draw.choice(subjects)]
        parts += [draw.choice(part) for part in (PLACES, LIGHT) if draw.random() < 0.5]
        found[draw.choice(STYLES).format(" ".join(parts))] = None
    return tuple(found)
