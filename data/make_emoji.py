"""Draw the captioned emoji in data/emoji: `python data/make_emoji.py FONT`.

FONT is NotoColorEmoji.ttf of Debian's package fonts-noto-color-emoji (version 2.042, SIL Open Font
License 1.1), in /usr/share/fonts/truetype/noto once that is installed. The names come from the
package `emoji` 2.16.0 (`pip install emoji==2.16.0`), which takes them from Unicode's CLDR. The
files are in the repository: run this only to change them.
"""

import argparse
import hashlib
import io
from pathlib import Path

import datasets
import emoji
from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).resolve().parent / "emoji"
STRIKE = 109  # the one size at which the font holds its pictures, 136 x 128 pixels
SIZE = 64
SKIN_TONES = range(0x1F3FB, 0x1F400)


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


def rows(font: ImageFont.FreeTypeFont):
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
        yield {
            "image": {"bytes": data, "path": None},
            "text": name_of(text),
            "codepoints": " ".join(f"{ord(c):04X}" for c in text),
            "skin_tone": tone,
            "family": family_of(text),
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
    font = ImageFont.truetype(
        str(parser.parse_args().font), STRIKE, layout_engine=ImageFont.Layout.RAQM
    )
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "text": datasets.Value("string"),
            "codepoints": datasets.Value("string"),
            "skin_tone": datasets.Value("bool"),
            "family": datasets.Value("string"),
        }
    )
    everything = list(rows(font))
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
