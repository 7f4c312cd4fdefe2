/**
 * Making tokens visible. A byte-level tokenizer cuts where it likes: inside a character of several bytes, before a space,
 * after three newlines. Blanks and control characters get a sign, bytes that are no whole character are shown in
 * hexadecimal, so that no token looks empty and two different ones do not look the same.
 *
 * @typedef {{text: string, kind: "plain" | "blank" | "byte"}} Part
 */

const SIGNS = /** @type {Record<string, string>} */ ({
  " ": "·",
  "\n": "↵",
  "\t": "⇥",
  "\r": "␍",
  "\u00a0": "⍽",
  "\u3000": "□",
});

/** @param {number} value */
export const hex = (value) => value.toString(16).toUpperCase().padStart(2, "0");

/** @param {string} character @returns {Part} */
function part(character) {
  const code = character.codePointAt(0) ?? 0;
  if (SIGNS[character]) return { text: SIGNS[character], kind: "blank" };
  if (code < 0x20) return { text: String.fromCodePoint(0x2400 + code), kind: "blank" };
  // Control, format (zero-width, direction marks) and other characters that draw nothing of their own.
  if (/[\p{Cc}\p{Cf}\p{Zs}\p{Zl}\p{Zp}\p{Co}\p{Cs}]/u.test(character))
    return { text: `U+${hex(code).padStart(4, "0")}`, kind: "blank" };
  return { text: character, kind: "plain" };
}

/** @param {number[]} bytes @param {number} at @returns {string | null} the whole character that starts there */
function characterAt(bytes, at) {
  const first = bytes[at];
  const length = first < 0x80 ? 1 : first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 0;
  if (!length || at + length > bytes.length) return null;
  try {
    const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
    return decoder.decode(new Uint8Array(bytes.slice(at, at + length)));
  } catch {
    return null;
  }
}

/** @param {Part[]} parts neighbours of one kind joined */
function joined(parts) {
  /** @type {Part[]} */
  const found = [];
  for (const one of parts) {
    const last = found.at(-1);
    if (last && last.kind === one.kind) last.text += one.kind === "byte" ? ` ${one.text}` : one.text;
    else found.push({ ...one });
  }
  return found;
}

/** @param {{token: string, bytes?: number[] | null}} token @returns {Part[]} */
export function visibleParts({ token, bytes }) {
  // Without bytes, a replacement character is all that is known of a piece of a character.
  if (!bytes?.length)
    return joined([...token].map((one) => (one === "\ufffd" ? { text: "??", kind: "byte" } : part(one))));
  const parts = [];
  for (let at = 0; at < bytes.length;) {
    const character = characterAt(bytes, at);
    parts.push(character === null ? { text: hex(bytes[at]), kind: /** @type {const} */ ("byte") } : part(character));
    at += character === null ? 1 : new TextEncoder().encode(character).length;
  }
  return joined(parts);
}

/** @param {{token: string, bytes?: number[] | null}} token */
export const endsLine = ({ token, bytes }) => (bytes?.length ? bytes.at(-1) === 0x0a : token.endsWith("\n"));

/** Bytes in hexadecimal; those of the text where the server sent none. @param {{token: string, bytes?: number[] | null}} token */
export function hexBytes({ token, bytes }) {
  if (!bytes?.length && token.includes("\ufffd")) return "";
  return (bytes?.length ? bytes : [...new TextEncoder().encode(token)]).map(hex).join(" ");
}
