// The page: shows the server's state, paints, and sends what was painted. All that is kept is kept by the server.
"use strict";

import { Marks } from "./canvas.js";

const $ = (id) => document.getElementById(id);
const DRAFT_MS = 400; // after the last stroke
const POLL_MS = 600;

let state = { classes: [], pictures: [], search: null };
let open = null; // {name, version} of the picture that is shown
let value = 1; // class that is painted with
let zoom = 1;
let dirty = false; // strokes that the server does not have yet
let timer = null;
let polling = false;
let shownQueue = ""; // what the queue shows
let painting = null; // of the stroke that is being made: where it is
let sending = Promise.resolve(); // one change after another

const marks = new Marks($("canvas"), () => {
  dirty = true;
  clearTimeout(timer);
  timer = setTimeout(() => attempt(saveDraft), DRAFT_MS);
  enable();
});

// ------------------------------------------------------------------------------------------------------------ server

const at = (name, what = "") => `api/pictures/${encodeURIComponent(name)}${what}`;

async function ask(method, path, body, kind) {
  const reply = await fetch(path, { method, body, headers: kind ? { "Content-Type": kind } : {} }).catch(() => null);
  if (reply === null) throw new Error("The program does not answer: is it still running? What is marked here is not lost while this page is open.");
  if (!reply.ok) throw new Error((await reply.json().catch(() => ({}))).error ?? `The program answers ${reply.status}.`);
  return reply;
}

const askJSON = (method, path, content) => ask(method, path, JSON.stringify(content), "application/json");

// A change of what is kept; the answer is the new state.
function change(method, path, body, kind) {
  sending = sending.catch(() => {}).then(async () => {
    show(await (await ask(method, path, body, kind)).json());
  });
  return sending;
}

const changeJSON = (method, path, content) => change(method, path, JSON.stringify(content), "application/json");

async function attempt(action) {
  try {
    say("");
    return await action();
  } catch (error) {
    say(error.message, true);
  }
}

function say(text, wrong = false) {
  $("status").hidden = !text;
  $("status").textContent = text;
  $("status").classList.toggle("error", wrong);
}

async function refresh() {
  show(await (await ask("GET", "api/state")).json());
}

async function poll() {
  if (polling) return;
  polling = true;
  while (state.search) {
    await new Promise((done) => setTimeout(done, POLL_MS));
    try {
      await refresh();
    } catch (error) {
      say(error.message, true);
      break;
    }
  }
  polling = false;
}

async function saveDraft() {
  clearTimeout(timer);
  if (!dirty || !open) return;
  dirty = false;
  const own = open;
  try {
    await change("PUT", at(own.name, "/draft"), marks.mask.slice());
  } catch (error) {
    dirty = open === own; // the next attempt sends it
    throw error;
  }
}

// ------------------------------------------------------------------------------------------------------------- state

const current = () => state.pictures.find((one) => one.name === open?.name);
const painted = () => state.classes.length > 0 && current() !== undefined && current().state !== "error";
const marked = () => painted() && !marks.empty;

function show(next) {
  state = next;
  const { about } = state;
  $("about").textContent = `Model: ${about.model}, ${about.training}.`;
  $("warning").textContent = about.warning;
  $("warning").hidden = !about.warning;
  $("folder").textContent = state.folder;
  $("welcome").hidden = state.pictures.length > 0;
  $("editor").hidden = !state.pictures.length;
  $("count").textContent = state.pictures.length ? `${state.pictures.length} in all` : "";
  value = Math.max(1, Math.min(value, state.classes.length));
  marks.colours = state.classes.map(({ colour }) => [1, 3, 5].map((from) => parseInt(colour.slice(from, from + 2), 16)));
  showClasses();
  showQueue();
  showSearch();
  if (state.problem) say(state.problem, true);
  const one = current();
  if (!one && state.pictures.length) choose((state.pictures.find(({ state }) => state !== "error") ?? state.pictures[0]).name);
  else if (!one) open = null;
  else if (one.version !== open.version && !dirty && marks.before === null) {
    // What this page has sent itself is on the canvas already; what a search has found is not.
    const found = open.state !== one.state || (one.state === "found" && !one.draft);
    Object.assign(open, { version: one.version, state: one.state });
    if (found && one.state === "found") attempt(() => loadMarks(open));
  }
  enable();
  poll();
}

