// Runs before the first paint, so that a chosen language and theme do not flash.
(() => {
  const root = document.documentElement;
  let theme = null;
  let lang = null;
  try {
    theme = localStorage.getItem("handscroll.theme");
    lang = localStorage.getItem("handscroll.lang");
  } catch {
    // Storage can be switched off: then the choices last as long as the page.
  }
  if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  root.lang = lang === "zh" || lang === "en" ? lang : /^zh\b/i.test(navigator.language) ? "zh" : "en";
})();
