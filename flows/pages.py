"""The pages: MLflow's and Prefect's servers on loopback, until Ctrl-C."""

import signal
import sys
import threading
from contextlib import ExitStack

from flows import server
from sevenfold import workspace
from sevenfold.registry import tracking


def main() -> int:
    """Serve both until the process is asked to end."""
    place = workspace.find()
    place.initialise()
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: over.set())
    with place.settled(), ExitStack() as stack:
        tracking.initialise(place)
        try:
            prefect = stack.enter_context(server.standing(place, 4200)).removesuffix("/api")
            port = server.free_port(5000)
            command = tracking.server_command(place, host=server.HOST, port=port)
            mlflow = f"http://{server.HOST}:{port}"
            log = place.logs / "mlflow-server.log"
            stack.enter_context(server.running(command, tracking.server_environment(place), log, f"{mlflow}/health"))
        except (OSError, RuntimeError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        print(f"MLflow:  {mlflow}\nPrefect: {prefect}\nreport:  {place.report.as_uri()}\nCtrl-C ends both", flush=True)
        over.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
