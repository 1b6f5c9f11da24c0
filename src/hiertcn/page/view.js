// From what is known to what is seen. Texts of others become text nodes, never markup.

const calm = matchMedia("(prefers-reduced-motion: reduce)");
const day = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });
const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "short" });
const UNITS = [["d", 86_400], ["h", 3_600], ["min", 60], ["s", 1]];
const RECENT = 5;

/** An element with attributes and children; those that are null are left out. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null) made.setAttribute(name, value);
  made.append(...children.filter((child) => child !== null));
  return made;
}

export const nameOf = (item) => item.title ?? String(item.item_id);

function picture(item) {
  const letter = [...nameOf(item)][0].toUpperCase();
  if (!item.image) return element("span", { class: "picture", "aria-hidden": "true" }, letter);
  const image = element("img", { src: item.image, alt: "", loading: "lazy", referrerpolicy: "no-referrer" });
  image.addEventListener("error", () => image.replaceWith(letter));
  return element("span", { class: "picture", "aria-hidden": "true" }, image);
}

function label(item) {
  const id = item.title ? element("small", {}, element("bdi", {}, String(item.item_id))) : null;
  return element("span", { class: "name" }, element("bdi", {}, nameOf(item)), " ", id);
}

function moved(item, rank, before) {
  if (!before) return null;
  const was = before.get(String(item.item_id));
  if (was === rank) return null;
  if (was === undefined) return element("span", { class: "moved" }, "new");
  const up = was > rank;
  return element(
    "span",
    { class: up ? "moved up" : "moved down" },
    element("span", { "aria-hidden": "true" }, up ? "▲" : "▼"),
    element("span", { class: "unseen" }, up ? "up " : "down "),
    String(Math.abs(was - rank)),
  );
}

function line(item, enabled, ...around) {
  const [rank, move] = around.length ? around : [null, null];
  const button = element("button", { type: "button" }, rank, picture(item), label(item), move);
  button.disabled = !enabled;
  const made = element("li", { "data-id": item.item_id }, button);
  made.item = item;
  return made;
}

/** Items to pick of, in place of those in `list`. */
export function showItems(list, items, enabled) {
  list.replaceChildren(...items.map((item) => line(item, enabled)));
}

/** The best items, in place of those in `list`, which glide to where they belong; the ranks by id. before: ranks. */
export function showRanked(list, items, enabled, before) {
  const places = new Map([...list.children].map((child) => [child.dataset.id, child.getBoundingClientRect().top]));
  const held = [...list.children].findIndex((child) => child.contains(document.activeElement));
  const heldId = list.children[held]?.dataset.id;
  const lines = items.map((item, at) =>
    line(item, enabled, element("span", { class: "rank" }, String(at + 1)), moved(item, at + 1, before)),
  );
  list.replaceChildren(...lines);
  if (held >= 0) {
    const same = lines.find((one) => one.dataset.id === heldId) ?? lines[Math.min(held, lines.length - 1)];
    same?.firstChild.focus({ preventScroll: true });
  }
  if (before && !calm.matches) for (const one of lines) glide(one, places.get(one.dataset.id));
  return new Map(items.map((item, at) => [String(item.item_id), at + 1]));
}

function glide(child, from) {
  const by = from === undefined ? 0 : from - child.getBoundingClientRect().top;
  const begin = from === undefined ? { opacity: 0 } : { transform: `translateY(${by}px)` };
  child.animate([begin, { opacity: 1, transform: "none" }], { duration: 500, easing: "cubic-bezier(.2, .7, .2, 1)" });
}

/** The sessions {items, times}, the latest first. named: of an id the item, or undefined. */
export function showSessions(place, sessions, named) {
  const lines = sessions.map((session, at) => showSession(session, sessions[at - 1], at === sessions.length - 1, named));
  lines.reverse();
  const shown = [element("ol", { class: "timeline" }, ...lines.slice(0, RECENT))];
  const more = lines.slice(RECENT);
  if (more.length) {
    const told = more.length === 1 ? "1 earlier session" : `${more.length} earlier sessions`;
    shown.push(element("details", {}, element("summary", {}, told), element("ol", { class: "timeline" }, ...more)));
  }
  place.replaceChildren(...shown);
}

function showSession(session, before, last, named) {
  const begin = new Date(session.times[0] * 1000);
  const count = session.items.length === 1 ? "1 item" : `${session.items.length} items`;
  const after = before ? `, ${span(session.times[0] - before.times.at(-1))} later` : "";
  const head = element(
    "div",
    {},
    element("time", { datetime: begin.toISOString() }, `${day.format(begin)}, ${clock.format(begin)}`),
    element("small", {}, count + after),
  );
  const events = session.items.map((id, at) => showEvent(id, named(id), last && at === session.items.length - 1));
  return element("li", {}, head, element("ol", { class: "events" }, ...events));
}

function showEvent(id, item, latest) {
  const kind = ["event", item?.image ? "pictured" : "", latest ? "latest" : "", item ? "" : "unknown"];
  const seen = item?.image ? picture(item) : null;
  const name = element("bdi", {}, item ? nameOf(item) : id);
  const said = item ? null : element("span", { class: "unseen" }, " (not in the catalog)");
  return element("li", {}, element("span", { class: kind.join(" ").trim() }, seen, name, said));
}

/** The two largest units of a time span, such as "2 d 3 h". */
export function span(seconds) {
  const parts = [];
  let left = Math.round(seconds);
  for (const [name, size] of UNITS) {
    if (left >= size) parts.push(`${Math.floor(left / size)} ${name}`);
    left %= size;
  }
  return parts.slice(0, 2).join(" ") || "0 s";
}
