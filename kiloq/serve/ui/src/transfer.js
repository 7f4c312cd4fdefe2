/*
 * Conversations out of the page and into it: all or one as JSON, which can be taken in again anywhere, or one as Markdown
 * for reading elsewhere.
 */
import { openDialog, toast } from "./dialogs.js";
import { download, h, pickFiles } from "./dom.js";
import { count } from "./format.js";
import { fullText } from "./request.js";
import { t } from "./strings.js";
import { path } from "./tree.js";
import { BadFile, exportFile, MAX_FILE_BYTES, parseExport } from "./validate.js";

/** @typedef {import("./tree.js").Conversation} Conversation */

/** @param {string} title @returns {string} usable as a file name everywhere */
const fileName = (title) =>
  title
    .replace(/[^\p{L}\p{N}]+/gu, "-")
    .replace(/^-|-$/g, "")
    .slice(0, 60) || "conversation";

/** @param {Conversation[]} conversations */
export function exportJSON(conversations) {
  const name =
    conversations.length === 1 ? fileName(conversations[0].title) : `kiloq-${new Date().toISOString().slice(0, 10)}`;
  download(`${name}.json`, exportFile(conversations), "application/json");
}

/** @param {Conversation} conversation the path shown @returns {string} */
export function toMarkdown(conversation) {
  const names = { user: t("you"), assistant: t("assistant"), tool: t("tool") };
  const parts = path(conversation).map((message) => {
    const calls = (message.tool_calls ?? []).map(
      (call) => `\`\`\`json\n${call.function.name} ${call.function.arguments}\n\`\`\``,
    );
    return [
      `## ${message.role === "assistant" && message.model ? message.model : names[message.role]}`,
      fullText(message),
      ...calls,
    ]
      .filter(Boolean)
      .join("\n\n");
  });
  const system = conversation.system.trim() ? [`## ${t("systemPrompt")}`, conversation.system] : [];
  return `${[`# ${conversation.title || t("untitled")}`, ...system, ...parts].join("\n\n")}\n`;
}

/** @param {Conversation} conversation */
export const exportMarkdown = (conversation) =>
  download(`${fileName(conversation.title)}.md`, toMarkdown(conversation), "text/markdown");

/** @param {import("./library.js").Library} library */
export async function importJSON(library) {
  const [file] = await pickFiles("application/json,.json", false);
  if (!file) return;
  try {
    if (file.size > MAX_FILE_BYTES) throw new BadFile("file", `≤ ${count(MAX_FILE_BYTES / 2 ** 20)} MiB`);
    const conversations = parseExport(await file.text());
    const taken = library.take(conversations);
    const here = conversations.length - taken;
    toast(
      [t("imported", { count: count(taken) }), here ? t("alreadyHere", { count: count(here) }) : ""]
        .filter(Boolean)
        .join(" "),
    );
  } catch (error) {
    if (!(error instanceof BadFile)) throw error;
    openDialog(
      t("importRefusedTitle"),
      [h("p", {}, t("importRefused", { name: file.name })), h("p", { class: "hint" }, error.message)],
      { class: "narrow" },
    );
  }
}
