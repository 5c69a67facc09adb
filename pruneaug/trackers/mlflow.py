"""`mlflow`: a run of an MLflow experiment for each trial."""

from __future__ import annotations

import logging
import os
from typing import Any

from pruneaug.errors import PluginError
from pruneaug.trackers.figures import metrics_of, parameters_of, rungs_of
from pruneaug.trackers.protocol import Tracked, TrialData

FILE = "mlflow.db"
FOLDER_TAG, TRIAL_TAG = "pruneaug.run", "pruneaug.trial"
_AT_ONCE = 100  # parameters that MLflow takes in one call
_LONGEST = 500  # characters of a parameter that every MLflow takes
_PAGE = 1000


class MLflow:
    """Writes to the MLflow at `uri`, by default that of MLFLOW_TRACKING_URI, or else RUN/mlflow.db.

    experiment: its name, by default that of the run folder. Rungs are the metric `rung_accuracy`, whose step is
    thousandths of an epoch.
    """

    def __init__(self, run: Tracked, uri: str | None = None, experiment: str | None = None) -> None:
        self._run = run
        self._experiment_name = experiment or run.name
        self._uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run.folder / FILE}"
        self._make_client = _client_class()
        self._client: Any = None
        self._experiment = ""
        self._recorded: set[str] = set()

    def trial_finished(self, record: TrialData) -> None:
        if self._client is None:
            self._client = self._make_client(tracking_uri=self._uri)
            self._experiment = self._open()
        number = str(record["number"])
        if number in self._recorded:
            return
        tags = {FOLDER_TAG: str(self._run.folder), TRIAL_TAG: number, "state": str(record.get("state"))}
        name = f"{self._run.name} trial {number}"
        run_id = self._client.create_run(self._experiment, tags=tags, run_name=name).info.run_id
        self._log(run_id, record)
        failed = record.get("state") == "failed"
        if failed and record.get("error"):
            self._client.set_tag(run_id, "error", str(record["error"])[:_LONGEST])
        self._client.set_terminated(run_id, "FAILED" if failed else "FINISHED")
        self._recorded.add(number)

    def closed(self) -> None:
        """Every trial is written as soon as it is told."""

    def _log(self, run_id: str, record: TrialData) -> None:
        from mlflow.entities import Metric, Param

        number = int(record["number"])
        figures = [Metric(name, value, 0, number) for name, value in metrics_of(record).items()]
        rungs = [Metric("rung_accuracy", accuracy, 0, round(1000 * epochs)) for epochs, accuracy in rungs_of(record)]
        self._client.log_batch(run_id, metrics=figures + rungs)
        parameters = [Param(_name(key), str(value)[:_LONGEST]) for key, value in parameters_of(record).items()]
        for start in range(0, len(parameters), _AT_ONCE):
            self._client.log_batch(run_id, params=parameters[start : start + _AT_ONCE])

    def _open(self) -> str:
        """The experiment; trials that it holds are recorded, and those that a killed driver began are deleted."""
        found = self._client.get_experiment_by_name(self._experiment_name)
        experiment = found.experiment_id if found else self._client.create_experiment(self._experiment_name)
        token = None
        while True:
            page = self._client.search_runs([experiment], max_results=_PAGE, page_token=token)
            for run in page:
                if run.data.tags.get(FOLDER_TAG) != str(self._run.folder) or TRIAL_TAG not in run.data.tags:
                    continue
                if run.info.status == "RUNNING":
                    self._client.delete_run(run.info.run_id)
                else:
                    self._recorded.add(run.data.tags[TRIAL_TAG])
            token = page.token
            if not token:
                return str(experiment)


def _name(key: str) -> str:
    """MLflow takes letters, digits and `_-.: /` in names."""
    return "".join(char if char.isalnum() or char in "_-.: /" else "_" for char in key)


def _client_class() -> Any:
    try:
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise PluginError(
            f"the tracker 'mlflow' needs the package mlflow-skinny or mlflow ({error}); pip install 'pruneaug[mlflow]'"
        ) from error
    for name in ("mlflow", "alembic"):  # their lines would run through the live table
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient
