"""Wrong values are refused, and the message names which."""

import pytest
from conftest import SETS, template

# A set of values, what is wrong besides, and what the message says.
BY_SCHEMA = [
    ("production", ["imag.tag=1"], "imag"),
    ("production", ["image.tag=latest"], "/image/tag"),
    ("production", ["image.digest=sha256:12"], "/image/digest"),
    ("production", ["test.image=busybox"], "/test/image"),
    ("production", ["test.image=busybox:latest"], "/test/image"),
    ("production", ["profile=staging"], "/profile"),
    ("production", ["settings.RATE_LIMIT_PER_SECONDS=5"], "RATE_LIMIT_PER_SECONDS"),
    ("production", ["settings.DATABASE_URL=postgres://x"], "DATABASE_URL"),
    ("production", ["settings.SANDBOX=true"], "SANDBOX"),
    ("production", ["settings.GATEWAY_PORT=8080"], "GATEWAY_PORT"),
    ("production", ["secrets.names={REDIS_URL,SERVICE_SECRET}"], "/secrets/names"),
    ("production", ["secrets.values.PASSWORD=x"], "PASSWORD"),
    ("sentinel", ["secrets.values.SERVICE_SECRET=short"], "/secrets/values/SERVICE_SECRET"),
    ("sentinel", ["secrets.values.AUTH_SIGNING_KEY=short"], "/secrets/values/AUTH_SIGNING_KEY"),
    ("sentinel", ["redis.mode=proxy"], "/redis/mode"),
    ("sentinel", ["redis.hosts={redis}"], "/redis/hosts/0"),
    ("sentinel", ["redis.hosts={redis://redis:6379}"], "/redis/hosts/0"),
    ("sentinel", ["postgresql.sslMode=yes"], "/postgresql/sslMode"),
    ("sentinel", ["postgresql.port=0"], "/postgresql/port"),
    ("small", ["trialStores.password=a b"], "/trialStores/password"),
    ("small", ["objects.size=much"], "/objects/size"),
    ("production", ["services.gatway.replicas=3"], "gatway"),
    ("production", ["services.users.replicas=0"], "/services/users/replicas"),
    ("production", ["services.users.replica=3"], "replica"),
    ("production", ["defaults.spread.zones=Never"], "/defaults/spread/zones"),
    ("production", ["drain.graceSeconds=0"], "/drain/graceSeconds"),
    ("production", ["devices.nodes[0].name=a b"], "/devices/nodes/0"),
    ("production", ["devices.nodes[0].name=a", "devices.nodes[0].address=h", "devices.nodes[0].password=x"], "password"),
    ("production", ["gateway.service.type=ExternalName"], "/gateway/service/type"),
    ("production", ["networkPolicy.gatewayFrom[0].cidr=10.0.0.0/8"], "cidr"),
    ("production", ["serviceMonitor.interval=often"], "/serviceMonitor/interval"),
]
TOGETHER = [
    (None, [], "redis.hosts is missing"),
    ("production", ["trialStores.enabled=true"], "secrets.existingSecret names the stores"),
    ("production", ["redis.hosts={redis:6379}"], "secrets.existingSecret names the stores"),
    ("production", ["secrets.values.SERVICE_SECRET=c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IHNlY3I="], "secrets.values.SERVICE_SECRET"),
    ("production", ["networkPolicy.gatewayFrom=null"], "networkPolicy.gatewayFrom"),
    ("production", ["networkPolicy.enabled=false"], "networkPolicy.gatewayFrom"),
    ("production", ["devices.nodes=null", "settings.DEVICE_RUNTIME=simulated"], "devices.nodes is missing"),
    ("production", ["services.users.autoscaling.maxReplicas=2"], "services.users.autoscaling.maxReplicas"),
    ("production", ["services.users.autoscaling.cpuPercent=0"], "services.users.autoscaling"),
    ("production", ["services.users.autoscaling.podMetric.name=x"], "services.users.autoscaling.podMetric"),
    ("production", ["ingress.host="], "ingress.host is missing"),
    ("small", ["trialStores.password="], "trialStores.password is missing"),
    ("small", ["redis.hosts={redis:6379}"], "redis.hosts"),
    ("small", ["profile=production"], "secrets.values.AUTH_SIGNING_KEY is missing"),
    ("sentinel", ["redis.hosts=null"], "redis.hosts is missing"),
    ("sentinel", ["postgresql.host="], "postgresql.host is missing"),
    ("sentinel", ["redis.mode=single"], "redis.mode"),
    ("sentinel", ["redis.sentinelService="], "redis.sentinelService is missing"),
    ("sentinel", ["redis.redlockUrls=null"], "redis.redlockUrls is missing"),
    ("cluster", ["redis.database=1"], "redis.database"),
    ("sentinel", ["secrets.values.PAYMENT_WEBHOOK_SECRETS="], "secrets.values.PAYMENT_WEBHOOK_SECRETS is missing"),
    ("gateway-api", ["httpRoute.parentRefs=null"], "httpRoute.parentRefs is missing"),
    ("kubernetes", ["devices.phones.from=null"], "devices.phones.from is missing"),
]


@pytest.mark.parametrize(("name", "wrong", "said"), BY_SCHEMA + TOGETHER)
def test_what_is_wrong_is_named(name, wrong, said):
    arguments = SETS[name] if name else []

    outcome = template(*arguments, *(part for value in wrong for part in ["--set", value]))

    assert outcome.code != 0, "it was rendered"
    assert said in outcome.error


@pytest.mark.parametrize("said", ["imag", "redis.hosts", "production"])
def test_no_refusal_shows_a_secret(said):
    outcome = template(*SETS["sentinel"], "--set", "redis.password=", "--set", f"redis.hosts={{{said}}}")

    assert outcome.code != 0
    assert "secret1" not in outcome.error
