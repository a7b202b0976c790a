"""MLflow, with its own settings of the environment (MLFLOW_TRACKING_URI, …)."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGE = "mlflow"
PIP = "pip install mlflow-skinny"
EXPERIMENT = "scalelab"
# Of one call of log_batch (MLflow REST API, Log Batch: 1,000 metrics, 100 parameters of up to 6,000 characters).
METRICS, PARAMETERS, CHARACTERS = 1000, 100, 6000


def send(told: Mapping[str, Any], folder: Path) -> str:
    """Log every series by step, the results and the config; returns where the run is."""
    entities: Any = importlib.import_module(f"{PACKAGE}.entities")
    client = importlib.import_module(PACKAGE).MlflowClient()
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    known = client.get_experiment_by_name(name)
    experiment = known.experiment_id if known is not None else client.create_experiment(name)
    run = client.create_run(experiment, run_name=told["run_id"])
    series = told["series"].items()
    metrics = [
        entities.Metric(key, value, int(at * 1000), int(step)) for key, rows in series for step, at, value in rows
    ]
    last = max((each.timestamp for each in metrics), default=0)
    metrics += [entities.Metric(f"result/{key}", value, last, 0) for key, value in told["results"].items()]
    parameters = [entities.Param(key, str(value)[:CHARACTERS]) for key, value in told["config"].items() if str(value)]
    for begin in range(0, len(parameters), PARAMETERS):
        client.log_batch(run.info.run_id, params=parameters[begin : begin + PARAMETERS])
    for begin in range(0, len(metrics), METRICS):
        client.log_batch(run.info.run_id, metrics=metrics[begin : begin + METRICS])
    client.set_terminated(run.info.run_id)
    return f"experiment {name}, run {run.info.run_id}"
