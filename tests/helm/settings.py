"""The settings that an operator may give to the chart: those of deploy/config/development.env but for those that follow
from other values. Run by itself it writes them into values.schema.json."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/cloudphone"
SCHEMA = CHART / "values.schema.json"

SECRETS = {
    "REDIS_URL",
    "DATABASE_URL",
    "REDLOCK_URLS",
    "AUTH_SIGNING_KEY",
    "SERVICE_SECRET",
    "TWO_FACTOR_KEYS",
    "PAYMENT_WEBHOOK_SECRETS",
    "STRIPE_API_KEY",
    "STRIPE_WEBHOOK_SECRETS",
    "WECHATPAY_API_V3_KEYS",
    "ALIPAY_PRIVATE_KEY",
    "WECHATPAY_PRIVATE_KEY",
    "SMTP_URL",
    "SMS_SECRET",
    "OBJECTS_S3_SECRET_ACCESS_KEY",
    "MEDIA_PROVIDERS",
}
# What the chart says by itself, as other values have it.
OWN = SECRETS | {
    "PROFILE",
    "SANDBOX",
    "CLOUDPHONE_HOME",
    "OBJECTS_FOLDER",
    "LISTEN_ADDRESS",
    "ADVERTISE_ADDRESS",
    "ZONE",
    "GATEWAY_PORT",
    "USERS_PORT",
    "DEVICES_PORT",
    "APPS_PORT",
    "MEDIA_PORT",
    "BILLING_PORT",
    "NOTIFICATIONS_PORT",
    "GATEWAY_TLS_PORT",
    "GATEWAY_TLS_CERT",
    "GATEWAY_TLS_KEY",
    "SHUTDOWN_GRACE_SECONDS",
    "DEVICE_NODES",
}


def known() -> set[str]:
    """Every setting that the program has."""
    sample = (ROOT / "deploy/config/development.env").read_text()
    return set(re.findall(r"^#?([A-Z][A-Z0-9_]+)=", sample, re.MULTILINE))


def for_operators() -> list[str]:
    """Those that `settings` of the chart may name."""
    return sorted(known() - OWN)


def in_schema() -> list[str]:
    """Those that the schema lets through."""
    schema = json.loads(SCHEMA.read_text())
    return list(schema["properties"]["settings"]["properties"])


def write() -> None:
    """Writes them into the schema."""
    schema = json.loads(SCHEMA.read_text())
    schema["properties"]["settings"]["properties"] = {
        name: {"$ref": "#/definitions/setting"} for name in for_operators()
    }
    SCHEMA.write_text(json.dumps(schema, indent=2) + "\n")


if __name__ == "__main__":
    write()