function enable() {
  const one = current(), examples = state.classes.some((kind) => kind.examples), busy = state.search !== null;
  const others = state.pictures.filter((p) => p.name !== one?.name || (examples && !marked()));
  const stale = others.some((p) => p.state === "waiting" || p.state === "error" || (p.state === "found" && p.stale));
  const fresh = one && one.state !== "labelled" && marked() && !examples;
  const any = state.pictures.some((p) => p.state === "labelled" || p.state === "found");
  const set = (id, enabled, why = "") => {
    $(id).disabled = !enabled;
    $(id).dataset.title ??= $(id).title;
    $(id).title = enabled ? $(id).dataset.title : why;
  };
  set("undo", marks.past.length > 0, "nothing to undo");
  set("redo", marks.future.length > 0, "nothing to do again");
  set("clear", marked(), "nothing is marked");
  set("label", painted() && (one.state !== "labelled" || one.draft || dirty), one ? "the marks were said to be right" : "add pictures first");
  set("search", !busy && (examples || fresh) && (stale || (fresh && others.length > 0)),
    busy ? "the search is running" : !examples && !fresh ? "mark an object first" : "no picture to search that was not searched with these examples");
  set("maps", one && one.state !== "error" && examples, "mark an object first");
  set("revert", one && (one.draft || dirty), "nothing is changed");
  set("unlabel", one?.state === "labelled", "the marks were not said to be right");
  set("remove", one);
  set("coco", any, "nothing is marked or found yet");
  set("zip", any, "nothing is marked or found yet");
  set("with-pictures", any);
  set("overview", state.pictures.length > 0, "add pictures first");
  set("empty", state.pictures.length > 0 || state.classes.length > 0);
  for (const input of $("tools").querySelectorAll("input")) input.disabled = !painted();
  $("hint").textContent = hint(one, examples, stale, fresh);
}

function hint(one, examples, stale, fresh) {
  if (!one) return "";
  if (one.state === "error") return `This picture was left out: ${one.error}.`;
  if (!state.classes.length) return "Give the kind of object a name: at Classes, Add.";
  const name = state.classes[value - 1].name;
  if (state.search) return "Searching; pictures that are done can be looked at already.";
  if (fresh) return "Is the whole object marked? Then press Enter, or F to find its kind in the other pictures at once.";
  if (!examples) return `Paint over the whole ${name}, or draw a box around it. The eraser takes marks away.`;
  if (one.draft || dirty) return "Changed. Press Enter when the marks are right: they become an example.";
  if (stale && one.state !== "found") return `Press F to look for ${name} and all other classes in the other pictures, or mark one more.`;
  if (one.state === "found") return `Searched: ${sure(one)}. Correct it where it is wrong; Enter when it is right.${stale ? " F searches again with all examples." : ""}`;
  return one.state === "labelled" ? "These marks are an example. Change them, or go on to the next picture (N)." : "";
}

const sure = (one) => (one.certainty ? `${Math.round(100 * one.certainty)} % sure` : "nothing found");

function showClasses() {
  const rows = state.classes.map((kind, index) => {
    const row = element("li", { className: index + 1 === value ? "chosen" : "" });
    const label = element("label", { className: "swatch", textContent: index + 1, title: `paint ${kind.name}` });
    label.style.background = kind.colour;
    const radio = element("input", { type: "radio", name: "class", className: "unseen", checked: index + 1 === value });
    radio.setAttribute("aria-label", `paint ${kind.name}`);
    radio.onchange = () => chooseClass(index + 1);
    label.prepend(radio);
    const name = element("input", { type: "text", value: kind.name, maxLength: 60 });
    name.setAttribute("aria-label", `name of class ${index + 1}`);
    name.onchange = () => attempt(() => changeJSON("PUT", `api/classes/${index + 1}`, { name: name.value })).then(showClasses);
    name.onfocus = () => chooseClass(index + 1, false);
    row.append(label, name, element("small", { textContent: `✓ ${kind.examples}`, title: `examples: ${kind.examples}` }));
    if (index + 1 === state.classes.length && !kind.examples && index > 0) {
      const remove = element("button", { textContent: "×", title: "remove this class" });
      remove.setAttribute("aria-label", `remove class ${kind.name}`);
      remove.onclick = () => attempt(() => change("DELETE", `api/classes/${index + 1}`));
      row.append(remove);
    }
    return row;
  });
  const focused = $("classes").contains(document.activeElement) && document.activeElement.type === "text";
  if (!focused) $("classes").replaceChildren(...rows); // not under somebody's fingers
}

function chooseClass(next, redraw = true) {
  if (next < 1 || next > state.classes.length) return;
  value = next;
  marks.clicks = [];
  if (redraw) showClasses();
  else [...$("classes").children].forEach((row, index) => row.classList.toggle("chosen", index + 1 === value));
  enable();
}

