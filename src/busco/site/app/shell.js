// The page around the application: it owns the address and the login, and the application in its sandboxed frame owns
// everything that is shown. The frame is not trusted: it can ask for four kinds of data, for an address below the base,
// and for a title, and nothing else.
"use strict";
(function () {
  const base = JSON.parse(document.getElementById("busco-shell").textContent).base;
  // milliseconds between two looks for a new state, and at most while the server does not answer
  const POLL = 3000;
  const SLOWEST = 30000;
  const RELOADED = "busco-docs-reloaded";
  const ALLOWED = {
    state: ["release"], history: ["release"], site: ["project", "release"], table: ["project", "table", "release"],
  };
  const RELEASE = /^[A-Za-z0-9][A-Za-z0-9._:+-]{0,199}$/;
  let known = { release: null, etag: null, text: null, body: null };
  let failures = 0;
  let answeredAt = Date.now();
  let timer = 0;
  let isChecking = false;
  let isReady = false;

  const frame = () => document.getElementById("busco-frame");
  const send = (message) => frame().contentWindow.postMessage(message, "*");

  // Returns the part of the page's address below the base; an address that the server gave can be anything.
  function here(isBack) {
    const path = location.pathname.startsWith(base) ? location.pathname.slice(base.length) : "";
    return {
      type: "at", base, path, back: isBack === true, query: release() ? { release: release() } : {},
      fragment: decoded(location.hash.slice(1)),
    };
  }

  function release() {
    const asked = new URLSearchParams(location.search).get("release");
    return asked && RELEASE.test(asked) ? asked : null;
  }

  function decoded(text) {
    try {
      return decodeURIComponent(text);
    } catch {
      return text;
    }
  }

  // Says whether a segment is exactly what encodeURIComponent makes of some name that can't be confused with another
  // folder, or with the addresses of the data.
  function isSegment(segment) {
    try {
      const name = decodeURIComponent(segment);
      return name !== "" && !/^\.+$/.test(name) && encodeURIComponent(name) === segment;
    } catch {
      return false;
    }
  }

  // Returns the address that the frame asks for, or null if it is none of this site.
  function address(message) {
    const { path, query, fragment } = message;
    if (typeof path !== "string" || path.length > 2000 || path.startsWith("_")) return null;
    if (path !== "" && !path.split("/").every(isSegment)) return null;
    const asked = query && typeof query === "object" ? query.release : undefined;
    if (asked !== undefined && asked !== null && (typeof asked !== "string" || !RELEASE.test(asked))) return null;
    const text = typeof fragment === "string" && fragment.length <= 2000 ? fragment : "";
    let hash = "";
    try {
      hash = text ? `#${encodeURIComponent(text)}` : "";
    } catch {
      return null;
    }
    const search = asked ? `?release=${encodeURIComponent(asked)}` : "";
    const url = new URL(`${base}${path}${search}${hash}`, location.origin);
    return url.origin === location.origin && url.pathname.startsWith(base) ? url.href : null;
  }

  function go(message) {
    const url = address(message);
    if (url === null) return;
    if (url !== location.href) {
      if (message.replace === true) history.replaceState(null, "", url);
      else history.pushState(null, "", url);
    }
    send(here());
  }

  // The login is over, or never was: the server answers a request for the whole page with the login. A page that has
  // just been loaded is not loaded again, or it might never stop.
  function reload() {
    const last = Number(sessionStorage.getItem(RELOADED));
    if (Date.now() - last < 20000) return false;
    sessionStorage.setItem(RELOADED, String(Date.now()));
    location.reload();
    return true;
  }

  function url(what, message) {
    const query = new URLSearchParams();
    for (const name of ALLOWED[what]) {
      const value = message[name];
      if (value === undefined || value === null || value === "") continue;
      if (typeof value !== "string" || value.length > 2000) return null;
      query.set(name, value);
    }
    return `${base}_data/${what}${query.size ? `?${query}` : ""}`;
  }

  async function load(what, message, etag) {
    const address = url(what, message);
    if (address === null) return { status: 400, error: "" };
    let response;
    try {
      const headers = etag ? { Accept: "application/json", "If-None-Match": etag } : { Accept: "application/json" };
      // a state can change at any time, so it is asked for again, and the server answers 304 if it has not changed
      const cache = what === "state" ? "no-store" : what === "history" ? "no-cache" : "default";
      response = await fetch(address, { redirect: "manual", credentials: "same-origin", headers, cache });
    } catch {
      return { status: 0, error: "" };
    }
    if (response.status === 304) return { same: true };
    const isLogin = response.type === "opaqueredirect" || response.status === 401 || response.status === 403;
    if (isLogin && reload()) return new Promise(() => {});
    if (isLogin) return { status: 403, error: "" };
    const text = await response.text().catch(() => null);
    if (text === null) return { status: 0, error: "" };
    let body;
    try {
      body = JSON.parse(text);
    } catch {
      return { status: response.ok ? 502 : response.status, error: "" };
    }
    if (!response.ok) return { status: response.status, error: typeof body?.error === "string" ? body.error : "" };
    return { body, text, etag: response.headers.get("ETag") };
  }

  async function answer(message) {
    const { id, what } = message;
    if (typeof id !== "number" || !Object.hasOwn(ALLOWED, what)) return;
    const got = await load(what, message, null);
    if (what === "state" && "body" in got) remember(got, message.release || null);
    if ("body" in got) send({ type: "got", id, body: got.body });
    else send({ type: "got", id, status: got.status, error: got.error });
  }

  function remember(got, asked) {
    known = { release: asked, etag: got.etag, text: got.text, body: got.body };
  }

  // Tells the frame of a state that has changed, and of a server that has not answered twice in a row.
  async function check() {
    const asked = release();
    const isSame = known.release === asked;
    const got = await load("state", { release: asked }, isSame ? known.etag : null);
    if (asked !== release()) return;
    // nothing has been published yet, or this release is no longer known; the server does answer
    if (got.status === 404) {
      failures = 0;
      answeredAt = Date.now();
      return;
    }
    if ("status" in got) {
      failures += 1;
      if (failures === 2) send({ type: "state", status: got.status, error: got.error, since: answeredAt });
      return;
    }
    const wasLost = failures > 1;
    const isNew = "body" in got && !(isSame && known.text === got.text);
    failures = 0;
    answeredAt = Date.now();
    if ("body" in got) remember(got, asked);
    if (isNew || wasLost) send({ type: "state", body: known.body });
  }

  async function poll() {
    clearTimeout(timer);
    if (isReady && !isChecking && document.visibilityState === "visible") {
      isChecking = true;
      await check().finally(() => { isChecking = false; });
    }
    clearTimeout(timer);
    // a server that does not answer is asked less and less often
    timer = setTimeout(poll, Math.min(POLL * 2 ** Math.max(failures - 1, 0), SLOWEST));
  }

  addEventListener("message", (event) => {
    const message = event.data;
    if (event.source !== frame()?.contentWindow || message === null || typeof message !== "object") return;
    if (message.type === "ready") {
      isReady = true;
      document.getElementById("busco-missing").hidden = true;
      send(here());
      if (document.activeElement === document.body) frame().focus();
    } else if (message.type === "get") answer(message);
    else if (message.type === "go") go(message);
    else if (message.type === "title") document.title = String(message.text).slice(0, 300);
    else if (message.type === "height" && message.pixels > 0) {
      // paper has no scroll bar, so the frame must be as high as what is in it
      frame().style.setProperty("--printed", `${Math.min(Math.ceil(Number(message.pixels)), 200000)}px`);
    }
  });
  addEventListener("popstate", () => isReady && send(here(true)));
  addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || !isReady) return;
    event.preventDefault();
    frame().focus();
    send({ type: "search" });
  });
  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState === "visible") poll();
  });

  // The login leaves the fragment of the address here (away.js), because no server is ever told of it.
  const left = `busco-docs-fragment:${location.pathname}${location.search}`;
  const fragment = sessionStorage.getItem(left);
  sessionStorage.removeItem(left);
  if (fragment && fragment.startsWith("#") && !location.hash) {
    history.replaceState(null, "", location.pathname + location.search + fragment);
  }
  setTimeout(() => {
    const missing = document.getElementById("busco-missing");
    if (missing) missing.hidden = isReady;
  }, 15000);
  timer = setTimeout(poll, POLL);
})();
