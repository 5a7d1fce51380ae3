// The history: what was published when, by whom and why, and which tables it changed.
"use strict";
(function (busco) {
  const { useState } = preactHooks;
  const { html, Icon, Time, Link, TableLink, Loading, Trouble, word, count } = busco.parts;
  const { number, signed } = busco.format;

  function Releases({ view }) {
    const [failure, fail] = useState(null);
    const [isLoading, setLoading] = useState(false);
    const { history } = view;
    const { state } = view.world;
    const heading = html`<div class="heading"><h1 tabindex="-1">${word("releases_heading")}</h1></div>
      <p class="soft">${word("releases_intro")}</p>`;
    if (!history) {
      return html`${heading}${view.historyError ? html`<${Trouble} error=${view.historyError} again=${view.again} />`
        : html`<${Loading} />`}`;
    }
    if (!history.releases.length) return html`${heading}<p class="empty">${word("releases_none")}</p>`;
    const more = () => {
      setLoading(true);
      view.older().then(() => fail(null), fail).finally(() => setLoading(false));
    };
    return html`${heading}
      <ol class="releases">${busco.facts.compared(history).map((release) => html`<${Release} key=${release.release}
        view=${view} release=${release} isLive=${release.release === state.live}
          isShown=${release.release === state.release} />`)}</ol>
      ${failure ? html`<${Trouble} error=${failure} again=${more} />`
        : history.next && !view.source.offline ? html`<button type="button" disabled=${isLoading} onClick=${more}>
          ${word("releases_more")}</button>`
          : !history.complete && html`<p class="soft">
            ${word(history.next ? "releases_elsewhere" : "releases_older")}</p>`}`;
  }

  function Release({ view, release, isLive, isShown }) {
    const [isOpen, open] = useState(false);
    const dropped = release.dropped?.length || 0;
    const changed = release.changed.length - dropped;
    const id = `changed-${release.release}`;
    const numbers = [changed && count("changed", changed), dropped && count("dropped", dropped)].filter(Boolean);
    return html`<li class=${release.kind}>
      <div class="release-line">
        <h2><${Time} iso=${release.published_at} exact /></h2>
        <span class=${`status ${release.kind === "rollback" ? "warned" : "plain"}`}>
          ${release.kind === "rollback" && html`<${Icon} name="back" />`}
          ${word(release.kind === "rollback" ? "kind_rollback" : "kind_publish")}</span>
        ${isLive && html`<span class="status fresh"><${Icon} name="fresh" />${word("live")}</span>`}
        ${isShown && !isLive && html`<span class="status held">${word("shown_here")}</span>`}
      </div>
      <p class="facts-line"><span><bdi>${release.who || word("unknown_person")}</bdi></span>
        ${release.rolled_back_to && html`<span>
          ${word("rolled_to", { release: html`<code>${release.rolled_back_to}</code>` })}</span>`}
        <span><code>${release.release}</code></span>
        ${release.run && html`<span>${word("release_run", { run: html`<code>${release.run}</code>` })}</span>`}
        ${release.code_version && html`<span>
          ${word("release_code", { code: html`<code>${release.code_version.slice(0, 12)}</code>` })}</span>`}</p>
      ${release.reason && html`<p class="why" dir="auto">${word("reason", { reason: release.reason })}</p>`}
      <p class="actions">
        ${release.changed.length ? html`<button type="button" class="plain opener-text" aria-expanded=${String(isOpen)}
          aria-controls=${id} onClick=${() => open(!isOpen)}><${Icon} name="open" />
          ${numbers.join(", ")}</button>`
          : html`<span class="soft">${word("changed_none")}</span>`}
        ${!view.source.offline && html`<${Link} path="" release=${isLive ? null : release.release}>
          ${word(isLive ? "to_live" : "see_release")}</>`}</p>
      <div id=${id}>${isOpen && html`<${Changed} release=${release} />`}</div></li>`;
  }

  function Changed({ release }) {
    const rows = (entry) => (entry ? number(entry.rows) : html`<span class="soft">–</span>`);
    return html`<div class="scroll" role="region" tabindex="0" aria-label=${release.release}><table class="plain">
      <thead><tr><th scope="col">${word("col_table")}</th><th scope="col" class="amount">${word("before")}</th>
        <th scope="col" class="amount">${word("after")}</th>
        <th scope="col" class="amount">${word("difference")}</th></tr></thead>
      <tbody>${release.changed.map(({ table, before, after }) => html`<tr key=${table}>
        <th scope="row"><${TableLink} id=${table} /></th>
        <td class="amount">${rows(before)}</td><td class="amount">${rows(after)}</td>
        <td class="amount">${after === null ? word("removed") : before === null ? word("new_table")
          : before ? signed(after.rows - before.rows) : html`<span
            class="soft">–</span>`}</td></tr>`)}</tbody></table></div>`;
  }

  busco.releases = { Releases };
})(window.busco);
