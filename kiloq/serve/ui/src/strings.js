/*
 * Every sentence of the page, in English and in Chinese, side by side, so that one without the other cannot be written.
 * `{name}` is filled in by the caller; where a number needs it, English has its singular first, before "||".
 */

/** @type {Record<string, [string, string]>} */
const STRINGS = {
  // frame
  skip: ["Skip to the message box", "跳到输入框"],
  conversations: ["Conversations", "对话列表"],
  conversation: ["Conversation", "对话"],
  newChat: ["New chat", "新对话"],
  search: ["Search", "搜索"],
  searchLabel: ["Search conversations", "搜索对话"],
  found: ["1 conversation found||{count} conversations found", "找到 {count} 个对话"],
  nothingFound: ["Nothing found.", "没有找到。"],
  noConversations: ["Your conversations will appear here.", "对话会显示在这里。"],
  untitled: ["Untitled", "未命名"],
  today: ["Today", "今天"],
  yesterday: ["Yesterday", "昨天"],
  thisWeek: ["Last seven days", "最近七天"],
  earlier: ["Earlier", "更早"],
  menuOf: ["Actions for “{title}”", "“{title}”的操作"],
  rename: ["Rename", "重命名"],
  renameTitle: ["Rename conversation", "重命名对话"],
  titleLabel: ["Title", "标题"],
  delete: ["Delete", "删除"],
  deleteTitle: ["Delete conversation", "删除对话"],
  deleteQuestion: ["“{title}” will be deleted from this browser. This cannot be undone.", "“{title}”将从此浏览器中删除，无法恢复。"],
  import: ["Import", "导入"],
  imported: ["1 conversation imported.||{count} conversations imported.", "已导入 {count} 个对话。"],
  alreadyHere: ["1 was here already and was left as it is.||{count} were here already and were left as they are.", "{count} 个已存在，保持不变。"],
  importRefusedTitle: ["File not imported", "未导入文件"],
  importRefused: ["“{name}” is not a file of conversations that this page wrote, so nothing of it was used. What is wrong first:", "“{name}”不是本页导出的对话文件，因此未使用其中任何内容。第一处问题："],
  exportAll: ["Export all", "全部导出"],
  exportJSON: ["Export as JSON", "导出为 JSON"],
  exportMarkdown: ["Export as Markdown", "导出为 Markdown"],
  model: ["Model", "模型"],
  noModel: ["No model", "没有模型"],
  // dialogs
  close: ["Close", "关闭"],
  cancel: ["Cancel", "取消"],
  save: ["Save", "保存"],
  keyTitle: ["API key", "API 密钥"],
  keyLabel: ["This server asks for a key", "此服务器需要密钥"],
  keyHint: ["Kept in this tab only and sent to this server only. It is what was given to --api-key.", "只保存在此标签页中，只发送给此服务器。它就是 --api-key 给出的值。"],
  enterKey: ["Enter key", "输入密钥"],
  // server
  serverLoading: ["The server is loading its model. You can write already.", "服务器正在加载模型。可以先开始输入。"],
  serverOffline: ["The server cannot be reached. It will be asked again.", "无法连接服务器，将自动重试。"],
  serverSlow: ["The server does not answer in time. It will be asked again.", "服务器响应超时，将自动重试。"],
  serverAuth: ["The server asks for an API key.", "服务器需要 API 密钥。"],
  serverTrouble: ["The server is in trouble: {message}", "服务器出现问题：{message}"],
  tryNow: ["Try now", "立即重试"],
  notKept: ["This browser does not let the page keep conversations: they are lost when it is closed. Export what you need.", "此浏览器不允许保存对话：关闭页面后将丢失。需要的内容请导出。"],
  // empty state
  emptyTitle: ["Ask something", "问点什么吧"],
  emptyText: ["The model runs on this server. Conversations stay in your browser.", "模型运行在此服务器上，对话保存在您的浏览器中。"],
  example1: ["Explain how a tokenizer splits “通义千问” into tokens", "解释分词器如何把“通义千问”切成 token"],
  example2: ["Write a Python function that checks whether a word is a palindrome", "写一个判断回文的 Python 函数"],
  example3: ["Why is the sky blue? Answer in two sentences", "天空为什么是蓝色的？用两句话回答"],
  example4: ["Compare walking and cycling to work in a table", "用表格比较步行和骑车上班"],
  // writing
  compose: ["Write a message", "写消息"],
  promptLabel: ["Message", "消息"],
  placeholder: ["Write a message", "输入消息"],
  keysHint: ["Enter sends, Shift+Enter breaks the line", "Enter 发送，Shift+Enter 换行"],
  send: ["Send", "发送"],
  stop: ["Stop", "停止"],
  attach: ["Attach text files", "附加文本文件"],
  attachedFiles: ["Attached files", "附件"],
  removeFile: ["Remove {name}", "移除 {name}"],
  fileTooLong: ["{name} is longer than {most} kB.", "{name} 超过 {most} kB。"],
  fileNotText: ["{name} is not a text file in UTF-8.", "{name} 不是 UTF-8 文本文件。"],
  tooManyFiles: ["At most {most} files at a time.", "一次最多 {most} 个文件。"],
  notReady: ["The server is not ready yet. Your text stays here.", "服务器尚未就绪，内容会保留。"],
  contextUsed: ["{used} of {most} tokens", "已用 {used} / {most} token"],
  // messages
  you: ["You", "您"],
  assistant: ["Assistant", "助手"],
  tool: ["Tool", "工具"],
  thinking: ["Reasoning", "推理过程"],
  reading: ["Reading the prompt, {seconds} s", "正在读取提示，{seconds} 秒"],
  copyMessage: ["Copy message", "复制消息"],
  copyCode: ["Copy", "复制"],
  copied: ["Copied", "已复制"],
  copyFailed: ["The browser does not allow copying", "浏览器不允许复制"],
  regenerate: ["Regenerate", "重新生成"],
  retry: ["Try again", "重试"],
  continue: ["Continue", "继续"],
  edit: ["Edit", "编辑"],
  editLabel: ["Edited text", "修改后的内容"],
  sendEdited: ["Send edited", "发送修改"],
  version: ["Version ", "版本 "],
  previousVersion: ["Previous version", "上一版本"],
  nextVersion: ["Next version", "下一版本"],
  tokenCount: ["1 token||{count} tokens", "{count} 个 token"],
  characterCount: ["1 character||{count} characters", "{count} 个字符"],
  rate: ["{rate} tokens/s", "每秒 {rate} 个 token"],
  firstToken: ["first token after {seconds} s", "首个 token 用时 {seconds} 秒"],
  endedLength: ["Stopped at the limit of tokens.", "已达到 token 上限。"],
  endedStopped: ["Stopped.", "已停止。"],
  endedFilter: ["Stopped by the server's filter.", "已被服务器过滤。"],
  errorOffline: ["The connection to the server was lost.", "与服务器的连接中断。"],
  errorSlow: ["The server did not answer in time.", "服务器响应超时。"],
  errorLoading: ["The server is still loading its model.", "服务器仍在加载模型。"],
  errorAuth: ["The server did not accept the API key.", "服务器不接受此 API 密钥。"],
  errorServer: ["The server says: {message}", "服务器报告：{message}"],
  answering: ["Answering", "正在回答"],
  answerFinished: ["Answer finished.", "回答完毕。"],
  announcements: ["Announcements", "通报"],
  toEnd: ["To the end", "到末尾"],
  code: ["Code", "代码"],
  codeIn: ["Code in {language}", "{language} 代码"],
  table: ["Table", "表格"],
  taskDone: ["Done", "已完成"],
  // tools
  tools: ["Tools", "工具"],
  toolCall: ["Call of {name}", "调用 {name}"],
  toolCallLabel: ["The model calls", "模型调用"],
  arguments: ["Arguments", "参数"],
  toolResultLabel: ["Paste the result of the call", "粘贴调用结果"],
  toolResultOf: ["Result of", "结果"],
  addResult: ["Add result", "添加结果"],
  toolsLabel: ["Tools as JSON", "工具（JSON）"],
  toolsHint: ["A list of OpenAI tool definitions. The page runs none: you paste the results.", "OpenAI 工具定义的列表。页面不执行工具，由您粘贴结果。"],
  toolsWrong: ["Not a JSON list of tools with type “function” and a name; the last good one stays in use.", "不是包含 type 为 “function” 且有名称的工具的 JSON 列表；仍使用上一个有效值。"],
  exampleTool: ["Insert an example", "插入示例"],
  // tokens
  tokens: ["Tokens", "Token"],
  tokenView: ["Token view", "Token 视图"],
  tokenViewHint: ["Asks for the probability of every token and its five likeliest alternatives. The button is under each answer.", "请求每个 token 及其五个最可能替代项的概率。按钮在每个回答下方。"],
  tokensScored: ["As the model wrote them. Point at a token or use the arrow keys to see the alternatives.", "按模型写出的顺序。指向某个 token 或使用方向键查看替代项。"],
  tokensUnscored: ["The text, cut into tokens again. For probabilities, turn on “Token view” in the settings and regenerate.", "文本重新切分为 token。要查看概率，请在设置中打开“Token 视图”并重新生成。"],
  tokenId: ["Id", "编号"],
  tokenBytes: ["Bytes", "字节"],
  partOfCharacter: ["part of a character", "字符的一部分"],
  unknown: ["unknown", "未知"],
  probability: ["Probability", "概率"],
  alternatives: ["Alternatives", "替代项"],
  chosen: ["chosen", "已选"],
  tokenizer: ["Tokenizer", "分词器"],
  tokenizerHint: ["How the model sees a text. Signs stand for what cannot be seen: · blank, ↵ newline, ⇥ tab; bytes that are no whole character are in hexadecimal.", "模型如何看待文本。符号代表不可见字符：· 空格，↵ 换行，⇥ 制表符；不足一个字符的字节以十六进制显示。"],
  tokenizeWhat: ["Show", "显示"],
  tokenizeText: ["A text", "一段文本"],
  tokenizeConversation: ["The prompt of this conversation", "此对话的完整提示"],
  tokenizerText: ["Text", "文本"],
  tokenizerExample: ["Hello, 通义千问! 1 + 1 = 2", "你好，通义千问！1 + 1 = 2"],
  tokenizeFailed: ["The server did not cut the text into tokens.", "服务器未能切分文本。"],
  // settings
  settings: ["Settings", "设置"],
  systemPrompt: ["System prompt", "系统提示"],
  systemLabel: ["For this conversation", "用于此对话"],
  systemHint: ["Tells the model who it is and how to answer. Empty: the model's own.", "告诉模型它是谁、如何回答。留空则使用模型自带的提示。"],
  systemKeep: ["Use for new conversations too", "也用于新对话"],
  systemKept: ["New conversations will start with it.", "新对话将以此开始。"],
  sampling: ["Sampling", "采样"],
  samplingHint: ["How the next token is chosen. Empty fields keep the server's defaults.", "如何选择下一个 token。留空则使用服务器默认值。"],
  serverDefault: ["default", "默认"],
  range: ["{least} to {greatest}", "{least} 到 {greatest}"],
  notInRange: ["Not taken over; allowed: {range}.", "未采用；允许范围：{range}。"],
  temperatureHint: ["0 always takes the likeliest token; higher is more varied.", "0 总是选最可能的 token；越高越多样。"],
  top_pHint: ["Only the likeliest tokens that together have this probability.", "只保留累计概率达到此值的最可能 token。"],
  top_kHint: ["Only this many of the likeliest tokens; 0 is no limit.", "只保留最可能的若干个 token；0 为不限。"],
  min_pHint: ["Only tokens with this share of the likeliest one's probability.", "只保留概率不低于最高概率此比例的 token。"],
  repetition_penaltyHint: ["Above 1 makes tokens that occurred less likely.", "大于 1 时，出现过的 token 更不易再现。"],
  presence_penaltyHint: ["Above 0 favours tokens that have not occurred.", "大于 0 时，偏向未出现过的 token。"],
  frequency_penaltyHint: ["Above 0 weakens tokens the more often they occurred.", "大于 0 时，出现越多的 token 越弱。"],
  seedHint: ["The same seed gives the same answer.", "相同的种子得到相同的回答。"],
  max_tokensHint: ["Longest answer.", "回答的最大长度。"],
  stopStrings: ["Stop strings", "停止字符串"],
  stopStringsHint: ["One a line, at most 16; \\n stands for a newline.", "每行一个，最多 16 个；\\n 代表换行。"],
  resetSampling: ["Back to the server's defaults", "恢复服务器默认值"],
  display: ["Display", "显示"],
  theme: ["Theme", "主题"],
  themeAuto: ["As the system", "跟随系统"],
  themeLight: ["Light", "浅色"],
  themeDark: ["Dark", "深色"],
  language: ["Language", "语言"],
  languageAuto: ["As the browser", "跟随浏览器"],
  data: ["Data", "数据"],
  dataHint: ["Conversations are kept in this browser and nowhere else.", "对话只保存在此浏览器中。"],
  deleteAll: ["Delete all conversations", "删除所有对话"],
  deleteAllQuestion: ["1 conversation will be deleted from this browser. This cannot be undone.||{count} conversations will be deleted from this browser. This cannot be undone.", "{count} 个对话将从此浏览器中删除，无法恢复。"],
};

/** The page's languages and where each stands in a pair. */
export const LANGUAGES = { en: 0, zh: 1 };

/** @type {keyof typeof LANGUAGES} */
let current = "en";

/** @returns {string} the language shown, as a tag */
export const language = () => current;

/** @param {"auto" | keyof typeof LANGUAGES} choice "auto": Chinese where the browser prefers it, else English */
export function setLanguage(choice) {
  const preferred = navigator.languages.find((tag) => /^(en|zh)\b/i.test(tag)) ?? "en";
  current = choice === "auto" ? (/^zh/i.test(preferred) ? "zh" : "en") : choice;
  document.documentElement.lang = current === "zh" ? "zh-Hans" : "en";
}

/**
 * A sentence in the language shown.
 * @param {string} key @param {Record<string, string>} [values]
 */
export function t(key, values = {}) {
  const text = STRINGS[key][LANGUAGES[current]];
  const [singular, plural] = text.split("||");
  const chosen = plural !== undefined && values.count !== "1" ? plural : singular;
  return chosen.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}
