"""A bundle as MLflow serves it: raw rows in, columns in raw units out. MLflow runs this file to load the model."""

from pathlib import Path
from typing import Any

import mlflow.models
import mlflow.pyfunc
import numpy as np
import pandas as pd

from sevenfold import bundles, serving


class ServedBundle(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined,misc]
    """Runs one operation of a bundle; `params={"op": ...}` names it."""

    def load_context(self, context: Any) -> None:
        self._bundle = bundles.load(Path(context.artifacts["bundle"]))

    # The type keeps MLflow from inferring a schema; the signature decides, and for images it gives an array.
    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame | np.ndarray:
        return serving.predict(self._bundle, model_input, (params or {}).get("op"))


mlflow.models.set_model(ServedBundle())
