"""Draw the captioned emoji in data/emoji: `python -P data/make_emoji.py FONT GROUPS`.

FONT is NotoColorEmoji.ttf of Debian's package fonts-noto-color-emoji (version 2.042, SIL Open Font
License 1.1), in /usr/share/fonts/truetype/noto once that is installed. The names come from the
package `emoji` 2.16.0 (`pip install emoji==2.16.0`), which takes them from Unicode's CLDR. GROUPS
is the folder `package` of npm's emojibase-data 17.0.0 (`npm pack emojibase-data@17.0.0`, MIT), for
the groups and subgroups of Unicode's own list. The files are in the repository: run this only to
change them. (-P: or the folder `emoji` beside this file hides the package.)
"""

import argparse
import hashlib
import io
import json
from pathlib import Path

import datasets
import emoji
import numpy as np
from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).resolve().parent / "emoji"
STRIKE = 109  # the one size at which the font holds its pictures, 136 x 128 pixels
SIZE = 64
SKIN_TONES = range(0x1F3FB, 0x1F400)

# What an emoji is in words that leave open which one: by its subgroup in Unicode's list, from the
# narrower word to the wider.
KINDS = {
    "animal-amphibian": "amphibian, animal",
    "animal-bird": "bird, animal",
    "animal-bug": "bug, animal",
    "animal-mammal": "mammal, animal",
    "animal-marine": "sea animal, animal",
    "animal-reptile": "reptile, animal",
    "plant-flower": "flower, plant",
    "plant-other": "plant",
    "food-fruit": "fruit, food",
    "food-vegetable": "vegetable, food",
    "food-prepared": "meal, food",
    "food-asian": "asian food, food",
    "food-sweet": "sweet, food",
    "drink": "drink",
    "dishware": "dishes",
    "face-smiling": "smiling face, face",
    "face-affection": "loving face, face",
    "face-tongue": "face with a tongue, face",
    "face-hand": "face with a hand, face",
    "face-neutral-skeptical": "doubtful face, face",
    "face-sleepy": "sleepy face, face",
    "face-unwell": "unwell face, face",
    "face-hat": "face with a hat, face",
    "face-glasses": "face with glasses, face",
    "face-concerned": "worried face, face",
    "face-negative": "bad face, face",
    "face-costume": "mask, face",
    "cat-face": "cat, animal",
    "monkey-face": "monkey, animal",
    "heart": "heart",
    "emotion": "mark",
    "hand-fingers-open": "open hand, hand",
    "hand-fingers-partial": "hand sign, hand",
    "hand-single-finger": "pointing hand, hand",
    "hand-fingers-closed": "fist, hand",
    "hand-prop": "hand",
    "hands": "two hands, hand",
    "body-parts": "part of the body",
    "person": "person",
    "person-gesture": "person with a gesture, person",
    "person-role": "person at work, person",
    "person-fantasy": "fairy tale person, person",
    "person-activity": "person on the move, person",
    "person-sport": "person at sport, person",
    "person-resting": "resting person, person",
    "person-symbol": "silhouette, symbol",
    "family": "family",
    "place-map": "map, place",
    "place-geographic": "landscape, place",
    "place-building": "building, place",
    "place-religious": "temple, place",
    "place-other": "place",
    "transport-ground": "car or train, vehicle",
    "transport-water": "ship, vehicle",
    "transport-air": "aircraft, vehicle",
    "hotel": "object",
    "time": "clock",
    "sky-weather": "sky",
    "event": "party",
    "award-medal": "medal",
    "sport": "ball or sport, game",
    "game": "game",
    "arts-crafts": "art",
    "clothing": "clothes",
    "sound": "sound, object",
    "music": "music",
    "musical-instrument": "musical instrument, music",
    "phone": "telephone, object",
    "computer": "computer, object",
    "light-video": "lamp or camera, object",
    "book-paper": "book or paper, object",
    "money": "money, object",
    "mail": "mail, object",
    "writing": "pen, object",
    "office": "office, object",
    "lock": "lock, object",
    "tool": "tool, object",
    "science": "science, object",
    "medical": "medicine, object",
    "household": "household, object",
    "other-object": "object",
    "transport-sign": "sign, symbol",
    "warning": "warning sign, symbol",
    "arrow": "arrow, symbol",
    "religion": "religious symbol, symbol",
    "zodiac": "zodiac, symbol",
    "av-symbol": "button, symbol",
    "gender": "symbol",
    "math": "mathematical sign, symbol",
    "punctuation": "punctuation, symbol",
    "currency": "symbol",
    "other-symbol": "symbol",
    "keycap": "key, symbol",
    "alphanum": "letters, symbol",
    "geometric": "shape, symbol",
    "flag": "flag",
    "country-flag": "flag",
    "subdivision-flag": "flag",
}


def subgroups(folder: Path) -> dict[str, str]:
    """{signs, as in `codepoints` but without variation selectors: subgroup}."""
    names = json.loads((folder / "meta" / "groups.json").read_text())["subgroups"]
    found = {}
    for entry in json.loads((folder / "en" / "data.json").read_text()):
        for one in (entry, *entry.get("skins", ())):
            if "subgroup" in entry:
                found[_plain(one["hexcode"].replace("-", " "))] = names[str(entry["subgroup"])]
    return found


def _plain(codepoints: str) -> str:
    return codepoints.replace(" FE0F", "")


