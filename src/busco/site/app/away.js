// Keeps the fragment of an address during the login, because no browser tells it to a server; shell.js restores it.
"use strict";
(function () {
  const login = JSON.parse(document.getElementById("busco-away").textContent).login;
  try {
    if (location.hash) {
      sessionStorage.setItem(`busco-docs-fragment:${location.pathname}${location.search}`, location.hash);
    }
  } catch {
    // a browser that keeps nothing only loses the place in the page
  }
  location.replace(login);
})();
