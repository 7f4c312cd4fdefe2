/**
 * Running answers: at most one for each conversation, several conversations at a time. Stopping aborts the fetch, which
 * closes the connection, which makes the server free the slot. A failure stays on the answer as a sentence, and what had
 * arrived before it is kept.
 */
import { ApiError, streamChat } from "./api.js";
import { Answer } from "./answer.js";
import { chatRequest } from "./request.js";
import { add, path } from "./tree.js";

/**
 * @typedef {import("./tree.js").Conversation} Conversation
 * @typedef {import("./tree.js").Message} Message
 * @typedef {{controller: AbortController, answer: Answer, announced: boolean}} Run
 */

/** Events: "state" when something starts or ends, "text" when an answer grew (both with the message), "auth". */
export class Runner extends EventTarget {
  /** @type {Map<string, Run>} */
  #running = new Map();

  /** @param {import("./library.js").Library} library @param {import("./settings.js").Settings} settings */
  constructor(library, settings) {
    super();
    this.library = library;
    this.settings = settings;
    library.isBusy = (id) => this.#running.has(id);
  }

  /** @param {Conversation} conversation @returns {Run | undefined} */
  run(conversation) {
    return this.#running.get(conversation.id);
  }

  /** @param {Conversation} conversation */
  stop(conversation) {
    this.run(conversation)?.controller.abort();
  }

  /**
   * Asks the model to answer what ends at `parent`, or to go on with the answer `resumed`.
   * @param {Conversation} conversation @param {string | null} parent @param {Message} [resumed]
   */
  async answer(conversation, parent, resumed) {
    if (this.run(conversation)) return;
    const shown = path(conversation, resumed?.id ?? parent);
    const model = this.settings.values.model;
    const message = resumed ?? add(conversation, { parent, role: "assistant", content: "", model });
    Object.assign(message, { finish: "running", error: undefined, usage: undefined });
    const run = { controller: new AbortController(), answer: new Answer(message), announced: false };
    this.#running.set(conversation.id, run);
    this.library.changed(conversation);
    this.#emit("state", message);
    try {
      const { system } = conversation;
      const body = chatRequest({ model, system, shown, settings: this.settings.values, resume: Boolean(resumed) });
      for await (const chunk of streamChat(body, run.controller.signal)) {
        if (run.answer.take(chunk)) {
          this.#emit("text", message);
          this.library.changed(conversation, { listed: false });
        }
      }
      if (message.finish === "running") message.finish = "stop";
    } catch (error) {
      this.#failed(message, error);
    }
    this.#running.delete(conversation.id);
    conversation.updated = Date.now();
    this.library.changed(conversation);
    this.#emit("state", message);
  }

  /**
   * Asks again for what an answer answered: a new branch, or, where nothing had come, in its place.
   * @param {Conversation} conversation @param {Message} message
   */
  again(conversation, message) {
    if (this.run(conversation)) return undefined;
    if (message.error && !message.content && !message.tool_calls?.length) {
      conversation.messages = conversation.messages.filter((other) => other !== message);
    }
    return this.answer(conversation, message.parent);
  }

  /** @param {Message} message @param {unknown} error */
  #failed(message, error) {
    if (error instanceof ApiError && error.kind === "aborted") {
      message.finish = "stopped";
      return;
    }
    message.finish = "error";
    message.error =
      error instanceof ApiError && error.kind !== "http"
        ? error.kind
        : String(/** @type {any} */ (error)?.message ?? error);
    if (message.error === "auth") this.#emit("auth", message);
    if (!(error instanceof ApiError)) console.error(error); // one of ours: keep the trace for whoever reports it
  }

  /** @param {string} type @param {Message} message */
  #emit(type, message) {
    this.dispatchEvent(new CustomEvent(type, { detail: message }));
  }
}
