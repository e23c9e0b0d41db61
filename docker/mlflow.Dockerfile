# MLflow's tracking server, and what backs it up.
# A base by its digest: --build-arg BASE=python:3.11.13-slim-bookworm@sha256:...
ARG BASE=python:3.11.13-slim-bookworm
FROM ${BASE}

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

# pg_dump and pg_restore, of the same version as the server in docker/compose.yaml: this Debian's.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends postgresql-client \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home --shell /usr/sbin/nologin mlflow

COPY pyproject.toml constraints.txt /tmp/
RUN python -c "import tomllib; print(*tomllib.load(open('/tmp/pyproject.toml', 'rb'))['project']['optional-dependencies']['team'], sep='\n')" > /tmp/needed.txt \
    && pip install --constraint /tmp/constraints.txt --requirement /tmp/needed.txt \
    && pip check \
    && rm /tmp/needed.txt /tmp/pyproject.toml /tmp/constraints.txt

COPY mlflow/basic_auth.ini /etc/mlflow/basic_auth.ini
COPY --chmod=0755 docker/with-secrets.sh /usr/local/bin/with-secrets
COPY --chmod=0755 docker/backup.sh docker/restore.sh docker/bucket.py docker/admin.py /opt/sevenfold/

# A volume that is mounted there takes its mode from here. Whoever OWNER is writes into it, and removes only what is his own.
RUN mkdir /backups && chmod 1777 /backups
USER 1000:1000
ENV HOME=/home/mlflow
WORKDIR /home/mlflow

EXPOSE 5000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:5000/health', timeout=4)"]

ENTRYPOINT ["with-secrets"]
CMD ["python", "/opt/sevenfold/admin.py", "mlflow", "server", "--app-name", "basic-auth", "--host", "0.0.0.0", "--port", "5000"]
