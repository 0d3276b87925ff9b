"""The page of bench.json: findings, plots of time and memory, the cost model, and what was run."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments import bench_results, cost_model
from experiments.bench_results import figures
from sjft_jax.report import charts, page

_MARKS = {True: ': met', False: ': missed', None: ''}


def write(path: Path, results: Mapping[str, Any], price: float) -> None:
  """Draw the page of a bench.json."""
  measurements = results['measurements']
  findings = bench_results.find(measurements)
  met = [finding.is_met for finding in findings if finding.is_met is not None]
  unfinished = [name for name, row in measurements.items() if row['status'] != 'done']
  machine = results['machine']
  place = ', '.join(
    [*machine.get('accelerators', ()), f'{machine["cores"]} × {machine["processor"]}']
  )
  lines = [f'{place}; {results["date"]}, {results["seconds"]:,.0f} s.']
  if unfinished:
    lines.append(f'Not measured to the end: {", ".join(unfinished)}.')
  sections = [
    page.Section(
      id='findings',
      title='Findings',
      tables=[
        page.Table(
          caption='What was asked, measured and hoped for',
          headings=['question', 'goal', 'answer'],
          rows=[[f.question, f.goal + _MARKS[f.is_met], f.answer or '–'] for f in findings],
        )
      ],
    )
  ]
  if plots := list(_plot_rankings(measurements)):
    sections.append(
      page.Section(
        id='ranking',
        title='Time and memory of the ranking',
        text=['The processes that are measured beside it are stopped meanwhile.'],
        charts=plots,
        tables=[_tabulate_rankings(measurements)],
      )
    )
  sections += [_model_section(measurements, price), _run_section(results)]
  page.write(
    path,
    page.Page(
      title=f'experiments.bench, {results["scale"]}',
      headline=f'{sum(met)} of {len(met)} goals are met',
      lines=lines,
      sections=sections,
      about='what was measured',
    ),
  )


def _plot_rankings(measurements: Mapping[str, Any]) -> Iterator[page.Chart]:
  rows = figures(measurements, 'product').get('rows', [])
  titles = {
    'seconds': 'seconds',
    'host_peak_mib': 'memory of the process, MiB',
    'device_peak_mib': 'memory of the device, MiB',
  }
  ks = {row['k'] for row in rows}
  usual = max(ks, key=lambda k: sum(row['k'] == k for row in rows), default=0)
  for y, title in titles.items():
    known = [row for row in rows if row[y] is not None]
    for x in ('sources', 'bins', 'k'):
      same = known if x == 'k' else [row for row in known if row['k'] == usual]
      series = {'sources': ('bins',), 'bins': ('sources',), 'k': ('sources', 'bins')}[x]
      points = [
        {'arm': ', '.join(f'{row[name]:,} {name}' for name in series), 'x': row[x], 'y': row[y]}
        for row in same
      ]
      # A line needs two points.
      names = [p['arm'] for p in points]
      points = [p for p in points if names.count(p['arm']) > 1]
      if not points or (x != 'sources' and y != 'seconds'):
        continue
      shown = list(dict.fromkeys(p['arm'] for p in points))
      points.sort(key=lambda point: point['x'])
      spec = charts.curves(points, shown, x=x, y=title, number=',.3~r')
      spec['encoding']['y']['scale']['zero'] = True
      description = f'{title} of a ranking against {x}; the table below has the numbers.'
      yield page.Chart(caption=f'{title} against {x}', description=description, spec=spec)


def _tabulate_rankings(measurements: Mapping[str, Any]) -> page.Table:
  product = figures(measurements, 'product')
  keys = ['bins', 'sources', 'k', 'seconds', 'host_peak_mib', 'device_peak_mib']
  rows = [
    [
      '–' if row[key] is None else f'{row[key]:,.4g}' if key == 'seconds' else f'{row[key]:,.0f}'
      for key in keys
    ]
    for row in product['rows']
  ]
  return page.Table(
    caption=f'Rankings for {product["targets"]:,} targets by {product["filters"]} filters',
    headings=[key.replace('_', ' ') for key in keys],
    rows=rows,
    numbers=range(len(keys)),
    remark='The peak of a device is that of all rankings up to this one, in their order.',
  )


def _model_section(measurements: Mapping[str, Any], price: float) -> page.Section:
  try:
    model = cost_model.fit(measurements)
  except ValueError as error:
    return page.Section(id='cost', title='What runs would take', text=[f'{error}.'])
  headings, rows = cost_model.tabulate(model, price)
  return page.Section(
    id='cost',
    title='What runs would take',
    text=[*cost_model.describe(model), 'Extrapolated; nothing here was run at this scale.'],
    tables=[
      page.Table(
        caption='12,000 targets, 352 filters × 100 bins, k = 1,000; 16,000 steps of 200 images',
        headings=headings,
        rows=rows,
        numbers=range(1, len(headings)),
      )
    ],
  )


def _run_section(results: Mapping[str, Any]) -> page.Section:
  rows = [
    [
      name,
      row['status'],
      f'{row["seconds"]:,.0f}' if 'seconds' in row else '–',
      f'{row["turn_seconds"]:,.0f}' if 'seconds' in row else '–',
      row.get('command', '').partition(' -m ')[2],
      '\n'.join(row.get('error', ())),
    ]
    for name, row in results['measurements'].items()
  ]
  facts = {**results['machine'], **results['versions']}
  return page.Section(
    id='run',
    title='What was run',
    text=[f'python -m experiments.bench {results["command"]}'],
    tables=[
      page.Table(
        caption='Measurements, each a process',
        headings=['name', 'status', 'seconds', 'alone', 'command', 'error'],
        rows=rows,
        numbers=[2, 3],
        remark='alone: the seconds in which all other measurements were stopped.',
      ),
      page.Table(
        caption='Machine and versions',
        headings=['', ''],
        rows=[
          [
            name,
            ', '.join(value)
            if isinstance(value, list)
            else f'{value:,.3g}'
            if isinstance(value, float)
            else str(value),
          ]
          for name, value in facts.items()
        ],
      ),
    ],
  )
