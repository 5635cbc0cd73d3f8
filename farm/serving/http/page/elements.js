// Elements of the page. Text is always set as text, never as HTML.

export const $ = (id) => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

export function complain(error) {
  $("error").hidden = !error?.message;
  $("error").textContent = error ? error.message : "";
}
