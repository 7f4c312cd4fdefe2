/**
 * From a conversation and the settings to the body of POST /v1/chat/completions. Settings that are not set are not sent,
 * so the model's own defaults hold. Attached files become fenced blocks after the question, under their names.
 *
 * @typedef {import("./tree.js").Message} Message
 */

/** The sampling settings: name, least, greatest, step. Ranges are the server's. */
export const SAMPLING = /** @type {const} */ ([
  ["temperature", 0, 2, 0.05],
  ["top_p", 0, 1, 0.05],
  ["top_k", 0, 100000, 1],
  ["min_p", 0, 1, 0.01],
  ["repetition_penalty", 0.01, 2, 0.01],
  ["presence_penalty", -2, 2, 0.1],
  ["frequency_penalty", -2, 2, 0.1],
  ["seed", 0, 2 ** 53 - 1, 1],
  ["max_tokens", 1, 1000000, 1],
]);

export const TOP_LOGPROBS = 5;
const MAX_STOPS = 16;

/** @param {Message} message @returns {string} text and attached files */
export function fullText(message) {
  const files = (message.attachments ?? []).map(({ name, text }) => {
    const longest = Math.max(2, ...[...text.matchAll(/`+/g)].map((run) => run[0].length));
    const fence = "`".repeat(longest + 1);
    return `${name}:\n${fence}\n${text}\n${fence}`;
  });
  return [message.content, ...files].filter(Boolean).join("\n\n");
}

/** @param {Message} message @returns {object} OpenAI's form of it */
function toOpenAI(message) {
  if (message.role === "tool") return { role: "tool", tool_call_id: message.tool_call_id, content: message.content };
  if (message.role === "user") return { role: "user", content: fullText(message) };
  if (!message.tool_calls?.length) return { role: "assistant", content: message.content };
  const calls = message.tool_calls.map((call) => ({ id: call.id, type: "function", function: call.function }));
  return { role: "assistant", content: message.content || null, tool_calls: calls };
}

/** Without answers that failed before their first word. @param {string} system @param {Message[]} shown the path to answer @returns {object[]} */
export function openAIMessages(system, shown) {
  const said = shown.filter((message) => message.role !== "assistant" || message.content || message.tool_calls?.length);
  return [...(system.trim() ? [{ role: "system", content: system }] : []), ...said.map(toOpenAI)];
}

/** One stop string a line; `\n` stands for a newline. @param {string} text @returns {string[]} */
export const parseStops = (text) =>
  text
    .split("\n")
    .filter(Boolean)
    .slice(0, MAX_STOPS)
    .map((line) => line.replaceAll("\\n", "\n"));

/**
 * The tools of the settings. @param {string} text @returns {object[]}
 * @throws {SyntaxError} where it is no JSON list of OpenAI tools
 */
export function parseTools(text) {
  if (!text.trim()) return [];
  const tools = JSON.parse(text);
  const good =
    Array.isArray(tools) && tools.every((tool) => tool?.type === "function" && typeof tool.function?.name === "string");
  if (!good) throw new SyntaxError("tools");
  return tools;
}

/**
 * @param {{model: string, system: string, shown: Message[], settings: import("./settings.js").Values, resume: boolean}} from
 *   `resume`: the last message is an answer to be continued, which needs the server's `continue_final_message`
 */
export function chatRequest({ model, system, shown, settings, resume }) {
  const tools = parseTools(settings.tools);
  const stop = parseStops(settings.stop);
  return {
    model,
    messages: openAIMessages(system, shown),
    stream: true,
    stream_options: { include_usage: true },
    ...Object.fromEntries(Object.entries(settings.sampling).filter(([, value]) => value !== null)),
    ...(stop.length ? { stop } : {}),
    ...(tools.length ? { tools } : {}),
    ...(settings.tokenView ? { logprobs: true, top_logprobs: TOP_LOGPROBS } : {}),
    ...(resume ? { continue_final_message: true, add_generation_prompt: false } : {}),
  };
}
