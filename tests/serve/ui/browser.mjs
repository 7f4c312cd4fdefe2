/*
 * Runs the checks of the page in a real browser: `node browser.mjs BASE_URL CHROMIUM [name...]`. Every exported function of
 * the check files is one check with a fresh visit; a line of JSON is printed for each, and the exit code says whether all passed.
 */
import * as access from "./check_access.mjs";
import * as chat from "./check_chat.mjs";
import { launch, Stub, Visit } from "./harness.mjs";
import * as safety from "./check_safety.mjs";
import * as server from "./check_server.mjs";

const [base, executable, ...names] = process.argv.slice(2);
const stub = new Stub(base);
const browser = await launch(executable);
let failed = 0;
for (const [name, check] of Object.entries({ ...chat, ...server, ...safety, ...access })) {
  if (names.length && !names.includes(name)) continue;
  const started = Date.now();
  let error = null;
  let visit = null;
  try {
    visit = await Visit.open(browser, stub, check);
    await check(visit);
    await visit.close();
  } catch (problem) {
    failed++;
    error = `${problem.stack}${visit?.faults.length ? `\nfaults: ${visit.faults.join("\n")}` : ""}`;
    await visit?.context.close();
  }
  console.log(JSON.stringify({ name, ok: !error, seconds: (Date.now() - started) / 1000, error }));
}
await browser.close();
process.exit(failed ? 1 : 0);
