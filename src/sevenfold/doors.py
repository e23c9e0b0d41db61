"""Doors of servers: one that other machines reach asks everybody who they are."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Say whether a server that listens at `host`, a name or an address, is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a name may lead anywhere, and an empty one means every address
        return False


def require(host: str, secured: bool) -> None:
    """Refuse a server that others reach and that asks nobody for a password.

    Args:
        host: where it is to listen.
        secured: whether it asks for one.

    Raises:
        ValueError: it would listen beyond this machine and does not.
    """
    if not secured and not is_loopback(host):
        raise ValueError(
            f"a server at {host!r} can be reached from other machines, and would let everybody in; expected 127.0.0.1, ::1 or "
            "localhost, or a password: set MLFLOW_AUTH_ADMIN_PASSWORD for MLflow, PREFECT_SERVER_API_AUTH_STRING for Prefect"
        )
