// The start page: all tables by layer, with their states, and filters.
"use strict";
(function (busco) {
  const { useState, useEffect } = preactHooks;
  const { html, Medal, Time, Newest, Status, TableLink, Copy, word, count } = busco.parts;
  const { STATES, compareLayers } = busco.facts;
  // more choices than this are a list to open
  const FEW = 7;
  // the rows of a layer that are drawn first, so that a page of a thousand tables is there at once
  const FIRST = 40;
  const FILTERS = ["status", "layer", "tag", "project"];
  // the fragment with the filters that were chosen last, for the link that leads back from a table
  let last = "";
  // a page that was drawn once is drawn whole at once, so that the way back leads to the same place
  let isDrawn = false;

  // Choices of one filter, or nothing if there is no choice: `choices` is a list of [value, label, number].
  function Filter({ label, choices, value, choose }) {
    if (choices.length < 2) return null;
    if (choices.length > FEW) {
      return html`<label class="filter">${label}
        <select value=${value || ""} onChange=${(event) => choose(event.target.value || null)}>
          <option value="">${word("all")}</option>
          ${choices.map(([one, name, n]) => html`<option key=${one}
            value=${one}>${name} (${busco.format.number(n)})</option>`)}
        </select></label>`;
    }
    return html`<div class="filter" role="group" aria-label=${label}><span aria-hidden="true">${label}</span>
      ${choices.map(([one, name, n]) => html`<button type="button" key=${one} class="chip"
        aria-pressed=${String(value === one)} onClick=${() => choose(value === one ? null : one)}>
        ${name} <span class="number">${busco.format.number(n)}</span></button>`)}</div>`;
  }

  function counted(tables, valuesOf, label, compare) {
    const numbers = new Map();
    for (const table of tables) {
      for (const value of valuesOf(table)) numbers.set(value, (numbers.get(value) || 0) + 1);
    }
    return [...numbers].sort(([one], [other]) => compare(one, other)).map(([value, n]) => [value, label(value), n]);
  }

  function Start({ view }) {
    const { world } = view;
    // the filters are in the address, so that a link can have them
    const filters = Object.fromEntries([...new URLSearchParams(view.at.fragment)]
      .filter(([name, value]) => FILTERS.includes(name) && value));
    const set = (chosen) => {
      const given = FILTERS.filter((name) => chosen[name]).map((name) => [name, chosen[name]]);
      last = new URLSearchParams(given).toString();
      view.source.go({ path: "", query: view.at.query, fragment: last }, true);
    };
    useEffect(() => { last = view.at.fragment; }, [view.at.fragment]);
    const choose = (name) => (value) => set({ ...filters, [name]: value });
    const all = [...world.tables.values()];
    const isShown = (table) => (!filters.layer || table.layer === filters.layer)
      && (!filters.status || table.status === filters.status)
      && (!filters.tag || table.entry?.tags?.includes(filters.tag))
      && (!filters.project || table.project === filters.project);
    const shown = all.filter(isShown);
    const byName = (one, other) => one.localeCompare(other);
    const byRank = (one, other) => STATES.indexOf(one) - STATES.indexOf(other);
    const title = (project) => world.state.projects?.[project]?.title || project;
    const layers = [...new Set(shown.map((table) => table.layer))].sort(compareLayers);
    const isFiltered = shown.length < all.length;
    return html`
      <div class="heading"><h1 tabindex="-1">${word("tables_heading")}</h1>
        <p class="soft" role="status">${isFiltered
          ? word("tables_shown", { n: busco.format.number(shown.length), all: busco.format.number(all.length) })
          : count("tables", all.length)}</p></div>
      <${Release} view=${view} />
      <div class="filters">
        <${Filter} label=${word("filter_state")} value=${filters.status} choose=${choose("status")}
          choices=${counted(all, (table) => [table.status], (status) => word(`state_${status}`), byRank)} />
        <${Filter} label=${word("filter_layer")} value=${filters.layer} choose=${choose("layer")}
          choices=${counted(all, (table) => [table.layer], String, compareLayers)} />
        <${Filter} label=${word("filter_tag")} value=${filters.tag} choose=${choose("tag")}
          choices=${counted(all, (table) => table.entry?.tags || [], String, byName)} />
        <${Filter} label=${word("filter_project")} value=${filters.project} choose=${choose("project")}
          choices=${counted(all, (table) => [table.project], title, byName)} />
        ${isFiltered && html`<button type="button" class="plain" onClick=${() => set({})}>
          ${word("clear_filters")}</button>`}
      </div>
      ${all.length === 0 && html`<p class="empty">${word("no_tables")}</p>`}
      ${all.length > 0 && shown.length === 0 && html`<p class="empty">${word("none_match")}</p>`}
      ${layers.map((layer) => html`<${Layer} key=${layer} layer=${layer}
        projects=${Object.keys(world.state.projects || {})}
        tables=${shown.filter((table) => table.layer === layer)
          .sort((one, other) => byName(one.name, other.name))} />`)}`;
  }

  function Release({ view }) {
    const { state } = view.world;
    if (!state.release) return null;
    const when = html`<${Time} iso=${state.published_at} />`;
    const who = html`<bdi>${state.who || word("unknown_person")}</bdi>`;
    return html`<p class="facts-line">
      <span>${word(state.kind === "rollback" ? "release_rolled" : "release_published", { when, who })}</span>
    </p>
    <details class="about-release"><summary>${word("about_release")}</summary><p class="facts-line">
      <span>${word("release")} <code>${state.release}</code><${Copy} text=${state.release}
        label=${word("copy")} /></span>
      ${state.run && html`<span>${word("release_run", { run: html`<code>${state.run}</code>` })}</span>`}
      ${state.code_version && html`<span title=${state.code_version}>
        ${word("release_code", { code: html`<code>${state.code_version.slice(0, 12)}</code>` })}</span>`}
    </p></details>`;
  }

  function Layer({ layer, tables, projects }) {
    const [isWhole, draw] = useState(tables.length <= FIRST || isDrawn);
    useEffect(() => {
      if (isWhole) return undefined;
      const timer = setTimeout(() => draw((isDrawn = true)), 50);
      return () => clearTimeout(timer);
    }, []);
    const key = `layer_${layer}`;
    const about = word(key);
    const id = `layer-${encodeURIComponent(layer)}`;
    return html`<section class="layer" aria-labelledby=${id}>
      <h2 id=${id}><${Medal} layer=${layer} /><span dir="auto">${layer}</span>
        ${about !== key && html`<span class="soft">${about}</span>`}</h2>
      <table class="tables" role="table">
        <thead role="rowgroup"><tr role="row"><th role="columnheader" scope="col">${word("col_table")}</th>
          <th role="columnheader" scope="col">${word("col_state")}</th>
          <th role="columnheader" scope="col">${word("col_newest")}</th>
          <th role="columnheader" scope="col">${word("col_published")}</th>
          <th role="columnheader" scope="col" class="amount">${word("col_rows")}</th></tr></thead>
        <tbody role="rowgroup">${(isWhole ? tables : tables.slice(0, FIRST)).map((table) => html`<${Row}
          key=${table.id} table=${table}
          hasProject=${projects.length > 1} />`)}</tbody>
      </table></section>`;
  }

  function Row({ table, hasProject }) {
    const { entry, published } = table;
    return html`<tr role="row">
      <th role="rowheader" scope="row"><${TableLink} id=${table.id}><code dir="auto">${table.name}</code></>
        ${hasProject && html`<span class="tag"><bdi>${table.project}</bdi></span>`}
        ${entry?.tags?.map((tag) => html`<span class="tag" key=${tag}><bdi>${tag}</bdi></span>`)}
        <p class=${entry?.summary ? "summary" : "summary soft"}
          dir="auto">${entry?.summary || word("no_summary")}</p></th>
      <td role="cell"><${Status} status=${table.status} /></td>
      <td role="cell" class="newest-data"><${Newest} newest=${entry?.newest} /></td>
      <td role="cell" class="when"><${Time} iso=${published?.published_at} /></td>
      <td role="cell" class="amount">${published?.rows === undefined ? html`<span class="soft">–</span>` : html`
        ${busco.format.number(published.rows)}<span class="unit"> ${word("col_rows").toLowerCase()}</span>`}</td></tr>`;
  }

  busco.start = { Start, filters: () => last };
})(window.busco);
