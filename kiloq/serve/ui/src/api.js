/*
 * The server's routes, all of the page's own origin. Every failure becomes one ApiError whose `kind` the page acts on:
 * auth (ask for the key), loading, offline, slow, aborted, http (the server's own sentence). Short calls have a time
 * limit, so a server that hangs is reported instead of freezing anything; answers may take as long as they take.
 */
import { events } from "./sse.js";

const SHORT_MS = 10_000; // ours: a loaded laptop answers /tokenize of a page of text well within it
const KEY = "kiloq.key";

/** What went wrong with a request. */
export class ApiError extends Error {
  /** @param {"auth"|"loading"|"offline"|"slow"|"aborted"|"http"} kind @param {string} message @param {number} status */
  constructor(kind, message, status = 0) {
    super(message);
    this.kind = kind;
    this.status = status;
  }
}

let key = "";
try {
  key = sessionStorage.getItem(KEY) ?? "";
} catch {
  // Storage may be forbidden; the key then lives as long as the page.
}

/** Keeps the API key for this tab. @param {string} value */
export function setKey(value) {
  key = value;
  try {
    sessionStorage.setItem(KEY, value);
  } catch {
    // as above
  }
}

/** @param {unknown} value @returns {string} the sentence of an `{"error": {...}}` body, or "" */
export function errorSentence(value) {
  const error = /** @type {any} */ (value)?.error;
  const message = typeof error === "string" ? error : error?.message;
  return typeof message === "string" ? message : "";
}

/** @param {string} path @param {RequestInit} options */
async function request(path, options) {
  const headers = {
    ...(options.body ? { "Content-Type": "application/json" } : {}),
    ...(key ? { Authorization: `Bearer ${key}` } : {}),
  };
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "same-origin" });
  } catch (error) {
    throw failure(error);
  }
  if (response.ok) return response;
  let sentence = "";
  try {
    sentence = errorSentence(await response.json());
  } catch {
    // A proxy's HTML page, say: the status alone has to do.
  }
  const kind =
    response.status === 401 ? "auth" : response.status === 503 && /loading/i.test(sentence) ? "loading" : "http";
  throw new ApiError(kind, sentence || `HTTP ${response.status}`, response.status);
}

/** @param {any} error of fetch or of reading the body */
function failure(error) {
  if (error instanceof ApiError) return error;
  if (error?.name === "TimeoutError") return new ApiError("slow", "");
  if (error?.name === "AbortError") return new ApiError("aborted", "");
  return new ApiError("offline", "");
}

/** @param {string} path @param {object} [body] @returns {Promise<any>} */
async function short(path, body) {
  const signal = AbortSignal.timeout(SHORT_MS);
  const response = await request(path, body ? { method: "POST", body: JSON.stringify(body), signal } : { signal });
  try {
    return await response.json();
  } catch (error) {
    throw failure(error);
  }
}

export const health = () => short("/health");

/** @returns {Promise<{id: string, max_model_len?: number}[]>} */
export async function models() {
  const { data } = await short("/v1/models");
  return Array.isArray(data) ? data.filter((model) => typeof model?.id === "string") : [];
}

/** @param {object} body @returns {Promise<{tokens: number[], count: number, max_model_len?: number, token_strs?: string[], token_bytes?: number[][]}>} */
export const tokenize = (body) => short("/tokenize", { ...body, return_token_strs: true });

/** @param {number[]} tokens @param {string} model @returns {Promise<string>} */
export const detokenize = async (tokens, model) => (await short("/detokenize", { model, tokens })).prompt;

/**
 * The chunks of an answer, until `[DONE]`.
 * @param {object} body @param {AbortSignal} signal aborting it closes the connection, which makes the server stop
 * @returns {AsyncGenerator<any>}
 */
export async function* streamChat(body, signal) {
  const response = await request("/v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal });
  if (!response.body) throw new ApiError("offline", "");
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk?.error) throw new ApiError("http", errorSentence(chunk) || data);
      yield chunk;
    }
  } catch (error) {
    if (error instanceof SyntaxError) throw new ApiError("http", error.message);
    throw failure(error);
  }
  throw new ApiError("offline", ""); // the stream ended without [DONE]: the server went away
}
