/*
 * The box in which a question or a tool's result is rewritten. Enter and Escape do what they do elsewhere: send, and leave
 * things as they were.
 */
import { h, uniqueId } from "./dom.js";
import { t } from "./strings.js";

const BORDERS_PX = 4; // which scrollHeight leaves out

/**
 * @param {string} text @param {(text: string) => void} onsend @param {() => void} onleave
 * @returns {HTMLFormElement} not yet in the document
 */
export function editForm(text, onsend, onleave) {
  const id = uniqueId("edit");
  const input = h("textarea", { id, class: "field", value: text, rows: 2 });
  const form = h(
    "form",
    { class: "edit-form" },
    h("label", { for: id, class: "offscreen" }, t("editLabel")),
    input,
    h(
      "div",
      { class: "row-end" },
      h("button", { type: "button", class: "button", onclick: onleave }, t("cancel")),
      h("button", { type: "submit", class: "button primary" }, t("sendEdited")),
    ),
  );
  form.addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    onsend(input.value);
  });
  form.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      onleave();
    } else if (event.target === input && isSend(event)) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  return form;
}

/** Gives the box the height of its text, and the focus. @param {HTMLFormElement} form in the document */
export function beginEditing(form) {
  const input = /** @type {HTMLTextAreaElement} */ (form.querySelector("textarea"));
  input.style.height = `${Math.min(input.scrollHeight + BORDERS_PX, innerHeight / 2)}px`;
  input.focus();
}

/**
 * Enter, unless it breaks the line (Shift) or belongs to an input method: while that composes, or as its last key, which
 * some browsers report with the code 229 after composing has ended.
 * @param {KeyboardEvent} event
 */
export const isSend = (event) =>
  event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229;
