// What is kept for this tab alone: in the browser's sessionStorage, which outlives a reload and ends with the tab. What it
// does not take, because it is full or switched off, is kept until the page is left.

const PREFIX = "handscroll.";
const held = new Map();

export function get(name) {
  try {
    return held.get(name) ?? sessionStorage.getItem(PREFIX + name);
  } catch {
    return null;
  }
}

/** Keep a text under a name, or with null remove it. Whether a reload will find it so. */
export function set(name, text) {
  held.delete(name);
  try {
    sessionStorage.removeItem(PREFIX + name); // what was there must not outlive a new text that does not fit
    if (text !== null) sessionStorage.setItem(PREFIX + name, text);
    return true;
  } catch {
    if (text !== null) held.set(name, text);
    return text === null;
  }
}

/** The names that sessionStorage holds. */
export function names() {
  try {
    return Object.keys(sessionStorage).filter((one) => one.startsWith(PREFIX)).map((one) => one.slice(PREFIX.length));
  } catch {
    return [];
  }
}
