"""A bundle as MLflow serves it: raw rows in, columns in raw units out. MLflow runs this file to load the model."""

from pathlib import Path
from typing import Any

import mlflow.models
import mlflow.pyfunc
import numpy as np
import pandas as pd

from sevenfold import bundles, formats, operations


class ServedBundle(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined,misc]
    """Runs one operation of a bundle; `params={"op": ...}` names it."""

    def load_context(self, context: Any) -> None:
        self._bundle = operations.accepting(bundles.load(Path(context.artifacts["bundle"])))

    # The type keeps MLflow from inferring a schema; the signature decides, and for images it gives an array.
    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame | np.ndarray:
        operation = (params or {}).get("op") or self._bundle.application.operation
        if isinstance(model_input, pd.DataFrame):
            rows = formats.Rows(model_input.reset_index(drop=True))
        else:
            images = np.asarray(model_input)
            rows = formats.Rows(pd.DataFrame(index=pd.RangeIndex(len(images))), images)
        made = operations.get(operation, self._bundle)(self._bundle, rows)
        return made.frame if made.images is None else made.images


mlflow.models.set_model(ServedBundle())
