// Numbers, sizes and times in the reader's language.
"use strict";
(function (busco) {
  const locale = busco.words.locale;
  const made = new Map();

  // Intl's formatters are slow to make, so each is made once.
  function formatter(kind, options) {
    const key = kind + JSON.stringify(options);
    if (!made.has(key)) made.set(key, new Intl[kind](locale, options));
    return made.get(key);
  }

  function number(value, options) {
    return formatter("NumberFormat", options || {}).format(value);
  }

  function signed(value) {
    return number(value, { signDisplay: "exceptZero" });
  }

  function percent(part, whole) {
    const share = whole ? part / whole : 0;
    // a few nulls in many rows must not look like none, nor almost all like all
    if (share > 0 && share < 0.001) return "< " + number(0.001, { style: "percent", maximumFractionDigits: 1 });
    if (share < 1 && share > 0.999) return "> " + number(0.999, { style: "percent", maximumFractionDigits: 1 });
    return number(share, { style: "percent", maximumFractionDigits: share < 0.1 ? 1 : 0 });
  }

  function bytes(value) {
    const units = ["byte", "kilobyte", "megabyte", "gigabyte", "terabyte", "petabyte"];
    let at = 0;
    let left = value;
    while (left >= 999.5 && at < units.length - 1) {
      left /= 1000;
      at += 1;
    }
    const maximumFractionDigits = left < 10 && at ? 1 : 0;
    return number(left, { style: "unit", unit: units[at], unitDisplay: "short", maximumFractionDigits });
  }

  const STEPS = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];

  function duration(seconds) {
    const [unit, size] = STEPS.find(([, size]) => seconds >= size && seconds % size === 0) || STEPS[3];
    // 24 hours is how people set it, so one day is shown as such only from two days on
    const shown = unit === "day" && seconds < 2 * 86400 ? ["hour", 3600] : [unit, size];
    return number(seconds / shown[1], { style: "unit", unit: shown[0], unitDisplay: "long" });
  }

  // Calls `make` with the time; a text that is no time is shown as it is.
  function timed(iso, make) {
    const time = Date.parse(iso);
    return Number.isNaN(time) ? String(iso) : make(time);
  }

  function ago(iso, now) {
    return timed(iso, (time) => relative(time, now));
  }

  function relative(time, now) {
    const seconds = (time - now) / 1000;
    const [unit, size] = Math.abs(seconds) >= 45 * 86400 ? ["month", 30.44 * 86400]
      : Math.abs(seconds) >= 36 * 3600 ? ["day", 86400]
        : Math.abs(seconds) >= 3600 ? ["hour", 3600] : ["minute", 60];
    const options = { numeric: Math.abs(seconds) < 60 || unit === "day" ? "auto" : "always" };
    return formatter("RelativeTimeFormat", options).format(Math.round(seconds / size), unit);
  }

  function exact(iso) {
    const options = { year: "numeric", month: "long", day: "numeric", hour: "2-digit", minute: "2-digit",
      timeZoneName: "short" };
    return timed(iso, (time) => formatter("DateTimeFormat", options).format(time));
  }

  function short(iso) {
    const options = { year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" };
    return timed(iso, (time) => formatter("DateTimeFormat", options).format(time));
  }

  function day(iso) {
    const options = { year: "numeric", month: "short", day: "numeric" };
    return timed(iso, (time) => formatter("DateTimeFormat", options).format(time));
  }

  function clock(time) {
    return formatter("DateTimeFormat", { hour: "2-digit", minute: "2-digit" }).format(time);
  }

  busco.format = { number, signed, percent, bytes, duration, ago, exact, short, day, clock };
})(window.busco);
