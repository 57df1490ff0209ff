// Text with what was searched for marked in it. Text is only ever written as text.

/** A JSON value in words. */
export const plain = (value) => (Array.isArray(value) ? value.map(plain).join(" · ")
  : value && typeof value === "object" ? Object.entries(value).map(([name, one]) => `${name}: ${plain(one)}`).join(", ")
    : String(value));

/** The pieces of a text: [[piece, whether it is one of the words]]. */
export function pieces(text, words) {
  const lower = text.toLowerCase();
  const found = [];
  for (let at = 0; at < text.length;) {
    let next = text.length, size = 0;
    for (const word of words) {
      const place = lower.indexOf(word, at);
      if (place >= 0 && (place < next || (place === next && word.length > size))) [next, size] = [place, word.length];
    }
    if (next > at) found.push([text.slice(at, next), false]);
    if (size) found.push([text.slice(next, next + size), true]);
    at = next + size;
  }
  return found;
}

export function Marked({ text, words = [] }) {
  if (!words.length) return text;
  return pieces(text, words).map(([piece, hit], place) => (hit ? <mark key={place}>{piece}</mark> : piece));
}

/** The beginning of a text in one line, or what stands around the first of the words. */
export function excerpt(text, words, size = 160) {
  const line = text.replace(/\s+/g, " ");
  const at = Math.min(...words.map((word) => line.toLowerCase().indexOf(word)).filter((place) => place >= 0), Infinity);
  const start = at === Infinity || at < 30 ? 0 : at - 20;
  return `${start ? "…" : ""}${line.slice(start, start + size)}`;
}
