// Copying: a button that puts a text on the clipboard and says whether it did.

import { fill, h, say } from "./dom.js";
import { t } from "./words.js";

const SHOWN = 1500; // milliseconds that the button says so

export function copyButton(text) {
  const button = h("button", { class: "plain", type: "button", on: { click: async () => {
    const done = await put(text);
    const words = t(done ? "copied" : "copy.failed");
    fill(button, words);
    say(words, !done);
    if (done) setTimeout(() => fill(button, t("copy")), SHOWN);
  } } }, t("copy"));
  return button;
}

/** Whether the clipboard holds the text now. */
async function put(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return selected(text); // browsers give no clipboard to a page that came over plain HTTP from another machine
  }
}

/** The older way: a selection is copied, as if by a person. */
function selected(text) {
  const back = document.activeElement;
  const place = h("textarea", { class: "unseen", value: text });
  document.body.append(place);
  place.select();
  const done = document.execCommand("copy");
  place.remove();
  back?.focus({ preventScroll: true });
  return done;
}