function showQueue() {
  const told = JSON.stringify([state.pictures, open?.name]);
  if (told === shownQueue) return;
  shownQueue = told;
  const heads = { found: "Least sure first", waiting: "Not searched yet", error: "Left out", labelled: "Right" };
  const rows = [];
  let last = null;
  for (const one of state.pictures) {
    if (one.state !== last) {
      last = one.state;
      const head = element("li", { className: "head" });
      head.append(element("h3", { textContent: heads[last] }));
      rows.push(head);
    }
    const button = element("button", { title: one.error || one.name });
    button.dataset.name = one.name;
    button.setAttribute("aria-current", String(one.name === open?.name));
    button.onclick = () => attempt(() => choose(one.name));
    const text = element("div");
    text.append(element("b", { textContent: one.name }), element("small", { textContent: words(one) }));
    const image = element("img", { alt: "", loading: "lazy" });
    if (one.state !== "error") image.src = at(one.name, `/thumbnail?v=${one.version}`);
    button.append(image, text);
    const row = element("li");
    row.append(button);
    rows.push(row);
  }
  const place = [$("queue").scrollTop, $("queue").scrollLeft], focused = $("queue").contains(document.activeElement) && document.activeElement.dataset.name;
  $("queue").replaceChildren(...rows);
  [$("queue").scrollTop, $("queue").scrollLeft] = place;
  if (focused) [...$("queue").querySelectorAll("button")].find((button) => button.dataset.name === focused)?.focus();
}

function words(one) {
  if (one.draft) return "changed, not yet right";
  if (one.state === "found") return `${sure(one)}${one.stale ? ", by fewer examples" : ""}`;
  return { waiting: "no marks yet", error: one.error, labelled: one.classes.length ? "✓ example" : "✓ no object" }[one.state];
}

function showSearch() {
  const { search } = state;
  $("progress").hidden = !search;
  if (!search) return;
  $("bar").max = search.total;
  $("bar").value = search.done;
  const left = search.seconds_left === null ? "" : `, ${Math.ceil(search.seconds_left)} s left`;
  $("left").textContent = `${search.done} of ${search.total}${left}`;
}

function element(tag, settings = {}) {
  return Object.assign(document.createElement(tag), settings);
}

// ------------------------------------------------------------------------------------------------------- one picture

async function choose(name) {
  if (dirty) await saveDraft();
  const one = state.pictures.find((other) => other.name === name);
  open = { name, version: one.version, state: one.state };
  $("seen").hidden = true;
  $("title").textContent = name;
  $("image").alt = `picture ${name}`;
  zoom = 1;
  showQueue();
  if (one.state === "error") {
    $("image").removeAttribute("src");
    marks.open(1, 1, new Uint8Array(1));
  } else {
    $("image").src = at(name, "/picture");
    await loadMarks(open);
  }
  fit();
  enable();
}

async function loadMarks(own) {
  const content = new Uint8Array(await (await ask("GET", at(own.name, "/marks"))).arrayBuffer());
  if (open !== own || dirty || marks.before !== null) return; // another picture, or painted on meanwhile
  const [width, height] = current().size;
  if (content.length === width * height) marks.open(width, height, content);
  fit();
  enable();
}

// As large as the page has room for, times the zoom.
function fit() {
  const room = $("view").clientWidth || 1, most = Math.max(220, window.innerHeight * (innerWidth > 900 ? 0.7 : 0.55));
  const width = Math.min(room, (most * marks.width) / marks.height) * zoom;
  $("stage").style.width = `${width}px`;
  $("stage").style.height = `${(width * marks.height) / marks.width}px`;
  $("out").disabled = zoom === 1;
}

function step(by) {
  const names = state.pictures.map((one) => one.name);
  const next = names[names.indexOf(open?.name) + by];
  if (next !== undefined) attempt(() => choose(next));
}

async function label() {
  clearTimeout(timer);
  dirty = false;
  const own = open;
  try {
    await change("PUT", at(own.name, "/label"), marks.mask.slice());
  } catch (error) {
    dirty = true;
    throw error;
  }
}

async function labelAndGoOn() {
  await label();
  const next = state.pictures.find((one) => one.state === "found" && !one.stale && one.name !== open.name);
  if (next) await choose(next.name);
}

async function search() {
  const one = current();
  if (!state.classes.some((kind) => kind.examples) && one.state !== "labelled" && marked()) await label();
  else await saveDraft();
  await change("POST", "api/search");
}

