// The application: it loads the state, the documentation and the history, and shows the page at the address.
"use strict";
(function (busco) {
  const { useState, useEffect, useLayoutEffect, useMemo, useRef } = preactHooks;
  const { html, Icon, Link, Time, Loading, Trouble, explained, word } = busco.parts;
  const MINUTE = 60000;
  const PAGES = { releases: "nav_releases", exposures: "nav_exposures", glossary: "nav_glossary" };

  // Returns the key under which an answer about a version, or about a release, is remembered. It only changes with the
  // live release, which decides whether the values of a column may be shown.
  const kept = (state, version) => (version ? `${version} ${state.live}` : "");
  // The history of a column goes back at most this many answers of the server.
  const OLDEST = 20;

  // Loads a table's content as it is in the release that is shown, or in an earlier one.
  const load = {
    table(view, id, earlier) {
      const table = view.world.tables.get(id);
      const release = earlier ? earlier.release : view.world.state.release;
      // one version can be described in other words at another release
      const version = earlier ? `${earlier.version} ${release}` : table?.published?.version;
      return view.source.get("table", { project: table?.project, table: id, release }, kept(view.world.state, version));
    },
    // Loads the history that a release begins; the live one if none is given.
    history(source, release) {
      return source.get("history", release ? { release } : {});
    },
    // Returns a history with the releases that come next.
    async older(source, history) {
      if (!history.next) return history;
      const { releases, next, complete } = await load.history(source, history.next);
      return { ...history, releases: [...history.releases, ...releases], next, complete };
    },
    // Returns the history with as many older releases as it takes until `isEnough(history)` holds.
    async until(source, history, isEnough) {
      let known = history;
      for (let at = 0; at < OLDEST && known.next && !source.offline && !await isEnough(known); at += 1) {
        const longer = await load.older(source, known).catch(() => null);
        if (!longer) break;
        known = longer;
      }
      return known;
    },
  };

  // Returns what the address names: {page} or {table}.
  function route(path) {
    const segments = path.replace(/\/$/, "").split("/").map(busco.source.decoded);
    if (segments.length === 1 && segments[0] === "") return { page: "tables" };
    if (segments.length === 1 && Object.hasOwn(PAGES, segments[0])) return { page: segments[0] };
    if (segments.length === 2) return { page: "table", table: segments.join(".") };
    return { page: "unknown" };
  }

  function App({ source }) {
    const [at, setAt] = useState(null);
    const [state, setState] = useState(null);
    const [error, setError] = useState(null);
    const [documented, setDocumented] = useState({ release: null, sites: {}, errors: {} });
    const [past, setPast] = useState({ history: null, error: null });
    const [time, setTime] = useState(Date.now());
    const [lostAt, setLost] = useState(null);
    const [attempt, again] = useState(0);
    const heard = useRef({ at: null });

    useEffect(() => {
      let visit = 0;
      source.start({
        at(next) {
          visit += 1;
          heard.current.at = next;
          setAt({ ...next, visit });
        },
        state(next) {
          // a state of another release can arrive late
          if ((heard.current.at?.query.release || next.live) !== next.release) return;
          setLost(null);
          setError(null);
          setState(next);
          setTime(Date.now());
        },
        unreachable: (since) => setLost(since),
        search: () => busco.app.search(),
      });
      const timer = setInterval(() => setTime(Date.now()), MINUTE);
      return () => clearInterval(timer);
    }, []);

    const release = at ? at.query.release || "" : null;
    useEffect(() => {
      if (release === null) return undefined;
      let isWanted = true;
      source.get("state", release ? { release } : {}).then(
        (next) => {
          if (!isWanted) return;
          setError(null);
          setState(next);
        },
        (failure) => isWanted && setError({ release, failure }));
      return () => { isWanted = false; };
    }, [release, attempt]);

    useEffect(() => {
      if (!state) return undefined;
      let isWanted = true;
      loadSites(source, state).then((next) => isWanted && setDocumented(next));
      return () => { isWanted = false; };
    }, [state?.release, state?.live, state && Object.keys(state.projects || {}).join("\n"), attempt]);

    useEffect(() => {
      if (!state) return undefined;
      let isWanted = true;
      const from = state.release === state.live ? "" : state.release;
      load.history(source, from).then((history) => isWanted && setPast({ history, error: null }),
        (failure) => isWanted && setPast({ history: null, error: failure }));
      return () => { isWanted = false; };
    }, [state?.live, state?.release, attempt]);

    // a history that has been replaced in the meantime stays as it is
    const older = () => load.older(source, past.history).then((history) => setPast((current) => (
      current.history === past.history ? { history, error: null } : current)));

    const isLoaded = state && documented.release !== null;
    const world = useMemo(() => (isLoaded ? busco.facts.world(state, documented.sites, time) : null),
      [state, documented, time]);
    const place = at && route(at.path);
    const view = { source, at: at || { path: "", query: {}, fragment: "", visit: 0 }, world, time, place,
      history: past.history, historyError: past.error, older, again: () => again(attempt + 1) };
    busco.view = view;
    useArrival(view);
    const isWrongRelease = Boolean(error) && error.release === release;
    return html`
      <a class="skip" href="#content" onClick=${skip}>${word("skip")}</a>
      <${Header} view=${view} state=${state} />
      <div role="status" class="notices">${state && html`<${Notices} view=${view} state=${state}
        lostAt=${lostAt} />`}</div>
      <main id="content" tabindex="-1">
        ${isWrongRelease ? html`<${WrongRelease} view=${view} error=${error} />`
          : !world ? html`<${Loading} />`
            : html`<${SiteErrors} view=${view} errors=${documented.errors} /><${Page} view=${view} />`}
      </main>`;
  }

  async function loadSites(source, state) {
    const projects = Object.keys(state.projects || {}).filter((name) => state.projects[name].has_site);
    const parameters = (project) => ({ project, release: state.release });
    const answers = await Promise.allSettled(projects.map((project) => (
      source.get("site", parameters(project), kept(state, state.release)))));
    // a project can have any name, such as __proto__
    const found = { release: state.release || "", sites: Object.create(null), errors: Object.create(null) };
    answers.forEach((answer, index) => {
      if (answer.status === "fulfilled") found.sites[projects[index]] = answer.value;
      else found.errors[projects[index]] = answer.reason;
    });
    return found;
  }

  // Sets the title, and takes the keyboard and the eye to the top of a new page, or back to where they were.
  const scrolled = new Map();
  function useArrival(view) {
    const { place, at, world, source } = view;
    const key = place ? `${at.path}?${at.query.release || ""}` : null;
    const last = useRef(null);
    const isReady = Boolean(world);
    useEffect(() => {
      const keep = () => last.current && scrolled.set(last.current, window.scrollY);
      addEventListener("scroll", keep, { passive: true });
      return () => removeEventListener("scroll", keep);
    }, []);
    useLayoutEffect(() => {
      if (!key || !isReady || last.current === key) return;
      const isFirst = last.current === null;
      last.current = key;
      const name = place.page === "table" ? place.table : PAGES[place.page] && word(PAGES[place.page]);
      source.title(name ? `${name} · ${word("site_title")}` : word("site_title"));
      if (isFirst || at.fragment) return;
      scrollTo(0, at.back ? scrolled.get(key) || 0 : 0);
      document.querySelector("h1")?.focus({ preventScroll: true });
    }, [key, isReady]);
  }

  function skip(event) {
    event.preventDefault();
    document.getElementById("content").focus();
  }

  function Header({ view, state }) {
    const page = view.place?.page;
    const titles = Object.values(state?.projects || {}).map((project) => project.title).filter(Boolean);
    const current = (name) => (page === name || (name === "tables" && page === "table") ? "page" : undefined);
    // a page that would be empty is only shown to who is there
    const sites = view.world ? Object.values(view.world.sites) : [];
    const isFilled = (name) => page === name || name === "releases"
      || sites.some((site) => (name === "exposures" ? site.exposures : [...site.pages, ...site.groups]).length > 0);
    return html`<header><div class="bar">
      <${Link} path="" class="brand"><svg viewBox="0 0 20 20" aria-hidden="true" focusable="false">
          <rect class="gold" x="2" y="3" width="16" height="4" rx="1.5" />
          <rect class="silver" x="2" y="8.5" width="16" height="4" rx="1.5" />
          <rect class="bronze" x="2" y="14" width="16" height="4" rx="1.5" /></svg>
        <span dir="auto">${titles.length === 1 ? titles[0] : word("site_title")}</span>
        ${state?.environment && html`<span class="tag"><bdi>${state.environment}</bdi></span>`}</>
      <nav aria-label=${word("nav_label")}><ul>
        <li><${Link} path="" aria-current=${current("tables")}>${word("nav_tables")}</></li>
        ${Object.entries(PAGES).filter(([name]) => isFilled(name)).map(([name, label]) => html`<li key=${name}>
          <${Link} path=${name} aria-current=${current(name)}>${word(label)}</></li>`)}</ul></nav>
      <${busco.searchbox.SearchBox} view=${view} /></div></header>`;
  }

  function Notices({ view, state, lostAt }) {
    const isLive = !state.live || state.release === state.live;
    const who = (name) => html`<bdi>${name || word("unknown_person")}</bdi>`;
    const reason = (text) => text && html`<p class="why" dir="auto">${word("reason", { reason: text })}</p>`;
    return html`
      ${lostAt && html`<div class="notice warned"><${Icon} name="warned" /><p>
        ${word("offline", { time: busco.format.clock(lostAt) })}</p></div>`}
      ${!isLive && html`<div class="notice old"><${Icon} name="back" /><p>${word("viewing_old", {
          release: html`<code>${state.release}</code>`, when: html`<${Time} iso=${state.published_at} exact />` })}
        ${" "}<${Link} path=${view.at.path} fragment=${view.at.fragment}
          release=${null}>${word("to_live")}</></p></div>`}
      ${isLive && state.kind === "rollback" && html`<div class="notice warned"><${Icon} name="back" /><div>
        <strong>${word("notice_rolled", { release: html`<code>${state.rolled_back_to}</code>` })}</strong>${" "}
        ${word("notice_rolled_by", { who: who(state.who), when: html`<${Time} iso=${state.published_at} />` })}
        ${reason(state.reason)}</div></div>`}
      ${isLive && state.hold && html`<div class="notice held"><${Icon} name="held" /><div>
        <strong>${word("notice_hold")}</strong>${" "}
        ${word("notice_hold_by", { who: who(state.hold.who), when: html`<${Time} iso=${state.hold.when} exact />` })}
        ${reason(state.hold.reason)}</div></div>`}`;
  }

  function WrongRelease({ view, error }) {
    const { failure, release } = error;
    if (!release && failure.status === 404) {
      return html`<div class="heading"><h1 tabindex="-1">${word("tables_heading")}</h1></div>
        <p class="empty">${word("no_tables")}</p>`;
    }
    if (failure.status !== 404) return html`<${Trouble} error=${failure} again=${view.again} />`;
    const shown = html`<code>${release}</code>`;
    return html`<div class="missing"><h1 tabindex="-1">${word("error_release", { release: shown })}</h1>
      <p><${Link} path=${view.at.path} release=${null}>${word("to_live")}</></p></div>`;
  }

  function SiteErrors({ view, errors }) {
    const projects = view.world.state.projects || {};
    const title = (name) => html`<bdi>${projects[name]?.title || name}</bdi>`;
    const without = Object.keys(projects).filter((name) => !projects[name].has_site);
    return html`
      ${Object.entries(errors).map(([name, error]) => html`<div class="notice failed" key=${name} role="alert">
        <${Icon} name="failed" /><div><p>${word("site_failed", { project: title(name), reason: explained(error) })}</p>
        <button type="button" onClick=${view.again}>${word("try_again")}</button></div></div>`)}
      ${view.place?.page === "tables" && without.map((name) => html`<div class="notice plain" key=${name}>
        <${Icon} name="unknown" /><p>${word("no_docs", { project: title(name) })}</p></div>`)}`;
  }

  function Page({ view }) {
    const { page, table } = view.place;
    if (page === "tables") return html`<${busco.start.Start} view=${view} />`;
    if (page === "table") return html`<${busco.table.Table} key=${table} view=${view} id=${table} />`;
    if (page === "releases") return html`<${busco.releases.Releases} view=${view} />`;
    if (page === "exposures") return html`<${busco.more.Exposures} view=${view} />`;
    if (page === "glossary") return html`<${busco.more.Glossary} view=${view} />`;
    return html`<${busco.more.NotFound} />`;
  }

  function start() {
    document.documentElement.lang = busco.words.locale;
    const root = document.getElementById("busco-app");
    const source = busco.source.open();
    if (!source) {
      root.textContent = word("needs_shell");
      return;
    }
    preact.render(html`<${App} source=${source} />`, root);
    if (source.height) {
      new ResizeObserver(() => source.height(document.documentElement.scrollHeight)).observe(root);
    }
  }

  busco.load = load;
  busco.app = { start, search() {} };
  addEventListener("DOMContentLoaded", start);
})(window.busco);
