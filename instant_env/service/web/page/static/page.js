// Keeps the page fresh: sections come rendered from the service; this puts them in place, watches the events of
// leases, and moves what moves by itself (bars that grow, countdowns).
"use strict";

const REFRESH_MS = 5000;
const TICK_MS = 200;
// A browser has six connections to a server: streams must leave some to requests.
const MOST_STREAMS = 3;

const byId = (id) => document.getElementById(id);
const rendered = {};          // section -> its HTML as it came
const streams = new Map();    // lease -> what aborts its stream
const seen = new Map();       // lease -> its last event
let skewMs = 0;               // the service's clock minus ours
let timer = 0;
let busy = false;
let again = false;

function token() { return sessionStorage.getItem("token") || ""; }

function takeTokenFromAddress() {
  const match = /(?:^#|&)token=([^&]+)/.exec(location.hash);
  if (!match) return;
  sessionStorage.setItem("token", decodeURIComponent(match[1]));
  history.replaceState(null, "", location.pathname);  // neither in the history nor over a shoulder
}

function say(text) {
  byId("problem").textContent = text;
  byId("problem").hidden = !text;
}

function link(text) {
  byId("link").textContent = text;
  byId("link").hidden = !text;
}

function show(signedIn) {
  byId("sign-in").hidden = signedIn;
  byId("board").hidden = !signedIn;
  byId("sign-out").hidden = !signedIn;
}

function signOut(text) {
  sessionStorage.removeItem("token");
  for (const stop of streams.values()) stop.abort();
  streams.clear();
  clearTimeout(timer);
  for (const name of Object.keys(rendered)) { delete rendered[name]; byId(name).replaceChildren(); }
  show(false);
  say(text);
  byId("token").focus();
}

async function call(method, path, body, headers = {}) {
  const options = { method, cache: "no-store", headers: { Authorization: "Bearer " + token(), ...headers } };
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers["Content-Type"] = "application/json";
  }
  const answer = await fetch(path, options);
  const content = await answer.json();
  if (answer.ok) return content;
  if (answer.status === 401) signOut("The service does not know this token.");
  throw new Error([content.detail, content.hint].filter(Boolean).join(" – "));
}

// Sections are replaced only when they came out differently, so that focus and selections survive.
function place(name, html) {
  if (rendered[name] === html) return;
  const section = byId(name);
  const open = section.querySelector("details")?.open;
  const focused = section.contains(document.activeElement) ? document.activeElement : null;
  const mark = focused && [focused.closest("[data-id]")?.dataset.id, focused.dataset.action];
  section.innerHTML = html;  // from our templates, which escape whatever they print
  rendered[name] = html;
  if (open) section.querySelector("details")?.setAttribute("open", "");
  if (mark && mark[0]) section.querySelector(`[data-id="${mark[0]}"] [data-action="${mark[1]}"]`)?.focus();
}

async function refresh() {
  if (busy) { again = true; return; }
  busy = true;
  clearTimeout(timer);
  try {
    const board = await call("GET", "/page/board");
    skewMs = Date.parse(board.now) - Date.now();
    for (const [name, html] of Object.entries(board.sections)) place(name, html);
    watch(board.watch);
    link("");
    tick();
  } catch (error) {
    if (token()) link("no answer: " + error.message);
  }
  busy = false;
  if (!token()) return;
  timer = setTimeout(refresh, again ? 0 : REFRESH_MS);
  again = false;
}

function watch(leases) {
  const wanted = leases.slice(0, MOST_STREAMS);
  for (const [id, stop] of streams) if (!wanted.includes(id)) { stop.abort(); streams.delete(id); }
  for (const id of wanted) if (!streams.has(id)) follow(id);
}

