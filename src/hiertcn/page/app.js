// A person, what they pick, and what three models make of it.

import { Problem, ask, key, now } from "./api.js";
import { element, nameOf, showItems, showRanked, showSessions } from "./view.js";

const MOST = 10;
const AT_ONCE = 50;
const WAIT = 150;
const COLUMNS = {
  model: ["HierTCN", "the served model"],
  moving_average: ["Moving average", "near the mean of the last 10 items"],
  last_items: ["Last items", "the latest first, then popular ones"],
};
const NOTES = {
  cold: "nothing is known yet: popular items",
  degraded: "the store does not answer: popular items",
};
const OUTCOMES = {
  expired: "This moment was to be forgotten, so it was not taken in.",
  late: "It came late: it is remembered, and no model reads it.",
  unknown_item: "The model does not know this item; it is remembered.",
};

const at = (id) => document.getElementById(id);
const known = new Map();
const state = { user: null, keys: false, roles: [], ranks: {}, last: 0, waiting: Promise.resolve(), search: 0 };
const may = (role) => state.roles.includes(role);
const draw = (bytes) => [...crypto.getRandomValues(new Uint8Array(bytes))].map((b) => b.toString(16).padStart(2, "0")).join("");

/** Do it after all that waits; tell of what fails, and let the person try again. */
function attempt(action) {
  const user = state.user;
  const done = state.waiting.then(async () => {
    // Meanwhile somebody else may have been chosen.
    if (user !== state.user) return;
    document.body.setAttribute("aria-busy", "true");
    at("trouble").replaceChildren();
    try {
      await action();
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      if (user === state.user) tell(problem, action);
    } finally {
      document.body.removeAttribute("aria-busy");
    }
  });
  // What nobody foresaw is told in the console, and keeps nothing else from being done.
  state.waiting = done.catch(() => {});
  return done;
}

function tell(problem, action) {
  const again = element("button", { type: "button" }, "Try again");
  again.addEventListener("click", () => attempt(action));
  const box = element("div", {}, element("p", {}, worded(problem)), [401, 403].includes(problem.status) ? null : again);
  at("trouble").replaceChildren(box);
}

function worded(problem) {
  if (problem.status === 401) return "The server asks for an API key that it knows.";
  if (problem.status === 403) return "This API key may not do that.";
  if (problem.code === "overloaded") return "The server has much to do right now.";
  if (problem.status === 503) {
    return "What is kept of people can't be read or changed right now. Nothing that was taken in is lost.";
  }
  return problem.message;
}

/** The items of ids, asked for where they are not known yet. */
async function learn(ids) {
  const missing = [...new Set(ids.map(String))].filter((id) => !known.has(id));
  for (let begin = 0; begin < missing.length; begin += AT_ONCE) {
    const query = new URLSearchParams(missing.slice(begin, begin + AT_ONCE).map((id) => ["id", id]));
    keep((await ask("GET", `v1/items?${query}`)).items);
  }
}

function keep(items) {
  for (const item of items) known.set(String(item.item_id), item);
}

async function sessionsOf(user) {
  if (state.fresh) return [];
  try {
    return (await ask("GET", `v1/users/${encodeURIComponent(user)}`)).sessions;
  } catch (problem) {
    if (problem.status === 404) return [];
    throw problem;
  }
}

/** Show what is known and recommended. best: an answer that is there already. */
async function refresh(best) {
  const user = state.user;
  const asked = { user_id: user, k: MOST };
  const found = await Promise.allSettled([
    best ?? ask("POST", "v1/recommend", asked),
    ask("POST", "v1/beside", asked),
    sessionsOf(user),
  ]);
  const [answer, beside, sessions] = found.map((one) => one.value);
  const lists = { model: answer, ...spread(beside) };
  const ids = Object.values(lists).flatMap((list) => list?.items ?? []).map((item) => item.item_id);
  await learn([...ids, ...(sessions ?? []).flatMap((session) => session.items)]);
  if (user !== state.user) return;
  for (const [name, list] of Object.entries(lists)) if (list) showColumn(name, list);
  if (answer) at("model").textContent = answer.model;
  if (sessions) showTimeline(sessions);
  const failed = found.find((one) => one.status === "rejected");
  if (failed) throw failed.reason;
}

function spread(beside) {
  const lists = Object.entries(beside?.lists ?? {});
  return Object.fromEntries(lists.map(([name, items]) => [name, { items, source: beside.source }]));
}

function showTimeline(sessions) {
  if (sessions.length) showSessions(at("timeline"), sessions, (id) => known.get(String(id)));
  else at("timeline").replaceChildren(element("p", { class: "soft" }, "Nothing picked yet. Begin with an item below."));
}

function column(name) {
  const id = `column-${name}`;
  if (at(id)) return at(id);
  const [title, note] = COLUMNS[name];
  const head = element("h3", { id: `${id}-title` }, title);
  const list = element("ol", { class: "items", "aria-labelledby": `${id}-title`, "data-name": name });
  const made = element("div", { id, class: "column" }, head, element("p", {}, note), list);
  at("columns").append(made);
  return made;
}

function showColumn(name, { items, source }) {
  const place = column(name);
  place.querySelector("p").textContent = NOTES[source] ?? COLUMNS[name][1];
  const full = items.map((item) => ({ ...item, ...known.get(String(item.item_id)) }));
  state.ranks[name] = showRanked(place.querySelector("ol"), full, may("write"), state.ranks[name]);
}

function say(text) {
  at("said").textContent = text;
}

