/*
 * Building elements. Text only ever enters the document as text nodes or attributes of a short list, never as HTML; the
 * one place that makes elements from markup is markdown.js, behind DOMPurify. Icons are drawn here as SVG elements, so
 * they follow the text colour and need no request.
 */

/** Shapes on a 20 x 20 grid, drawn with a 1.6 stroke in the text colour. */
const ICONS = {
  plus: "M10 4v12M4 10h12",
  menu: "M3 5.5h14M3 10h14M3 14.5h14",
  close: "M5 5l10 10M15 5L5 15",
  send: "M10 16V4.5M4.8 9.5L10 4.3l5.2 5.2",
  stop: "M6 6h8v8H6z",
  copy: "M7.5 7.5h8v8h-8zM12.5 7.5v-3h-8v8h3",
  check: "M4.5 10.5l3.8 3.8 7.2-8",
  edit: "M4 16l.8-3.6L13 4.2l2.8 2.8-8.2 8.2zM11.3 5.9l2.8 2.8",
  redo: "M15.5 9A5.8 5.8 0 1 0 15.8 12M15.8 4.5V9h-4.5",
  forward: "M4 5l6 5-6 5zM11 5l6 5-6 5z",
  left: "M12 5l-5 5 5 5",
  right: "M8 5l5 5-5 5",
  down: "M5 8l5 5 5-5",
  search: "M8.8 3.8a5 5 0 1 1 0 10 5 5 0 0 1 0-10zM12.5 12.5L16.5 16.5",
  dots: "M10 5v.01M10 10v.01M10 15v.01",
  settings: "M3 6h7M14 6h3M12 4v4M3 14h3M10 14h7M8 12v4",
  tokens: "M3 5h5v4H3zM10 5h7v4h-7zM3 11h7v4H3zM12 11h5v4h-5z",
  attach: "M14.5 9.2l-5 5a3.2 3.2 0 0 1-4.5-4.5l5.8-5.8a2.1 2.1 0 0 1 3 3l-5.6 5.6a1 1 0 0 1-1.5-1.4l4.8-4.8",
  trash: "M4 6h12M8 6V4h4v2M5.5 6l.7 10h7.6l.7-10",
  download: "M10 3.5v9M6 9l4 4 4-4M4 16.5h12",
  upload: "M10 13V4M6 7.5l4-4 4 4M4 16.5h12",
  tool: "M12.8 3.6a3.8 3.8 0 0 0-4.5 5L3.8 13a1.8 1.8 0 0 0 2.6 2.6l4.5-4.5a3.8 3.8 0 0 0 5-4.5l-2.3 2.2-2.1-.6-.6-2.1z",
  file: "M5 3h6.5L15 6.5V17H5zM11 3v4h4",
  warning: "M10 3.5l7 12.5H3zM10 8.5v3.5M10 14v.01",
};

const SVG = "http://www.w3.org/2000/svg";

/** @param {keyof typeof ICONS} name @returns {SVGSVGElement} decoration: hidden from assistive technology */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 20 20");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("focusable", "false");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/**
 * An element with properties, listeners (`onclick: f`), attributes (`aria-label`, `role`, `data-x`) and children.
 * Strings become text nodes; null, undefined and false children are left out.
 * @param {string} tag
 * @param {Record<string, any>} [props]
 * @param {...any} children
 * @returns {any} the element; `any` because callers know which kind they asked for
 */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null) continue;
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (/^(aria-|data-|role$|for$|list$)/.test(name)) element.setAttribute(name, String(value));
    else /** @type {any} */ (element)[name] = value;
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/**
 * A button with an icon; without visible text the label is its accessible name and its tooltip.
 * @param {keyof typeof ICONS} name @param {string} label @param {(event: MouseEvent) => void} onclick
 * @param {{class?: string, text?: boolean, disabled?: boolean}} [options]
 */
export function iconButton(name, label, onclick, options = {}) {
  return h(
    "button",
    {
      type: "button",
      class: `button ${options.text ? "" : "icon-only "}${options.class ?? ""}`,
      title: options.text ? undefined : label,
      "aria-label": options.text ? undefined : label,
      disabled: options.disabled ?? false,
      onclick,
    },
    icon(name),
    options.text ? h("span", {}, label) : null,
  );
}

let lastId = 0;
/** An id for `aria-labelledby` and `label for`. @param {string} prefix */
export const uniqueId = (prefix) => `${prefix}-${++lastId}`;

/**
 * Copies text; where the clipboard interface is missing (a page from another machine over plain HTTP) through a
 * selection, which still works there.
 * @param {string} text @returns {Promise<boolean>} whether it worked
 */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = h("textarea", { value: text, class: "offscreen", "aria-hidden": "true" });
    const focused = /** @type {HTMLElement | null} */ (document.activeElement);
    (focused?.closest("dialog") ?? document.body).append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    focused?.focus();
    return done;
  }
}

/** Offers a file for download. @param {string} name @param {string} text @param {string} type */
export function download(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** Asks for files. @param {string} accept @param {boolean} multiple @returns {Promise<File[]>} */
export function pickFiles(accept, multiple) {
  return new Promise((resolve) => {
    const input = h("input", { type: "file", accept, multiple, class: "offscreen", "aria-hidden": "true" });
    const done = () => {
      resolve([...(input.files ?? [])]);
      input.remove();
    };
    input.addEventListener("change", done);
    input.addEventListener("cancel", done);
    document.body.append(input);
    input.click();
  });
}
