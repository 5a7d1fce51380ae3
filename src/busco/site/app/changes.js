// How a table has changed: its rows and bytes over its versions, and what the newest version changed.
"use strict";
(function (busco) {
  const { html, Time, useLoaded, Loading, word, count } = busco.parts;
  const { number, bytes, day } = busco.format;
  const SHOWN = 30;

  function Changes({ view, table, content }) {
    const versions = busco.facts.versions(view.history, table.id, view.world.state.release);
    if (!versions.length) return html`<p class="soft">${word("changes_first")}</p>`;
    const shown = versions.slice(0, SHOWN).reverse();
    return html`
      <${Last} view=${view} table=${table} content=${content} versions=${versions} />
      ${shown.length > 1 && html`<div class="charts">
        <${Chart} what=${word("changes_rows")} versions=${shown} value=${(one) => one.rows} text=${number} />
        <${Chart} what=${word("changes_bytes")} versions=${shown} value=${(one) => one.bytes} text=${bytes} /></div>
      <details><summary>${word("changes_as_table")}</summary>
        <div class="scroll" role="region" aria-label=${word("changes_as_table")} tabindex="0"><table class="plain">
          <thead><tr><th scope="col">${word("changes_release")}</th><th scope="col">${word("changes_when")}</th>
            <th scope="col" class="amount">${word("changes_rows")}</th>
            <th scope="col" class="amount">${word("changes_bytes")}</th></tr></thead>
          <tbody>${[...shown].reverse().map((one, index) => html`<tr key=${index}>
            <th scope="row"><code>${one.release}</code></th><td class="when"><${Time}
              iso=${one.published_at} exact /></td>
            <td class="amount">${number(one.rows)}</td><td class="amount">${bytes(one.bytes)}</td></tr>`)}</tbody>
        </table></div></details>`}`;
  }

  // Bars from zero, one per version; a table with the same numbers follows.
  function Chart({ what, versions, value, text }) {
    const highest = Math.max(...versions.map(value), 1);
    const last = versions[versions.length - 1];
    const label = word("changes_chart", {
      what, n: number(versions.length), first: text(value(versions[0])), last: text(value(last)),
    });
    const step = 300 / Math.max(versions.length, 10);
    return html`<figure class="chart"><figcaption>${what} <strong>${text(value(last))}</strong></figcaption>
      <svg viewBox="0 0 300 64" role="img" aria-label=${label} preserveAspectRatio="none">
        ${versions.map((one, index) => {
          const height = Math.max(1, (60 * value(one)) / highest);
          return html`<rect key=${index} x=${index * step + step * 0.1} y=${64 - height} width=${step * 0.8}
            height=${height}
            class=${one === last ? "last" : ""}>
            <title>${`${day(one.published_at)}: ${text(value(one))}`}</title></rect>`;
        })}
      </svg>
      <p class="soft ends"><span>${day(versions[0].published_at)}</span>
        <span>${day(last.published_at)}</span></p></figure>`;
  }

  // What was said about the newest version when it was published is compared, not what is said about it now.
  function Last({ view, table, content, versions }) {
    const [newest, before] = versions;
    const described = busco.facts.redescribed(view.history, table.id, view.world.state.release);
    const load = async () => {
      const [then, now] = await Promise.all([
        busco.load.table(view, table.id, { release: newest.earlier, version: before.version }),
        described ? busco.load.table(view, table.id, { release: newest.release, version: newest.version }) : content,
      ]);
      return { then, now };
    };
    const { body, error } = useLoaded(load,
      before && newest.earlier ? `${table.id} ${before.version} ${newest.release}` : null);
    const words = described && html`<${Words} key=${described.release} view=${view} table=${table}
      described=${described} version=${newest.version} />`;
    const isFirst = newest.new || view.history.complete;
    if (!before) return html`${words}<p>${word(isFirst ? "changes_first" : "changes_unknown")}</p>`;
    const isLoading = newest.earlier && !body && !error;
    const since = html`<p>${word("changes_since", {
      release: html`<code>${newest.earlier}</code>`, when: html`<${Time} iso=${before.published_at} />` })}</p>`;
    if (isLoading) return html`${words}${since}<${Loading} />`;
    return html`${words}<h3>${word("changes_last")}</h3>${since}<ul class="diff">
      ${body ? [rows(body.now.rows - body.then.rows), ...differences(body.then, body.now, "changes_no_columns")]
        : [rows(newest.rows - before.rows), html`<li class="soft">${word("changes_unknown")}</li>`]}</ul>`;
  }

  // What a release that made no new version says in other words.
  function Words({ view, table, described, version }) {
    const at = (release) => busco.load.table(view, table.id, { release, version });
    const load = () => Promise.all([at(described.earlier), at(described.release)]);
    const { body } = useLoaded(load, described.earlier ? `${table.id} ${described.release}` : null);
    return html`<h3>${word("changes_words")}</h3>
      <p>${word("changes_words_since", {
        release: html`<code>${described.release}</code>`, when: html`<${Time} iso=${described.published_at} />` })}</p>
      <ul class="diff">${body ? differences(...body, "changes_no_words") : null}</ul>`;
  }

  function rows(n) {
    if (!n) return html`<li class="same">${word("changes_rows_same")}</li>`;
    const key = n > 0 ? "changes_rows_more" : "changes_rows_fewer";
    return html`<li class=${n > 0 ? "more" : "fewer"}>${count(key, Math.abs(n))}</li>`;
  }

  // Returns what differs between two contents besides their rows; this word if nothing does.
  function differences(before, content, nothing) {
    const found = busco.facts.difference(before, content);
    const named = (column) => html`<code dir="auto">${column}</code>`;
    const columns = [
      ...found.added.map(({ name }) => html`<li class="more">
        ${word("changes_column_added", { column: named(name) })}</li>`),
      ...found.removed.map(({ name }) => html`<li class="fewer">
        ${word("changes_column_removed", { column: named(name) })}</li>`),
      ...found.retyped.map((one) => html`<li class="other">${word("changes_column_retyped", {
        column: named(one.name), before: html`<code>${one.before}</code>`,
        after: html`<code>${one.after}</code>` })}</li>`),
      found.description && html`<li class="other">${word("changes_description")}</li>`,
      ...found.redescribed.map(({ name }) => html`<li class="other">
        ${word("changes_column_description", { column: named(name) })}</li>`),
    ].filter(Boolean);
    return columns.length ? columns : [html`<li class="same">${word(nothing)}</li>`];
  }

  busco.changes = { Changes };
})(window.busco);
