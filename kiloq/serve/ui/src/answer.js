/**
 * Putting an answer together from the chunks of the stream. Nothing here trusts the shapes: a chunk with a field of the
 * wrong type adds nothing. Rates are measured between the first and the last token, so that reading the prompt, which is
 * shown as its own time, does not blur them.
 *
 * @typedef {import("./tree.js").Message} Message
 * @typedef {import("./tree.js").Token} Token
 */

const NO_LOGPROB = -9999; // OpenAI's number for "too unlikely to say"
const MAX_TOP = 20; // OpenAI's limit of top_logprobs
const MAX_REASON = 200;

/** @param {any} entry @returns {import("./tree.js").Choice} the fields we keep of a logprobs entry */
function choice(entry) {
  const isByte = (/** @type {any} */ byte) => Number.isInteger(byte) && byte >= 0 && byte < 256;
  return {
    token: String(entry.token ?? ""),
    bytes: Array.isArray(entry.bytes) ? entry.bytes.filter(isByte) : null,
    logprob: Number.isFinite(entry.logprob) ? entry.logprob : NO_LOGPROB,
    ...(Number.isInteger(entry.id) ? { id: entry.id } : {}),
  };
}

/** @param {any} entry @returns {Token} */
export const toToken = (entry) => ({
  ...choice(entry),
  top_logprobs: Array.isArray(entry.top_logprobs) ? entry.top_logprobs.slice(0, MAX_TOP).map(choice) : [],
});

/** Collects tool-call pieces: the first names the call, the later ones only add arguments. @param {Message} message @param {any[]} deltas */
function addCalls(message, deltas) {
  const calls = (message.tool_calls ??= []);
  for (const delta of deltas) {
    const index = Number.isInteger(delta?.index) ? delta.index : calls.length;
    if (index < 0 || index > calls.length) continue;
    const call = (calls[index] ??= { id: "", function: { name: "", arguments: "" } });
    if (typeof delta.id === "string") call.id = delta.id;
    if (typeof delta.function?.name === "string") call.function.name += delta.function.name;
    if (typeof delta.function?.arguments === "string") call.function.arguments += delta.function.arguments;
  }
}

/** One answer as it arrives; writes into the message it was given. */
export class Answer {
  /** @param {Message} message @param {() => number} now milliseconds, monotonic */
  constructor(message, now = () => performance.now()) {
    this.message = message;
    this.now = now;
    this.started = now();
    /** @type {number | null} */
    this.first = null;
    this.chunks = 0;
  }

  /** @param {any} chunk @returns {boolean} whether anything visible changed */
  take(chunk) {
    const { message } = this;
    if (Number.isInteger(chunk?.usage?.completion_tokens)) {
      const { prompt_tokens, completion_tokens } = chunk.usage;
      message.usage = { prompt_tokens: Number.isInteger(prompt_tokens) ? prompt_tokens : 0, completion_tokens };
    }
    const choice = chunk?.choices?.[0];
    if (!choice) return false;
    const { delta } = choice;
    const reasoning = delta?.reasoning_content;
    if (typeof delta?.content === "string") message.content += delta.content;
    if (typeof reasoning === "string" && reasoning) message.reasoning = (message.reasoning ?? "") + reasoning;
    if (Array.isArray(delta?.tool_calls)) addCalls(message, delta.tool_calls);
    const tokens = Array.isArray(choice.logprobs?.content) ? choice.logprobs.content.map(toToken) : [];
    if (tokens.length) (message.tokens ??= []).push(...tokens);
    if (typeof choice.finish_reason === "string") message.finish = choice.finish_reason.slice(0, MAX_REASON);
    const visible = Boolean(delta?.content || reasoning || delta?.tool_calls || tokens.length);
    if (visible) {
      this.chunks += tokens.length || 1;
      this.first ??= this.now();
      message.first_ms = Math.round(this.first - this.started);
    }
    message.total_ms = Math.round(this.now() - this.started);
    return visible || typeof choice.finish_reason === "string";
  }
}

/**
 * Tokens per second while generating; null where there is too little to measure.
 * @param {Message} message @param {number} [counted] tokens so far, while the server has not yet said how many
 */
export function tokensPerSecond(message, counted) {
  const tokens = message.usage?.completion_tokens ?? counted ?? 0;
  const ms = (message.total_ms ?? 0) - (message.first_ms ?? 0);
  return tokens > 1 && ms > 0 ? ((tokens - 1) * 1000) / ms : null;
}
