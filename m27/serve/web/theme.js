// Runs before the page is painted, so that a chosen theme does not flash up as the other one.
// "light" or "dark" if chosen, else the system's.
try {
  const theme = localStorage.getItem("m27.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage is closed to this page; the system's theme it is.
}
