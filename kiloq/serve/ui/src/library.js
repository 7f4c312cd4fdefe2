/*
 * All conversations, the one on screen, and their way to storage. What the reader does is written at once; a running answer,
 * which changes many times a second, at most once a second and when the page is left. Tabs tell each other what they changed, so that an old
 * copy in one does not overwrite a newer one from another. The address's fragment names the conversation: reloading, a
 * bookmark and the browser's Back button all work.
 */
import { openStorage } from "./storage.js";
import { matches, newConversation } from "./tree.js";

/** @typedef {import("./tree.js").Conversation} Conversation */

const WRITE_MS = 1_000;

/** Events: "list" (titles, order, number), "select", "change" with the conversation's id as `detail`, "unsaved". */
export class Library extends EventTarget {
  /** @type {Map<string, Conversation>} */
  #conversations = new Map();
  /** @type {Map<string, number>} */
  #waiting = new Map();
  #channel = "BroadcastChannel" in globalThis ? new BroadcastChannel("kiloq") : null;
  /** @type {Conversation} */
  current;
  persistent = true;

  /** @param {{system: string}} defaults for new conversations */
  constructor(defaults) {
    super();
    this.defaults = defaults;
    this.current = newConversation(defaults.system);
  }

  async open() {
    this.storage = await openStorage();
    this.persistent = this.storage.persistent;
    for (const conversation of await this.storage.all())
      this.#conversations.set(conversation.id, interrupted(conversation));
    addEventListener("hashchange", () => this.#follow());
    addEventListener("pagehide", () => this.flush());
    document.addEventListener("visibilitychange", () => document.hidden && this.flush());
    this.#channel?.addEventListener("message", () => this.#reload());
    this.#follow();
  }

  /** Whether a running answer of this tab writes to the conversation; the runner sets it. @type {(id: string) => boolean} */
  isBusy = () => false;

  async #reload() {
    const stored = (await this.storage?.all()) ?? [];
    for (const id of [...this.#conversations.keys()]) {
      if (!stored.some((other) => other.id === id) && !this.isBusy(id)) this.#conversations.delete(id);
    }
    for (const other of stored) if (!this.isBusy(other.id)) this.#conversations.set(other.id, other);
    this.#emit("list");
    const { id } = this.current;
    if (this.#conversations.has(id) && !this.isBusy(id)) {
      this.current = this.get(id) ?? this.current;
      this.#emit("change", id);
    }
  }

  #follow() {
    const named = this.#conversations.get(location.hash.slice(1));
    if (named === this.current || (!named && this.current.messages.length === 0 && !location.hash)) return;
    this.current = named ?? newConversation(this.defaults.system);
    this.#emit("select");
  }

  /** @param {string} type @param {string} [detail] */
  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  /** @param {string} id */
  get(id) {
    return this.#conversations.get(id);
  }

  /** @param {string} [query] @returns {Conversation[]} newest first */
  list(query = "") {
    return [...this.#conversations.values()]
      .filter((conversation) => matches(conversation, query))
      .sort((one, other) => other.updated - one.updated);
  }

  /** Shows a conversation; an empty one takes no place in the list until something is said. @param {string | null} id */
  select(id) {
    this.current = (id && this.get(id)) || newConversation(this.defaults.system);
    history.pushState(null, "", id ? `#${id}` : location.pathname);
    this.#emit("select");
  }

  /** Notes a change. @param {Conversation} conversation @param {{listed?: boolean}} [what] `listed`: title or order too */
  changed(conversation, { listed = true } = {}) {
    if (!this.#conversations.has(conversation.id)) {
      this.#conversations.set(conversation.id, conversation);
      if (conversation === this.current) history.replaceState(null, "", `#${conversation.id}`);
    }
    if (listed) this.#write(conversation.id);
    else if (!this.#waiting.has(conversation.id)) {
      this.#waiting.set(
        conversation.id,
        setTimeout(() => this.#write(conversation.id), WRITE_MS),
      );
    }
    this.#emit("change", conversation.id);
    if (listed) this.#emit("list");
  }

  /** Writes what waits. */
  flush() {
    for (const id of [...this.#waiting.keys()]) this.#write(id);
  }

  /** @param {string} id */
  async #write(id) {
    clearTimeout(this.#waiting.get(id));
    this.#waiting.delete(id);
    const conversation = this.get(id);
    if (!conversation) return;
    try {
      await this.storage?.put(conversation);
      this.#channel?.postMessage("changed");
    } catch {
      this.persistent = false; // the disk is full, say
      this.#emit("unsaved");
    }
  }

  /** @param {string} id @param {string} title */
  rename(id, title) {
    const conversation = this.get(id);
    if (!conversation || !title.trim()) return;
    Object.assign(conversation, { title: title.trim(), named: true });
    this.changed(conversation);
  }

  /** @param {string[]} ids */
  async remove(ids) {
    for (const id of ids) {
      clearTimeout(this.#waiting.get(id));
      this.#waiting.delete(id);
      this.#conversations.delete(id);
    }
    this.#emit("list");
    if (ids.includes(this.current.id)) this.select(null);
    await Promise.all(ids.map((id) => this.storage?.remove(id)));
    this.#channel?.postMessage("changed");
  }

  /** @param {Conversation[]} conversations checked ones @returns {number} how many were not here yet */
  take(conversations) {
    const fresh = conversations.filter(({ id }) => !this.#conversations.has(id));
    for (const conversation of fresh) this.changed(interrupted(conversation));
    return fresh.length;
  }
}

/** An answer that was running when its page was left will not go on. @param {Conversation} conversation */
function interrupted(conversation) {
  for (const message of conversation.messages) if (message.finish === "running") message.finish = "stopped";
  return conversation;
}
