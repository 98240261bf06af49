# docker build -t order-gateway .
# docker run -p 8000:8000 -v gateway:/data -e GATEWAY_JWT_SECRET=… order-gateway
#
# The container listens on all its addresses. Without keys the gateway serves everyone, and therefore refuses
# to start there: give GATEWAY_JWT_SECRET, GATEWAY_JWT_PUBLIC_KEY or GATEWAY_JWKS_URL, or, to try it out
# on your own machine, -p 127.0.0.1:8000:8000 -e GATEWAY_INSECURE_OPEN=true.

FROM python:3.11-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
COPY static static
RUN python -m venv /opt/gateway && /opt/gateway/bin/pip install --no-cache-dir .

FROM python:3.11-slim
RUN useradd --system --uid 10001 --user-group --no-create-home gateway \
    && install --directory --owner gateway --group gateway /data
COPY --from=build /opt/gateway /opt/gateway
ENV PATH=/opt/gateway/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    GATEWAY_HOST=0.0.0.0 \
    GATEWAY_STORE=sqlite:/data/gateway.db
USER gateway
WORKDIR /data
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://localhost:' + os.environ.get('GATEWAY_PORT', '8000') + '/livez', timeout=2)"]
CMD ["gateway", "serve"]
