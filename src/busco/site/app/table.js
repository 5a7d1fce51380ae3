// The page of one table.
"use strict";
(function (busco) {
  const { useState } = preactHooks;
  const { html, Icon, Medal, Time, Newest, Status, Link, TableLink, Out, Rich, Copy, Code, Tabs, useLoaded, Loading,
    Trouble, joined, word, count } = busco.parts;
  const { number, bytes, ago, duration } = busco.format;
  // the rows and the tables that are shown before all of them are asked for
  const FIRST_ROWS = 10;
  const FIRST_TABLES = 12;

  function Table({ view, id }) {
    const table = view.world.tables.get(id) || null;
    const version = table?.published?.version || view.world.state.release;
    const { body, old, error, again } = useLoaded(() => busco.load.table(view, id), table ? `${id} ${version}` : null);
    if (!table) return html`<${Missing} view=${view} id=${id} />`;
    // while a new version is loaded, the one before stays
    const content = body || (old?.body?.table === id ? old.body : null);
    return html`
      <nav class="crumbs" aria-label=${word("all_tables")}>
        <${Link} path="" fragment=${busco.start.filters()}>${word("nav_tables")}</>
        <span aria-hidden="true">/</span><span><${Medal} layer=${table.layer} /><bdi>${table.layer}</bdi></span></nav>
      <div class="heading table-heading"><h1 tabindex="-1"><code dir="auto">${table.name}</code></h1>
        <${Copy} text=${copied(content, id)} label=${word("copy_name")} /><${Status} status=${table.status} /></div>
      ${content ? html`<${Rich} text=${content.description_html} empty=${word("no_summary")} />`
        : html`<p dir="auto">${table.entry?.summary || ""}</p>`}
      <${Facts} view=${view} table=${table} content=${content} />
      ${error && error.status !== 404 && html`<${Trouble} error=${error} again=${again} />`}
      ${error && error.status === 404 && html`<div class="notice warned"><${Icon} name="warned" />
        <p>${word("error_missing")}</p></div>`}
      ${!content && !error && html`<${Loading} />`}
      <${Sections} sections=${sections(view, table, content)} />`;
  }

  function copied(content, id) {
    return content?.glue ? `${content.glue.database}.${content.glue.name}` : id;
  }

  function Missing({ view, id }) {
    return html`<div class="missing"><h1 tabindex="-1">
        ${word("not_found_title", { table: html`<code dir="auto">${id}</code>` })}</h1>
      <p>${word("not_found", { release: html`<code>${view.world.state.release}</code>` })}</p>
      <p class="actions"><button type="button" onClick=${() => busco.app.search()}>
        <${Icon} name="search" />${word("search_label")}</button>
        <${Link} path="">${word("all_tables")}</>
        ${!view.world.live && html`<${Link} path=${view.at.path} release=${null}>${word("to_live")}</>`}</p></div>`;
  }

  // What a reader wants to know before using the table: how new, how much, whose, and whether it can be trusted.
  function Facts({ view, table, content }) {
    const { entry, published } = table;
    const owner = content?.owner || entry?.owner;
    const group = content?.group || entry?.group;
    const contact = content?.contact;
    const facts = [
      [word("fact_published"), html`<${Time} iso=${published?.published_at} />`],
      entry?.newest && [word("fact_newest"), html`<${Newest} newest=${entry.newest} />`],
      entry?.kind === "source" && entry.loaded_at && [word("fact_arrived"), html`<${Time} iso=${entry.loaded_at} />`],
      published && [word("fact_rows"), html`${number(published.rows)} <span
        class="soft">${bytes(published.bytes)}</span>`],
      content?.grain?.length && [word("fact_grain"),
        joined(content.grain.map((name) => html`<code dir="auto">${name}</code>`))],
      [word("fact_owner"), owner ? html`<bdi>${owner}</bdi>${contact && html` <${Contact} text=${contact} />`}`
        : html`<span class="soft">${word("no_owner")}</span>`],
      group && [word("fact_group"), html`<${Link} path="glossary" fragment=${`group:${group}`}><bdi>${group}</bdi></>`],
      entry?.tags?.length && [word("fact_tags"), entry.tags.map((tag) => html`<span
        class="tag"><bdi>${tag}</bdi></span>`)],
    ].filter(Boolean);
    return html`<div class="overview"><dl class="facts">${facts.map(([name, value]) => html`
        <div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
      <${Reasons} view=${view} table=${table} /></div>`;
  }

  function Contact({ text }) {
    if (/^[^\s@]+@[^\s@]+$/.test(text)) return html`<${Out} href=${`mailto:${text}`}>${text}</>`;
    return html`<${Out} href=${text}><bdi>${text}</bdi></>`;
  }

  function Reasons({ view, table }) {
    return html`<div class=${`reasons ${table.status}`}><h2>${word("state_heading")}</h2>
      <ul>${reasons(view, table).map(([look, text], index) => html`<li key=${index} class=${look}><${Icon}
        name=${look} />
        <span>${text}</span></li>`)}</ul></div>`;
  }

  function reasons(view, table) {
    const { entry, is, tests, own, late, published, arrivals } = table;
    const { time } = view;
    const links = (ids) => joined(ids.slice(0, FIRST_TABLES).map((id) => html`<${TableLink} id=${id} />`));
    const passed = tests.filter((test) => test.status === "success").length;
    const found = [];
    if (!entry) return [["unknown", word("why_unknown")], ...(is.held ? [["held", word("why_held")]] : [])];
    if (is.failed) found.push(["failed", count("why_failed", table.failed.length)]);
    if (is.warned) found.push(["warned", count("why_warned", table.warned.length)]);
    if (table.failedUpstream.length) {
      found.push(["failed", word("why_failed_up", { tables: links(table.failedUpstream) })]);
    }
    if (table.warnedUpstream.length) {
      found.push(["warned", word("why_warned_up", { tables: links(table.warnedUpstream) })]);
    }
    if (!is.failed && !is.warned) {
      found.push(!tests.length ? ["unknown", word("why_no_tests")]
        : passed === tests.length ? ["fresh", count("why_passed", passed)]
          : ["unknown", word("why_passed_part", { passed: number(passed), n: number(tests.length) })]);
    }
    if (own) {
      const allowed = duration(own.allowed);
      found.push(["late", own.loaded_at ? word("why_late_own", { ago: ago(own.loaded_at, time), allowed })
        : word("why_late_never", { allowed })]);
    }
    if (late.length) found.push(["late", word("why_late_up", { tables: links(late) })]);
    if (!is.late && entry.kind === "source") {
      found.push(!entry.warn_after && !entry.error_after ? ["unknown", word("why_no_limits")]
        : ["fresh", word("why_source_time", { ago: ago(entry.loaded_at, time),
          allowed: duration(entry.warn_after || entry.error_after) })]);
    } else if (!is.late && arrivals.length) {
      const values = { ago: ago(arrivals[0], time) };
      found.push(table.limited ? ["fresh", word("why_sources_time", values)]
        : ["unknown", word("why_sources_no_limits", values)]);
    }
    if (is.stale) found.push(["stale", word("why_stale", { tables: links(published.stale) })]);
    else if (entry.upstream?.length) found.push(["fresh", word("why_rebuilt")]);
    if (is.held) found.push(["held", word("why_held")]);
    return found;
  }

  function sections(view, table, content) {
    const project = view.world.state.projects?.[table.project] || {};
    const parts = [
      content?.glue && ["query", word("sec_query"), () => html`<${Queries} view=${view} content=${content} />`],
      content && ["columns", word("sec_columns"), () => html`
        <${busco.columns.Columns} key=${table.id} view=${view} table=${table} content=${content} />`],
      content && ["sample", word("sec_sample"), () => html`<${Sample} key=${table.id} content=${content} />`],
      table.entry && ["tests", word("sec_tests"), () => html`<${busco.tests.Tests} table=${table} />`],
      content && view.history && ["changes", word("sec_changes"), () => html`
        <${busco.changes.Changes} key=${table.id} view=${view} table=${table} content=${content} />`],
      table.entry && ["lineage", word("sec_lineage"), () => html`<${Lineage} view=${view} table=${table} />`],
      content && ["sql", word("sec_sql"), () => html`<${Sql} key=${table.id} content=${content} />`],
      content && ["details", word("sec_details"), () => html`
        <${Details} view=${view} table=${table} content=${content} project=${project} />`],
    ];
    return parts.filter(Boolean);
  }

  function Sections({ sections }) {
    const jump = (key) => {
      const heading = document.getElementById(`section-${key}`);
      heading.scrollIntoView();
      heading.focus({ preventScroll: true });
    };
    return html`<div class="with-index">
      ${sections.length > 3 && html`<nav class="index" aria-label=${word("on_this_page")}>
        <ul>${sections.map(([key, name]) => html`<li key=${key}><button type="button" class="plain"
          onClick=${() => jump(key)}>
          ${key === "lineage" ? word("sec_lineage_short") : name}</button></li>`)}</ul></nav>`}
      <div class="sections">${sections.map(([key, name, show]) => html`
        <section key=${key} class=${`part-${key}`} aria-labelledby=${`section-${key}`}>
          <h2 id=${`section-${key}`} tabindex="-1">${name}</h2>${show()}</section>`)}</div></div>`;
  }

  function Queries({ view, content }) {
    const texts = busco.queries.queries(content, view.world.live ? null : view.world.state.release);
    const command = html`<p class="soft">${word("query_duckdb_note", {
      command: html`<code>${texts.command}</code>` })}</p>`;
    const old = !view.world.live && html`<p class="soft">${word("query_live_note")}</p>`;
    return html`<${Tabs} label=${word("query_tabs")} tabs=${[
      ["athena", word("query_athena"), () => html`<${Code} key="athena" text=${texts.athena} sql />
        <p class="soft">${word("query_athena_note")}</p>${old}`],
      ["duckdb", word("query_duckdb"), () => html`<${Code} key="duckdb" text=${texts.duckdb} sql />${command}`],
      ["python", word("query_python"), () => html`<p>${word("query_python_duckdb")}</p>
        <${Code} key="python" text=${texts.python_duckdb} />${command}<p>${word("query_python_wrangler")}</p>
        <${Code} key="wrangler" text=${texts.python_wrangler} /><p>${word("query_python_pyathena")}</p>
        <${Code} key="pyathena" text=${texts.python_pyathena} />${old}`],
      ["r", word("query_r"), () => html`<p>${word("query_r_note")}</p><${Code} key="r" text=${texts.r} />${command}`],
    ]} />`;
  }

  function Sample({ content }) {
    const [isAll, showAll] = useState(false);
    const { sample } = content;
    if (!sample) return html`<p class="soft">${word("sample_none")}</p>`;
    const rows = isAll ? sample.rows : sample.rows.slice(0, FIRST_ROWS);
    return html`<p class="soft">${count("sample_note", sample.rows.length)}</p>
      <div class="scroll" role="region" aria-label=${word("sec_sample")} tabindex="0"><table class="plain sample">
        <thead><tr>${sample.columns.map((name) => html`<th key=${name}
          scope="col"><code dir="auto">${name}</code></th>`)}</tr></thead>
        <tbody>${rows.map((row, index) => html`<tr key=${index}>${row.map((value, at) => html`<td key=${at} dir="auto">
          ${value === null ? html`<span class="soft null">${word("null_value")}</span>` : value}</td>`)}</tr>`)}</tbody>
      </table></div>
      ${sample.rows.length > rows.length && html`<button type="button" onClick=${() => showAll(true)}>
        ${word("show_all", { n: number(sample.rows.length) })}</button>`}`;
  }

  function Lineage({ view, table }) {
    const uses = Object.values(view.world.sites).flatMap((site) => site.exposures || [])
      .filter((exposure) => exposure.tables?.includes(table.id));
    const direct = table.entry.upstream || [];
    return html`<div class="lineage">
        <div><h3>${word("upstream")}</h3><${Tables} view=${view} ids=${direct} none=${word("upstream_none")} />
          ${table.upstream.length > direct.length && html`<details><summary>
            ${count("lineage_all", table.upstream.length)}</summary>
            <${Tables} view=${view} ids=${table.upstream} none="" /></details>`}</div>
        <div><h3>${word("downstream")}</h3>
          <${Tables} view=${view} ids=${table.downstream} none=${word("downstream_none")} /></div>
      </div>
      ${uses.length > 0 && html`<h3>${word("used_in")}</h3><ul class="plain">${uses.map((use) => html`<li
        key=${use.name}>
        <${Link} path="exposures" fragment=${use.name}><bdi>${use.label || use.name}</bdi></>
        ${use.owner?.name && html` <span class="soft"><bdi>${use.owner.name}</bdi></span>`}</li>`)}</ul>`}`;
  }

  function Tables({ view, ids, none }) {
    const [isAll, showAll] = useState(false);
    if (!ids.length) return none && html`<p class="soft">${none}</p>`;
    const shown = isAll ? ids : ids.slice(0, FIRST_TABLES);
    return html`<ul class="with-states">${shown.map((id) => {
      const found = view.world.tables.get(id);
      return html`<li key=${id}><${Medal} layer=${busco.facts.split(id)[0]} />
        ${found ? html`<${TableLink} id=${id} /><${Status} status=${found.status} />`
          : html`<code dir="auto">${id}</code>`}</li>`;
    })}</ul>
      ${ids.length > shown.length && html`<button type="button" onClick=${() => showAll(true)}>
        ${word("show_all", { n: number(ids.length) })}</button>`}`;
  }

  function Sql({ content }) {
    const { sql } = content;
    if (!sql) return html`<p class="soft">${word("sql_none")}</p>`;
    const older = sql.is_of_version === false && html`<p class="soft">${word("sql_newer")}</p>`;
    const tabs = [["source", word("sql_source"), () => html`<${Code} key="source" text=${sql.source} sql />`]];
    if (sql.compiled) tabs.push(["compiled", word("sql_compiled"), () => html`<${Code} key="compiled"
      text=${sql.compiled} sql />`]);
    return html`<p><code dir="auto">${sql.path}</code></p>${older}<${Tabs} label=${word("sql_tabs")} tabs=${tabs} />`;
  }

  function Details({ view, table, content, project }) {
    const { glue } = content;
    const meta = Object.entries(content.meta || {});
    const unique = table.entry?.unique_id;
    const kind = unique?.split(".")[0];
    const task = project.tasks && Object.hasOwn(project.tasks, table.id) ? project.tasks[table.id] : null;
    const facts = [
      glue && [word("place_database"), html`<code>${glue.database}</code>`],
      glue && [word("place_table"), html`<code>${glue.name}</code>`],
      glue?.location && [word("place_location"), html`<code>${glue.location}</code><${Copy} text=${glue.location}
        label=${word("copy")} />`],
      [word("fact_version"), html`<code>${content.version}</code>`],
      [word("fact_size"), html`${bytes(content.bytes)}
        ${content.files ? html` · ${count("fact_files", content.files)}` : ""}`],
      content.partition_by?.length > 0 && [word("fact_partitions"),
        html`<code>${content.partition_by.join(", ")}</code>`],
      [word("fact_project"), html`<bdi>${project.title || table.project}</bdi>`],
      ...meta.map(([name, value]) => [html`<bdi>${name}</bdi>`, html`<bdi>${String(value)}</bdi>`]),
    ].filter(Boolean);
    const links = [
      project.dbt_docs && unique && [word("place_dbt_docs"),
        `${project.dbt_docs}#!/${kind}/${encodeURIComponent(unique)}`],
      task && [word("place_task"), task],
      project.dag && [word("place_dag"), project.dag],
    ].filter(Boolean);
    return html`<dl class="details">${facts.map(([name, value], index) => html`
        <div key=${index}><dt>${name}</dt><dd>${value}</dd></div>`)}
      ${links.length > 0 && html`<div><dt>${word("links")}</dt><dd><ul class="plain">${links.map(([name, href]) => html`
        <li key=${name}><${Out} href=${href}>${name}</></li>`)}</ul></dd></div>`}</dl>`;
  }

  busco.table = { Table };
})(window.busco);
