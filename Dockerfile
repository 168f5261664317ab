# The job with all it needs: for one machine, for rayjob.yaml on Kubernetes and for the nodes of cluster.yaml.
#
#   docker build --tag facelake .
#   docker run --rm --init --gpus all --shm-size 8g -v "$PWD/photos:/photos:ro" -v "$PWD/out:/out" facelake \
#     python -m jobs.extract /photos /out
#
# It runs as user 1000, who must be allowed to write /out. Ray keeps its object store in /dev/shm, hence --shm-size.
FROM python:3.11-slim-bookworm

# libgl1 and libglib2.0-0 are OpenCV's; KubeRay before 1.6 asks a node for its health with wget. No versions: Debian
# keeps one of each package, and a pinned one would break the build at the next fix.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 wget \
    && rm -rf /var/lib/apt/lists/*

# Into the system's Python, not a virtual environment: KubeRay starts Ray by `bash -lc "ray start …"`, and a login shell
# sets PATH anew. Bytecode is made here: the user below cannot write it, and every worker would compile torch again.
WORKDIR /app
COPY pyproject.toml requirements.lock ./
RUN pip install --no-cache-dir uv==0.13.9 \
    && uv pip install --system --no-cache --compile-bytecode --require-hashes \
       -r pyproject.toml --extra heif -c requirements.lock

COPY LICENSE ./
COPY jobs jobs
COPY models models
COPY pipeline pipeline
RUN python -m compileall -q jobs models pipeline \
    && useradd --create-home --uid 1000 facelake

# Workers of Ray find the code by PYTHONPATH, whatever folder they run in: nothing has to be shipped to them.
ENV PYTHONPATH=/app PYTHONUNBUFFERED=1
USER 1000
CMD ["python", "-m", "jobs.extract", "--help"]
