/**
 * Tokens as chips. Each has a border, so that boundaries are visible; with probabilities known it also has a colour from
 * orange (unlikely) to blue (likely), a scale that stays readable with any colour vision, and a bar under it whose length
 * is the probability, so colour is never alone. One panel shows the details of the chip under the pointer or the focus: id, bytes, and the
 * tokens the model might have written instead. The list is one stop of the Tab key; arrow keys move inside.
 *
 * @typedef {import("./tree.js").Token} Token
 */
import { endsLine, hexBytes, visibleParts } from "./bytes.js";
import { h, uniqueId } from "./dom.js";
import { percent } from "./format.js";
import { t } from "./strings.js";

/** Least probability of each band, likeliest first; style.css has a colour for each. Ours. */
export const BANDS = [0.9, 0.5, 0.2, 0.05, 0];
const CLOSE_MS = 200; // time to move the pointer from a chip into the panel
const GAP = 6;

/** @param {number} probability */
export const band = (probability) => BANDS.findIndex((least) => probability >= least);

/** @param {{token: string, bytes?: number[] | null}} token */
const partElements = (token) => {
  const parts = visibleParts(token);
  return parts.length
    ? parts.map(({ text, kind }) => h("span", { class: `part-${kind}` }, text))
    : [h("span", { class: "part-blank" }, "∅")];
};

export function legend() {
  const entry = (/** @type {number} */ least, /** @type {number} */ index) => {
    const text =
      index === 0
        ? `≥ ${percent(least)}`
        : least === 0
          ? `< ${percent(BANDS[index - 1])}`
          : `${percent(least)} – ${percent(BANDS[index - 1])}`;
    const chip = h("span", { class: `token band-${index}` }, text);
    chip.style.setProperty("--p", String(index === 0 ? 1 : (least + BANDS[index - 1]) / 2));
    return h("li", {}, chip);
  };
  return h("div", { class: "legend" }, h("span", {}, t("probability")), h("ul", {}, ...BANDS.map(entry)));
}

