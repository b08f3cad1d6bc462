"use strict";

/* CLIP's tokenizer, from the entry "tokenizer" of a student.json: caption -> token numbers.
   The same numbers as `TextEncoder.tokens` in Python. */
function clipTokenizer(said) {
  const rank = new Map(said.merges.map((pair, i) => [pair.join(" "), i]));
  const letters = byteLetters();
  const marks = /(<\|startoftext\|>|<\|endoftext\|>)/;
  const words =
    /'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\p{White_Space}\p{L}\p{N}]+/gu;

  /* A word, as bytes that are joined again in the order in which the vocabulary was made. */
  function pieces(word) {
    const parts = Array.from(new TextEncoder().encode(word), (byte) => letters[byte]);
    parts[parts.length - 1] += "</w>";
    for (;;) {
      let best = -1;
      let lowest = Infinity;
      for (let i = 0; i + 1 < parts.length; i++) {
        const found = rank.get(`${parts[i]} ${parts[i + 1]}`);
        if (found < lowest) [best, lowest] = [i, found];
      }
      if (best < 0) return parts;
      parts.splice(best, 2, parts[best] + parts[best + 1]);
    }
  }

  function numbers(part) {
    if (marks.test(part)) return [said.vocab[part]];
    const text = part.normalize("NFC").replace(/\p{White_Space}+/gu, " ").toLowerCase();
    const found = (text.match(words) ?? []).flatMap(pieces);
    return found.map((piece) => said.vocab[piece] ?? said.end);
  }

  return (caption) => {
    const found = caption.split(marks).flatMap(numbers);
    const kept = [said.begin, ...found.slice(0, said.length - 2), said.end];
    return [...kept, ...Array(said.length - kept.length).fill(said.padding)];
  };
}

/* GPT-2's letter for every byte: itself where it can be seen, else one from 256 on. */
function byteLetters() {
  const seen = (byte) => (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(seen(byte) ? byte : next++));
}
