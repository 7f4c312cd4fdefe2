/*
 * What the page knows about its server: reachable, loading its model, in need of a key, and which models it has. While it is
 * not ready it is asked again, ever more slowly; when it is ready it is left alone until a request fails or the reader
 * comes back to the page.
 */
import { ApiError, health, models } from "./api.js";

/** @typedef {"checking" | "ready" | "loading" | "offline" | "slow" | "auth" | "http"} State */

const FIRST_WAIT_MS = 1_000;
const LONGEST_WAIT_MS = 15_000;

/** Event: "change". */
export class Server extends EventTarget {
  /** @type {State} */
  state = "checking";
  /** The server's own sentence, where it gave one. */
  sentence = "";
  /** @type {{id: string, max_model_len?: number}[]} */
  models = [];
  #wait = FIRST_WAIT_MS;
  #timer = 0;
  #asking = false;

  watch() {
    addEventListener("online", () => this.check());
    document.addEventListener("visibilitychange", () => document.hidden || this.check());
    this.check();
  }

  /** Asks now. */
  async check() {
    if (this.#asking) return;
    this.#asking = true;
    clearTimeout(this.#timer);
    try {
      await health();
      this.models = await models();
      this.#become("ready", "");
      this.#wait = FIRST_WAIT_MS;
    } catch (error) {
      const { kind, message } = error instanceof ApiError ? error : { kind: "http", message: String(error) };
      this.#become(/** @type {State} */ (kind), message);
    }
    this.#asking = false;
    if (this.state === "ready" || this.state === "auth") return; // a key only comes from the reader
    this.#timer = setTimeout(() => this.check(), this.#wait);
    // Loading is expected to end soon; a server that is gone is not worth a request a second.
    this.#wait = this.state === "loading" ? FIRST_WAIT_MS : Math.min(2 * this.#wait, LONGEST_WAIT_MS);
  }

  /** @param {State} state @param {string} sentence */
  #become(state, sentence) {
    this.state = state;
    this.sentence = sentence;
    this.dispatchEvent(new Event("change"));
  }

  /** @param {string} id @returns {number | undefined} tokens that fit */
  contextOf(id) {
    return this.models.find((model) => model.id === id)?.max_model_len;
  }
}
