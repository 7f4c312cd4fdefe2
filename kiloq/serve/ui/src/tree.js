/**
 * A conversation as a tree of messages. Editing a question or asking again adds a sibling instead of overwriting; what is
 * on screen is the path from the root to `leaf`. Only parents and the leaf are stored, so there is nothing that could
 * contradict itself. Pure functions and plain data: the same objects go to IndexedDB and into exported files.
 *
 * @typedef {{id: string, function: {name: string, arguments: string}}} ToolCall
 * @typedef {{token: string, bytes?: number[] | null, logprob: number, id?: number}} Choice one token and its probability
 * @typedef {Choice & {top_logprobs?: Choice[]}} Token a token of an answer with the alternatives to it
 * @typedef {{name: string, text: string}} Attachment
 * @typedef {"user" | "assistant" | "tool"} Role
 * @typedef {{
 *   id: string, parent: string | null, role: Role, content: string, created: number,
 *   model?: string, reasoning?: string, finish?: string, error?: string,
 *   attachments?: Attachment[], tool_calls?: ToolCall[], tool_call_id?: string, tokens?: Token[],
 *   usage?: {prompt_tokens: number, completion_tokens: number}, first_ms?: number, total_ms?: number,
 * }} Message times are in milliseconds; `finish` is OpenAI's finish_reason, or "stopped", "error", "running"
 * @typedef {{
 *   id: string, title: string, named: boolean, created: number, updated: number, system: string,
 *   leaf: string | null, messages: Message[],
 * }} Conversation
 */

export const newId = () =>
  [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

/** @param {string} system @returns {Conversation} */
export function newConversation(system) {
  const now = Date.now();
  return { id: newId(), title: "", named: false, created: now, updated: now, system, leaf: null, messages: [] };
}

/** @param {Conversation} conversation @returns {Message[]} from the root to `leaf`, or to the message given */
export function path(conversation, leaf = conversation.leaf) {
  const byId = new Map(conversation.messages.map((message) => [message.id, message]));
  const found = [];
  for (let message = byId.get(leaf ?? ""); message; message = byId.get(message.parent ?? "")) found.push(message);
  return found.reverse();
}

/** @param {Conversation} conversation @param {Message} message @returns {Message[]} it and its alternatives, oldest first */
export const siblings = (conversation, message) =>
  conversation.messages.filter((other) => other.parent === message.parent && other.role === message.role);

/** Adds a message and shows it. @param {Conversation} conversation @param {Omit<Message, "id" | "created">} fields */
export function add(conversation, fields) {
  /** @type {Message} */
  const message = { id: newId(), created: Date.now(), ...fields };
  conversation.messages.push(message);
  conversation.leaf = message.id;
  conversation.updated = message.created;
  if (!conversation.named && !conversation.title && message.role === "user") conversation.title = titleOf(message);
  return message;
}

/** Shows the newest path through a message. @param {Conversation} conversation @param {string} id */
export function show(conversation, id) {
  const newestChild = new Map(conversation.messages.map((message) => [message.parent, message.id]));
  let leaf = id;
  for (let next = newestChild.get(leaf); next; next = newestChild.get(leaf)) leaf = next;
  conversation.leaf = leaf;
}

const TITLE_LENGTH = 60;

/** @param {Message} message @returns {string} its first line, cut between characters */
function titleOf(message) {
  const line = (message.content || message.attachments?.[0]?.name || "").trim().split("\n", 1)[0];
  const characters = [...line];
  return characters.length > TITLE_LENGTH ? `${characters.slice(0, TITLE_LENGTH - 1).join("")}…` : line;
}

/** Whether a text occurs in the title or in any message. @param {Conversation} conversation @param {string} query */
export function matches(conversation, query) {
  const wanted = query.trim().toLocaleLowerCase();
  if (!wanted) return true;
  const texts = [conversation.title, ...conversation.messages.map((message) => message.content)];
  return texts.some((text) => text.toLocaleLowerCase().includes(wanted));
}

/**
 * The calls of an answer that still lack a result on the path shown.
 * @param {Message[]} shown @param {Message} answer
 */
export function openCalls(shown, answer) {
  const after = shown.slice(shown.indexOf(answer) + 1);
  const answered = new Set(after.filter((message) => message.role === "tool").map((message) => message.tool_call_id));
  const over = after.some((message) => message.role !== "tool");
  return over ? [] : (answer.tool_calls ?? []).filter((call) => !answered.has(call.id));
}
