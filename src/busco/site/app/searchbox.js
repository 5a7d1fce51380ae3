// The field that searches, and the list of what it finds.
"use strict";
(function (busco) {
  const { useState, useEffect, useRef, useMemo } = preactHooks;
  const { html, Icon, Medal, word, count } = busco.parts;

  function Marked({ text, terms }) {
    return busco.search.marked(text, terms).map(({ text: part, hit }) => (hit ? html`<mark>${part}</mark>` : part));
  }

  function SearchBox({ view }) {
    const [query, setQuery] = useState("");
    const [isOpen, open] = useState(false);
    const [chosen, choose] = useState(0);
    const [ready, setReady] = useState(null);
    const field = useRef(null);
    const box = useRef(null);
    const { world } = view;
    // the index depends on names and descriptions, not on states
    const index = useMemo(() => (world ? busco.search.index(world) : null), [world?.sites, world && names(world)]);
    useEffect(() => {
      let isCurrent = true;
      if (index) index.ready.then(() => isCurrent && setReady(index));
      return () => { isCurrent = false; };
    }, [index]);
    useEffect(() => {
      busco.app.search = () => {
        field.current.focus();
        field.current.select();
      };
      const key = (event) => {
        const isTyped = /^(input|textarea|select)$/i.test(event.target.tagName || "");
        if (event.key !== "/" || isTyped || event.ctrlKey || event.metaKey || event.altKey) return;
        event.preventDefault();
        busco.app.search();
      };
      const away = (event) => box.current.contains(event.target) || open(false);
      addEventListener("keydown", key);
      addEventListener("pointerdown", away);
      return () => {
        removeEventListener("keydown", key);
        removeEventListener("pointerdown", away);
      };
    }, []);
    const isAsked = query.trim() !== "";
    const hits = useMemo(() => (ready && isAsked ? ready.find(query) : []), [ready, query]);
    const isShown = isOpen && isAsked;
    // the words that not even the best result has
    const missing = hits.length ? busco.search.words(query).filter((one) => !hits[0].asked.has(one)) : [];
    const current = Math.min(chosen, Math.max(hits.length - 1, 0));
    useEffect(() => {
      if (isShown) document.getElementById(`hit-${current}`)?.scrollIntoView({ block: "nearest" });
    }, [current, isShown]);

    const go = (hit) => {
      open(false);
      setQuery("");
      field.current.blur();
      view.source.go(hit.table ? { path: busco.parts.pathOf(hit.table), query: view.at.query,
        fragment: hit.kind === "column" ? hit.name : "" }
        : { path: hit.kind, query: view.at.query, fragment: hit.at });
    };
    const key = (event) => {
      if (event.key === "ArrowDown" || event.key === "ArrowUp") {
        event.preventDefault();
        open(true);
        const step = event.key === "ArrowDown" ? 1 : -1;
        choose(hits.length ? (current + step + hits.length) % hits.length : 0);
      } else if (event.key === "Enter" && isShown && hits[current]) {
        event.preventDefault();
        go(hits[current]);
      } else if (event.key === "Escape") {
        event.preventDefault();
        if (!isShown) setQuery("");
        if (!isShown) field.current.blur();
        open(false);
      }
    };
    const type = (event) => {
      setQuery(event.target.value);
      choose(0);
      open(true);
    };
    return html`<div class="search" role="search" ref=${box}>
      <${Icon} name="search" />
      <input type="text" ref=${field} value=${query} role="combobox" aria-expanded=${String(isShown && hits.length > 0)}
        aria-controls="hits" aria-autocomplete="list" aria-label=${word("search_label")} autocomplete="off"
        autocapitalize="off" spellcheck="false" enterkeyhint="search" placeholder=${word("search_hint")}
        aria-activedescendant=${isShown && hits.length ? `hit-${current}` : undefined}
        onInput=${type} onKeyDown=${key} onFocus=${() => open(true)} />
      <kbd aria-hidden="true">/</kbd>
      <div class="found" hidden=${!isShown}>
        ${isShown && !ready && html`<p class="soft">${word("search_preparing")}</p>`}
        ${isShown && ready && !hits.length && html`<p class="soft">${word("search_none", { query })}</p>`}
        ${isShown && missing.length > 0 && html`<p class="soft">
          ${word("search_without", { words: html`<bdi>${missing.join(", ")}</bdi>` })}</p>`}
        <ul id="hits" role="listbox" aria-label=${word("search_label")} hidden=${!hits.length}>
          ${isShown && hits.map((hit, at) => html`<${Hit} key=${hit.id} hit=${hit} at=${at} isChosen=${at === current}
            go=${() => go(hit)} />`)}</ul>
        ${hits.length > 0 && html`<p class="keys soft" aria-hidden="true">${word("search_keys")}</p>`}
      </div>
      <p class="unseen" role="status">${isShown && ready ? count("results", hits.length) : ""}</p>
    </div>`;
  }

  function names(world) {
    return [...world.tables.keys()].join("\n");
  }

  const PLACES = { glossary: "nav_glossary", exposures: "nav_exposures" };

  function Hit({ hit, at, isChosen, go }) {
    const isColumn = hit.kind === "column";
    // a long text is shown only if the words are there
    const text = hit.more && busco.search.excerpt(hit.more, hit.terms);
    return html`<li role="option" id=${`hit-${at}`} aria-selected=${String(isChosen)} class=${hit.kind} onClick=${go}>
      ${hit.table ? html`<${Medal} layer=${hit.layer} />` : html`<span></span>`}
      <div><code dir="auto"><${Marked} text=${hit.name} terms=${hit.terms} /></code>
        <span class="soft">${isColumn ? word("search_column_in", { table: html`<bdi>${hit.layer}.${hit.within}</bdi>` })
          : PLACES[hit.kind] ? word(PLACES[hit.kind]) : html`<bdi>${hit.layer}</bdi>`}</span>
        ${hit.summary && html`<p dir="auto"><${Marked} text=${hit.summary} terms=${hit.terms} /></p>`}
        ${text && html`<p dir="auto"><${Marked} text=${text} terms=${hit.terms} /></p>`}
        ${hit.synonyms && html`<p class="soft" dir="auto"><${Marked} text=${hit.synonyms} terms=${hit.terms} /></p>`}
      </div></li>`;
  }

  busco.searchbox = { SearchBox };
})(window.busco);
