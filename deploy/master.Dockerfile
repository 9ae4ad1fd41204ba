# The master. Build from the root of the tree:  docker build -f deploy/master.Dockerfile -t bursar-master .
#
# NOT SECURED YET, as it is: in a container the master must listen off loopback to be of any use, and without certificates it does so
# only with --insecure. Publish its ports on loopback, or give it certificates instead (docs/security.md).
ARG PYTHON_VERSION=3.13
ARG BASE=python:${PYTHON_VERSION}-slim

FROM ${BASE} AS build
WORKDIR /src
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY proto/bursar proto/bursar
COPY core core
COPY master master
# For a mirror: --build-arg PIP_INDEX_URL=…
ARG PIP_INDEX_URL
RUN python3 -m venv /opt/bursar \
 && /opt/bursar/bin/pip install --no-cache-dir --only-binary :all: ".[master]"

FROM ${BASE}
RUN groupadd --gid 10001 bursar \
 && useradd --uid 10001 --gid bursar --home-dir /var/lib/bursar-master --create-home --shell /usr/sbin/nologin bursar
COPY --from=build /opt/bursar /opt/bursar
COPY deploy/health.py /opt/bursar/health.py
ENV PATH=/opt/bursar/bin:$PATH PYTHONUNBUFFERED=1
USER bursar
VOLUME /var/lib/bursar-master
EXPOSE 5050 5052
HEALTHCHECK --interval=5s --timeout=4s --start-period=20s CMD ["/opt/bursar/bin/python3", "/opt/bursar/health.py", "grpc", "127.0.0.1:5050"]
ENTRYPOINT ["/opt/bursar/bin/bursar-master", "--work-dir", "/var/lib/bursar-master"]
CMD ["--listen", "0.0.0.0:5050", "--metrics", "0.0.0.0:5052", "--insecure"]
