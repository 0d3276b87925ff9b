"""The report of a run: what its work directory and its images hold, as one HTML page."""

import os

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from sjft_jax import config as configs
from sjft_jax import inputs, results, round_files
from sjft_jax import ranking as rankings
from sjft_jax import workdir as workdirs
from sjft_jax.data.dataset import Domains
from sjft_jax.models.weights import run_checkpoint
from sjft_jax.report import borrowing, conditions, page, predictions, record, scores
from sjft_jax.report.page import Page
from sjft_jax.report.record import RoundDigest, RunRecord
from sjft_jax.retrieval.knn import Ranking
from sjft_jax.runtime import artifacts, console, distributed
from sjft_jax.screening.screen import screen

FILE = 'report.html'


class RunReport:
  """Draws the report of a run as far as the run has come.

  Args:
    workdir: the work directory.
    fingerprint: of the run, which its files carry.
    config: all options.
    domains: the data sets that the run uses, without images that were left out.
    ranking: of the source, as deep as the run needs; without neighbours if no arm needs any.
  """

  def __init__(
    self,
    workdir: epath.Path,
    fingerprint: str,
    config: ConfigDict,
    domains: Domains,
    ranking: Ranking,
  ):
    self._workdir, self._fingerprint, self._config = workdir, fingerprint, config
    self._domains, self._ranking = domains, ranking
    self._thumbnails = record.make_thumbnails(domains)
    # A round's probabilities are read once; what the report shows of them is small.
    self._digests: dict[tuple[str, int], RoundDigest] = {}

  def write(self) -> epath.Path:
    """Write report.html and return its path; one that is there is replaced.

    Raises:
      ValueError: no round is finished, a file of the run is damaged, or an image cannot be read.
    """
    rounds = {arm: self._load_rounds(arm) for arm in self._config.arms}
    if not any(rounds.values()):
      raise ValueError(f'{self._workdir} has no finished round yet, which a report begins with')
    run = RunRecord(
      workdir=self._workdir,
      config=self._config,
      domains=self._domains,
      ranking=self._ranking,
      thumbnails=self._thumbnails,
      rounds=rounds,
      results=results.load_results(self._workdir, self._fingerprint),
    )
    path = self._workdir / FILE
    page.write(path, make_page(run))
    return path

  def update(self) -> None:
    """Write report.html, if the run wants one; a failure is a line on the console.

    Of several processes the first one writes it.
    """
    if not distributed.is_primary_process() or not self._config.logging.report:
      return
    try:
      self.write()
    except Exception as error:  # A run of days must not end for a picture.
      reason = f'{type(error).__name__}: {error}'.splitlines()[0]
      console.say(
        f'  {self._workdir / FILE} could not be written ({reason}); the run goes on, and '
        f'python -m sjft_jax.report --run={self._workdir} tries again'
      )

  def _load_rounds(self, arm: str) -> list[RoundDigest]:
    """Return the finished rounds of an arm."""
    digests: list[RoundDigest] = []
    while (digest := self._load_round(arm, len(digests))) is not None:
      digests.append(digest)
    return digests

  def _load_round(self, arm: str, number: int) -> RoundDigest | None:
    if (arm, number) not in self._digests:
      directory = self._workdir / 'arms' / arm
      round_ = round_files.load_round(directory, number, self._fingerprint)
      if round_ is None:
        return None
      self._digests[arm, number] = record.digest(round_, self._domains.test)
    return self._digests[arm, number]


def open_run(run: str | os.PathLike[str]) -> RunReport:
  """Open the images of a run again, to draw its report.

  Args:
    run: a work directory.

  Raises:
    ValueError: it is no work directory of one run, or its images have changed or are gone.
  """
  workdir = workdirs.resolve(run)
  options = workdirs.load_config(workdir)
  if options is None:
    raise ValueError(
      f'{workdir} has no config.json, so it is no work directory; give one such as runs/mine'
    )
  if options['repeats'] > 1:
    raise ValueError(
      f'{workdir} holds {options["repeats"]} repeats, each with a report of its own; give '
      f'{workdir / "repeat1"}'
    )
  config = ConfigDict(options)
  opened, bank = _open_domains(config), inputs.load_bank(config)
  content = {'weights_digest': str, 'normalization': str}
  network = artifacts.load_json(workdir / run_checkpoint.DESCRIPTION, content)
  fingerprint = workdirs.run_fingerprint(config, bank.fingerprint, network, opened)
  _load(workdir / results.TEST_IMAGES, fingerprint)  # Another fingerprint is refused.
  with artifacts.suppress_writes(workdir):  # What the run has listed stays as it is.
    domains, _ = screen(workdir, *opened, **config.screening)
  depth = inputs.ranking_depth(configs.arm_configs(config).values())
  descriptors = rankings.DescriptorOptions(**config.descriptors)
  ranking_inputs = rankings.RankingInputs(domains.target, domains.source, bank, depth, descriptors)
  arrays = _load(workdir / 'ranking.npz', ranking_inputs.fingerprint) if depth else None
  ranking = Ranking.empty(len(domains.target))
  if depth and arrays is None:
    raise ValueError(
      f'{workdir / "ranking.npz"} is missing; run the command of this work directory again'
    )
  if arrays is not None:
    ranking = Ranking(arrays['indices'][:, :depth], arrays['divergences'][:, :depth])
  return RunReport(workdir, fingerprint, config, domains, ranking)


def _open_domains(config: ConfigDict) -> Domains:
  """Open the images of a run.

  Raises:
    ValueError: as for `inputs.open_domains`; where a relative path leads nowhere, it says so.
  """
  try:
    return inputs.open_domains(config)
  except ValueError as error:
    for path in map(os.path.expanduser, (config.target.path, config.source.path)):
      if path and not os.path.isabs(path) and not os.path.exists(path):
        raise ValueError(
          f'{error}; the run has the relative path {path!r}: start the command in the folder that '
          'the run was started from'
        ) from error
    raise


def _load(path: epath.Path, fingerprint: str) -> dict[str, np.ndarray] | None:
  try:
    return artifacts.load(path, fingerprint)
  except ValueError as error:
    raise ValueError(
      f'{path.parent} was made with other images than those where its options say, by another '
      f'version, or {path.name} is damaged, so its report might show wrong images; put the images '
      'back as they were'
    ) from error


def make_page(run: RunRecord) -> Page:
  """Return the report of a run: first what was gained, then why."""
  headline, lines = scores.make_answer(run)
  sections = (
    scores.score_section(run),
    borrowing.neighbor_section(run),
    borrowing.class_section(run),
    borrowing.hub_section(run),
    scores.curve_section(run),
    predictions.class_section(run),
    predictions.mistake_section(run),
    predictions.hardness_section(run),
    scores.fusion_section(run),
    conditions.settings_section(run),
    conditions.screening_section(run),
  )
  return Page(
    title=str(run.workdir),
    headline=headline,
    lines=lines,
    sections=[section for section in sections if section is not None],
  )
