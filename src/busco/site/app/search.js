// Finds tables, columns, terms of the glossary and uses of the tables by words, in any order, with or without accents,
// by their beginnings and with small typos.
"use strict";
(function (busco) {
  const LIMIT = 40;
  const BOOST = { gold: 1.3, silver: 1.1 };
  // how many entries are added before the browser may draw again
  const CHUNK = 500;
  // how many characters around a word are shown of a long text
  const AROUND = 80;

  function fold(text) {
    return text.normalize("NFD").replace(/\p{M}+/gu, "").toLowerCase();
  }

  // Returns the words of a text with their places: `delivery_days` and `deliveryDays` have two.
  function pieces(text) {
    const found = [];
    for (const match of text.matchAll(/[\p{L}\p{N}\p{M}]+|\p{Extended_Pictographic}/gu)) {
      let at = match.index;
      for (const piece of match[0].split(/(?<=[\p{Ll}\p{N}])(?=\p{Lu})/u)) {
        found.push({ text: piece, at });
        at += piece.length;
      }
    }
    return found;
  }

  function words(text) {
    return pieces(text).map((piece) => fold(piece.text)).filter(Boolean);
  }

  function documents(world) {
    const found = [];
    for (const table of world.tables.values()) {
      const { id, layer, name, entry } = table;
      const summary = entry?.summary || "";
      const shared = { table: id, layer, project: table.project };
      const tags = [...(entry?.tags || []), layer, entry?.owner || ""].join(" ");
      found.push({ ...shared, id: found.length, kind: "table", name, summary, more: entry?.more || "", tags,
        within: "", synonyms: (entry?.synonyms || []).join(" · ") });
      for (const [column, description, synonyms] of entry?.columns || []) {
        found.push({ ...shared, id: found.length, kind: "column", name: column, summary: description, tags: "",
          within: name, synonyms: synonyms || "" });
      }
    }
    const page = { layer: "", tags: "", within: "", synonyms: "", summary: "" };
    for (const site of Object.values(world.sites)) {
      for (const { name, text } of site.pages || []) {
        found.push({ ...page, id: found.length, kind: "glossary", name: name.replaceAll("_", " "), at: name,
          more: text || "" });
      }
      for (const { name, label, type, text } of site.exposures || []) {
        found.push({ ...page, id: found.length, kind: "exposures", name: label || name, at: name, more: text || "",
          tags: type || "" });
      }
    }
    return found;
  }

  // Returns an index that fills while the page stays usable; `ready` is a promise.
  function index(world) {
    const all = documents(world);
    const mini = new MiniSearch({
      fields: ["name", "summary", "synonyms", "tags", "within", "more"],
      tokenize: words,
      processTerm: (term) => term,
    });
    const made = { ready: null, find: (query) => find(mini, all, query) };
    made.ready = fill(mini, all);
    return made;
  }

  async function fill(mini, all) {
    for (let at = 0; at < all.length; at += CHUNK) {
      await new Promise((resolve) => pause(resolve));
      mini.addAll(all.slice(at, at + CHUNK));
    }
  }

  // Waits until the page is drawn and nobody types; not every browser can tell.
  function pause(then) {
    if (window.requestIdleCallback) requestIdleCallback(then, { timeout: 200 });
    else setTimeout(then, 20);
  }

  function find(mini, all, query) {
    if (!words(query).length) return [];
    const hits = mini.search(query, {
      prefix: true,
      fuzzy: (term) => (term.length > 7 ? 2 : term.length > 4 ? 1 : 0),
      boost: { name: 3, synonyms: 2, tags: 1.5, within: 0.4, more: 0.6 },
      weights: { prefix: 0.6, fuzzy: 0.35 },
      boostDocument: (id) => (BOOST[all[id].layer] || 1) * (all[id].kind === "table" ? 1.6 : 1),
    });
    // an entry that has more of the words comes first, however rare each word is
    hits.sort((one, other) => other.queryTerms.length - one.queryTerms.length || other.score - one.score);
    return hits.slice(0, LIMIT).map((hit) => ({ ...all[hit.id], terms: new Set(hit.terms),
      asked: new Set(hit.queryTerms) }));
  }

  // Returns the parts of a text, each with whether it is one of the words that were found.
  function marked(text, terms) {
    const parts = [];
    let end = 0;
    for (const piece of pieces(text)) {
      if (!terms.has(fold(piece.text))) continue;
      if (piece.at > end) parts.push({ text: text.slice(end, piece.at), hit: false });
      parts.push({ text: piece.text, hit: true });
      end = piece.at + piece.text.length;
    }
    if (end < text.length) parts.push({ text: text.slice(end), hit: false });
    return parts;
  }

  // Returns the part of a long text around the first of the words that were found; null if it has none of them.
  function excerpt(text, terms) {
    const first = pieces(text).find((piece) => terms.has(fold(piece.text)));
    if (!first) return null;
    const from = first.at > AROUND ? text.indexOf(" ", first.at - AROUND) + 1 : 0;
    const end = text.indexOf(" ", first.at + AROUND);
    // a text without spaces is cut anywhere
    const begin = from > first.at ? first.at - AROUND : from;
    const part = text.slice(begin, end < 0 ? first.at + 2 * AROUND : end);
    return `${begin > 0 ? "… " : ""}${part}${begin + part.length < text.length ? " …" : ""}`;
  }

  busco.search = { index, words, marked, excerpt };
})(window.busco);