def colour_of(picture: Image.Image) -> str | None:
    """The colour of most of what is not the white ground, where it is of one colour by half.

    By hue in degrees, saturation and value, with borders found by looking at what they make.
    """
    pixels = np.asarray(picture).reshape(-1, 3)
    hsv = np.asarray(picture.convert("HSV")).reshape(-1, 3)[pixels.min(1) < 240].astype(int)
    if len(hsv) < 100:
        return None
    hue, saturation, value = hsv[:, 0] * 360 / 255, hsv[:, 1], hsv[:, 2]
    grey = saturation < 50
    found = np.select(
        [
            grey & (value >= 225),
            grey & (value >= 90),
            grey | (value < 60),
            ((hue < 14) | (hue > 335)) & (saturation < 140) & (value > 180),
            (hue >= 8) & (hue < 48) & (value < 170),
            *(hue < border for border in (18, 44, 62, 165, 255, 295, 340)),
        ],
        "white grey black pink brown red orange yellow green blue purple pink".split(),
        "red",
    )
    names, counts = np.unique(found, return_counts=True)
    return str(names[counts.argmax()]) if 2 * counts.max() >= len(hsv) else None


def open_captions(kinds: str, colour: str | None) -> list[str]:
    """Captions of one emoji that fit many: "bird", "animal", "red bird", "red animal"."""
    kinds = kinds.split(", ")
    return kinds + ([f"{colour} {kind}" for kind in kinds] if colour else [])


def name_of(text: str) -> str:
    """':thumbs_up_light_skin_tone:' is 'thumbs up light skin tone'."""
    return emoji.EMOJI_DATA[text]["en"].strip(":").replace("_", " ")


def family_of(text: str) -> str:
    """What the variants of one emoji share: its signs without skin tones, hair and gender."""
    if emoji.EMOJI_DATA[text]["en"].startswith(":family"):
        return "family"
    kept = [c for c in text if ord(c) not in SKIN_TONES and c not in "\ufe0f\u200d♀♂🧑👨👩🦰🦱🦳🦲"]
    return "".join(sorted(kept)) or "person"


def picture_of(text: str, font: ImageFont.FreeTypeFont) -> Image.Image | None:
    """The emoji on white, SIZE x SIZE; None where the font has no single picture for it."""
    left, top, right, bottom = font.getbbox(text)
    if right - left > 1.2 * (bottom - top):  # two pictures side by side, or an empty box
        return None
    canvas = Image.new("RGBA", (136, 136), (255, 255, 255, 0))
    place = ((136 - (right - left)) / 2 - left, (136 - (bottom - top)) / 2 - top)
    ImageDraw.Draw(canvas).text(place, text, font=font, embedded_color=True)
    if canvas.getextrema()[3][1] == 0:
        return None
    flat = Image.alpha_composite(Image.new("RGBA", canvas.size, "white"), canvas).convert("RGB")
    return flat.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def rows(font: ImageFont.FreeTypeFont, subgroup: dict[str, str]):
    """One row for each fully qualified emoji that the font draws, in the order of its signs."""
    # What the font shows for a sign, or for the flag of a country, that it does not know.
    unknown = {picture_bytes(picture_of(text, font)) for text in ("\U000e0fff", "🇦🇧")}
    for text in sorted(emoji.EMOJI_DATA):
        if emoji.EMOJI_DATA[text]["status"] != emoji.STATUS["fully_qualified"]:
            continue
        picture = picture_of(text, font)
        data = picture_bytes(picture)
        if data is None or data in unknown:
            continue
        tone = any(ord(c) in SKIN_TONES for c in text)
        codepoints = " ".join(f"{ord(c):04X}" for c in text)
        yield {
            "image": {"bytes": data, "path": None},
            "text": name_of(text),
            "codepoints": codepoints,
            "skin_tone": tone,
            "family": family_of(text),
            "also": open_captions(KINDS[subgroup[_plain(codepoints)]], colour_of(picture)),
        }


def picture_bytes(picture: Image.Image | None) -> bytes | None:
    if picture is None:
        return None
    file = io.BytesIO()
    picture.save(file, "webp", lossless=True, quality=80, method=4)
    return file.getvalue()


def is_test(family: str) -> bool:
    """One family in ten, by its sha256: no order and no seed has a say in it."""
    return hashlib.sha256(family.encode()).digest()[0] < 26


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("font", type=Path, help="NotoColorEmoji.ttf")
    parser.add_argument("groups", type=Path, help="the folder of emojibase-data")
    asked = parser.parse_args()
    font = ImageFont.truetype(str(asked.font), STRIKE, layout_engine=ImageFont.Layout.RAQM)
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "text": datasets.Value("string"),
            "codepoints": datasets.Value("string"),
            "skin_tone": datasets.Value("bool"),
            "family": datasets.Value("string"),
            "also": [datasets.Value("string")],
        }
    )
    everything = list(rows(font, subgroups(asked.groups)))
    for split, wanted in (("train", False), ("test", True)):
        chosen = [row for row in everything if is_test(row["family"]) == wanted]
        columns = {key: [row[key] for row in chosen] for key in features}
        file = HERE / f"{split}-00000-of-00001.parquet"
        datasets.Dataset.from_dict(columns, features=features).to_parquet(file)
        plain = sum(not row["skin_tone"] for row in chosen)
        print(
            f"{split}: {len(chosen)} emoji, {plain} without skin tones, {file.stat().st_size:,} B"
        )


if __name__ == "__main__":
    main()
