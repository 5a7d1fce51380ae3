// What is known of the tables: their states, what they are built from, and their versions over the releases. These
// functions only compute; they neither load nor show anything.
"use strict";
(function (busco) {
  // the states of a table, worst first
  const STATES = ["failed", "late", "stale", "warned", "held", "unknown", "ok", "fresh"];
  const LAYERS = ["gold", "silver", "bronze"];
  // what a test that found a problem, or could not look for one, reports
  const FAILED = ["failed", "error"];

  function split(table) {
    const at = table.indexOf(".");
    return at < 0 ? ["", table] : [table.slice(0, at), table.slice(at + 1)];
  }

  function compareLayers(one, other) {
    const rank = (layer) => (LAYERS.includes(layer) ? LAYERS.indexOf(layer) : LAYERS.length);
    return rank(one) - rank(other) || one.localeCompare(other);
  }

  // Says whether new rows of a source are overdue: null if not, or if nobody has set how often they must arrive.
  function overdue(entry, now) {
    const allowed = entry.warn_after || entry.error_after;
    if (entry.kind !== "source" || !allowed) return null;
    if (!entry.loaded_at) return { allowed, loaded_at: null };
    const age = (now - Date.parse(entry.loaded_at)) / 1000;
    const passed = [entry.error_after, entry.warn_after].find((limit) => limit && age > limit);
    return passed ? { allowed, loaded_at: entry.loaded_at } : null;
  }

  // Returns everything upstream of a table, nearest first, each once.
  function ancestors(entries, table) {
    const found = new Set();
    const queue = [table];
    for (let at = 0; at < queue.length; at += 1) {
      for (const parent of entries.get(queue[at])?.upstream || []) {
        if (parent !== table && !found.has(parent)) {
          found.add(parent);
          queue.push(parent);
        }
      }
    }
    return [...found];
  }

  // Puts the state and the documentation of all projects together: the tables by name, each with its state and the
  // reasons for it.
  function world(state, sites, time) {
    const shown = state.release === state.live || !state.live;
    // an older release is as late as it was when it was published, not as late as it would be today
    const now = shown ? time : Date.parse(state.published_at) || time;
    const entries = new Map();
    for (const [project, site] of Object.entries(sites)) {
      for (const [name, entry] of Object.entries(site.tables || {})) {
        // several projects can describe a table that they read; what its own project says is best
        const isOwn = state.tables?.[name]?.project === project;
        if (isOwn || !entries.has(name)) entries.set(name, { ...entry, project });
      }
    }
    const names = new Set([...Object.keys(state.tables || {}), ...entries.keys()]);
    const tables = new Map();
    const used = new Map();
    for (const name of names) {
      const entry = entries.get(name) || null;
      const [layer, short] = split(name);
      const published = Object.hasOwn(state.tables || {}, name) ? state.tables[name] : null;
      tables.set(name, {
        id: name, layer: entry?.layer || layer, name: entry?.name || short, entry, published,
        // the project whose files describe it, which for raw tables is one that reads them
        project: entry?.project || published?.project || "",
      });
      for (const parent of entry?.upstream || []) {
        if (!used.has(parent)) used.set(parent, []);
        used.get(parent).push(name);
      }
    }
    for (const table of tables.values()) {
      table.downstream = (used.get(table.id) || []).sort();
      Object.assign(table, judge(table, entries, shown ? state.hold : null, now));
    }
    return { state, sites, tables, now, live: shown };
  }

  function judge(table, entries, hold, now) {
    const { entry, published } = table;
    const tests = entry?.tests || [];
    const failed = tests.filter((test) => FAILED.includes(test.status));
    const warned = tests.filter((test) => test.status === "warn");
    const upstream = entry ? ancestors(entries, table.id) : [];
    const own = entry ? overdue(entry, now) : null;
    const late = upstream.filter((parent) => entries.has(parent) && overdue(entries.get(parent), now));
    const sources = upstream.filter((parent) => entries.get(parent)?.kind === "source");
    const arrivals = sources.map((parent) => entries.get(parent).loaded_at).filter(Boolean).sort();
    const hasLimit = (name) => Boolean(entries.get(name).warn_after || entries.get(name).error_after);
    const limited = sources.some(hasLimit) || (entry?.kind === "source" && hasLimit(table.id));
    const upstreamTests = (statuses) => upstream.filter((parent) => entries.get(parent)?.tests
      .some((test) => statuses.includes(test.status)));
    const is = {
      failed: failed.length > 0,
      late: Boolean(own) || late.length > 0,
      stale: Boolean(published?.stale?.length),
      warned: warned.length > 0,
      held: Boolean(hold),
      unknown: !entry,
      // on time means nothing where nobody has said when rows must arrive
      ok: !limited,
      fresh: true,
    };
    const status = STATES.find((name) => is[name]);
    return { status, is, failed, warned, own, late, upstream, limited, arrivals, tests,
      failedUpstream: upstreamTests(FAILED), warnedUpstream: upstreamTests(["warn"]) };
  }

  // Returns the releases with, for each changed table, the entry before: {table: {before, after}}. `before` is null for
  // a table that was new, and undefined if the release before is not known.
  function compared(history) {
    const last = new Map();
    const found = [];
    for (const release of [...history.releases].reverse()) {
      const changed = Object.entries(release.changes || {}).map(([table, after]) => {
        const before = last.has(table) ? last.get(table) : after.new || history.complete ? null : undefined;
        last.set(table, after);
        return { table, before, after };
      });
      for (const table of release.dropped || []) {
        changed.push({ table, before: last.get(table), after: null });
        last.set(table, null);
      }
      changed.sort((one, other) => compareLayers(split(one.table)[0], split(other.table)[0])
        || one.table.localeCompare(other.table));
      found.push({ ...release, changed });
    }
    return found.reverse();
  }

  // Returns the place of a release in the history, or its end if the release is not there.
  function place(history, id) {
    const at = history.releases.findIndex((release) => release.release === id);
    return at < 0 ? history.releases.length : at;
  }

  // Returns the versions of a table up to a release, newest first, each with the release before it, in which the table
  // still had the version before. Whatever had its name before it was new is not among them.
  function versions(history, table, upTo) {
    const found = [];
    for (let at = place(history, upTo); at < history.releases.length; at += 1) {
      const release = history.releases[at];
      if ((release.dropped || []).includes(table)) break;
      if (Object.hasOwn(release.changes || {}, table)) {
        const { release: id, published_at, kind } = release;
        found.push({ ...release.changes[table], release: id, published_at, kind,
          earlier: history.releases[at + 1]?.release || null });
        if (release.changes[table].new) break;
      }
    }
    return found;
  }

  // Returns the newest release up to this one that described a table in other words without a new version, with the
  // release before it; null if a new version came later, or if there is none.
  function redescribed(history, table, upTo) {
    for (let at = place(history, upTo); at < history.releases.length; at += 1) {
      const release = history.releases[at];
      if ((release.dropped || []).includes(table) || Object.hasOwn(release.changes || {}, table)) return null;
      if ((release.described || []).includes(table)) {
        const { release: id, published_at } = release;
        return { release: id, published_at, earlier: history.releases[at + 1]?.release || null };
      }
    }
    return null;
  }

  // Returns what differs between two contents of one table.
  function difference(before, after) {
    const old = new Map(before.columns.map((column) => [column.name, column]));
    const now = new Map(after.columns.map((column) => [column.name, column]));
    const both = after.columns.filter((column) => old.has(column.name));
    return {
      rows: after.rows - before.rows,
      added: after.columns.filter((column) => !old.has(column.name)),
      removed: before.columns.filter((column) => !now.has(column.name)),
      retyped: both.filter((column) => old.get(column.name).type !== column.type)
        .map((column) => ({ name: column.name, before: old.get(column.name).type, after: column.type })),
      redescribed: both.filter((column) => old.get(column.name).description_html !== column.description_html),
      description: before.description_html !== after.description_html,
    };
  }

  busco.facts = { STATES, split, compareLayers, world, compared, versions, redescribed, difference };
})(window.busco);
