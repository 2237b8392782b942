const source = document.getElementById("source"), colours = document.getElementById("colours");
const none = document.querySelectorAll(".none");
function show() {
  for (const one of document.querySelectorAll(".sample")) one.hidden = source.value !== "" && one.dataset.source !== source.value;
  for (const words of none) words.hidden = [...words.parentElement.querySelectorAll(".sample")].some((one) => !one.hidden);
  document.body.className = colours.value;
}
source.onchange = colours.onchange = show;
show();
