"use strict";
// Everything here is a convenience: without it the pages work by loading again.

// A one-time link carries its secret behind the #, which no server log sees.
(function signIn() {
  const form = document.getElementById("login");
  const secret = location.hash.slice(1);
  if (!form || !secret) return;
  history.replaceState(null, "", location.pathname + location.search);
  form.elements.secret.value = secret;
  form.submit();
})();

// Times left count down from when the page was shown; the server decides.
function span(ms) {
  const s = Math.max(0, Math.floor(ms / 1000));
  if (s < 100) return s + " s";
  if (s < 7200) return Math.floor(s / 60) + " min";
  return Math.floor(s / 3600) + " h " + Math.floor((s % 3600) / 60) + " min";
}
const ends = new WeakMap();
function countDown() {
  for (const el of document.querySelectorAll("[data-left]")) {
    if (!ends.has(el)) ends.set(el, performance.now() + Number(el.dataset.left));
    const text = span(ends.get(el) - performance.now());
    if (el.textContent !== text) el.textContent = text;
  }
}
countDown();
setInterval(countDown, 1000);

// A press that was meant for something else is no decision: nothing counts
// within half a second of the page coming into view, and one press is enough.
(function decisions() {
  const forms = document.querySelectorAll("form.decision");
  if (!forms.length) return;
  let shown = performance.now();
  let sent = false;
  const again = () => { shown = performance.now(); };
  addEventListener("focus", again);
  document.addEventListener("visibilitychange", again);
  addEventListener("pageshow", (event) => {
    if (event.persisted) location.reload();
    else again();
  });
  for (const form of forms) {
    form.addEventListener("submit", (event) => {
      if (sent || performance.now() - shown < 500) event.preventDefault();
      else sent = true;
    });
  }
})();

(function live() {
  const inbox = document.getElementById("inbox");
  const approval = document.getElementById("approval");
  const waiting = approval && approval.dataset.status === "pending";
  if (!inbox && !waiting) return;
  const line = document.getElementById("live");
  const say = (text) => { if (line && line.textContent !== text) line.textContent = text; };
  const title = document.title;
  const words = (n) => n === 0 ? "Live. Nothing waits." : n === 1 ? "Live. One action waits." : "Live. " + n + " actions wait.";

  function tell() {
    const n = Number(document.getElementById("list").dataset.waiting);
    say(words(n));
    document.title = n ? "(" + n + ") " + title : title;
    const count = document.getElementById("count");
    if (count) {
      count.hidden = n === 0;
      count.textContent = n || "";
      count.setAttribute("aria-label", n + " waiting");
    }
  }

  let busy = false;
  let more = false;
  async function refresh(version) {
    if (document.getElementById("list").dataset.version === version) { tell(); return; }
    if (busy) { more = true; return; }
    busy = true;
    try {
      do {
        more = false;
        const answer = await fetch("/approvals/list", { cache: "no-store", redirect: "error" });
        if (answer.status === 401) { location.assign("/login"); return; }
        if (!answer.ok) return;
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        const list = page.getElementById("list");
        if (!list) return;
        const focused = inbox.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
        inbox.replaceChildren(document.adoptNode(list));
        if (focused) {
          for (const a of inbox.querySelectorAll("a")) if (a.getAttribute("href") === focused) a.focus();
        }
        countDown();
        tell();
      } while (more);
    } catch {
      say("Not live: the control plane can't be reached. Trying again.");
    } finally {
      busy = false;
    }
  }

  async function look() {
    const answer = await fetch("/approvals/" + approval.dataset.id + "/status", { cache: "no-store" });
    if (answer.ok && (await answer.json()).status !== approval.dataset.status) location.reload();
  }

  const source = new EventSource("/approvals/events");
  source.addEventListener("change", (event) => {
    if (inbox) refresh(event.data);
    else look().catch(() => {});
  });
  source.addEventListener("ended", () => { source.close(); location.assign("/login"); });
  source.addEventListener("error", () => {
    say(source.readyState === EventSource.CLOSED
      ? "Not live any more. Load the page again."
      : "Not live: the control plane can't be reached. Trying again.");
  });
  source.addEventListener("open", () => { if (inbox) tell(); });
})();