/** @param {Token} token @param {boolean} scored */
function details(token, scored) {
  const bytes = hexBytes(token);
  const facts = [
    [t("tokenId"), token.id === undefined ? t("unknown") : String(token.id)],
    [t("tokenBytes"), bytes || t("partOfCharacter")],
    ...(scored ? [[t("probability"), `${percent(Math.exp(token.logprob))}  (ln ${token.logprob.toFixed(3)})`]] : []),
  ];
  const rows = (token.top_logprobs ?? []).map((other) => {
    const p = Math.exp(other.logprob);
    const bar = h("span", { class: "alternative-bar" });
    bar.style.setProperty("--p", String(p));
    const same = other.id === undefined ? other.token === token.token : other.id === token.id;
    return h(
      "tr",
      { class: same ? "chosen" : undefined },
      h("td", {}, h("code", {}, ...partElements(other))),
      h("td", {}, percent(p)),
      h("td", {}, bar),
      h("td", {}, same ? t("chosen") : ""),
    );
  });
  return [
    h("code", { class: "token-large" }, ...partElements(token)),
    h("dl", {}, ...facts.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
    rows.length ? h("table", {}, h("caption", {}, t("alternatives")), h("tbody", {}, ...rows)) : null,
  ].filter(Boolean);
}

/** A list of tokens and its panel. */
export class TokenList {
  /** @param {{scored: boolean}} options whether the tokens have probabilities */
  constructor({ scored }) {
    this.scored = scored;
    /** @type {Token[]} */
    this.tokens = [];
    /** @type {HTMLElement | null} the chip that the panel is about */
    this.current = null;
    this.panel = h("div", { class: "token-panel", role: "tooltip", id: uniqueId("token-panel"), popover: "manual" });
    this.list = h("div", { class: "token-list", role: "group", "aria-label": t("tokens") });
    this.element = h("div", { class: "token-view" }, scored ? legend() : null, this.list, this.panel);
    this.list.addEventListener("pointerover", (/** @type {Event} */ event) => this.#open(event.target));
    this.list.addEventListener("focusin", (/** @type {Event} */ event) => this.#open(event.target));
    this.list.addEventListener("focusout", () => this.#closeSoon());
    this.element.addEventListener("pointerleave", () => this.#closeSoon());
    this.panel.addEventListener("pointerenter", () => clearTimeout(this.timer));
    this.list.addEventListener("pointerleave", () => this.#closeSoon());
    this.list.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => this.#move(event));
  }

  /** @param {Token[]} tokens */
  show(tokens) {
    this.#close();
    this.tokens = tokens;
    const chips = document.createDocumentFragment();
    tokens.forEach((token, index) => {
      const p = Math.exp(token.logprob);
      const style = this.scored ? `band-${band(p)}` : `plain-${index % 2}`;
      const chip = h(
        "button",
        { type: "button", class: `token ${style}`, tabIndex: index ? -1 : 0, "data-index": index },
        ...partElements(token),
      );
      if (this.scored) chip.style.setProperty("--p", p.toFixed(3));
      chips.append(chip);
      if (endsLine(token)) chips.append(h("br"));
    });
    this.list.replaceChildren(chips);
  }

  /** @param {any} target */
  #open(target) {
    const chip = target.closest?.("button.token");
    if (!chip || !this.list.contains(chip)) return;
    this.#close();
    this.current = chip;
    chip.setAttribute("aria-describedby", this.panel.id);
    this.panel.replaceChildren(...details(this.tokens[Number(chip.dataset.index)], this.scored));
    this.panel.showPopover(); // above dialogs, and not cut off by what scrolls
    this.#place();
    this.opened = new AbortController();
    const { signal } = this.opened;
    document.addEventListener("scroll", () => this.#place(), { capture: true, passive: true, signal });
    document.addEventListener("keydown", (event) => this.#escape(event), { capture: true, signal });
  }

  #place() {
    if (!this.current?.isConnected) return this.#close();
    const anchor = this.current.getBoundingClientRect();
    const { width, height } = this.panel.getBoundingClientRect();
    const below = anchor.bottom + GAP + height <= innerHeight || anchor.top - GAP - height < 0;
    this.panel.style.top = `${below ? anchor.bottom + GAP : anchor.top - GAP - height}px`;
    this.panel.style.left = `${Math.max(GAP, Math.min(anchor.left, innerWidth - width - GAP))}px`;
    return undefined;
  }

  #closeSoon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      const { activeElement } = document;
      if (!this.current) return;
      if (this.list.contains(activeElement)) {
        this.#open(activeElement); // the pointer went, the focus is still there
      } else {
        this.#close();
      }
    }, CLOSE_MS);
  }

  #close() {
    clearTimeout(this.timer);
    this.opened?.abort();
    this.current?.removeAttribute("aria-describedby");
    this.current = null;
    if (this.panel.isConnected && this.panel.matches(":popover-open")) this.panel.hidePopover();
  }

  /** Escape closes the panel wherever the focus is, and only the panel, not a dialog around it. @param {KeyboardEvent} event */
  #escape(event) {
    if (event.key !== "Escape") return;
    event.preventDefault();
    event.stopPropagation();
    this.#close();
  }

  /** @param {KeyboardEvent} event */
  #move(event) {
    const chips = /** @type {HTMLElement[]} */ ([...this.list.querySelectorAll("button.token")]);
    const at = chips.indexOf(/** @type {HTMLElement} */ (document.activeElement));
    const next = {
      ArrowRight: at + 1,
      ArrowDown: at + 1,
      ArrowLeft: at - 1,
      ArrowUp: at - 1,
      Home: 0,
      End: chips.length - 1,
    }[event.key];
    if (at < 0 || next === undefined || !chips[next]) return;
    event.preventDefault();
    chips[at].tabIndex = -1;
    chips[next].tabIndex = 0;
    chips[next].focus();
  }
}
