/*
 * A menu behind a button. The browser's popover puts it on top and closes it on Escape or a click elsewhere; arrow keys,
 * Home and End move, as the ARIA practices for menu buttons describe.
 */
import { h, iconButton } from "./dom.js";

const GAP = 4;

/** @param {HTMLElement} menu @param {HTMLElement} button */
function place(menu, button) {
  const anchor = button.getBoundingClientRect();
  const { width, height } = menu.getBoundingClientRect();
  const below = anchor.bottom + GAP + height <= innerHeight;
  menu.style.top = `${below ? anchor.bottom + GAP : Math.max(GAP, anchor.top - GAP - height)}px`;
  menu.style.left = `${Math.max(GAP, Math.min(anchor.right - width, innerWidth - width - GAP))}px`;
}

/** @param {HTMLElement} menu @param {KeyboardEvent} event */
function move(menu, event) {
  const items = /** @type {HTMLElement[]} */ ([...menu.querySelectorAll("[role=menuitem]")]);
  const at = items.indexOf(/** @type {HTMLElement} */ (document.activeElement));
  const next = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: items.length - 1 }[event.key];
  if (event.key === "Tab") menu.hidePopover();
  if (next === undefined) return;
  event.preventDefault();
  items[(next + items.length) % items.length].focus();
}

/**
 * @param {string} label @param {{icon: any, label: string, danger?: boolean, action: () => void}[]} items
 * @param {any} [name] the button's icon
 * @returns {HTMLElement} the button and its menu
 */
export function menuButton(label, items, name = "dots") {
  const menu = h("div", { class: "menu", role: "menu", "aria-label": label });
  menu.popover = "auto";
  const button = iconButton(name, label, () => {}); // opening and closing is the popover's own doing
  button.setAttribute("aria-haspopup", "menu");
  button.setAttribute("aria-expanded", "false");
  button.popoverTargetElement = menu;
  button.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
    event.preventDefault();
    menu.showPopover();
  });
  for (const item of items) {
    const { icon, label: text, danger, action } = item;
    const entry = iconButton(icon, text, () => (menu.hidePopover(), action()), {
      text: true,
      class: danger ? "danger" : "",
    });
    entry.setAttribute("role", "menuitem");
    entry.tabIndex = -1;
    menu.append(entry);
  }
  menu.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => move(menu, event));
  menu.addEventListener("toggle", (/** @type {any} */ event) => {
    const open = event.newState === "open";
    button.setAttribute("aria-expanded", String(open));
    if (!open) return;
    place(menu, button);
    /** @type {HTMLElement} */ (menu.firstElementChild).focus();
  });
  return h("span", { class: "menu-holder" }, button, menu);
}
