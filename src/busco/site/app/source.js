// Where the data comes from: the JSON inside this document, or the page around it (shell.js), asked by messages.
//
// Both forms have the same functions: `get`, which loads; `go`, which asks for another address; and `start`, which
// reports each address and each change of the state.
"use strict";
(function (busco) {
  class Failure extends Error {
    constructor(status, detail) {
      super(detail || `status ${status}`);
      this.status = status;
      this.detail = detail || "";
    }
  }

  // Returns the parts of `#/gold/fct_orders#order_id`.
  function parsed(hash) {
    const [, path = "", fragment = ""] = /^#\/?([^#]*)(?:#(.*))?$/s.exec(hash) || [];
    return { path, query: {}, fragment: decoded(fragment) };
  }

  function decoded(text) {
    try {
      return decodeURIComponent(text);
    } catch {
      return text;
    }
  }

  function inlined(data) {
    const missing = () => Promise.reject(new Failure(404));
    const own = (object, key) => (object && Object.hasOwn(object, key) ? Promise.resolve(object[key]) : missing());
    let isOwn = false;
    const hash = (at) => `#/${at.path}${at.fragment ? `#${encodeURIComponent(at.fragment)}` : ""}`;
    return {
      offline: true,
      href: hash,
      go(at, replace) {
        if (hash(at) === location.hash) return;
        isOwn = true;
        if (replace) location.replace(hash(at));
        else location.hash = hash(at);
      },
      title(text) {
        document.title = text;
      },
      start(events) {
        addEventListener("hashchange", () => {
          events.at({ ...parsed(location.hash), back: !isOwn });
          isOwn = false;
        });
        events.at(parsed(location.hash));
      },
      get(what, asked) {
        // only one release is inside, so nothing is known of the tables as they were at another one
        if (asked.release && asked.release !== data.state.release) return missing();
        if (what === "state" || what === "history") return own(data, what);
        if (what === "site") return own(data.sites, asked.project);
        return own(data.tables && Object.hasOwn(data.tables, asked.project) && data.tables[asked.project], asked.table);
      },
    };
  }

  function asked() {
    const waiting = new Map();
    let last = 0;
    let base = "/";
    let events = null;
    const send = (message) => window.parent.postMessage(message, "*");
    const answer = (message) => {
      const waits = waiting.get(message.id);
      waiting.delete(message.id);
      if (!waits) return;
      if (message.status) waits.reject(new Failure(message.status, message.error));
      else if ("error" in message) waits.reject(new Failure(0, message.error));
      else waits.resolve(message.body);
    };
    addEventListener("message", (event) => {
      const message = event.data;
      if (event.source !== window.parent || message === null || typeof message !== "object") return;
      if (message.type === "got") answer(message);
      else if (message.type === "at") {
        base = message.base;
        const { path, query = {}, fragment = "", back = false } = message;
        events.at({ path, query, fragment, back });
      } else if (message.type === "state") {
        if ("body" in message) events.state(message.body);
        else events.unreachable(message.since);
      } else if (message.type === "search") events.search();
    });
    return {
      offline: false,
      href(at) {
        const query = at.query.release ? `?release=${encodeURIComponent(at.query.release)}` : "";
        return `${base}${at.path}${query}${at.fragment ? `#${encodeURIComponent(at.fragment)}` : ""}`;
      },
      go(at, replace) {
        send({ type: "go", path: at.path, query: at.query, fragment: at.fragment, replace: Boolean(replace) });
      },
      title(text) {
        send({ type: "title", text });
      },
      height(pixels) {
        send({ type: "height", pixels });
      },
      start(handlers) {
        events = handlers;
        send({ type: "ready" });
      },
      get(what, parameters) {
        last += 1;
        const id = last;
        return new Promise((resolve, reject) => {
          waiting.set(id, { resolve, reject });
          send({ type: "get", id, what, ...parameters });
        });
      },
    };
  }

  // Remembers answers about the site and the tables of one release, by the version or key that is given.
  function remembering(source) {
    const kept = new Map();
    const get = source.get;
    source.get = (what, parameters = {}, version = "") => {
      if (what === "state" || what === "history") return get(what, parameters);
      const key = JSON.stringify([what, parameters.project, parameters.table, version || parameters.release]);
      if (!kept.has(key)) {
        const answer = get(what, parameters);
        kept.set(key, answer);
        answer.catch(() => kept.delete(key));
      }
      return kept.get(key);
    };
    return source;
  }

  // Returns where the data comes from, or null if this document was opened by itself.
  function open() {
    const inside = document.getElementById("busco-data");
    if (inside) return remembering(inlined(JSON.parse(inside.textContent)));
    return window.parent === window ? null : remembering(asked());
  }

  busco.source = { open, Failure, decoded };
})(window.busco);
