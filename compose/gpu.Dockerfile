# An inference worker on NVIDIA GPUs: TensorRT-LLM's release container, and this product beside it.
#
#   docker build -f compose/gpu.Dockerfile -t inferbase-gpu .
#   docker run --gpus all --ipc host --ulimit memlock=-1 --ulimit stack=67108864 --init --read-only --tmpfs /tmp \
#       -v /srv/models:/models:ro -v inferbase-gpu:/var/lib/inferbase -e INFERBASE_REDIS_URL -e INFERBASE_WIRE_KEY inferbase-gpu
#
# The worker pulls its work: it needs no port and no way in. --ipc host, memlock and stack are what the container's own
# documentation asks for; --init reaps the engine's helper processes.
FROM nvcr.io/nvidia/tensorrt-llm/release:1.2.1

SHELL ["/bin/bash", "-o", "errexit", "-o", "nounset", "-o", "pipefail", "-c"]

USER 0
WORKDIR /opt/inferbase

# The container's own packages are constraints: where one of ours would move one of them, the build fails.
COPY compose/gpu-requirements.txt ./
RUN python3 -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' \
    && python3 -m pip freeze --all | sed '/^-e /d; / @ /d' > /tmp/container.txt \
    && PIP_CONSTRAINT="" python3 -m pip install --no-cache-dir --break-system-packages \
        --constraint /tmp/container.txt --requirement gpu-requirements.txt \
    && python3 -m pip freeze --all | sed '/^-e /d; / @ /d' | sort > /tmp/after.txt \
    && test -z "$(comm -23 <(sort /tmp/container.txt) /tmp/after.txt)" \
    && rm /tmp/container.txt /tmp/after.txt

# What the adapter relies on is held against the package that is really here, without importing it: no GPU is needed.
COPY infra/check_trtllm_contract.py infra/check_trtllm_contract.py
COPY tests/contract/trtllm_1_2_1.json tests/contract/trtllm_1_2_1.json
RUN python3 infra/check_trtllm_contract.py --signatures --source "$(python3 -c \
        'import importlib.util as u; print(next(iter(u.find_spec("tensorrt_llm").submodule_search_locations)) + "/..")')"

COPY pyproject.toml ./
COPY api api
COPY compose compose
COPY shared shared
COPY workers workers
COPY infra/engines infra/engines
RUN python3 -m pip install --no-cache-dir --break-system-packages --no-deps --no-build-isolation . \
    && rm -rf build ./*.egg-info \
    && useradd --system --uid 10001 --home-dir /var/lib/inferbase --create-home --shell /usr/sbin/nologin inferbase

# Nothing is fetched at run time: models are folders, made by infra/engines/prepare.py.
ENV HF_HUB_OFFLINE=1 \
    TRANSFORMERS_OFFLINE=1 \
    HOME=/var/lib/inferbase \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

USER 10001
WORKDIR /var/lib/inferbase
VOLUME ["/var/lib/inferbase"]

# An engine that died or hangs ends the process by itself, and the container with it; this tells of a loop that is stuck.
# The port is the process's own, for metrics and health; it is open to the container alone until INFERBASE_METRICS_HOST
# says otherwise.
ENV INFERBASE_METRICS_PORT=9464
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python3", "-c", "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"INFERBASE_METRICS_PORT\"]}/livez', timeout=4)"]

STOPSIGNAL SIGTERM
ENTRYPOINT ["inferbase", "worker", "--engine", "tensorrt"]