function summary(answer) {
  const [first, ...others] = answer.items.slice(0, 3).map((item) => nameOf(known.get(String(item.item_id)) ?? item));
  return first ? ` HierTCN now puts ${first} first${others.length ? `, then ${others.join(" and ")}` : ""}.` : "";
}

/** Choose a person. Who is chosen stands in the address, so that a page loaded anew shows them. fresh: just invented. */
function choose(user, fresh = false) {
  if (!user) return;
  Object.assign(state, { user, fresh, ranks: {} });
  at("user").value = user;
  at("columns").replaceChildren();
  at("timeline").replaceChildren();
  at("forget").hidden = !may("admin");
  hint();
  const address = `#user=${encodeURIComponent(user)}`;
  if (location.hash !== address) history.pushState(null, "", address);
  return attempt(async () => {
    await refresh();
    say(`${user} is shown.`);
  });
}

function addressed() {
  try {
    return decodeURIComponent(/^#user=(.+)/.exec(location.hash)?.[1] ?? "");
  } catch {
    return "";
  }
}

const invent = () => choose(`guest-${draw(4)}`, true);

/** Tell that the person picked an item. What is tried again is the same event, so it counts once. */
function pick(item) {
  if (!state.user) invent();
  // Events of one second would be put in the order of their items.
  state.last = Math.max(now(), state.last + 1);
  const event = { event_id: `page-${draw(8)}`, user_id: state.user, item_id: item.item_id, time: state.last };
  return attempt(async () => {
    const answer = await ask("POST", "v1/observe", { event, k: MOST });
    state.fresh = false;
    await refresh(answer);
    const outcome = OUTCOMES[answer.result.status];
    say(`${nameOf(item)} is picked.${outcome ? ` ${outcome}` : ""}${summary(answer)}`);
  });
}

function forget() {
  const user = state.user;
  attempt(async () => {
    await ask("DELETE", `v1/users/${encodeURIComponent(user)}`);
    // What comes in the same second is forgotten, too, and what is ahead of the clock counts as of now.
    state.last = now() + 1;
    await new Promise((begun) => setTimeout(begun, state.last * 1000 - Date.now()));
    state.ranks = {};
    await refresh();
    say(`${user} is forgotten.`);
  });
}

async function search() {
  const words = at("words").value.trim();
  const number = ++state.search;
  const query = new URLSearchParams({ q: words });
  const { items } = await ask("GET", `v1/items?${query}`);
  if (number !== state.search) return;
  keep(items);
  showItems(at("items"), items, may("write"));
  at("found").textContent = !words ? "The most popular ones" : items.length === 1 ? "1 item" : `${items.length} items`;
}

/** Arrows go through a list, and between the lists of the models. */
function arrow(event) {
  const list = event.target.closest?.(".items");
  if (!list || event.altKey || event.ctrlKey || event.metaKey) return;
  const line = event.target.closest("li");
  const place = [...list.children].indexOf(line);
  const lists = [...document.querySelectorAll("#columns .items")];
  const beside = (step) => lists[lists.indexOf(list) + step]?.children;
  const goals = {
    ArrowDown: () => line.nextElementSibling,
    ArrowUp: () => line.previousElementSibling ?? (list.id === "items" ? at("words") : null),
    Home: () => list.firstElementChild,
    End: () => list.lastElementChild,
    ArrowRight: () => lists.includes(list) && beside(1)?.[place],
    ArrowLeft: () => lists.includes(list) && beside(-1)?.[place],
  };
  const goal = goals[event.key]?.();
  if (!goal) return;
  event.preventDefault();
  (goal.querySelector("button") ?? goal).focus();
}

function hint() {
  const begun = state.user ? "Pick one, and watch the ranks move." : "Pick an item of the catalog to begin as somebody new.";
  at("hint").textContent = may("write") ? begun : "This API key may look, and pick nothing.";
}

async function begin() {
  Object.assign(state, await ask("GET", "v1/access"));
  at("key-form").hidden = !state.keys;
  if (!may("read")) {
    const told = key.value ? "This API key is not known here, or may not read." : "Enter an API key to see people.";
    at("trouble").replaceChildren(element("div", {}, element("p", {}, told)));
    return at("key").focus();
  }
  hint();
  await search();
  if (addressed()) choose(addressed());
  else at("timeline").replaceChildren(element("p", { class: "soft" }, "Choose a person, or invent one."));
}

at("user-form").addEventListener("submit", (event) => {
  event.preventDefault();
  choose(at("user").value);
});
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  // What a header can't carry is no key.
  key.value = at("key").value.replace(/[^\x21-\x7e]/g, "");
  at("key").value = "";
  attempt(begin);
});
at("invent").addEventListener("click", invent);
at("forget").addEventListener("click", () => {
  at("whom").textContent = state.user;
  at("sure").showModal();
});
at("keep").addEventListener("click", () => at("sure").close());
at("really").addEventListener("click", () => {
  at("sure").close();
  forget();
});
let timer;
at("words").addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(() => attempt(search), WAIT);
});
at("words").addEventListener("keydown", (event) => {
  if (event.key !== "ArrowDown") return;
  event.preventDefault();
  at("items").querySelector("button")?.focus();
});
document.addEventListener("click", (event) => {
  const line = event.target.closest?.(".items li");
  if (line) pick(line.item);
});
document.addEventListener("keydown", arrow);
addEventListener("popstate", () => addressed() !== state.user && choose(addressed()));
attempt(begin);
