# The job and all it needs: for one machine, for rayjob.yaml on Kubernetes, and for the nodes of cluster.yaml.
#
#   docker build --tag facelake .
#   docker run --rm --init --gpus all --shm-size 8g -v "$PWD/photos:/photos:ro" -v "$PWD/out:/out" facelake \
#     facelake extract /photos /out
#
# It runs as user 1000, who must be able to write /out. Ray's object store is in /dev/shm, hence --shm-size.
FROM python:3.11-slim-bookworm

# torch compiles the networks for GPUs with g++. OpenCV needs libgl1 and libglib2.0-0. KubeRay before 1.6 checks a node's
# health with wget. No versions: Debian keeps one version of each package, so a pinned one would break the build at the
# next fix.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libgl1 libglib2.0-0 wget \
    && rm -rf /var/lib/apt/lists/*

# Into the system's Python, not a virtual environment: KubeRay runs `bash -lc "ray start …"`, and a login shell resets
# PATH. Bytecode is compiled here: the user below cannot write it, so every worker would compile torch again.
WORKDIR /app
COPY pyproject.toml requirements.lock ./
RUN pip install --no-cache-dir uv==0.13.9 \
    && uv pip install --system --no-cache --compile-bytecode --require-hashes \
       -r pyproject.toml --extra heif -c requirements.lock --group build

COPY LICENSE README.md ./
COPY jobs jobs
COPY models models
COPY pipeline pipeline
RUN uv pip install --system --no-cache --no-deps --no-build-isolation --editable . \
    && python -m compileall -q jobs models pipeline \
    && useradd --create-home --uid 1000 facelake

# Ray's workers find the code through PYTHONPATH in any working directory: no code needs to be shipped.
ENV PYTHONPATH=/app PYTHONUNBUFFERED=1
USER 1000
CMD ["facelake", "--help"]
