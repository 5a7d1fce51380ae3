// Ready queries of a table for Athena, DuckDB, Python and R.
"use strict";
(function (busco) {
  const WORKGROUP = "busco";
  const FILE = "lake.duckdb";
  const PLAIN = /^[a-z_][a-z0-9_]*$/;
  // the words that Athena takes as names only in quotes, and those of DuckDB among them
  const RESERVED = new Set(("all alter and as between by case cast constraint create cross cube current_catalog "
    + "current_date current_path current_schema current_time current_timestamp current_user deallocate delete describe "
    + "distinct drop else end escape except execute exists extract false first for from full group grouping having in "
    + "inner insert intersect into is join json_array json_exists json_object json_query json_table json_value last left "
    + "like listagg localtime localtimestamp natural normalize not null of on or order outer prepare recursive right "
    + "rollup select skip table then trim true uescape union unnest using values when where with").split(" "));

  function quoted(name) {
    return PLAIN.test(name) && !RESERVED.has(name) ? name : `"${name.replaceAll('"', '""')}"`;
  }

  // Returns a text literal of Python and of R.
  function literal(text) {
    return JSON.stringify(text).replace(/[\u007f-\u009f\u2028\u2029]/g, (letter) => (
      `\\u${letter.charCodeAt(0).toString(16).padStart(4, "0")}`
    ));
  }

  // One line without comments, for the string of another language.
  function select(glue) {
    return `select * from ${quoted(glue.database)}.${quoted(glue.name)} limit 100`;
  }

  function sql(content) {
    const lines = [`select *`, `from ${quoted(content.glue.database)}.${quoted(content.glue.name)}`];
    if (content.partition_by?.length) {
      const columns = content.partition_by.join(", ").replace(/\s+/g, " ");
      lines.push(`-- ${busco.words.word("query_partition", { columns })}`);
    }
    return [...lines, "limit 100"].join("\n");
  }

  function queries(content, release) {
    const line = literal(select(content.glue));
    const chosen = release ? ` --release ${release}` : "";
    return {
      command: `busco export duckdb ${FILE}${chosen}`,
      athena: sql(content),
      duckdb: sql(content),
      python_duckdb: `import duckdb\n\nlake = duckdb.connect("${FILE}", read_only=True)\n`
        + `frame = lake.sql(\n    ${line}\n).df()`,
      python_wrangler: `import awswrangler as wr\n\nframe = wr.athena.read_sql_query(\n    ${line},\n`
        + `    database=${literal(content.glue.database)},\n    workgroup="${WORKGROUP}",\n    ctas_approach=False,\n)`,
      python_pyathena: `from pyathena import connect\n\ncursor = connect(work_group="${WORKGROUP}").cursor()\n`
        + `rows = cursor.execute(\n    ${line}\n).fetchall()`,
      r: `library(DBI)\n\nlake <- dbConnect(duckdb::duckdb(), "${FILE}", read_only = TRUE)\n`
        + `frame <- dbGetQuery(\n  lake,\n  ${line}\n)\ndbDisconnect(lake)`,
    };
  }

  busco.queries = { queries };
})(window.busco);
