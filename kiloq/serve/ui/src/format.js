/*
 * Numbers and dates in the reader's language.
 */
import { language } from "./strings.js";

const DAY_MS = 86_400_000;

/** @param {number} value @param {number} [digits] after the point */
export const count = (value, digits = 0) =>
  new Intl.NumberFormat(language(), { maximumFractionDigits: digits, minimumFractionDigits: digits }).format(value);

/** @param {number} share 0 to 1 */
export const percent = (share) =>
  new Intl.NumberFormat(language(), {
    style: "percent",
    maximumFractionDigits: share < 0.1 && share > 0 ? 1 : 0,
  }).format(share);

/** @param {number} ms */
export const seconds = (ms) => count(ms / 1000, 1);

/** In which part of the conversation list a time belongs. @param {number} time @param {number} now */
export function period(time, now = Date.now()) {
  const midnight = new Date(now).setHours(0, 0, 0, 0);
  if (time >= midnight) return /** @type {const} */ ("today");
  if (time >= midnight - DAY_MS) return /** @type {const} */ ("yesterday");
  return time >= midnight - 7 * DAY_MS ? /** @type {const} */ ("thisWeek") : /** @type {const} */ ("earlier");
}
