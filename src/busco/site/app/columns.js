// The columns of a table: what they mean, what values they have, where they come from and who uses them.
"use strict";
(function (busco) {
  const { useState, useEffect, useLayoutEffect } = preactHooks;
  const { html, Icon, Rich, TableLink, Link, Time, useLoaded, Loading, Trouble, joined, word, count } = busco.parts;
  const { number, percent } = busco.format;
  const FILTERED_FROM = 20;
  // the values that a row shows before it is opened
  const FIRST = 3;

  function Columns({ view, table, content }) {
    const { columns } = content;
    const fragment = view.at.fragment;
    const [filter, setFilter] = useState("");
    const [opened, setOpened] = useState(() => new Set([fragment]));
    const isKnown = columns.some((column) => column.name === fragment);
    useLayoutEffect(() => {
      if (!isKnown) return;
      setFilter("");
      setOpened((before) => new Set([...before, fragment]));
    }, [table.id, fragment, isKnown]);
    useEffect(() => {
      if (!isKnown) return;
      const row = document.getElementById(`column-${columns.findIndex((column) => column.name === fragment)}`);
      row?.scrollIntoView({ block: "center" });
      row?.querySelector("button")?.focus({ preventScroll: true });
    }, [table.id, fragment, isKnown, view.at.visit]);
    const toggle = (name) => setOpened((before) => {
      const after = new Set(before);
      if (!after.delete(name)) after.add(name);
      return after;
    });
    const asked = busco.search.words(filter);
    const isShown = (column) => {
      const text = [column.name, column.type, plain(table, column.name)].join(" ");
      const found = busco.search.words(text);
      return asked.every((one) => found.some((other) => other.startsWith(one)));
    };
    const shown = columns.map((column, index) => ({ column, index })).filter(({ column }) => isShown(column));
    const tests = new Map();
    for (const test of table.tests) {
      if (test.column) tests.set(test.column, [...(tests.get(test.column) || []), test]);
    }
    return html`
      <p class="soft" role="status">${asked.length
        ? word("columns_shown", { n: number(shown.length), all: number(columns.length) })
        : count("columns", columns.length)}
        ${content.profile_from === "statistics" && html` · ${word("values_from_statistics")}`}</p>
      ${fragment && !isKnown && html`<div class="notice warned" role="alert"><${Icon} name="warned" />
        <p>${word("column_missing", { column: html`<code dir="auto">${fragment}</code>` })}</p></div>`}
      ${columns.length > FILTERED_FROM && html`<input type="search" class="columns-filter" value=${filter}
        aria-label=${word("columns_filter")} placeholder=${word("columns_filter")}
        onInput=${(event) => setFilter(event.target.value)} />`}
      ${shown.length === 0 ? html`<p class="empty">${word("columns_none")}</p>` : html`
      <table class="columns" role="table">
        <thead role="rowgroup"><tr role="row"><th role="columnheader" scope="col">${word("col_column")}</th>
          <th role="columnheader" scope="col">${word("col_type")}</th>
          <th role="columnheader" scope="col">${word("col_description")}</th>
          <th role="columnheader" scope="col">${word("col_values")}</th></tr></thead>
        <tbody role="rowgroup">${shown.map(({ column, index }) => html`<${Column} key=${column.name} view=${view}
          table=${table} content=${content} column=${column} index=${index} tests=${tests.get(column.name) || []}
          isOpen=${opened.has(column.name)} isTarget=${column.name === fragment}
          toggle=${() => toggle(column.name)} />`)}</tbody>
      </table>`}`;
  }

  function plain(table, name) {
    return table.entry?.columns?.find(([column]) => column === name)?.[1] || "";
  }

  function Column({ view, table, content, column, index, tests, isOpen, isTarget, toggle }) {
    return html`
      <tr role="row" id=${`column-${index}`} class=${isTarget ? "target" : ""}>
        <th role="rowheader" scope="row">
          <button type="button" class="opener" aria-expanded=${String(isOpen)} onClick=${toggle}
            aria-label=${word("column_details", { column: column.name })}><${Icon} name="open" /></button>
          <${Link} path=${view.at.path} fragment=${column.name}><code dir="auto">${column.name}</code></>
          ${column.key && html`<span class="mark" title=${word("key_title")}><${Icon}
            name="key" />${word("key")}</span>`}
        </th>
        <td role="cell" class="type"><code>${column.type}</code></td>
        <td role="cell" class="about"><${Rich} text=${column.description_html} empty="–" />
          ${tests.map((test) => html`<${Bad} key=${test.name} test=${test} />`)}</td>
        <td role="cell" class="values"><${Values} column=${column} rows=${content.rows} /></td>
      </tr>
      ${isOpen && html`<tr role="row" class=${isTarget ? "detail target" : "detail"}><td role="cell" colspan="4">
        <${Details} view=${view} table=${table} content=${content} column=${column} tests=${tests} /></td></tr>`}`;
  }

  // A test that did not pass is shown without opening the row.
  function Bad({ test }) {
    if (!["failed", "error", "warn"].includes(test.status)) return null;
    return html`<p><${busco.tests.Result} test=${test} /> ${busco.tests.named(test)}</p>`;
  }

  function Values({ column, rows }) {
    const { profile } = column;
    if (column.personal) {
      return html`<p class="personal"><${Icon} name="lock" />${word("personal")}</p>`;
    }
    if (!profile) return html`<span class="soft">${word("values_none")}</span>`;
    const top = profile.top?.slice(0, FIRST);
    return html`<p>${nulls(profile, rows)}${profile.distinct !== null && profile.distinct !== undefined && html`
        <span class="soft"> · ${distinct(profile)}</span>`}</p>
      ${top?.length ? html`<${Top} top=${top} rows=${rows} />`
        : (profile.min ?? null) !== null && html`<p class="range">
          ${word("values_range", {
            min: html`<bdi>${profile.min}</bdi>`, max: html`<bdi>${profile.max}</bdi>` })}</p>`}`;
  }

  function nulls(profile, rows) {
    if (!profile.nulls) return word("values_no_null");
    return html`<span class="nulls" title=${number(profile.nulls)}>
      ${word("values_null", { share: percent(profile.nulls, rows) })}</span>`;
  }

  function distinct(profile) {
    return profile.exact ? count("values_distinct", profile.distinct)
      : word("values_about", { n: number(profile.distinct) });
  }

  function Top({ top, rows }) {
    return html`<ul class="top">${top.map(([value, n]) => html`<li key=${value}>
      <svg class="share" viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true">
        <rect width=${rows ? Math.max(1, (100 * n) / rows) : 0} height="4" /></svg>
      <span class="value" dir="auto">${value}</span> <span class="soft">${percent(n, rows)}</span></li>`)}</ul>`;
  }

  function Details({ view, table, content, column, tests }) {
    const { profile } = column;
    return html`<dl class="details">
      <div><dt>${word("column_from")}</dt><dd>${
        table.entry?.kind === "source" ? word("column_from_files")
          : !column.lineage ? word("column_from_unknown")
          : column.lineage.length ? joined(column.lineage.map(([from, name]) => html`<${Place} table=${from}
            column=${name} />`))
            : word("column_computed")}</dd></div>
      <div><dt>${word("column_used")}</dt><dd><${Used} view=${view} table=${table} column=${column.name} /></dd></div>
      <div><dt>${word("column_since")}</dt><dd><${Since} view=${view} table=${table} column=${column.name} /></dd></div>
      <div><dt>${word("column_tests")}</dt><dd>${tests.length ? html`<ul class="plain">${tests.map((test) => html`
        <li key=${test.name}><${busco.tests.Result} test=${test} /> ${busco.tests.named(test)}</li>`)}</ul>`
        : word("no_tests_short")}${column.required && html`<p>${word("required")}</p>`}</dd></div>
      ${profile && !column.personal && profile.top?.length > FIRST && html`
        <div><dt>${word("values_top")}</dt><dd><${Top} top=${profile.top} rows=${content.rows} /></dd></div>`}
      ${profile && !column.personal && (profile.min ?? null) !== null && html`
        <div><dt>${word("values_min")}</dt><dd dir="auto">${profile.min}</dd></div>
        <div><dt>${word("values_max")}</dt><dd dir="auto">${profile.max}</dd></div>`}
    </dl>`;
  }

  function Place({ table, column }) {
    return html`<${TableLink} id=${table} fragment=${column}><code><bdi>${table}</bdi>.<bdi>${column}</bdi></code></>`;
  }

  // The columns of the tables downstream that are computed from this one; their contents are loaded only now.
  function Used({ view, table, column }) {
    const load = async () => {
      const answers = await Promise.allSettled(table.downstream.map((id) => busco.load.table(view, id)));
      const found = [];
      answers.forEach((answer, index) => {
        for (const other of answer.value?.columns || []) {
          const isFrom = other.lineage?.some(([from, name]) => from === table.id && name === column);
          if (isFrom) found.push([table.downstream[index], other.name]);
        }
      });
      return { found, missing: answers.filter((answer) => answer.status === "rejected").length };
    };
    const { body, error, again } = useLoaded(load, `${view.world.state.release} ${table.id} ${column}`);
    if (error) return html`<${Trouble} error=${error} again=${again} />`;
    if (!body) return html`<${Loading} />`;
    return html`${body.found.length ? joined(body.found.map(([id, name]) => html`<${Place} table=${id}
      column=${name} />`))
      : word("column_unused")}
      ${body.missing > 0 && html` <span class="soft">${count("column_used_partial", body.missing)}</span>`}`;
  }

  // When the column came into the table: the versions before are searched by halves, so few are loaded.
  function Since({ view, table, column }) {
    const load = async () => {
      const known = (history) => busco.facts.versions(history, table.id, view.world.state.release);
      const hasColumn = (content) => content?.columns.some((other) => other.name === column);
      // the oldest version that is known may not be the one with which the column came
      const history = await busco.load.until(view.source, view.history, async (one) => {
        const oldest = known(one).at(-1);
        return oldest && (oldest.new || !hasColumn(await busco.load.table(view, table.id, oldest).catch(() => null)));
      });
      return found(known(history), hasColumn, history.complete);
    };
    const found = async (known, hasColumn, isComplete) => {
      let has = 0;
      let lacks = known.length;
      let isUnknown = false;
      while (lacks - has > 1) {
        const middle = Math.floor((has + lacks) / 2);
        const content = await busco.load.table(view, table.id, known[middle]).catch(() => null);
        isUnknown = isUnknown || content === null;
        if (hasColumn(content)) has = middle;
        else lacks = middle;
      }
      const isOldest = has === known.length - 1 && !isComplete && !known[has]?.new;
      return { version: known[has], isBefore: isOldest || isUnknown };
    };
    const { body } = useLoaded(load, view.history ? `${view.world.state.release} ${table.id} ${column}` : null);
    if (!body) return html`<${Loading} />`;
    if (!body.version) return word("values_none");
    const when = html`<${Time} iso=${body.version.published_at} exact />`;
    if (body.isBefore) return word("column_since_before", { when });
    return word("column_since_at", { when, release: html`<code>${body.version.release}</code>` });
  }

  busco.columns = { Columns };
})(window.busco);
