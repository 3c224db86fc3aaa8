# An image of a few megabytes that stands in for Android. The program is linked statically beforehand:
#
#   RUSTFLAGS='-C target-feature=+crt-static' cargo build --release -p device-stub --target x86_64-unknown-linux-gnu
#   docker build -f deploy/docker/device-stub.Dockerfile -t cloudphone/device-stub target/x86_64-unknown-linux-gnu/release
FROM scratch
COPY device-stub /device-stub
USER 65534:65534
EXPOSE 5555 8080 27183
ENTRYPOINT ["/device-stub"]
