/*
 * Server-sent events of a fetch response. EventSource cannot POST, so the bytes are parsed here: lines may be split
 * anywhere, end in LF, CRLF or CR, and `: ping` comments keep the connection alive. Follows the "event stream
 * interpretation" of the HTML standard, of which only `data` matters to us.
 */

/**
 * The data of every event.
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<string>}
 */
export async function* events(body) {
  const reader = body.pipeThrough(/** @type {any} */ (new TextDecoderStream())).getReader();
  let pending = "";
  /** @type {string[]} */
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      pending += value ?? "";
      // A CR at the end of what has arrived may be the first half of a CRLF: it waits for the next bytes.
      const end = done || !pending.endsWith("\r") ? pending.length : pending.length - 1;
      const lines = pending.slice(0, end).split(/\r\n|\n|\r/);
      pending = (lines.pop() ?? "") + pending.slice(end);
      for (const line of lines) {
        if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        } else if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        }
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {}); // closing twice is harmless; the caller already knows why the stream ended
  }
}
