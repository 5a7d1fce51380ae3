// The small parts that all pages are made of: links, times, states, texts of a project, buttons that copy.
"use strict";
(function (busco) {
  const { h } = preact;
  const { useState, useEffect, useLayoutEffect, useRef } = preactHooks;
  const html = htm.bind(h);
  const { word, count } = busco.words;
  const format = busco.format;

  const ICONS = {
    fresh: "M3.5 8.5l3 3 6-7",
    failed: "M4 4l8 8M12 4l-8 8",
    late: "M8 4v4.5l3 2M8 1.8a6.2 6.2 0 1 0 0 12.4A6.2 6.2 0 0 0 8 1.8z",
    stale: "M13.5 8a5.5 5.5 0 1 1-1.6-3.9M12.5 1.5v3h-3",
    warned: "M8 2L1.5 13.5h13zM8 6.5v3.2M8 11.4v.6",
    held: "M5.5 3.5v9M10.5 3.5v9",
    unknown: "M5.7 6a2.3 2.3 0 1 1 3.6 1.9C8.5 8.5 8 9 8 10M8 12v.6",
    search: "M7 2.5a4.5 4.5 0 1 0 0 9 4.5 4.5 0 0 0 0-9zM10.3 10.3l3.7 3.7",
    copy: "M5.5 5.5h8v8h-8zM3.5 10.5h-1v-8h8v1",
    open: "M6 4l4 4-4 4",
    out: "M9 3h4v4M13 3L7.5 8.5M11 9.5V13H3V5h3.5",
    back: "M6.5 3.5L2.5 7.5l4 4M2.5 7.5h7a4 4 0 0 1 0 8",
    lock: "M4 7.5h8v6H4zM5.5 7.5v-2a2.5 2.5 0 0 1 5 0v2",
    key: "M6 10.5a2.7 2.7 0 1 1 0-5.4 2.7 2.7 0 0 1 0 5.4zM8.6 8H14v2.5M11.5 8v2",
  };

  ICONS.ok = ICONS.fresh;

  function Icon({ name }) {
    return html`<svg class="icon" viewBox="0 0 16 16" aria-hidden="true" focusable="false"><path
      d=${ICONS[name]} /></svg>`;
  }

  function Medal({ layer }) {
    return html`<svg class=${`medal ${busco.facts.compareLayers(layer, "zzz") < 0 ? layer : "other"}`}
      viewBox="0 0 16 16" aria-hidden="true" focusable="false"><circle cx="8" cy="8" r="5" /></svg>`;
  }

  function Time({ iso, exact }) {
    if (!iso) return html`<span class="soft">–</span>`;
    const shown = exact ? format.short(iso) : format.ago(iso, busco.view.time);
    return html`<time datetime=${iso} title=${format.exact(iso)}>${shown}</time>`;
  }

  // How new a table's data is: `newest` is a column and its greatest value, [column, text].
  function Newest({ newest }) {
    if (!newest) return html`<span class="soft">–</span>`;
    const [column, value] = newest;
    // a time at midnight is a date
    return html`<span class="newest" title=${`${column}: ${value}`} dir="auto">
      ${value.replace(/ 00:00:00(\.0+)?$/, "")}</span> <span class="soft"><code dir="auto">${column}</code></span>`;
  }

  function Status({ status }) {
    return html`<span class=${`status ${status}`}><${Icon} name=${status} />${word(`state_${status}`)}</span>`;
  }

  // A link inside the site; the release that is shown stays in the address.
  function Link({ path, fragment = "", release, children, ...rest }) {
    const { source, at } = busco.view;
    const query = release === undefined ? at.query : release === null ? {} : { release };
    const to = { path, query, fragment };
    const follow = (event) => {
      if (event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
      event.preventDefault();
      source.go(to);
    };
    return html`<a href=${source.href(to)} onClick=${follow} ...${rest}>${children}</a>`;
  }

  function pathOf(table) {
    return busco.facts.split(table).map(encodeURIComponent).join("/");
  }

  function TableLink({ id, fragment, children }) {
    return html`<${Link} path=${pathOf(id)} fragment=${fragment}>${children || html`<code dir="auto">${id}</code>`}</>`;
  }

  // A link to a page elsewhere; only addresses of the web and of mail are links.
  function Out({ href, children }) {
    if (!isOutside(href)) return html`<span>${children}</span>`;
    return html`<a href=${href} target="_blank" rel="noopener noreferrer">${children}<${Icon} name="out" /></a>`;
  }

  function isOutside(href) {
    return /^(https?:\/\/|mailto:|\/(?!\/))/i.test(href || "");
  }

  // The only place where text of a project becomes markup. Python has rendered it without raw HTML; this keeps only
  // what Markdown can produce, and the page's CSP and sandbox allow no script even so.
  const KEPT = new Set(["P", "A", "EM", "STRONG", "DEL", "S", "CODE", "PRE", "UL", "OL", "LI", "BLOCKQUOTE", "BR", "HR",
    "H1", "H2", "H3", "H4", "H5", "H6", "TABLE", "THEAD", "TBODY", "TR", "TH", "TD", "SUP", "SUB", "SPAN", "DIV", "DL",
    "DT", "DD"]);
  const policy = window.trustedTypes?.createPolicy("busco", { createHTML: (text) => text });

  function setHtml(element, text) {
    // nothing in a template is loaded or run
    const template = document.createElement("template");
    template.innerHTML = policy ? policy.createHTML(text) : text;
    for (const found of [...template.content.querySelectorAll("*")]) clean(found);
    const walker = document.createTreeWalker(template.content, NodeFilter.SHOW_COMMENT);
    const comments = [];
    while (walker.nextNode()) comments.push(walker.currentNode);
    comments.forEach((comment) => comment.remove());
    element.replaceChildren(template.content);
  }

  function clean(found) {
    if (found.tagName === "IMG") {
      found.replaceWith(found.getAttribute("alt") || "");
    } else if (!KEPT.has(found.tagName)) {
      found.remove();
    } else {
      const href = found.tagName === "A" ? found.getAttribute("href") : null;
      for (const { name } of [...found.attributes]) found.removeAttribute(name);
      if (href && isOutside(href)) {
        found.setAttribute("href", href);
        found.setAttribute("target", "_blank");
        found.setAttribute("rel", "noopener noreferrer");
      }
      // the page's own headings are the first three levels
      if (/^H[1-6]$/.test(found.tagName)) {
        const lower = document.createElement("h4");
        lower.append(...found.childNodes);
        found.replaceWith(lower);
      }
    }
  }

  function Rich({ text, empty }) {
    const place = useRef(null);
    useLayoutEffect(() => {
      if (place.current) setHtml(place.current, text || "");
    }, [text, Boolean(text || !empty)]);
    if (!text && empty) return html`<p class="soft">${empty}</p>`;
    return html`<div class="rich" dir="auto" ref=${place}></div>`;
  }

  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // a page without TLS, or a browser that asks first
      const area = document.createElement("textarea");
      area.value = text;
      area.className = "hidden";
      document.body.append(area);
      area.select();
      const isCopied = document.execCommand("copy");
      area.remove();
      return isCopied;
    }
  }

  function Copy({ text, label }) {
    const [said, say] = useState("");
    const act = async (event) => {
      const button = event.currentTarget;
      say(word((await copy(text)) ? "copied" : "copy_failed"));
      button.focus();
      setTimeout(() => say(""), 2500);
    };
    return html`<button type="button" class="copy" onClick=${act} title=${label || word("copy")}>
      <${Icon} name=${said ? "fresh" : "copy"} />
      <span class=${label && !said ? "unseen" : ""} aria-live="polite">
        ${said || label || word("copy")}</span></button>`;
  }

  function Code({ text, sql }) {
    return html`<div class="code"><${Copy} text=${text} />
      <pre tabindex="0"><code>${sql ? highlighted(text) : text}</code></pre></div>`;
  }

  const SQL = new RegExp([
    "(--[^\\n]*|/\\*[\\s\\S]*?\\*/|\\{#[\\s\\S]*?#\\})", "('(?:[^']|'')*')",
    "(\\{\\{[\\s\\S]*?\\}\\}|\\{%[\\s\\S]*?%\\})",
    "\\b(select|from|where|group by|order by|having|with|as|on|and|or|not|in|is|null|case|when|then|else|end|cast|"
      + "left|right|full|inner|outer|cross|join|union|all|distinct|over|partition by|qualify|limit|between|like|using|"
      + "true|false|asc|desc|nulls last|nulls first|filter|lateral|unnest|coalesce|count|sum|min|max)\\b",
  ].join("|"), "gi");

  function highlighted(text) {
    if (text.length > 60000) return text;
    const parts = [];
    let end = 0;
    for (const match of text.matchAll(SQL)) {
      const kind = match[1] ? "comment" : match[2] ? "string" : match[3] ? "template" : "keyword";
      parts.push(text.slice(end, match.index), html`<span class=${kind}>${match[0]}</span>`);
      end = match.index + match[0].length;
    }
    return [...parts, text.slice(end)];
  }

  // Tabs: `tabs` is a list of [key, label, content].
  function Tabs({ label, tabs }) {
    const [chosen, choose] = useState(tabs[0][0]);
    const id = useState(() => `tabs-${Math.random().toString(36).slice(2)}`)[0];
    const current = tabs.find(([key]) => key === chosen) || tabs[0];
    const move = (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const next = tabs[(tabs.indexOf(current) + step + tabs.length) % tabs.length][0];
      choose(next);
      document.getElementById(`${id}-${next}`).focus();
    };
    return html`<div class="tabs">
      <div role="tablist" aria-label=${label} onKeyDown=${move}>
        ${tabs.map(([key, name]) => html`<button type="button" role="tab" id=${`${id}-${key}`} key=${key}
          aria-selected=${String(key === current[0])} aria-controls=${`${id}-panel`}
          tabindex=${key === current[0] ? 0 : -1} onClick=${() => choose(key)}>${name}</button>`)}
      </div>
      <div role="tabpanel" id=${`${id}-panel`} aria-labelledby=${`${id}-${current[0]}`}>${current[2]()}</div>
    </div>`;
  }

  // Loads something whenever `key` changes. What was loaded before stays in `old` until then.
  function useLoaded(load, key) {
    const [got, set] = useState({ key: null, body: null });
    const [attempt, again] = useState(0);
    useEffect(() => {
      let isWanted = key !== null;
      if (isWanted) {
        load().then((body) => isWanted && set({ key, body }), (error) => isWanted && set({ key, error }));
      }
      return () => { isWanted = false; };
    }, [key, attempt]);
    const current = got.key === key ? got : { old: got };
    return { ...current, again: () => { set({ key: null }); again(attempt + 1); } };
  }

  function Loading() {
    return html`<p class="loading" role="status">${word("loading")}</p>`;
  }

  function explained(error) {
    if (error.status === 0) return word("error_network");
    if (error.status === 403) return word("error_denied");
    if (error.status === 404 || error.status === 410) return word("error_missing");
    return word("error_server", { status: error.status || error.message });
  }

  function Trouble({ error, again }) {
    return html`<div class="notice failed" role="alert"><${Icon} name="failed" /><div>
      <strong>${word("error_title")}</strong>
      <p>${explained(error)}</p>${error.detail && html`<p class="soft">${error.detail}</p>`}
      ${again && html`<button type="button" onClick=${again}>${word("try_again")}</button>`}
    </div></div>`;
  }

  function joined(nodes) {
    return nodes.flatMap((node, index) => (index ? [", ", node] : [node]));
  }

  busco.parts = { html, Icon, Medal, Time, Newest, Status, Link, TableLink, pathOf, Out, Rich, Copy, Code, Tabs,
    useLoaded, Loading, Trouble, explained, joined, word, count };
})(window.busco);
