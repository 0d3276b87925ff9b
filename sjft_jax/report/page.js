// Draws the charts, and shows the neighbours of the target image that is chosen.

const read = (id) => JSON.parse(document.getElementById(id).textContent);

for (const place of document.querySelectorAll('[data-chart]')) {
  // ast: expressions are interpreted, since the page's policy forbids to compile them.
  const options = {actions: false, renderer: 'svg', ast: true, tooltip: {theme: 'custom'}};
  vegaEmbed(place, read(`spec-${place.dataset.chart}`), options).then(() => {
    // Marks have no text of their own; the place itself is described.
    place.querySelector('svg').setAttribute('aria-hidden', 'true');
  });
}

const make = (tag, text, properties = {}, children = []) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...(text === null ? children : [text]));
  return element;
};

if (document.getElementById('explorer')) {
  const {targets, headings, pictures} = read('explorer');
  const radios = [...document.querySelectorAll('#targets input')];
  const [title, rounds, neighbors] =
    ['title', 'rounds', 'neighbors'].map((name) => document.getElementById(`chosen-${name}`));

  const show = (target) => {
    title.textContent = target.title;
    const row = (tag, cells, properties) => make(
      'tr', null, {}, cells.map((cell) => make(tag, cell, {className: 'number', ...properties})));
    rounds.replaceChildren(make('table', null, {}, [
      make('caption', target.caption),
      make('thead', null, {}, [row('th', headings, {scope: 'col'})]),
      make('tbody', null, {}, target.rounds.map((cells) => row('td', cells))),
    ]));
    neighbors.replaceChildren(...target.neighbors.map(({picture, alt, lines}) => make('li', null, {}, [
      make('img', null, {src: pictures[picture], alt}), ...lines.map((line) => make('span', line)),
    ])));
  };

  const choose = (radio) => {
    radio.checked = true;
    show(targets[radio.value]);
  };

  for (const radio of radios) radio.addEventListener('change', () => choose(radio));
  document.getElementById('class-choice').addEventListener('change', ({target}) => {
    for (const radio of radios) {
      radio.parentElement.hidden = target.value && targets[radio.value].label !== Number(target.value);
    }
    choose(radios.find((radio) => !radio.parentElement.hidden));
  });
  choose(radios.find((radio) => radio.checked) ?? radios[0]);
}
