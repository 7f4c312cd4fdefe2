/**
 * The page's settings, kept in localStorage as one JSON text. What is read back is checked field by field: a stale or
 * tampered value falls back to the default instead of breaking the page. The theme is applied here by one attribute on
 * the root element; style.css does the rest.
 */
import { SAMPLING } from "./request.js";
import { LANGUAGES, setLanguage } from "./strings.js";

/**
 * @typedef {{
 *   theme: "auto" | "light" | "dark", language: "auto" | "en" | "zh", model: string, system: string,
 *   sampling: Record<string, number | null>, stop: string, tools: string, tokenView: boolean,
 * }} Values `system` is for new conversations; null means the server's default
 */

const STORED = "kiloq.settings";
const THEMES = ["auto", "light", "dark"];

/** @returns {Values} */
const defaults = () => ({
  theme: "auto",
  language: "auto",
  model: "",
  system: "",
  sampling: Object.fromEntries(SAMPLING.map(([name]) => [name, null])),
  stop: "",
  tools: "",
  tokenView: false,
});

/**
 * A number of the sampling panel. @param {string} name @param {string} text
 * @returns {number | null | undefined} null for "not set", undefined for "not allowed"
 */
export function parseSampling(name, text) {
  const [, least, greatest, step] = SAMPLING.find(([known]) => known === name) ?? [name, 0, 0, 1];
  if (!text.trim()) return null;
  const value = Number(text);
  const whole = step < 1 || Number.isInteger(value);
  return Number.isFinite(value) && whole && value >= least && value <= greatest ? value : undefined;
}

/** Settings with a change event. */
export class Settings extends EventTarget {
  constructor() {
    super();
    this.values = defaults();
    try {
      this.#take(JSON.parse(localStorage.getItem(STORED) ?? "{}"));
    } catch {
      // Unreadable or forbidden storage: the defaults hold.
    }
    this.#apply();
    addEventListener("storage", (event) => event.key === STORED && this.#follow(event.newValue));
  }

  /** Takes over what another tab changed. @param {string | null} stored */
  #follow(stored) {
    if (!stored) return;
    const { language } = this.values;
    this.#take(JSON.parse(stored));
    this.#apply();
    this.dispatchEvent(new Event("change"));
    if (language !== this.values.language) this.dispatchEvent(new Event("language"));
  }

  /** @param {any} stored */
  #take(stored) {
    const { values } = this;
    if (THEMES.includes(stored?.theme)) values.theme = stored.theme;
    if (["auto", ...Object.keys(LANGUAGES)].includes(stored?.language)) values.language = stored.language;
    for (const name of /** @type {const} */ (["model", "system", "stop", "tools"])) {
      if (typeof stored?.[name] === "string") values[name] = stored[name];
    }
    values.tokenView = stored?.tokenView === true;
    for (const [name] of SAMPLING) {
      values.sampling[name] = parseSampling(name, String(stored?.sampling?.[name] ?? "")) ?? null;
    }
  }

  #apply() {
    document.documentElement.dataset.theme = this.values.theme;
    setLanguage(this.values.language);
  }

  /** @param {Partial<Values>} changes */
  update(changes) {
    const language = changes.language !== undefined && changes.language !== this.values.language;
    Object.assign(this.values, changes);
    try {
      localStorage.setItem(STORED, JSON.stringify(this.values));
    } catch {
      // The settings then hold until the page is closed.
    }
    this.#apply();
    this.dispatchEvent(new Event("change"));
    if (language) this.dispatchEvent(new Event("language"));
  }

  /** Sampling, stop strings and tools as the server has them. */
  resetSampling() {
    const { sampling, stop } = defaults();
    this.update({ sampling, stop });
  }
}
