/*
 * What screen readers hear of an answer. The text on screen changes many times a second and is not a live region; whole
 * sentences are copied into a polite one that nobody sees, some seconds apart, so that speech keeps up and is not flooded.
 */
import { h } from "./dom.js";
import { t } from "./strings.js";

const APART_MS = 3_000; // ours: about what a screen reader needs for a sentence
const SENTENCE_END = /[.!?:;。！？：；\n](?=\s|$|[^\x00-\x7f])/g;

/** @param {string} markdown @returns {string} what is worth saying of it */
const spoken = (markdown) =>
  markdown
    .replace(/```[\s\S]*?(```|$)/g, ` ${t("code")}. `)
    .replace(/[*_`#>|]+/g, "")
    .trim();

/** Speaks answers and short notices. */
export class Announcer {
  element = h("div", { class: "offscreen", role: "log", "aria-live": "polite", "aria-label": t("announcements") });
  #said = 0;
  #last = 0;

  /** @param {string} text */
  say(text) {
    if (text) this.element.append(h("p", {}, text));
    while (this.element.childElementCount > 5) this.element.firstElementChild?.remove();
  }

  begin() {
    this.#said = 0;
    this.#last = performance.now();
    this.element.replaceChildren();
    this.say(t("answering"));
  }

  /** @param {string} text the answer so far */
  progress(text) {
    const now = performance.now();
    if (now - this.#last < APART_MS) return;
    let end = -1;
    for (const found of text.slice(this.#said).matchAll(SENTENCE_END)) end = found.index + 1;
    if (end <= 0) return;
    this.say(spoken(text.slice(this.#said, this.#said + end)));
    this.#said += end;
    this.#last = now;
  }

  /** @param {string} text the whole answer @param {string} how it ended */
  end(text, how) {
    this.say(spoken(text.slice(this.#said)));
    this.say(how);
  }
}
