# A server in a container, with a database of its own in the volume:
#   docker build -t chatd .
#   docker run -p 8008:8008 -v chatd-data:/data -e CHATD_SERVER_NAME=example.org \
#       -e CHATD_REGISTRATION_SHARED_SECRET=… chatd
# With a configuration of your own:
#   docker run … -v ./homeserver.yaml:/config/homeserver.yaml:ro chatd run -c /config --data-dir /data

FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked && cp target/release/chatd /chatd

FROM debian:bookworm-slim
# Only PostgreSQL's programs are wanted, not the cluster that the package makes. /sockets is for
# instances in containers of one machine; see config-examples/twelve-containers.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates curl postgresql-common \
    && echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.conf \
    && apt-get install -y --no-install-recommends postgresql \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /data --shell /usr/sbin/nologin chatd \
    && install -d -o chatd -g chatd -m 755 /data /sockets
COPY --from=build /chatd /usr/local/bin/chatd
COPY config-examples/container.yaml /etc/chatd/homeserver.yaml
USER chatd
VOLUME /data
EXPOSE 8008
# Finishing requests and stopping the embedded database takes a few seconds.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s \
    CMD curl -fsS http://127.0.0.1:8008/health || exit 1
ENTRYPOINT ["chatd"]
CMD ["run", "-c", "/etc/chatd/homeserver.yaml", "--data-dir", "/data"]
