// The tests of a table and their results.
"use strict";
(function (busco) {
  const { html, Icon, Time, word } = busco.parts;
  const { number } = busco.format;
  const LOOKS = { success: "fresh", warn: "warned", failed: "failed", error: "failed" };
  const ORDER = ["failed", "error", "warn", "skipped", null, "success"];

  function Result({ test }) {
    const known = ["success", "warn", "failed", "error", "skipped"].includes(test.status) ? test.status : "unknown";
    const look = LOOKS[test.status] || "unknown";
    return html`<span class=${`status ${look}`}><${Icon} name=${look} />${word(`test_${known}`)}</span>`;
  }

  // What a test checks, in words if it is one of dbt's own.
  function named(test) {
    const key = `test_${test.kind}`;
    const own = ["not_null", "unique", "relationships", "accepted_values", "freshness"].includes(test.kind);
    // a test of the project's own SQL has nothing but its name
    return own ? word(key) : html`<bdi>${(test.kind === "sql" ? null : test.kind) || test.name}</bdi>`;
  }

  function Tests({ table }) {
    if (!table.tests.length) return html`<p class="soft">${word("tests_none")}</p>`;
    const rank = (test) => ORDER.indexOf(ORDER.includes(test.status) ? test.status : null);
    const sorted = [...table.tests].sort((one, other) => rank(one) - rank(other) || one.name.localeCompare(other.name));
    return html`<div class="scroll" role="region" aria-label=${word("sec_tests")} tabindex="0"><table class="plain">
      <thead><tr><th scope="col">${word("test_result")}</th><th scope="col">${word("test_name")}</th>
        <th scope="col">${word("test_column")}</th>
        <th scope="col" class="amount">${word("test_failures")}</th><th scope="col">${word("test_when")}</th>
        <th scope="col" class="amount">${word("test_seconds")}</th></tr></thead>
      <tbody>${sorted.map((test) => html`<tr key=${test.name}>
        <td><${Result} test=${test} /></td>
        <th scope="row" title=${test.name}>${named(test)}</th>
        <td>${test.column ? html`<code dir="auto">${test.column}</code>` : html`<span class="soft">–</span>`}</td>
        <td class="amount">${(test.failures ?? null) === null ? "" : number(test.failures)}</td>
        <td class="when"><${Time} iso=${test.at} /></td>
        <td class="amount">
          ${(test.seconds ?? null) === null ? "" : number(test.seconds, { maximumFractionDigits: 1 })}</td>
      </tr>`)}</tbody></table></div>`;
  }

  busco.tests = { Tests, Result, named };
})(window.busco);
