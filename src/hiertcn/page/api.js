// What the server is asked. Paths are relative, so the page works below any prefix.

const KEY = "hiertcn-key";
const PATIENCE = 20_000;
// A clock that is off by less is left alone: the server tells its own by whole seconds.
const ALIKE = 3_000;
let ahead = 0;

/** That a request was not answered as hoped. status: of HTTP, 0 where nobody answered. */
export class Problem extends Error {
  constructor(status, code, message) {
    super(message);
    Object.assign(this, { status, code });
  }
}

export const key = {
  get value() {
    return sessionStorage.getItem(KEY) ?? "";
  },
  set value(text) {
    sessionStorage.setItem(KEY, text);
  },
};

/** Seconds since 1970 by the server's clock. */
export const now = () => Math.floor((Date.now() + ahead) / 1000);

/** The answer to a request, null where it has no body. Throws a Problem. */
export async function ask(method, path, body) {
  const headers = body === undefined ? {} : { "content-type": "application/json" };
  if (key.value) headers.authorization = `Bearer ${key.value}`;
  let answer, text;
  try {
    const signal = AbortSignal.timeout(PATIENCE);
    answer = await fetch(path, { method, headers, body: JSON.stringify(body), signal, cache: "no-store" });
    text = await answer.text();
  } catch {
    throw new Problem(0, "unreachable", "The server does not answer.");
  }
  const apart = Date.parse(answer.headers.get("date")) - Date.now();
  if (!Number.isNaN(apart)) ahead = Math.abs(apart) > ALIKE ? apart : 0;
  let found = null;
  try {
    found = text && JSON.parse(text);
  } catch {
    throw new Problem(answer.status, "unreadable", `Something other than the server answered, with status ${answer.status}.`);
  }
  if (!answer.ok) throw new Problem(answer.status, found?.error?.code, found?.error?.message ?? answer.statusText);
  return found || null;
}