async function showMaps() {
  const pictures = await (await ask("GET", at(open.name, "/maps"))).json();
  const figures = pictures.map(({ name, png }) => {
    const figure = element("figure");
    figure.append(element("img", { src: `data:image/png;base64,${png}`, alt: name }), element("figcaption", { textContent: name }));
    return figure;
  });
  $("seen").replaceChildren(...figures);
  $("seen").hidden = false;
  if (!figures.length) say("This method has no maps to show.");
}

async function addPictures(files) {
  const chosen = [...files];
  const refused = [];
  for (const [index, file] of chosen.entries()) {
    say(`Adding ${index + 1} of ${chosen.length}: ${file.name}`);
    try {
      if (file.size > state.max_bytes) throw new Error(`${file.name} is larger than ${state.max_bytes / 1e6} MB`);
      await change("POST", `api/pictures?name=${encodeURIComponent(file.name)}`, file, "application/octet-stream");
    } catch (error) {
      refused.push(error.message);
    }
  }
  if (!state.classes.length && state.pictures.length) await changeJSON("POST", "api/classes", { name: "object" });
  say(refused.join("; "), true);
}

async function download(path, name) {
  await saveDraft();
  const url = URL.createObjectURL(await (await ask("GET", path)).blob());
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

// ---------------------------------------------------------------------------------------------------------- painting

const tool = () => document.querySelector("input[name=tool]:checked").value;
const paint = () => (tool() === "eraser" ? 0 : value);
// In pixels of the picture; the brush has its size on the screen, so that zooming in paints finer.
const scale = () => $("canvas").getBoundingClientRect().width / marks.width || 1;
const radius = () => Math.max(0.71, Number($("size").value) / 2 / scale()); // a pixel at least

function place(event) {
  const frame = $("canvas").getBoundingClientRect();
  return {
    x: ((event.clientX - frame.left) * marks.width) / frame.width - 0.5,
    y: ((event.clientY - frame.top) * marks.height) / frame.height - 0.5,
  };
}

$("canvas").onpointerdown = (event) => {
  if (event.button !== 0 || !painted()) return;
  event.preventDefault();
  document.activeElement?.blur(); // keys mean the picture now, not a name that was typed before
  $("canvas").setPointerCapture(event.pointerId);
  painting = { from: place(event), at: place(event) };
  if (tool() === "brush" || tool() === "eraser") {
    marks.begin();
    marks.line(painting.at, painting.at, radius(), paint());
  }
};

$("canvas").onpointermove = (event) => {
  const here = place(event);
  if (painting && (tool() === "brush" || tool() === "eraser")) marks.line(painting.at, here, radius(), paint());
  if (painting) painting.at = here;
  showCursor(here);
};

$("canvas").onpointerup = (event) => {
  if (!painting) return;
  const { from } = painting, to = place(event);
  painting = null;
  if (marks.before !== null) marks.finish();
  else if (tool() === "box") attempt(() => boxed(from, to, event.shiftKey));
  else if (tool() === "click") attempt(() => clicked(to, event.shiftKey, event.altKey));
  showCursor(to);
};

$("canvas").onpointercancel = () => {
  painting = null;
  marks.finish();
};

$("canvas").onpointerleave = () => ($("cursor").hidden = !painting);

function showCursor(here) {
  const cursor = $("cursor"), kind = tool(), times = scale();
  const box = kind === "box" && painting;
  cursor.hidden = !(box || kind === "brush" || kind === "eraser") || !painted();
  cursor.className = box ? "box" : "";
  const from = box ? painting.from : here, size = radius() * 2;
  const width = box ? Math.abs(here.x - from.x) : size, height = box ? Math.abs(here.y - from.y) : size;
  const left = box ? Math.min(here.x, from.x) : here.x, top = box ? Math.min(here.y, from.y) : here.y;
  Object.assign(cursor.style, {
    left: `${(left + 0.5) * times}px`, top: `${(top + 0.5) * times}px`, width: `${width * times}px`, height: `${height * times}px`,
  });
}

async function outline(content) {
  const own = open;
  const region = new Uint8Array(await (await askJSON("POST", at(own.name, "/outline"), content)).arrayBuffer());
  return open === own ? region : null;
}

async function boxed(from, to, whole) {
  const corners = [Math.min(from.x, to.x), Math.min(from.y, to.y), Math.max(from.x, to.x) + 1, Math.max(from.y, to.y) + 1];
  if (corners[2] - corners[0] < 4 || corners[3] - corners[1] < 4) throw new Error("Draw a box from one corner of the object to the other.");
  if (whole) return marks.box(...corners, value);
  const region = await outline({ box: corners });
  if (region) marks.lay(region, value);
}

// A plain click is another object; with Shift this belongs to the last one too, with Alt it does not.
async function clicked(here, more, not) {
  if (!(more || not) || !marks.clicks.length) Object.assign(marks, { clicks: [], base: marks.mask.slice() });
  marks.clicks.push([here.x, here.y, !not]);
  const region = await outline({ clicks: marks.clicks });
  if (region) marks.lay(region, value, marks.base);
}

// ---------------------------------------------------------------------------------------------------------- controls

const press = (id, action) => ($(id).onclick = () => attempt(action));

press("example", () => change("POST", "api/example"));
press("undo", () => (marks.clicks = [], marks.undo()));
press("redo", () => marks.redo());
press("clear", () => marks.clear());
press("in", () => ((zoom = Math.min(8, zoom * 1.5)), fit()));
press("out", () => ((zoom = Math.max(1, zoom / 1.5)), fit()));
press("label", labelAndGoOn);
press("search", search);
press("stop", () => change("DELETE", "api/search"));
press("maps", showMaps);
press("revert", async () => {
  dirty = false;
  await change("DELETE", at(open.name, "/draft"));
  await loadMarks(open);
});
press("unlabel", () => change("DELETE", at(open.name, "/label")));
press("remove", () => ((dirty = false), change("DELETE", at(open.name))));
press("coco", () => download("api/annotations.json", "annotations.json"));
press("zip", () => download(`api/labels.zip?pictures=${$("with-pictures").checked ? 1 : 0}`, "labels.zip"));
press("overview", () => download("api/overview.png", "overview.png"));
press("empty", () => {
  if (confirm("Remove all pictures, marks and classes? They are moved to .removed in the folder.")) {
    dirty = false;
    return change("POST", "api/clear");
  }
});
$("files").onchange = () => {
  const files = [...$("files").files];
  $("files").value = "";
  attempt(() => addPictures(files));
};
$("new-class").onsubmit = (event) => {
  event.preventDefault();
  attempt(async () => {
    await changeJSON("POST", "api/classes", { name: $("new-name").value });
    $("new-name").value = "";
    chooseClass(state.classes.length);
  });
};
for (const input of document.querySelectorAll("input[name=tool]")) input.onchange = () => ((marks.clicks = []), ($("cursor").hidden = true));
window.onresize = fit;
window.onbeforeunload = (event) => {
  if (dirty) event.preventDefault();
};
document.onvisibilitychange = () => document.hidden && attempt(saveDraft);
document.ondragover = (event) => (event.preventDefault(), $("work").classList.add("over"));
document.ondragleave = () => $("work").classList.remove("over");
document.ondrop = (event) => {
  event.preventDefault();
  $("work").classList.remove("over");
  attempt(() => addPictures(event.dataTransfer.files));
};

const pick = (name) => () => {
  const input = document.querySelector(`input[name=tool][value=${name}]`);
  if (!input.disabled) input.click();
};
const push = (id) => () => $(id).disabled || $(id).click();
const resize = (by) => () => ($("size").value = Math.round(Number($("size").value) * by + Math.sign(by - 1)));
const KEYS = {
  b: pick("brush"), e: pick("eraser"), r: pick("box"), c: pick("click"), "[": resize(0.8), "]": resize(1.25),
  enter: push("label"), f: push("search"), n: () => step(1), p: () => step(-1), m: push("maps"), delete: push("clear"),
  "+": push("in"), "=": push("in"), "-": push("out"), 0: () => ((zoom = 1), fit()),
  h: () => ((marks.hidden = true), marks.draw()),
};

document.onkeydown = (event) => {
  const writing = event.target.matches("input[type=text], #new-name, textarea");
  const key = event.key.toLowerCase();
  if (writing || event.altKey || (key === "enter" && event.target.matches("button, summary, a"))) return;
  let action = event.ctrlKey || event.metaKey ? { z: push(event.shiftKey ? "redo" : "undo"), y: push("redo") }[key] : KEYS[key];
  if (/^[1-9]$/.test(key) && !event.ctrlKey && !event.metaKey) action = () => chooseClass(Number(key));
  if (action === undefined) return;
  event.preventDefault();
  action();
};
document.onkeyup = (event) => {
  if (event.key.toLowerCase() !== "h" || !marks.hidden) return;
  marks.hidden = false;
  marks.draw();
};

attempt(refresh);
