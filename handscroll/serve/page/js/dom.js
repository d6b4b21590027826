// Elements without HTML: everything on the page is made of nodes and text, so nothing that is shown is ever parsed.

export const find = (id) => document.getElementById(id);

/** An element. `props`: attributes; `on` maps events to functions; `class` is the class; false and null are left out. */
export function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === false || value === null || value === undefined) continue;
    if (name === "on") for (const [event, act] of Object.entries(value)) node.addEventListener(event, act);
    else if (name === "value" || name === "checked" || name === "disabled" || name === "open") node[name] = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  return fill(node, ...children);
}

/** Put children in the place of what a node holds; texts and numbers become text. */
export function fill(node, ...children) {
  node.replaceChildren(...children.flat(Infinity).filter((one) => one !== null && one !== undefined && one !== false).map((one) => (one instanceof Node ? one : String(one))));
  return node;
}

let spoken = 0;

/** Tell a screen reader; `urgent` interrupts. */
export function say(text, urgent = false) {
  const node = find(urgent ? "alert" : "live");
  // The same words twice in a row are only spoken if the text changes.
  fill(node, text + (spoken++ % 2 ? "\u00a0" : ""));
}

/** Remember a choice of this browser; without storage it lasts as long as the page. */
export function remember(name, value) {
  try {
    localStorage.setItem(`handscroll.${name}`, value);
  } catch {
    // Storage can be switched off.
  }
}

/** Work that is done at most once a frame, however often it is asked for. */
export function framed(work) {
  let waiting = 0;
  return () => {
    if (!waiting) waiting = requestAnimationFrame(() => { waiting = 0; work(); });
  };
}

/** Work that is done once nobody has asked for it for some milliseconds. */
export function settled(work, wait) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(work, wait);
  };
}

let numbered = 0;

/** A field: a label, its control, and a hint that belongs to it. */
export function field(label, control, hint = "") {
  const id = control.id || `field-${++numbered}`;
  control.id = id;
  if (hint) control.setAttribute("aria-describedby", `${id}-hint`);
  return h("div", { class: "field" }, h("label", { for: id }, label), control, hint && h("p", { class: "note", id: `${id}-hint` }, hint));
}

/** Whether a key belongs to an input method, as that of Enter which takes a word. Some browsers only tell it by the number. */
export const composes = (event) => event.isComposing || event.keyCode === 229;

/** A dialog that asks; resolves to what `value` gives when it is accepted, or null. */
export function ask({ title, body, accept, refuse, value = () => true }) {
  return new Promise((resolve) => {
    const back = document.activeElement;
    let answer = null;
    const done = () => dialog.close();
    const dialog = h("dialog", { "aria-labelledby": "dialog-title" },
      h("h2", { id: "dialog-title" }, title), body,
      h("div", { class: "ends" },
        refuse && h("button", { class: "quiet", type: "button", on: { click: done } }, refuse),
        h("button", { class: "press", type: "button", on: { click: () => { answer = value(); done(); } } }, accept)));
    dialog.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !composes(event) && event.target.tagName === "INPUT") { answer = value(); done(); }
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      back?.focus?.();
      resolve(answer);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
