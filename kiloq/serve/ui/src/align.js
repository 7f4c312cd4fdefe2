/*
 * The bytes of tokens of which only the strings are known. A server that sends strings writes U+FFFD where a token holds a
 * piece of a character. The text that the tokens make together says which bytes those are: each token must decode to its
 * string, and all of them must fill the text. Every cut that both sides allow is found; where there is more than one (a token
 * that ends one character and begins the next can be cut in two ways) the bytes stay unknown instead of being guessed.
 */

const REPLACEMENT = "\ufffd";

/**
 * @param {string} text @param {string[]} strings of its tokens, in order
 * @returns {(number[] | null)[]} the bytes of each, null where they cannot be told
 */
export function alignBytes(text, strings) {
  const bytes = new TextEncoder().encode(text);
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

  /** Where a token that begins at a place may end. @param {number} start @param {string} string */
  const ends = (start, string) => {
    const unknown = string.split(REPLACEMENT).length - 1;
    // U+FFFD has three bytes itself, and stands for one to three.
    const most = new TextEncoder().encode(string).length;
    const found = [];
    for (let end = start + most - 2 * unknown; end <= Math.min(start + most, bytes.length); end++) {
      if (decoder.decode(bytes.subarray(start, end)) === string) found.push(end);
    }
    return found;
  };

  // For each token, from the left: the places where it may begin, and where each of those lets it end.
  /** @type {Map<number, number[]>[]} */
  const steps = [];
  let places = new Set([0]);
  for (const string of strings) {
    const step = new Map([...places].map((start) => [start, ends(start, string)]));
    steps.push(step);
    places = new Set([...step.values()].flat());
  }
  // From the right: those of them from which the end of the text can be reached.
  let alive = new Set(places.has(bytes.length) ? [bytes.length] : []);
  /** @type {(number[] | null)[]} */
  const found = [];
  for (const step of steps.reverse()) {
    const starts = new Set(
      [...step].filter(([, after]) => after.some((end) => alive.has(end))).map(([start]) => start),
    );
    const certain = starts.size === 1 && alive.size === 1;
    found.push(certain ? [...bytes.subarray([...starts][0], [...alive][0])] : null);
    alive = starts;
  }
  return found.reverse();
}
