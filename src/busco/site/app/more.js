// The uses of the tables (dbt exposures), and the glossary: terms (dbt docs blocks) and groups with their owners.
"use strict";
(function (busco) {
  const { useEffect } = preactHooks;
  const { html, Icon, Medal, Status, TableLink, Out, Rich, word } = busco.parts;

  // Scrolls to the entry that the address names.
  function useTarget(view) {
    const { fragment, visit } = view.at;
    useEffect(() => {
      if (!fragment) return;
      const entries = [...document.querySelectorAll("[data-name]")];
      entries.find((entry) => entry.dataset.name === fragment)?.scrollIntoView({ block: "start" });
    }, [fragment, visit]);
  }

  function all(view, key) {
    return Object.values(view.world.sites).flatMap((site) => site[key] || []);
  }

  function Owner({ name, email }) {
    if (!name && !email) return null;
    return html`<p class="soft">${word("owner_line", { owner: html`<bdi>${name || email}</bdi>` })}
      ${email && html` <${Out} href=${`mailto:${email}`}>${email}</>`}</p>`;
  }

  function Exposures({ view }) {
    useTarget(view);
    const exposures = all(view, "exposures");
    return html`<div class="heading"><h1 tabindex="-1">${word("exposures_heading")}</h1></div>
      <p class="soft">${word(exposures.length ? "exposures_intro" : "exposures_none")}</p>
      ${exposures.map((exposure) => html`<section class="card" key=${exposure.name} data-name=${exposure.name}>
        <div class="card-heading"><h2 dir="auto">${exposure.label || exposure.name}</h2>
          ${exposure.type && html`<span class="tag"><bdi>${exposure.type}</bdi></span>`}
          ${exposure.maturity && html`<span class="tag">
            ${word("maturity", { maturity: exposure.maturity })}</span>`}</div>
        <${Rich} text=${exposure.description_html} />
        <${Owner} name=${exposure.owner?.name} email=${exposure.owner?.email} />
        ${exposure.url && html`<p><${Out} href=${exposure.url}>${word("exposure_open")}</></p>`}
        ${exposure.tables?.length > 0 && html`<h3>${word("exposure_tables")}</h3>
          <ul class="with-states">${exposure.tables.map((id) => {
            const found = view.world.tables.get(id);
            return html`<li key=${id}><${Medal} layer=${busco.facts.split(id)[0]} /><${TableLink} id=${id} />
              ${found && html`<${Status} status=${found.status} />`}</li>`;
          })}</ul>`}
      </section>`)}`;
  }

  function Glossary({ view }) {
    useTarget(view);
    const pages = all(view, "pages");
    const groups = all(view, "groups");
    const sorted = [...pages].sort((one, other) => one.name.localeCompare(other.name));
    return html`<div class="heading"><h1 tabindex="-1">${word("glossary_heading")}</h1></div>
      ${!pages.length && !groups.length && html`<p class="soft">${word("glossary_none")}</p>`}
      ${groups.length > 0 && html`<h2>${word("glossary_groups")}</h2>${groups.map((group) => html`
        <section class="card" key=${group.name} data-name=${`group:${group.name}`}>
          <h3 dir="auto">${group.name}</h3><${Owner} name=${group.owner} email=${group.email} />
          <${Rich} text=${group.description_html} /></section>`)}`}
      ${pages.length > 0 && html`<h2>${word("glossary_terms")}</h2>${sorted.map((page) => html`
        <section class="card" key=${`${page.package} ${page.name}`} data-name=${page.name}>
          <h3 dir="auto">${page.name.replaceAll("_", " ")}</h3><${Rich} text=${page.html} /></section>`)}`}`;
  }

  function NotFound() {
    return html`<div class="missing"><h1 tabindex="-1"><${Icon} name="unknown" /> ${word("page_not_found")}</h1>
      <p><${busco.parts.Link} path="">${word("all_tables")}</></p></div>`;
  }

  busco.more = { Exposures, Glossary, NotFound };
})(window.busco);
