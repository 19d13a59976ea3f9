"""A Hydra sweeper over Optuna: each job's parameters are proposed from how the jobs before it ended.

Hydra's own plugin (hydra-optuna-sweeper 1.3.0) holds Optuna below 3. The sampler is seeded and the jobs' results are
kept: a search that is repeated proposes the same parameters, so that its finished jobs are skipped.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from hdmnet.config.values import ABSENT, look_up
from hdmnet.runtime.errors import ConfigError, InputError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

log = logging.getLogger(__name__)


class OptunaSweeper(Sweeper):
    """Searches for the parameters of the best result.

    Args:
        params: Search space by key, in Hydra's words: `interval(0.1, 5)`, `tag(log, interval(1e-5, 1e-3))`,
            `choice(1, 2)` or `range(1, 5)`. A plain value is fixed. The command line wins.
        objective: Which figure of `result.json` to make large, by its dotted key.
        n_trials: Jobs in all.
        at_once: Jobs proposed at a time; as many as run side by side.
        seed: Of the sampler (tree-structured Parzen estimator).
        max_batch_size: Of Hydra's basic sweeper, whose place this one takes; unused.
    """

    def __init__(
        self,
        params: DictConfig | None,
        objective: str,
        n_trials: int,
        at_once: int = 1,
        seed: int = 0,
        max_batch_size: int | None = None,
    ) -> None:
        self.params, self.objective, self.n_trials, self.at_once, self.seed = params, objective, n_trials, at_once, seed

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra gives."""
        self._parser = OverridesParser.create(config_loader=hydra_context.config_loader)
        self._folder = Path(config.hydra.sweep.dir)
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the search on the command line's overrides; writes `optimization_results.yaml` into the sweep's folder.

        Raises:
            InputError: Optuna is not installed, nothing is searched for, or the objective is not in a result.
        """
        try:
            import optuna
        except ModuleNotFoundError:
            raise InputError("sweep=optuna needs Optuna: pip install 'hdmnet[sweep]'") from None
        fixed, space = self._space([*(f"{key!s}={value}" for key, value in (self.params or {}).items()), *arguments])
        if not space:
            raise ConfigError("nothing to search for; expected a key with interval(...), choice(...) or range(...)")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=self.seed))
        for first in range(0, self.n_trials, self.at_once):
            trials = [study.ask(space) for _ in range(min(self.at_once, self.n_trials - first))]
            words = [[*fixed, *(f"{key}={_word(value)}" for key, value in trial.params.items())] for trial in trials]
            for trial, returned in zip(trials, self._launcher.launch(words, initial_job_idx=first), strict=True):
                value = self._value(returned.return_value)
                if value is None:  # the job failed, and has said so
                    study.tell(trial, state=optuna.trial.TrialState.FAIL)
                else:
                    study.tell(trial, value)
        self._conclude([trial for trial in study.trials if trial.value is not None])

    def _value(self, result: dict[str, Any] | None) -> float | None:
        if result is None:
            return None
        value = look_up(result, self.objective)
        if value is ABSENT or not isinstance(value, int | float):
            raise InputError(
                f"hydra.sweeper.objective={self.objective}: no such figure in result.json; expected e.g. test.miou"
            )
        return float(value)

    def _space(self, words: Sequence[str]) -> tuple[list[str], dict[str, BaseDistribution]]:
        """The fixed overrides, and the search space by key."""
        last = {override.get_key_element(): override for override in self._parser.parse_overrides(list(words))}
        space = {key: _distribution(override) for key, override in last.items() if override.is_sweep_override()}
        fixed = [f"{key}={o.get_value_element_as_str()}" for key, o in last.items() if key not in space]
        return fixed, space

    def _conclude(self, finished: Sequence[Any]) -> None:
        if not finished:
            return
        best = max(finished, key=lambda trial: trial.value)
        file = self._folder / "optimization_results.yaml"
        content = {"objective": self.objective, "best_value": best.value, "best_params": best.params}
        OmegaConf.save(OmegaConf.create(content), file)
        log.info("best of %d: %s=%.4f with %s, see %s", len(finished), self.objective, best.value, best.params, file)


def _word(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)  # it becomes a folder's name


def _distribution(override: Override) -> BaseDistribution:
    """Optuna's distribution for a sweep in Hydra's words."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if isinstance(value, IntervalSweep):
        low, high, log_scale = cast(float, value.start), cast(float, value.end), "log" in value.tags
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=log_scale)
        return FloatDistribution(low, high, log=log_scale)
    return CategoricalDistribution(list(override.sweep_string_iterator()))
