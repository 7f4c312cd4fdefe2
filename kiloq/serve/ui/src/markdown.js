/*
 * Markdown of a model, made into elements. Three walls: HTML in the text is shown as text, never interpreted; what marked
 * produces passes DOMPurify with a short list of tags and attributes; links leave only by a click, to http, https or mailto,
 * and images only come from data inside the text (others become links), so that showing an answer requests nothing.
 *
 * While an answer streams, only blocks whose source changed are made anew: earlier ones keep their elements, and with them
 * the reader's selection, scroll position and focus.
 */
import { DOMPurify, hljs, katex, Marked } from "../vendor.js";
import { copyText, h, iconButton } from "./dom.js";
import { t } from "./strings.js";

const MAX_HIGHLIGHT = 50_000; // characters; a longer block is shown without colours rather than late
const COPIED_MS = 1_500;
const TAGS =
  "a p br hr em strong del code pre span h1 h2 h3 h4 h5 h6 ul ol li blockquote table thead tbody tr th td img input sup sub".split(
    " ",
  );
const ATTRIBUTES = "href title class alt src align start type checked disabled".split(" ");
const SAFE_LINK = /^(https?:|mailto:)/i;
const SAFE_IMAGE = /^data:image\/(png|jpeg|gif|webp|avif);base64,/i;
const SAFE_CLASS = /^(hljs(-[\w-]+)?|language-[\w+#.-]+|math|math-block|[\w-]+_)$/; // highlight.js ends some names in "_"

/** @param {string} text */
const escape = (text) =>
  text.replace(
    /[&<>"']/g,
    (sign) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" })[sign] ?? sign,
  );

const ENTITY = /&amp;(#\d{1,7}|#x[\da-f]{1,6}|[a-z][a-z\d]{1,31});/gi; // Markdown's `&lt;` means "<"

const PAIRS = [
  { open: "$$", rule: /^\$\$([^$]+?)\$\$/, block: true },
  { open: "\\[", rule: /^\\\[([\s\S]+?)\\\]/, block: true },
  { open: "\\(", rule: /^\\\(([\s\S]+?)\\\)/, block: false },
  // As in pandoc: no blank inside the dollars, no digit after them, so that prices stay prices.
  { open: "$", rule: /^\$(?!\s)((?:\\.|[^$\\\n])+?)(?<!\s)\$(?!\d)/, block: false },
];

/** Formulas become <code class="math"> here, and MathML after sanitising. @param {"block" | "inline"} level */
const formulas = (level) => ({
  name: `${level}-math`,
  level,
  start: (/** @type {string} */ source) => {
    const found = source.search(level === "block" ? /\$\$|\\\[/ : /\$|\\[[(]/);
    return found < 0 ? undefined : found;
  },
  tokenizer(/** @type {string} */ source) {
    for (const { rule, block } of PAIRS) {
      const found = level === "block" && !block ? null : rule.exec(source);
      if (found) return { type: `${level}-math`, raw: found[0], text: found[1], block };
    }
    return undefined;
  },
  renderer: (/** @type {any} */ token) => {
    const code = `<code class="${token.block ? "math-block" : "math"}">${escape(token.text.trim())}</code>`;
    return level === "block" ? `<p>${code}</p>` : code;
  },
});

const marked = new Marked({
  gfm: true,
  extensions: /** @type {any} */ ([formulas("block"), formulas("inline")]),
  renderer: {
    html({ raw, block }) {
      if (/^<br\s*\/?>\s*$/i.test(raw)) return "<br>";
      return block ? `<p>${escape(raw)}</p>` : escape(raw);
    },
    // marked leaves text between certain HTML tags as it is; since those tags are shown as text, so is what they hold.
    text(token) {
      if ("tokens" in token && token.tokens) return this.parser.parseInline(token.tokens);
      return escape(token.text).replace(ENTITY, "&$1;");
    },
    code({ text, lang }) {
      const name = (lang ?? "").trim().split(/\s/, 1)[0].toLowerCase();
      const known = hljs.getLanguage(name) && text.length <= MAX_HIGHLIGHT;
      const shown = known ? hljs.highlight(text, { language: name, ignoreIllegals: true }).value : escape(text);
      return `<pre><code class="hljs${/^[\w+#.-]+$/.test(name) ? ` language-${name}` : ""}">${shown}</code></pre>`;
    },
    image({ href, text }) {
      if (SAFE_IMAGE.test(href)) return `<img src="${escape(href)}" alt="${escape(text)}">`;
      return `<a href="${escape(href)}">${escape(text || href)}</a>`;
    },
  },
});

DOMPurify.addHook("afterSanitizeAttributes", (element) => {
  if (element.nodeName === "A") {
    const href = element.getAttribute("href") ?? "";
    if (!SAFE_LINK.test(href)) element.removeAttribute("href");
    element.setAttribute("target", "_blank");
    element.setAttribute("rel", "noopener noreferrer");
  }
  if (element.nodeName === "IMG" && !SAFE_IMAGE.test(element.getAttribute("src") ?? "")) element.remove();
  if (element.nodeName === "INPUT" && element.getAttribute("type") !== "checkbox") element.remove();
  const kept = (element.getAttribute("class") ?? "").split(/\s+/).filter((name) => SAFE_CLASS.test(name));
  if (kept.length) element.setAttribute("class", kept.join(" "));
  else element.removeAttribute("class");
});

/** @param {string} html @returns {DocumentFragment} only what the lists above allow */
export const sanitize = (html) =>
  DOMPurify.sanitize(html, {
    ALLOWED_TAGS: TAGS,
    ALLOWED_ATTR: ATTRIBUTES,
    ALLOW_DATA_ATTR: false,
    ALLOW_ARIA_ATTR: false,
    RETURN_DOM_FRAGMENT: true,
  });

/** Replaces <code class="math"> by MathML; a formula that KaTeX does not know stays as its source. @param {DocumentFragment} fragment */
function drawFormulas(fragment) {
  for (const code of fragment.querySelectorAll("code.math, code.math-block")) {
    const holder = document.createElement("span");
    try {
      katex.render(code.textContent ?? "", holder, {
        output: "mathml",
        displayMode: code.classList.contains("math-block"),
        trust: false,
        strict: "ignore",
        maxExpand: 200,
        maxSize: 10,
      });
    } catch {
      continue;
    }
    const math = holder.querySelector("math");
    math?.querySelector("annotation")?.remove();
    if (!math) continue;
    const clean = DOMPurify.sanitize(math.outerHTML, {
      USE_PROFILES: { mathMl: true },
      ADD_TAGS: ["semantics"],
      FORBID_ATTR: ["style", "href"],
      RETURN_DOM_FRAGMENT: true,
    });
    code.replaceWith(clean);
  }
}

/** A bar with the language and a copy button over every code block; tables and code scroll by keyboard too. @param {DocumentFragment} fragment */
function decorate(fragment) {
  for (const pre of fragment.querySelectorAll("pre")) {
    const code = pre.querySelector("code");
    const language = [...(code?.classList ?? [])].find((name) => name.startsWith("language-"))?.slice(9) ?? "";
    const copy = iconButton(
      "copy",
      t("copyCode"),
      async () => {
        const label = copy.lastElementChild;
        label.textContent = (await copyText(code?.textContent ?? "")) ? t("copied") : t("copyFailed");
        setTimeout(() => (label.textContent = t("copyCode")), COPIED_MS);
      },
      { text: true, class: "small" },
    );
    pre.tabIndex = 0;
    pre.setAttribute("role", "region");
    pre.setAttribute("aria-label", language ? t("codeIn", { language }) : t("code"));
    const block = h("div", { class: "code-block" }, h("div", { class: "code-bar" }, h("span", {}, language), copy));
    pre.replaceWith(block);
    block.append(pre);
  }
  for (const table of fragment.querySelectorAll("table")) {
    const scroll = h("div", { class: "table-scroll", role: "region", "aria-label": t("table"), tabIndex: 0 });
    table.replaceWith(scroll);
    scroll.append(table);
  }
  for (const box of fragment.querySelectorAll("input")) box.setAttribute("aria-label", t("taskDone"));
}

/** @param {any[]} tokens one block of marked's lexer */
function toElements(tokens) {
  const fragment = sanitize(marked.parser(tokens));
  drawFormulas(fragment);
  decorate(fragment);
  return fragment;
}

/** Shows a growing Markdown text in an element. */
export class MarkdownView {
  /** @type {{raw: string, nodes: ChildNode[]}[]} */
  #blocks = [];
  #links = "";

  /** @param {HTMLElement} element */
  constructor(element) {
    this.element = element;
  }

  /** @param {string} source */
  update(source) {
    const tokens = marked.lexer(source);
    const links = JSON.stringify(tokens.links); // a definition at the end changes what earlier blocks mean
    let same = 0;
    if (links === this.#links) while (same < tokens.length && this.#blocks[same]?.raw === tokens[same].raw) same++;
    this.#links = links;
    for (const block of this.#blocks.splice(same)) for (const node of block.nodes) node.remove();
    for (const token of tokens.slice(same)) {
      const fragment = toElements([token]);
      const nodes = [...fragment.childNodes];
      this.element.append(fragment);
      this.#blocks.push({ raw: token.raw, nodes });
    }
  }
}
