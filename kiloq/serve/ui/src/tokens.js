/**
 * Tokens of a text through the server's /tokenize. Where the server does not send the tokens' strings with their ids, they
 * are asked for one by one through /detokenize, a few at a time and not without end. Where a string hides a piece of a
 * character, the server's `token_bytes` or else the whole text tells which bytes it is.
 *
 * @typedef {import("./tree.js").Token} Token
 */
import { alignBytes } from "./align.js";
import { detokenize, tokenize } from "./api.js";

const AT_ONCE = 4;
const MAX_ASKED = 256; // distinct ids; further ones are shown by their number

/** @param {number[]} ids @param {string} model @returns {Promise<string[]>} */
async function stringsOf(ids, model) {
  const distinct = [...new Set(ids)].slice(0, MAX_ASKED);
  const found = new Map();
  const work = async () => {
    for (let id = distinct.shift(); id !== undefined; id = distinct.shift()) {
      found.set(id, await detokenize([id], model));
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, work));
  return ids.map((id) => String(found.get(id) ?? `#${id}`));
}

/**
 * @param {{model: string} & ({prompt: string} | {messages: object[], tools: object[]})} body
 * @returns {Promise<{tokens: Token[], count: number}>}
 */
export async function tokensOf(body) {
  // A text is shown as it is: what the model puts in front of a prompt is part of the conversation's view only.
  const exact = "prompt" in body ? { ...body, add_special_tokens: false } : body;
  const { tokens: ids, count, token_strs: sent, token_bytes: known } = await tokenize(exact);
  const strings = sent?.length === ids.length ? sent.map(String) : await stringsOf(ids, body.model);
  const cut = strings.some((string) => string.includes("\ufffd"));
  const text = () => ("prompt" in body ? body.prompt : detokenize(ids, body.model));
  const bytes = known?.length === ids.length ? known : cut ? alignBytes(await text(), strings) : null;
  const tokens = ids.map((id, index) => ({ id, token: strings[index], bytes: bytes?.[index] ?? null, logprob: 0 }));
  return { tokens, count };
}
