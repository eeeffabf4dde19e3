// Elements made from text: nothing here, or anywhere on the page, takes markup.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element; `attributes` also takes `on` (listeners) and `vars` (custom properties of its style). */
export function h(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** An SVG element. */
export function s(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (name === "vars") for (const [key, item] of Object.entries(value)) element.style.setProperty(key, item);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Changes the text only where it is another, so that selections and screen readers are left alone. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Replaces the children only where they would look different: no flicker, and no lost scroll position inside. */
export function show(element, ...children) {
  const made = children.flat().filter((child) => child !== null && child !== undefined && child !== false);
  const next = document.createElement(element.tagName);
  next.append(...made);
  if (next.childNodes.length === element.childNodes.length && same(next, element)) return false;
  patch(element, next);
  return true;
}

function same(a, b) {
  for (let i = 0; i < a.childNodes.length; i++) if (!a.childNodes[i].isEqualNode(b.childNodes[i])) return false;
  return true;
}

/** Takes over what differs, child by child: elements that stay keep their focus and their scroll position. */
function patch(old, next) {
  const children = [...next.childNodes];
  for (let i = 0; i < children.length; i++) {
    const mine = old.childNodes[i];
    if (!mine) old.append(children[i]);
    else if (mine.isEqualNode(children[i])) continue;
    else if (mine.nodeType === 1 && mine.tagName === children[i].tagName && !mine.dataset.owned) {
      for (const { name } of [...mine.attributes]) {
        if (!children[i].hasAttribute(name) && !(name === "open" && mine.tagName === "DETAILS")) mine.removeAttribute(name);
      }
      for (const { name, value } of [...children[i].attributes]) {
        if (name === "style") mine.style.cssText = children[i].style.cssText;
        else if (mine.getAttribute(name) !== value) mine.setAttribute(name, value);
      }
      patch(mine, children[i]);
    } else mine.replaceWith(children[i]);
  }
  while (old.childNodes.length > children.length) old.lastChild.remove();
}
