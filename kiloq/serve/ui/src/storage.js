/**
 * Where conversations are kept: IndexedDB, one record each. Private windows and strict settings may refuse it; then they
 * live in memory and `persistent` is false, which the page says aloud. Nothing is ever sent to the server for keeping.
 *
 * @typedef {import("./tree.js").Conversation} Conversation
 */

const STORE = "conversations";
const OPEN_MS = 5_000; // another tab with an older version may block the opening for ever

/** @template T @param {IDBRequest<T>} request @returns {Promise<T>} */
const result = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

/** @returns {Promise<IDBDatabase>} */
function openDatabase() {
  const request = indexedDB.open("kiloq", 1);
  request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
  const late = new Promise((_, reject) => setTimeout(() => reject(new Error("IndexedDB did not open")), OPEN_MS));
  return /** @type {Promise<IDBDatabase>} */ (Promise.race([result(request), late]));
}

class Kept {
  persistent = true;
  /** @param {IDBDatabase} database */
  constructor(database) {
    this.database = database;
  }
  /** @param {IDBTransactionMode} mode */
  #store(mode) {
    return this.database.transaction(STORE, mode).objectStore(STORE);
  }
  /** @returns {Promise<Conversation[]>} */
  all() {
    return result(this.#store("readonly").getAll());
  }
  /** @param {Conversation} conversation */
  async put(conversation) {
    const store = this.#store("readwrite");
    const done = result(store.put(conversation));
    store.transaction.commit(); // without waiting for an answer that a page being closed would not live to hear
    await done;
  }
  /** @param {string} id */
  async remove(id) {
    await result(this.#store("readwrite").delete(id));
  }
}

class InMemory {
  persistent = false;
  /** @returns {Promise<Conversation[]>} */
  async all() {
    return [];
  }
  async put() {} // the library holds every conversation anyway
  async remove() {}
}

/** @returns {Promise<Kept | InMemory>} */
export async function openStorage() {
  try {
    return new Kept(await openDatabase());
  } catch {
    return new InMemory();
  }
}
