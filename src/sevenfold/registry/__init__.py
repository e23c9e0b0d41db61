"""The model registry and the runs behind it, which are MLflow's. Nothing else in the package talks to MLflow."""
