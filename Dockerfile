# The daemon with the Codex CLI that it was tested with. One process tree, no
# root, no secret: keys come from the environment of the container.
#
#   docker build -t codexpool .
#   docker run --rm -p 127.0.0.1:11435:11435 -e PROXY_API_KEY -e CODEX_UPSTREAM \
#     --stop-timeout 50 --pids-limit 512 --read-only \
#     --tmpfs /var/lib/codexpool:size=256m,uid=10001,mode=0700 codexpool
#
# Docker's own patience when it stops is 10 s. Load balancers have PROXY_PRESTOP_MS, 5 s,
# to notice, and turns that run have PROXY_DRAIN_MS, 30 s, to end.

# Go compiles for any platform, so this stage runs on the builder's own.
FROM --platform=$BUILDPLATFORM golang:1.26.8-bookworm AS build
WORKDIR /src
# Before the sources, so that an edit does not download the modules again.
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG TARGETOS TARGETARCH
ARG VERSION=unknown
ARG COMMIT=unknown
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -ldflags "-s -w -X main.release=$VERSION -X main.commit=$COMMIT" -o /out/codexpool ./cmd/codexpool

# npm picks the package of the platform that it runs on, so this stage runs on
# the target's. Node itself stays here: the CLI behind its wrapper is native.
FROM node:20.20.2-bookworm-slim AS codex
WORKDIR /src
COPY configs/codex/package.json configs/codex/package-lock.json configs/codex/.npmrc ./
# What goes is 120 MB for voice and code mode, which lean children do not have.
# rm fails where the package has changed, so that someone looks again.
RUN npm ci \
    && cd node_modules/@openai/codex-linux-*/vendor/*/ \
    && rm -r bin/codex-code-mode-host codex-resources/voice \
    && mv "$PWD" /opt/codex

FROM debian:bookworm-20260824-slim
# ca-certificates: the relay speaks TLS to the provider. Of the children, only the
# keeper of a login and those of CODEX_UPSTREAM=direct speak TLS.
# tini: what a child leaves behind gets PID 1 as its parent, and a Go program reaps
# only what it started.
# The versions are not pinned: Debian keeps only the last one of each. The uid is
# fixed so that mounted folders can be given to it. The workdir is not below
# /tmp, where Codex does not use its helper binaries.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates tini \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 codexpool \
    && useradd --uid 10001 --gid 10001 --no-log-init --create-home --shell /usr/sbin/nologin codexpool \
    && install -d -o codexpool -g codexpool -m 0700 /var/lib/codexpool
COPY --from=codex /opt/codex /opt/codex
COPY --from=build /out/codexpool /usr/local/bin/codexpool

# Loopback would be the container's own. Other containers can read metrics and health
# on the admin port, and nothing else. Never publish that port.
ENV PROXY_HOST=0.0.0.0 \
    PROXY_ADMIN_ADDR=0.0.0.0:11436 \
    PROXY_ADMIN_PUBLIC=true \
    PROXY_PRESTOP_MS=5000 \
    CODEX_BIN=/opt/codex/bin/codex \
    PROXY_CODEX_WORKDIR=/var/lib/codexpool
EXPOSE 11435 11436

# A number: Kubernetes cannot tell that a name is not root (runAsNonRoot).
USER 10001:10001
STOPSIGNAL SIGTERM
# It reads the environment as the daemon does, but not the daemon's --env-file.
HEALTHCHECK --interval=5s --timeout=6s --start-period=30s --retries=3 CMD ["codexpool", "health"]
ENTRYPOINT ["/usr/bin/tini", "--", "codexpool"]