// EventSource cannot send a token, so the stream is read by fetch.
async function follow(id) {
  const stop = new AbortController();
  streams.set(id, stop);
  try {
    const headers = { Authorization: "Bearer " + token() };
    if (seen.has(id)) headers["Last-Event-ID"] = seen.get(id);
    const answer = await fetch(`/v1/instances/${id}/events`, { headers, signal: stop.signal, cache: "no-store" });
    if (answer.status === 200) {
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        text += value;
        const parts = text.split("\n\n");
        text = parts.pop();
        for (const part of parts) {
          const number = /^id: (.*)$/m.exec(part);
          if (!number) continue;
          seen.set(id, number[1]);
          refresh();
        }
      }
    }
  } catch (error) {
    if (stop.signal.aborted) return;
  }
  // It is opened again by the next refresh, which comes by its timer, not at once.
  if (streams.get(id) === stop) streams.delete(id);
}

function left(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  const two = (n) => String(n).padStart(2, "0");
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)}:${two(s % 60)} min`;
  return `${Math.floor(s / 3600)}:${two(Math.floor(s / 60) % 60)}:${two(s % 60)} h`;
}

function tick() {
  const now = Date.now() + skewMs;
  for (const time of document.querySelectorAll("time[data-expires]")) {
    const seconds = (Date.parse(time.dataset.expires) - now) / 1000;
    time.textContent = left(seconds);
    time.classList.toggle("soon", seconds < 60);
  }
  for (const span of document.querySelectorAll("[data-since]")) {
    span.textContent = ((now - Date.parse(span.dataset.since)) / 1000).toFixed(1) + " s so far";
  }
  for (const bar of document.querySelectorAll("svg.growing")) grow(bar, now);
}

// The bar is as long as the prediction at first; a launch that takes longer makes it longer.
function grow(bar, now) {
  const elapsed = now - Date.parse(bar.dataset.created);
  const whole = Math.max(Number(bar.dataset.predicted), elapsed, 1);
  const scale = bar.viewBox.baseVal.width / whole;
  for (const part of bar.querySelectorAll("rect")) {
    const from = Number(part.dataset.from);
    const to = part.dataset.to === undefined ? elapsed : Number(part.dataset.to);
    part.setAttribute("x", from * scale);
    part.setAttribute("width", Math.max(0, to - from) * scale);
  }
}

function randomKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
}

async function take(event) {
  event.preventDefault();
  const button = event.submitter || byId("take").querySelector("button");
  button.disabled = true;
  say("");
  const body = { public_key: byId("key").value.trim(), technique: byId("technique").value,
                 ttl_seconds: Number(byId("ttl").value) };
  const headers = { "Idempotency-Key": randomKey() };
  try {
    try {
      await call("POST", "/v1/instances", body, headers);
    } catch (error) {
      if (!(error instanceof TypeError)) throw error;
      await call("POST", "/v1/instances", body, headers);  // the answer was lost: the same key, the same lease
    }
  } catch (error) {
    say(error.message);
  }
  button.disabled = false;
  refresh();
}

async function act(event) {
  const button = event.target.closest("button[data-action]");
  if (!button) return;
  const id = button.closest("[data-id]").dataset.id;
  if (button.dataset.action === "copy") {
    await navigator.clipboard.writeText(button.dataset.text);
    button.textContent = "Copied";
    return;
  }
  if (button.dataset.action === "end" && button.dataset.sure === undefined) {
    button.dataset.sure = "";
    button.textContent = "End it now?";
    setTimeout(() => { delete button.dataset.sure; button.textContent = "End"; }, 4000);
    return;
  }
  button.disabled = true;
  say("");
  try {
    if (button.dataset.action === "end") {
      await call("DELETE", `/v1/instances/${id}`);
    } else {
      const seconds = (Date.parse(button.dataset.expires) - Date.now() - skewMs) / 1000;
      await call("POST", `/v1/instances/${id}/ttl`, { ttl_seconds: Math.ceil(seconds) + 900 });
    }
  } catch (error) {
    say(error.message);
  }
  button.disabled = false;
  refresh();
}

byId("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", byId("token").value.trim());
  byId("token").value = "";
  say("");
  show(true);
  refresh();
});
byId("sign-out").addEventListener("click", () => signOut(""));
byId("take").addEventListener("submit", take);
byId("leases").addEventListener("click", act);
window.addEventListener("hashchange", () => { takeTokenFromAddress(); start(); });
setInterval(tick, TICK_MS);

function start() {
  show(Boolean(token()));
  if (token()) refresh();
}

takeTokenFromAddress();
start();
