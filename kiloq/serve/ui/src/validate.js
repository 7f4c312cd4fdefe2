/**
 * Files of conversations, checked before anything of them is used. Only known fields of the right type are copied, into
 * fresh objects; sizes are bounded; parents must exist, come earlier and fit their role, so a path always ends. Whatever
 * does not fit refuses the whole file with a reason, because half an import is worse than none.
 *
 * @typedef {import("./tree.js").Conversation} Conversation
 * @typedef {import("./tree.js").Message} Message
 */

export const FORMAT = "kiloq-conversations";
export const MAX_FILE_BYTES = 64 * 2 ** 20;
const MAX_TEXT = 4_000_000; // characters of one message; a context of 32,768 tokens is far below
export const MAX_NAME = 200;
const MAX_ITEMS = 10_000;

/** Why a file was refused: `where` is a path in it such as `conversations[2].title`. */
export class BadFile extends Error {
  /** @param {string} where @param {string} wanted */
  constructor(where, wanted) {
    super(`${where}: ${wanted}`);
  }
}

/** @param {boolean} condition @param {string} where @param {string} wanted */
function check(condition, where, wanted) {
  if (!condition) throw new BadFile(where, wanted);
}

/** @param {any} value @param {string} where @param {number} most */
function text(value, where, most = MAX_TEXT) {
  check(typeof value === "string" && value.length <= most, where, `text of at most ${most} characters`);
  return /** @type {string} */ (value);
}

/** @param {any} value @param {string} where */
function number(value, where) {
  check(typeof value === "number" && Number.isFinite(value), where, "a number");
  return /** @type {number} */ (value);
}

/** @param {any} value @param {string} where @returns {Record<string, any>} */
function object(value, where) {
  check(typeof value === "object" && value !== null && !Array.isArray(value), where, "an object");
  return value;
}

/** @template T @param {any} value @param {string} where @param {(item: any, where: string) => T} item @param {number} most @returns {T[]} */
function list(value, where, item, most = MAX_ITEMS) {
  check(Array.isArray(value) && value.length <= most, where, `a list of at most ${most}`);
  return value.map((/** @type {any} */ one, /** @type {number} */ index) => item(one, `${where}[${index}]`));
}

/** @param {any} value @param {string} where */
function identifier(value, where) {
  check(typeof value === "string" && /^[0-9a-f]{24}$/.test(value), where, "an id of 24 hexadecimal digits");
  return /** @type {string} */ (value);
}

/** @param {any} value @param {string} where */
function choice(value, where) {
  const { token, bytes, logprob, id } = object(value, where);
  const checked = { token: text(token, `${where}.token`), logprob: number(logprob, `${where}.logprob`) };
  const byte = (/** @type {any} */ one, /** @type {string} */ at) => {
    check(Number.isInteger(one) && one >= 0 && one < 256, at, "a byte");
    return /** @type {number} */ (one);
  };
  return {
    ...checked,
    bytes: bytes === null || bytes === undefined ? null : list(bytes, `${where}.bytes`, byte),
    ...(id === undefined ? {} : { id: number(id, `${where}.id`) }),
  };
}

/** @param {any} value @param {string} where */
const token = (value, where) => ({
  ...choice(value, where),
  top_logprobs: list(object(value, where).top_logprobs ?? [], `${where}.top_logprobs`, choice, 20),
});

/** @param {any} value @param {string} where */
function call(value, where) {
  const { id, function: called } = object(value, where);
  const { name, arguments: given } = object(called, `${where}.function`);
  return {
    id: text(id, `${where}.id`),
    function: { name: text(name, `${where}.function.name`), arguments: text(given, `${where}.function.arguments`) },
  };
}

/** @param {any} value @param {string} where */
function attachment(value, where) {
  const { name, text: content } = object(value, where);
  return { name: text(name, `${where}.name`, MAX_NAME), text: text(content, `${where}.text`) };
}

/** @param {any} value @param {string} where */
function usage(value, where) {
  const { prompt_tokens, completion_tokens } = object(value, where);
  return {
    prompt_tokens: number(prompt_tokens, `${where}.prompt_tokens`),
    completion_tokens: number(completion_tokens, `${where}.completion_tokens`),
  };
}

/** Fields that a message may have beyond those it must, each with its check. */
const OPTIONAL = {
  model: (/** @type {any} */ value, /** @type {string} */ where) => text(value, where, MAX_NAME),
  reasoning: text,
  error: text,
  finish: (/** @type {any} */ value, /** @type {string} */ where) => text(value, where, MAX_NAME),
  attachments: (/** @type {any} */ value, /** @type {string} */ where) => list(value, where, attachment, 100),
  tool_calls: (/** @type {any} */ value, /** @type {string} */ where) => list(value, where, call, 1000),
  tool_call_id: text,
  tokens: (/** @type {any} */ value, /** @type {string} */ where) => list(value, where, token, 1_000_000),
  usage,
  first_ms: number,
  total_ms: number,
};

/** @param {any} value @param {string} where @returns {Message} */
function message(value, where) {
  const given = object(value, where);
  check(["user", "assistant", "tool"].includes(given.role), `${where}.role`, "user, assistant or tool");
  /** @type {any} */
  const checked = {
    id: identifier(given.id, `${where}.id`),
    parent: given.parent === null ? null : identifier(given.parent, `${where}.parent`),
    role: given.role,
    content: text(given.content, `${where}.content`),
    created: number(given.created, `${where}.created`),
  };
  for (const [name, checkField] of Object.entries(OPTIONAL)) {
    if (given[name] !== undefined) checked[name] = checkField(given[name], `${where}.${name}`);
  }
  return checked;
}

/** @param {any} value @param {string} where @returns {Conversation} */
function conversation(value, where) {
  const given = object(value, where);
  const messages = list(given.messages, `${where}.messages`, message);
  const seen = new Set();
  messages.forEach(({ id, parent }, index) => {
    check(!seen.has(id), `${where}.messages[${index}].id`, "an id used once");
    check(parent === null || seen.has(parent), `${where}.messages[${index}].parent`, "the id of an earlier message");
    seen.add(id);
  });
  check(given.leaf === null ? !messages.length : seen.has(given.leaf), `${where}.leaf`, "the id of a message");
  return {
    id: identifier(given.id, `${where}.id`),
    title: text(given.title, `${where}.title`, MAX_NAME),
    named: given.named === true,
    created: number(given.created, `${where}.created`),
    updated: number(given.updated, `${where}.updated`),
    system: text(given.system, `${where}.system`),
    leaf: given.leaf,
    messages,
  };
}

/** @param {string} file the text of the file @returns {Conversation[]} @throws {BadFile} */
export function parseExport(file) {
  let parsed;
  try {
    parsed = JSON.parse(file);
  } catch {
    throw new BadFile("file", "JSON");
  }
  const { format, version, conversations } = object(parsed, "file");
  check(format === FORMAT, "format", `"${FORMAT}"`);
  check(version === 1, "version", "1");
  return list(conversations, "conversations", conversation);
}

/** @param {Conversation[]} conversations @returns {string} */
export const exportFile = (conversations) =>
  JSON.stringify({ format: FORMAT, version: 1, exported: new Date().toISOString(), conversations }, null, 1);
