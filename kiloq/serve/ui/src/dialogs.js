/*
 * Modal dialogs and short notices. The browser's own <dialog> keeps the focus inside, closes on Escape and gives the focus
 * back; what is left to do here is a heading, a close button and an answer.
 */
import { h, iconButton, uniqueId } from "./dom.js";
import { t } from "./strings.js";

const TOAST_MS = 4_000;

/**
 * Opens a dialog. @param {string} title @param {any[]} content @param {{class?: string, onclose?: () => void}} [options]
 * @returns {HTMLDialogElement} removed from the document when closed
 */
export function openDialog(title, content, options = {}) {
  const id = uniqueId("dialog");
  const dialog = h(
    "dialog",
    { class: `dialog ${options.class ?? ""}`, "aria-labelledby": id },
    h(
      "div",
      { class: "dialog-head" },
      h("h2", { id }, title),
      iconButton("close", t("close"), () => dialog.close()),
    ),
    h("div", { class: "dialog-body" }, ...content),
  );
  dialog.addEventListener("close", () => {
    dialog.remove();
    options.onclose?.();
  });
  dialog.addEventListener("mousedown", (/** @type {MouseEvent} */ event) => event.target === dialog && dialog.close()); // the backdrop
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/** @param {string} title @param {string} question @param {string} action @returns {Promise<boolean>} */
export function confirm(title, question, action) {
  return new Promise((resolve) => {
    let agreed = false;
    const dialog = openDialog(
      title,
      [
        h("p", {}, question),
        h(
          "div",
          { class: "dialog-actions" },
          h("button", { type: "button", class: "button", onclick: () => dialog.close() }, t("cancel")),
          h(
            "button",
            { type: "button", class: "button danger", onclick: () => ((agreed = true), dialog.close()) },
            action,
          ),
        ),
      ],
      { class: "narrow", onclose: () => resolve(agreed) },
    );
  });
}

/**
 * Asks for one line. @param {{title: string, label: string, value?: string, secret?: boolean, hint?: string, most?: number}} what
 * @returns {Promise<string | null>} null when the reader gave up
 */
export function ask({ title, label, value = "", secret = false, hint, most }) {
  return new Promise((resolve) => {
    /** @type {string | null} */
    let answer = null;
    const id = uniqueId("ask");
    const input = h("input", {
      id,
      type: secret ? "password" : "text",
      value,
      required: true,
      autocomplete: "off",
      class: "field",
    });
    if (most) input.maxLength = most;
    const form = h(
      "form",
      {
        onsubmit: (/** @type {Event} */ event) => {
          event.preventDefault();
          answer = input.value;
          dialog.close();
        },
      },
      h("label", { for: id }, label),
      input,
      hint ? h("p", { class: "hint" }, hint) : null,
      h(
        "div",
        { class: "dialog-actions" },
        h("button", { type: "button", class: "button", onclick: () => dialog.close() }, t("cancel")),
        h("button", { type: "submit", class: "button primary" }, t("save")),
      ),
    );
    const dialog = openDialog(title, [form], { class: "narrow", onclose: () => resolve(answer) });
    input.focus();
    input.select();
  });
}

/** A notice that goes by itself and is read aloud politely. @param {string} text */
export function toast(text) {
  const region = document.querySelector(".toasts") ?? h("div", { class: "toasts", role: "status" });
  // A modal dialog makes everything outside it inert and silent, so the notice goes into the topmost one.
  const dialogs = document.querySelectorAll("dialog[open]");
  (dialogs[dialogs.length - 1] ?? document.body).append(region);
  const note = h("p", { class: "toast" }, text);
  region.replaceChildren(note);
  setTimeout(() => note.remove(), TOAST_MS);
}
