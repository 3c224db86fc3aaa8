{{/* Refuses values that fit the schema one by one and not together; each message says what to set. */}}
{{- define "cloudphone.checks" -}}
{{- $values := .Values -}}
{{- $own := $values.secrets.existingSecret -}}
{{- if $own -}}
  {{- if or $values.trialStores.enabled $values.redis.hosts $values.postgresql.host $values.redis.redlockUrls -}}
    {{- fail "secrets.existingSecret names the stores: leave trialStores.enabled, redis.hosts, redis.redlockUrls and postgresql.host out" -}}
  {{- end -}}
  {{- range $name, $value := $values.secrets.values -}}
    {{- if $value }}{{ fail (printf "secrets.values.%s would not be used beside secrets.existingSecret: put it into that Secret" $name) }}{{ end -}}
  {{- end -}}
{{- else -}}
  {{- if $values.trialStores.enabled -}}
    {{- if not $values.trialStores.password -}}
      {{- fail "trialStores.password is missing: --set trialStores.password=LETTERS_AND_DIGITS" -}}
    {{- end -}}
    {{- if or $values.redis.hosts $values.postgresql.host -}}
      {{- fail "trialStores.enabled brings both stores: leave redis.hosts and postgresql.host out" -}}
    {{- end -}}
  {{- else -}}
    {{- if not $values.redis.hosts }}{{ fail "redis.hosts is missing: name a Redis, secrets.existingSecret, or trialStores.enabled for a trial" }}{{ end -}}
    {{- if not $values.postgresql.host }}{{ fail "postgresql.host is missing: name a PostgreSQL, secrets.existingSecret, or trialStores.enabled for a trial" }}{{ end -}}
    {{- if and (eq $values.redis.mode "single") (ne (len $values.redis.hosts) 1) }}{{ fail "redis.hosts names several servers: redis.mode is to be sentinel or cluster" }}{{ end -}}
    {{- if and (eq $values.redis.mode "sentinel") (not $values.redis.sentinelService) }}{{ fail "redis.sentinelService is missing: what the sentinels call the master" }}{{ end -}}
    {{- if and (ne $values.redis.mode "single") (not $values.redis.redlockUrls) }}{{ fail (printf "redis.redlockUrls is missing: with redis.mode %s locks need independent masters" $values.redis.mode) }}{{ end -}}
    {{- if and (eq $values.redis.mode "cluster") (ne (int $values.redis.database) 0) }}{{ fail "redis.database is to be 0: a cluster has no other" }}{{ end -}}
  {{- end -}}
  {{- if eq $values.profile "production" -}}
    {{- range $name, $value := $values.secrets.values -}}
      {{- if not $value }}{{ fail (printf "secrets.values.%s is missing, or secrets.existingSecret: production makes no secrets by itself" $name) }}{{ end -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- if eq (toString (get $values.settings "TRUST_FORWARDED")) "true" -}}
  {{- if not (and $values.networkPolicy.enabled $values.networkPolicy.gatewayFrom) -}}
    {{- fail "settings.TRUST_FORWARDED wants networkPolicy.gatewayFrom to name the proxies: anybody else could claim any address" -}}
  {{- end -}}
{{- end -}}
{{- $devices := include "cloudphone.service" (list . "devices") | fromYaml -}}
{{- $pods := ternary $devices.autoscaling.maxReplicas $devices.replicas $devices.autoscaling.enabled -}}
{{- $runtime := get $values.settings "DEVICE_RUNTIME" | default "auto" -}}
{{- if and (not $values.devices.nodes) (ne $runtime "docker") (gt (int $pods) 1) -}}
  {{- fail "devices.nodes is missing: simulated devices listen within one pod, so that there may be no more than one: services.devices.replicas" -}}
{{- end -}}
{{- if and (include "cloudphone.phones" .) $values.devices.phones.networkPolicy (not $values.devices.phones.from) -}}
  {{- fail "devices.phones.from is missing: the addresses by which machines of this cluster reach phones, or devices.phones.networkPolicy=false" -}}
{{- end -}}
{{- if and $values.ingress.enabled (not $values.ingress.host) }}{{ fail "ingress.host is missing" }}{{ end -}}
{{- if and $values.httpRoute.enabled (not $values.httpRoute.parentRefs) }}{{ fail "httpRoute.parentRefs is missing: the Gateways that the route is for" }}{{ end -}}
{{- range $name, $_ := include "cloudphone.ports" . | fromYaml -}}
  {{- $service := include "cloudphone.service" (list $ $name) | fromYaml -}}
  {{- $scaling := $service.autoscaling -}}
  {{- if $scaling.enabled -}}
    {{- if lt (int $scaling.maxReplicas) (int $scaling.minReplicas) }}{{ fail (printf "services.%s.autoscaling.maxReplicas is below minReplicas" $name) }}{{ end -}}
    {{- if not (or $scaling.cpuPercent $scaling.podMetric.name) }}{{ fail (printf "services.%s.autoscaling has neither cpuPercent nor podMetric" $name) }}{{ end -}}
    {{- if ne (empty $scaling.podMetric.name) (empty $scaling.podMetric.averageValue) }}{{ fail (printf "services.%s.autoscaling.podMetric wants both name and averageValue" $name) }}{{ end -}}
  {{- end -}}
{{- end -}}
{{- end -}}
