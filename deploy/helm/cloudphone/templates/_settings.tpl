{{/* The settings of the program: what follows from the values, and what stands in `settings`. */}}

{{- define "cloudphone.secretName" -}}
{{- .Values.secrets.existingSecret | default (include "cloudphone.fullname" .) -}}
{{- end -}}

{{- define "cloudphone.redisUrl" -}}
{{- $redis := .Values.redis -}}
{{- $scheme := get (dict "single" "redis" "sentinel" "redis-sentinel" "cluster" "redis-cluster") $redis.mode -}}
{{- if $redis.tls }}{{ $scheme = replace "redis" "rediss" $scheme }}{{ end -}}
{{- $user := "" -}}
{{- if or $redis.username $redis.password -}}
{{- $user = printf "%s:%s@" (include "cloudphone.escaped" $redis.username) (include "cloudphone.escaped" $redis.password) -}}
{{- end -}}
{{- $query := list -}}
{{- range rest $redis.hosts }}{{ $query = append $query (printf "node=%s" .) }}{{ end -}}
{{- if eq $redis.mode "sentinel" -}}
{{- $query = append $query (printf "sentinelServiceName=%s" (include "cloudphone.escaped" $redis.sentinelService)) -}}
{{- end -}}
{{- if and $redis.tls .Values.storeAuthorities.existingSecret -}}
{{- $query = append $query (printf "sslrootcert=/etc/cloudphone/stores/%s" .Values.storeAuthorities.key) -}}
{{- end -}}
{{- $path := ternary "" (printf "/%s" (include "cloudphone.text" $redis.database)) (eq $redis.mode "cluster") -}}
{{ $scheme }}://{{ $user }}{{ first $redis.hosts }}{{ $path }}{{ if $query }}?{{ join "&" $query }}{{ end }}
{{- end -}}

{{- define "cloudphone.databaseUrl" -}}
{{- $store := .Values.postgresql -}}
{{- $user := include "cloudphone.escaped" $store.username -}}
{{- if $store.password }}{{ $user = printf "%s:%s" $user (include "cloudphone.escaped" $store.password) }}{{ end -}}
{{- $trust := "" -}}
{{- if and .Values.storeAuthorities.existingSecret (ne $store.sslMode "disable") -}}
{{- $trust = printf "&sslrootcert=/etc/cloudphone/stores/%s" .Values.storeAuthorities.key -}}
{{- end -}}
postgres://{{ $user }}@{{ $store.host }}:{{ include "cloudphone.text" $store.port }}/{{ include "cloudphone.escaped" $store.database }}?sslmode={{ $store.sslMode }}{{ $trust }}
{{- end -}}

{{/* What the chart's own Secret holds; nothing where there is one of the operator's. */}}
{{- define "cloudphone.secretData" -}}
{{- /* Whatever is rendered comes through here. */ -}}
{{- $_ := include "cloudphone.checks" . -}}
{{- if not .Values.secrets.existingSecret -}}
{{- $name := include "cloudphone.fullname" . -}}
{{- if .Values.trialStores.enabled -}}
{{- $password := .Values.trialStores.password -}}
REDIS_URL: {{ printf "redis://:%s@%s-redis:6379/0" $password $name | quote }}
DATABASE_URL: {{ printf "postgres://cloudphone:%s@%s-postgresql:5432/cloudphone?sslmode=disable" $password $name | quote }}
{{ else -}}
REDIS_URL: {{ include "cloudphone.redisUrl" . | quote }}
DATABASE_URL: {{ include "cloudphone.databaseUrl" . | quote }}
{{ end -}}
{{- with .Values.redis.redlockUrls -}}
REDLOCK_URLS: {{ join "," . | quote }}
{{ end -}}
{{- range $key, $value := .Values.secrets.values -}}
{{- if $value -}}
{{ $key }}: {{ $value | quote }}
{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The names of the secrets that pods find as files, as a list. */}}
{{- define "cloudphone.secretNames" -}}
{{- if .Values.secrets.existingSecret -}}
{{ .Values.secrets.names | sortAlpha | toYaml }}
{{- else -}}
{{ include "cloudphone.secretData" . | fromYaml | keys | sortAlpha | toYaml }}
{{- end -}}
{{- end -}}

{{/* Every setting that all pods share; none of them is a secret. */}}
{{- define "cloudphone.settings" -}}
{{- $settings := dict
  "PROFILE" .Values.profile
  "SANDBOX" "false"
  "LISTEN_ADDRESS" .Values.listenAddress
  "CLOUDPHONE_HOME" "/var/lib/cloudphone"
  "OBJECTS_FOLDER" "/var/lib/cloudphone-objects"
  "LOG_FORMAT" "json"
  "SHUTDOWN_GRACE_SECONDS" (include "cloudphone.text" .Values.drain.graceSeconds) -}}
{{- if and (not .Values.secrets.existingSecret) (ne .Values.redis.mode "single") -}}
{{- /* Behind sentinels and in a cluster a failover forgets what no replica has confirmed. */ -}}
{{- $_ := set $settings "REDIS_WAIT_REPLICAS" "1" -}}
{{- end -}}
{{- with .Values.devices.nodes -}}
{{- $_ := set $settings "DEVICE_NODES" (toJson .) -}}
{{- end -}}
{{- range include "cloudphone.secretNames" . | fromYamlArray -}}
{{- $_ := set $settings (printf "%s_FILE" .) (printf "/run/secrets/cloudphone/%s" .) -}}
{{- end -}}
{{- range $name, $value := .Values.settings -}}
{{- $_ := set $settings $name (include "cloudphone.text" $value) -}}
{{- end -}}
{{ toYaml $settings }}
{{- end -}}
