# An agent. Build from the root of the tree:  docker build -f deploy/agent.Dockerfile -t bursar-agent .
#
# It starts tasks as siblings, through the engine of its machine; compose.yaml shows what that takes:
#   /var/run/docker.sock          the engine. WHOEVER HAS IT IS ROOT ON THE MACHINE, so a user of its own would be for show
#   /var/lib/bursar-agent         at the same path inside and outside: the engine mounts sandboxes by the path outside
#   --network host                the host's name, and its loopback when the master is there
#   --gpus all                    where there are any: what NVML reports is what the agent offers
# Tasks outlive the container of the agent, and its successor adopts them. That holds for --runtime docker alone.
ARG PYTHON_VERSION=3.13
ARG BASE=python:${PYTHON_VERSION}-slim

FROM ${BASE} AS build
WORKDIR /src
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY proto/bursar proto/bursar
COPY core core
COPY agent agent
# For a mirror: --build-arg PIP_INDEX_URL=…
ARG PIP_INDEX_URL
RUN python3 -m venv /opt/bursar \
 && /opt/bursar/bin/pip install --no-cache-dir --only-binary :all: ".[agent]"

FROM ${BASE}
COPY --from=build /opt/bursar /opt/bursar
COPY deploy/health.py /opt/bursar/health.py
# `utility` is NVML, all that the agent itself needs of a driver.
ENV PATH=/opt/bursar/bin:$PATH PYTHONUNBUFFERED=1 NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=utility
VOLUME /var/lib/bursar-agent
EXPOSE 5053
HEALTHCHECK --interval=5s --timeout=4s --start-period=20s CMD ["/opt/bursar/bin/python3", "/opt/bursar/health.py", "http", "127.0.0.1:5053"]
ENTRYPOINT ["/opt/bursar/bin/bursar-agent", "--work-dir", "/var/lib/bursar-agent", "--metrics", "127.0.0.1:5053"]
CMD ["--master", "127.0.0.1:5050"]
